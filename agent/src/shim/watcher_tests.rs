//! What a watcher sees of real jobs: needs root, since only a job with a view of its own can be
//! watched.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{PermissionsExt as _, chown},
    },
    path::Path,
    sync::OnceLock,
};

use jtnt_proto::{bytes::Hash, policy::Access};

use super::{
    Cause, Left,
    tests::{Job, left},
};
use crate::{
    domain::{
        asked::{Action, Asked},
        enforcement::Abilities,
        policy::{Area, Confinement, Shape},
        seen::{MAX_PAIRS, Mark, Seen},
    },
    platform::{
        account::Account,
        sandbox::{self, Plan},
    },
    runtime::durable,
};

const UID: u32 = 61_191;

/// A folder that is not one of a job's own places, and belongs to its user.
fn ground() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/var/lib").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(dir.path(), Some(UID), Some(UID)).unwrap();
    dir
}

/// A job that is monitored, as a policy of that mode has it.
fn monitored(script: &str, dir: &Path) -> Job {
    let mut job = Job::of(script);
    let all = [Access::Read, Access::Write, Access::Execute].into();
    let open = vec![Area { path: "/".into(), shape: Shape::Tree, access: all }];
    let confinement = Confinement { open, network: true, ..Confinement::default() };
    job.order.plan = Plan { confinement, abilities: abilities(), ..Plan::default() };
    job.order.account = Account::numbered(UID);
    job.order.cwd = "/".into();
    job.order.env.insert("D".into(), dir.to_str().unwrap().into());
    let action = Action::Exec { path: job.order.argv0.clone(), args: job.order.args.clone() };
    let (run_as, env, limits) = (None, Vec::new(), jtnt_proto::policy::Limits::default());
    job.order.watch = Some(Asked { action, run_as, env, limits });
    job
}

async fn watched(job: &Job) -> Seen {
    let exit = job.run().await;
    assert_eq!((exit.cause, exit.code), (Cause::Ended, Some(0)));
    job.order.attempt.seen().unwrap().unwrap()
}

/// Looked for once: it takes away the empty groups of other tests, which may be about to use them.
fn abilities() -> Abilities {
    static FOUND: OnceLock<Abilities> = OnceLock::new();
    *FOUND.get_or_init(sandbox::abilities)
}

fn can_be_tried() -> bool {
    let able = abilities().namespaces;
    if !able {
        eprintln!("no namespaces here: not tried");
    }
    able
}

/// How a file of the ground was opened, and what else is said of it.
fn of(seen: &Seen, path: &Path) -> Option<(BTreeSet<Access>, BTreeSet<Mark>)> {
    let file = seen.files.iter().find(|file| Path::new(&file.path) == path)?;
    Some((file.access.clone(), file.marks.clone()))
}

/// Waits until the file system's clock tells what comes from this file, which is made by then.
fn after(path: &Path) {
    let born = |path: &Path| fs::metadata(path).unwrap().created().unwrap();
    let probe = path.with_extension("probe");
    loop {
        durable::put(&probe, b"", 0o600).unwrap();
        let later = born(&probe) > born(path);
        fs::remove_file(&probe).unwrap();
        if later {
            return;
        }
    }
}

#[tokio::test]
async fn what_a_job_opens_is_seen_as_its_view_has_it() {
    use Access::{Execute, Read, Write};
    if !can_be_tried() {
        return;
    }
    let dir = ground();
    let at = |name: &str| dir.path().join(name);
    for (name, mode) in [("in", 0o644), ("log", 0o666), ("both", 0o666), ("lib.so", 0o644)] {
        let content: &[u8] = if name == "lib.so" { b"\x7fELF" } else { b"x\n" };
        durable::put(&at(name), content, mode).unwrap();
    }
    fs::create_dir(at("folder")).unwrap();
    durable::put(&at("key"), b"x", 0o644).unwrap();
    fs::copy("/usr/bin/true", at("tool")).unwrap();
    after(&at("tool"));
    let script = "cat $D/in $D/lib.so > /dev/null; echo x >> $D/log; echo y > $D/made; \
                  read x <> $D/both; ls $D/folder; $D/tool; echo z > $D/passing; rm $D/passing; \
                  cat /etc/passwd $D/key > /tmp/own; true";
    let mut job = monitored(script, dir.path());
    job.order.plan.hidden = vec![at("key")];
    let seen = watched(&job).await;
    assert_eq!((seen.unwatched.as_deref(), seen.more, seen.held), (None, false, false));
    assert_eq!(seen.sha256, Some(Hash::of(&fs::read(&job.order.argv0).unwrap())));
    for (name, access, marks) in [
        ("in", &[Read][..], &[][..]),
        ("lib.so", &[Read], &[Mark::Native]),
        ("log", &[Write], &[]),
        ("made", &[Write], &[Mark::Made]),
        ("both", &[Read, Write], &[]),
        ("folder", &[Read], &[Mark::Folder]),
        ("passing", &[Write], &[Mark::Made, Mark::Gone]),
    ] {
        let expected =
            (access.iter().copied().collect(), marks.iter().copied().collect::<BTreeSet<_>>());
        let (seen, mut marks) = of(&seen, &at(name)).unwrap_or_else(|| panic!("{name}: {seen:?}"));
        // The ground itself is not root's.
        marks.remove(&Mark::Unguarded);
        assert_eq!((seen, marks), expected, "{name}");
    }
    let (access, marks) = of(&seen, &at("tool")).unwrap();
    assert!(access.contains(&Execute) && marks.contains(&Mark::Unguarded), "{access:?} {marks:?}");
    let cat = fs::canonicalize("/usr/bin/cat").unwrap();
    assert_eq!(of(&seen, &cat).unwrap().0, [Execute].into());
    for path in ["/etc/passwd", "/tmp/own", "/dev/null", "/dev/secrets"] {
        assert_eq!(of(&seen, Path::new(path)), None, "{path}");
    }
    assert_eq!(of(&seen, &at("key")), None, "what is hidden is none of a job's files");

    // It stays as long as output does, and goes with the folder.
    job.order.attempt.forget();
    assert!(job.order.attempt.seen().unwrap().is_some());
    let mode = fs::metadata(job.order.attempt.dir().join("seen.1.json")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn names_are_taken_as_they_are() {
    if !can_be_tried() {
        return;
    }
    let dir = ground();
    for name in [&b"a\nb"[..], b"\xff", b"x (deleted)", b"*", b"sp ace"] {
        durable::put(&dir.path().join(OsStr::from_bytes(name)), b"x", 0o644).unwrap();
    }
    let seen = watched(&monitored("cat $D/* > /dev/null", dir.path())).await;
    for name in ["a\nb", "x (deleted)", "*", "sp ace"] {
        assert!(of(&seen, &dir.path().join(name)).is_some(), "{name:?}");
    }
    assert_eq!(seen.odd, [format!("{}/\u{fffd}", dir.path().display())].into());
}

#[tokio::test]
async fn a_job_that_opens_more_than_is_kept_is_not_kept_waiting() {
    if !can_be_tried() {
        return;
    }
    let dir = ground();
    let script = "perl -e 'for (1..6000) { open(F, \">\", \"$ENV{D}/$_\") or die; close F }'";
    let seen = watched(&monitored(script, dir.path())).await;
    let pairs: usize = seen.files.iter().map(|file| file.access.len()).sum();
    assert!(seen.more && pairs <= MAX_PAIRS, "{pairs}");
}

#[tokio::test]
async fn a_job_without_a_view_of_its_own_runs_and_it_is_told_that_nobody_watched() {
    let mut job = monitored("true", Path::new("/"));
    job.order.plan = Plan::default();
    job.order.account = Account::own();
    let seen = watched(&job).await;
    let why = seen.unwatched.clone().unwrap();
    assert!(why.contains("no view of its own"), "{why}");
    assert!(seen.sha256.is_some() && seen.files.is_empty() && seen.held);
}

#[tokio::test]
async fn a_job_does_not_fail_for_its_watcher() {
    if !can_be_tried() {
        return;
    }
    let dir = ground();
    let job = monitored("while [ ! -e $D/go ]; do sleep 0.01; done; echo x > $D/out", dir.path());
    let shim = job.go();
    let pid = shim.process().pid;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let children: Vec<i32> = children.split_whitespace().map(|n| n.parse().unwrap()).collect();
    let watcher = children.iter().find(|pid| name(pid) == "jtnt-watcher\n").unwrap();
    let watcher = rustix::process::Pid::from_raw(*watcher).unwrap();
    rustix::process::kill_process(watcher, rustix::process::Signal::KILL).unwrap();
    durable::put(&dir.path().join("go"), b"", 0o644).unwrap();
    let Left::Exit(exit) = left(&job, &shim).await else { panic!("it left nothing") };
    assert_eq!((exit.cause, exit.code), (Cause::Ended, Some(0)));
    let seen = job.order.attempt.seen().unwrap().unwrap();
    assert!(seen.unwatched.is_some() && seen.files.is_empty());
    assert_eq!(Some(seen.asked), job.order.watch);
}
