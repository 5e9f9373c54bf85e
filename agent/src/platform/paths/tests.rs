//! Hostile paths, each as it would come in a job.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::PathBuf,
};

use rustix::fs::{FileType, Mode, mknodat};

use super::*;

/// A folder without links in its own name, so that `/tmp` may be one.
struct Folder {
    real: PathBuf,
    _removed_at_the_end: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Everybody's, wherever temporary folders are made.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Self { real: dir.path().canonicalize().unwrap(), _removed_at_the_end: dir }
    }

    fn of_own() -> Self {
        let folder = Self::new();
        fs::set_permissions(&folder.real, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    fn path(&self, name: &str) -> String {
        self.real.join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str) -> String {
        let path = self.path(name);
        fs::copy("/proc/self/exe", &path).unwrap();
        path
    }
}

fn program(path: &str) -> &'static str {
    Opened::program(path).map_or_else(|e| e.reason(), |_| "OPENED")
}

fn source(path: &str) -> &'static str {
    Opened::source(path).map_or_else(|e| e.reason(), |_| "OPENED")
}

fn place(path: &str) -> &'static str {
    Place::open(path).map_or_else(|e| e.reason(), |_| "OPENED")
}

#[test]
fn a_path_that_is_not_plain_is_refused_as_text() {
    for open in [program, source, place] {
        for relative in ["", "bin/ls", "./x", "~/x"] {
            assert_eq!(open(relative), "PATH_RELATIVE", "{relative:?}");
        }
        for odd in ["/usr/../bin/ls", "/usr//bin/ls", "//bin/ls", "/usr/bin/./ls", "/usr/bin/ls/"] {
            assert_eq!(open(odd), "PATH_NOT_NORMAL", "{odd:?}");
        }
        assert_eq!(open("/usr/bin/ls/."), "PATH_NOT_NORMAL");
        assert_eq!(open("/usr/bin/ls/.."), "PATH_NOT_NORMAL");
        assert_eq!(open("/usr/bin/ls\0x"), "PATH_NOT_NORMAL");
        assert_eq!(open(&format!("/{}", "a/".repeat(2047) + "ab")), "PATH_TOO_LONG");
    }
}

#[test]
fn a_path_of_4095_bytes_is_looked_up_and_a_long_name_is_not() {
    let longest = format!("/{}", "a/".repeat(2046) + "ab");
    assert_eq!(longest.len(), 4095);
    assert_eq!(program(&longest), "PATH_MISSING");
    assert_eq!(program(&format!("/{}", "a".repeat(256))), "PATH_TOO_LONG");
}

#[test]
fn trailing_dots_are_part_of_a_name() {
    let folder = Folder::new();
    let path = folder.file("ls");
    assert_eq!(program(&format!("{path}.")), "PATH_MISSING");
    assert_eq!(program(&format!("{path}...")), "PATH_MISSING");
    let dotted = folder.file("ls...");
    assert_eq!(Opened::program(&dotted).unwrap().canonical(), dotted);
}

#[test]
fn a_link_is_followed_for_a_program_and_for_nothing_else() {
    let folder = Folder::new();
    let (real, link) = (folder.file("real"), folder.path("link"));
    symlink(&real, &link).unwrap();
    assert_eq!(Opened::program(&link).unwrap().canonical(), real);
    assert_eq!(source(&link), "PATH_LINK");
    assert_eq!(place(&link), "PATH_LINK");

    let (dir, dir_link) = (folder.path("dir"), folder.path("dirlink"));
    fs::create_dir(&dir).unwrap();
    symlink(&dir, &dir_link).unwrap();
    folder.file("dir/f");
    assert_eq!(Opened::source(&format!("{dir_link}/f")).unwrap().canonical(), format!("{dir}/f"));
    assert_eq!(place(&format!("{dir_link}/f")), "PATH_LINK");
}

#[test]
fn links_that_lead_nowhere_or_round_are_refused() {
    let folder = Folder::new();
    let (dangling, round) = (folder.path("dangling"), folder.path("round"));
    symlink(folder.path("nothing"), &dangling).unwrap();
    symlink(&round, &round).unwrap();
    assert_eq!(program(&dangling), "PATH_MISSING");
    assert_eq!(place(&dangling), "PATH_LINK");
    assert_eq!(program(&round), "PATH_LINK");
}

#[test]
fn proc_and_its_magic_links_lead_nowhere() {
    let folder = Folder::new();
    for magic in ["/proc/self/root/usr/bin/env", "/proc/self/exe", "/proc/self/cwd/x"] {
        assert_eq!(program(magic), "PATH_LINK", "{magic}");
        assert_eq!(place(magic), "PATH_LINK", "{magic}");
    }
    assert_eq!(program("/proc/self/fd/0"), "PATH_LINK");
    assert_eq!(program("/dev/fd/0"), "PATH_LINK");
    assert_eq!(source("/proc/self/environ"), "PATH_PROC");
    assert_eq!(source("/proc/version"), "PATH_PROC");
    assert_eq!(place("/proc/sysrq-trigger"), "PATH_PROC");
    let link = folder.path("link");
    symlink("/proc/self/root", &link).unwrap();
    assert_eq!(program(&format!("{link}/usr/bin/env")), "PATH_LINK");
}

#[test]
fn a_link_to_a_name_that_is_not_utf8_is_refused() {
    let folder = Folder::new();
    let odd = folder.real.join(OsStr::from_bytes(b"caf\xe9"));
    fs::copy("/proc/self/exe", &odd).unwrap();
    let link = folder.path("link");
    symlink(&odd, &link).unwrap();
    assert_eq!(program(&link), "PATH_NOT_UTF8");
}

#[test]
fn hard_links_are_counted_and_never_read_or_written() {
    let folder = Folder::new();
    let (one, two) = (folder.file("one"), folder.path("two"));
    fs::hard_link(&one, &two).unwrap();
    assert_eq!(Opened::program(&two).unwrap().links(), 2);
    assert_eq!(source(&two), "HARD_LINK");
    assert_eq!(place(&two), "HARD_LINK");
}

#[test]
fn only_regular_files_are_opened() {
    let folder = Folder::new();
    let (fifo, socket) = (folder.path("fifo"), folder.path("socket"));
    let mode = Mode::from_raw_mode(0o600);
    mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    // A pipe without a writer would block an ordinary open for ever.
    let here = folder.real.to_str().unwrap();
    for odd in [fifo.as_str(), &socket, "/dev/null", "/dev/zero", here, "/"] {
        for open in [program, source, place] {
            assert_eq!(open(odd), "PATH_NOT_A_FILE", "{odd}");
        }
    }
}

#[test]
fn what_others_may_write_is_not_guarded() {
    let folder = Folder::new();
    assert!(!Opened::program(&folder.file("x")).unwrap().guarded(), "its folder is everybody's");
    assert!(!Place::open(&folder.path("new")).unwrap().guarded());
    let env = Opened::program("/usr/bin/env").unwrap();
    assert!(env.guarded() && env.is_native().unwrap() && !env.changes_rights().unwrap());
}

#[test]
fn set_id_is_seen() {
    let folder = Folder::new();
    let path = folder.file("x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    assert!(Opened::program(&path).unwrap().changes_rights().unwrap());
}

#[test]
fn a_script_is_not_native_nor_is_an_empty_file() {
    let folder = Folder::new();
    for (name, content) in [("script", "#!/bin/sh\n"), ("empty", ""), ("short", "\x7fEL")] {
        let path = folder.path(name);
        crate::runtime::durable::replace(path.as_ref(), content.as_bytes(), 0o755).unwrap();
        assert!(!Opened::program(&path).unwrap().is_native().unwrap(), "{name}");
    }
}

#[test]
fn what_was_opened_stays_what_it_was() {
    let folder = Folder::new();
    let path = folder.file("x");
    let before = hash(&Opened::program(&path).unwrap()).unwrap();
    let opened = Opened::program(&path).unwrap();
    fs::rename(&path, folder.path("moved")).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert_eq!(hash(&opened).unwrap(), before);
}

#[test]
fn a_sealed_copy_runs_and_cannot_be_changed() {
    let folder = Folder::new();
    let path = folder.path("true");
    fs::copy("/usr/bin/true", &path).unwrap();
    let opened = Opened::program(&path).unwrap();
    let (mut copy, copied) = sealed_copy(&opened).unwrap();
    assert_eq!(copied, hash(&opened).unwrap());
    std::io::Write::write_all(&mut copy, b"x").unwrap_err();
    copy.set_len(0).unwrap_err();
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    assert!(std::process::Command::new(name).status().unwrap().success());
}

#[test]
fn a_place_is_an_open_folder_and_a_name() {
    let folder = Folder::new();
    let place = Place::open(&folder.path("new")).unwrap();
    assert_eq!((place.name.as_str(), place.canonical()), ("new", folder.path("new").as_str()));
    assert_eq!(Place::open("/jtnt-new").unwrap().canonical(), "/jtnt-new");
    assert_eq!(Place::open(&folder.path("no/new")).unwrap_err().reason(), "PATH_MISSING");
    let opened = Opened::source(&folder.file("old")).unwrap();
    let over = Place::open(&folder.path("old")).unwrap();
    assert_eq!(over.inodes().last(), opened.inodes().first());
}

#[test]
fn rules_are_resolved_as_requests_are() {
    let folder = Folder::of_own();
    let (real, link) = (folder.file("real"), folder.path("link"));
    symlink(&real, &link).unwrap();
    assert_eq!(resolve(link.as_ref()), real);
    assert_eq!(resolve("/no/such/file".as_ref()), "/no/such/file");
    let (dir, to_dir) = (folder.path("dir"), folder.path("to-dir"));
    fs::create_dir(&dir).unwrap();
    symlink(&dir, &to_dir).unwrap();
    assert_eq!(resolve(format!("{to_dir}/later").as_ref()), format!("{dir}/later"));
    assert_eq!(resolve("/".as_ref()), "/");
}

#[test]
fn a_link_that_others_made_says_nothing_of_a_rule() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: a link of another user's was not tried");
        return;
    }
    let folder = Folder::of_own();
    let (real, link, sub) = (folder.file("real"), folder.path("link"), folder.path("sub/link"));
    symlink(&real, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(61_184), None).unwrap();
    assert_eq!(resolve(link.as_ref()), link);
    let open = folder.path("sub");
    fs::create_dir(&open).unwrap();
    symlink(&real, &sub).unwrap();
    assert_eq!(resolve(sub.as_ref()), real);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(resolve(sub.as_ref()), sub);
}

/// Whoever owns a file may hold a lease on it; who opens it then waits up to 45 s.
#[cfg(target_os = "linux")]
#[test]
fn a_lease_makes_nobody_wait() {
    use std::{io::BufRead as _, process::Stdio};
    // F_SETLEASE, F_WRLCK. A break is told by a signal.
    const HOLD: &str = r#"$SIG{IO} = "IGNORE"; open(F, "+<", $ARGV[0]) or die;
        fcntl(F, 1024, 1) or die; $| = 1; print "held\n"; sleep 600"#;
    let folder = Folder::new();
    let path = folder.file("leased");
    let mut perl = std::process::Command::new("perl");
    let mut holder = perl.args(["-e", HOLD, &path]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    std::io::BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "held\n");
    let source = Opened::source(&path).unwrap();
    let held = source.reader().map(drop).map_err(|fault| fault.reason());
    let refused = reach(&path, &source.into_file(), rustix::fs::OFlags::RDONLY);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(held, Err("PATH_BUSY"));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn every_folder_above_is_looked_at_however_many_there_are() {
    let folder = Folder::new();
    let mut path = PathBuf::from(folder.path("deep"));
    (0..40).for_each(|level| path.push(level.to_string()));
    fs::create_dir_all(&path).unwrap();
    let file = path.join("file");
    crate::runtime::durable::replace(&file, b"content", 0o644).unwrap();
    let opened = Opened::source(file.to_str().unwrap()).unwrap();
    for above in file.ancestors() {
        let inode = Inode::of(&fs::metadata(above).unwrap());
        assert!(opened.inodes().contains(&inode), "{}", above.display());
    }
    assert_eq!(opened.inodes().len(), file.ancestors().count());
    // One that others may write, wherever it is, leaves nothing below it guarded.
    let program = |mode| {
        fs::set_permissions(folder.path("deep/0/1"), fs::Permissions::from_mode(mode)).unwrap();
        Opened::source(file.to_str().unwrap()).unwrap().guarded()
    };
    assert!(!program(0o777));
}
