//! Programs that run whatever they are given: no rule about programs can allow them, since their
//! arguments are code. They are for script rules, which pin what they run.

/// In order, to be searched. By name without version digits, so that `python3.11` is `python`.
const INTERPRETERS: [&str; 62] = [
    "ash",
    "awk",
    "bash",
    "bun",
    "busybox",
    "chroot",
    "csh",
    "dash",
    "deno",
    "doas",
    "ed",
    "env",
    "expect",
    "find",
    "fish",
    "gawk",
    "gdb",
    "guile",
    "irb",
    "java",
    "ksh",
    "ld.so",
    "lua",
    "luajit",
    "make",
    "mawk",
    "mksh",
    "nice",
    "node",
    "nodejs",
    "nohup",
    "nsenter",
    "perl",
    "php",
    "pkexec",
    "pypy",
    "python",
    "rbash",
    "ruby",
    "runuser",
    "script",
    "sed",
    "setpriv",
    "setsid",
    "sh",
    "start-stop-daemon",
    "stdbuf",
    "strace",
    "su",
    "sudo",
    "systemd-run",
    "tclsh",
    "tcsh",
    "timeout",
    "toybox",
    "unshare",
    "vi",
    "vim",
    "watch",
    "wish",
    "xargs",
    "zsh",
];

/// Whether the file's name is one of [`INTERPRETERS`], version and `ld-linux` spellings included.
#[must_use]
pub fn is_interpreter(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    [name, stem].iter().any(|n| INTERPRETERS.binary_search(n).is_ok())
        || (name.starts_with("ld") && name.contains(".so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_in_the_order_that_the_search_needs() {
        assert!(INTERPRETERS.is_sorted());
        for name in ["bash", "python3.11", "perl5.36.0", "ld-linux-x86-64.so.2", "systemd-run"] {
            assert!(is_interpreter(&format!("/usr/bin/{name}")), "{name}");
        }
        for name in ["ls", "true", "shuf", "ldconfig"] {
            assert!(!is_interpreter(&format!("/usr/bin/{name}")), "{name}");
        }
    }
}
