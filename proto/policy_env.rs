//! Names in a job's environment that no rule can allow: each makes a loader or an interpreter run
//! code that the policy never saw.

const PREFIXES: [&str; 17] = [
    "LD_", "DYLD_", "PYTHON", "PERL", "RUBY", "GEM_", "NODE_", "NPM_", "BASH_", "GIT_", "JAVA_",
    "_JAVA", "LUA_", "GCONV_", "MALLOC_", "GLIBC_", "JTNT_",
];
const NAMES: [&str; 22] = [
    "ENV",
    "IFS",
    "PATH",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "CDPATH",
    "GLOBIGNORE",
    "PROMPT_COMMAND",
    "ZDOTDIR",
    "NLSPATH",
    "LOCPATH",
    "HOSTALIASES",
    "RES_OPTIONS",
    "TMPDIR",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "AWKPATH",
    "AWKLIBPATH",
    "CLASSPATH",
    "JDK_JAVA_OPTIONS",
];

/// Whether a job may set `name` at all: a plain name that steers no loader or interpreter.
#[must_use]
pub fn may_be_set(name: &str) -> bool {
    let mut chars = name.bytes();
    let plain = chars.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && chars.all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.len() <= 128;
    let upper = name.to_ascii_uppercase();
    plain && !NAMES.contains(&upper.as_str()) && !PREFIXES.iter().any(|p| upper.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_and_interpreter_variables_are_never_set() {
        for bad in
            ["LD_PRELOAD", "ld_audit", "PYTHONPATH", "BASH_ENV", "ENV", "PATH", "IFS", "PERL5OPT"]
        {
            assert!(!may_be_set(bad), "{bad}");
        }
        for bad in ["", "1A", "A=B", "A B", "BASH_FUNC_x%%", "É"] {
            assert!(!may_be_set(bad), "{bad}");
        }
        for good in ["SITE", "http_proxy", "_X", "LDAP_URI"] {
            assert!(may_be_set(good), "{good}");
        }
    }
}
