//! Ways out of a job, each tried twice: free, where it must work, or the attempt would prove
//! nothing; and held, where it must not. `docs/ENFORCEMENT.md` has the same table for people.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::{SocketAddr, UnixDatagram, UnixListener},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use jtnt_proto::policy::{Access, Children, Limits};

use super::{
    Attempt, Cause, Exit, Launcher, Left, Order, Stream, Things,
    attacks::{ATTACKS, As, WAYS},
    output,
};
use crate::{
    domain::policy::{Area, Confinement, Shape},
    platform::{
        account::Account,
        sandbox::{self, Plan},
    },
    runtime::durable,
};

/// Of the job's user, who owns what it shall not get at: only the sandbox stands in its way.
const UID: u32 = 61_190;

/// A folder with everything the attempts are about, and who listens.
struct Ground {
    dir: tempfile::TempDir,
    port: u16,
    name: String,
    _listening: (UnixListener, UnixListener, UnixDatagram, TcpListener),
}

impl Ground {
    fn new() -> Self {
        // Not in a place that a job has of its own.
        let dir = tempfile::tempdir_in("/var/lib").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let at = |name: &str| dir.path().join(name);
        let owned = |path: &Path| chown(path, Some(UID), Some(UID)).unwrap();
        for folder in ["open", "out", "open/agent", "part", "part/sub", "part/free", "bin"] {
            fs::create_dir(at(folder)).unwrap();
            owned(&at(folder));
        }
        let files = [
            "secret",
            "secret2",
            "secret3",
            "part/closed",
            "part/closed2",
            "part/fixed",
            "part/sub/closed",
            "bin/closed",
            "part/free/plain",
            "open/plain",
            "open/binary",
            "open/agent/key",
            "out/victim",
            "out/victim2",
        ];
        for file in files {
            durable::put(&at(file), b"key\n", 0o644).unwrap();
            owned(&at(file));
        }
        owned(dir.path());
        std::os::unix::fs::symlink(at("secret"), at("out/planted")).unwrap();
        let name = format!("jtnt-escapes-{}-{}", std::process::id(), at("x").display());
        let abstractly = {
            use std::os::linux::net::SocketAddrExt as _;
            SocketAddr::from_abstract_name(&name).unwrap()
        };
        let listening = (
            UnixListener::bind(at("open/sock")).unwrap(),
            UnixListener::bind_addr(&abstractly).unwrap(),
            UnixDatagram::bind(at("open/dgram")).unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        for socket in ["open/sock", "open/dgram"] {
            fs::set_permissions(at(socket), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let port = listening.3.local_addr().unwrap().port();
        Self { port, name, _listening: listening, dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// `open/` is open but for what is denied in it, and the agent's own.
    fn plan(&self) -> Plan {
        let area = |name: &str, shape: Shape, access: &[Access]| Area {
            path: self.path(name),
            shape,
            access: access.iter().copied().collect(),
        };
        let (read, write) = (Access::Read, Access::Write);
        Plan {
            confinement: Confinement {
                open: vec![
                    area("open", Shape::Tree, &[read, write]),
                    area("part", Shape::Tree, &[read, write]),
                    area("bin", Shape::Tree, &[Access::Execute]),
                    area("out/planted", Shape::One, &[read, write]),
                ],
                closed: vec![
                    area("part/closed", Shape::One, &[read, write]),
                    area("part/closed2", Shape::One, &[read]),
                    area("part/fixed", Shape::One, &[write]),
                    area("bin/closed", Shape::One, &[read]),
                    area("part/sub/closed", Shape::One, &[read]),
                    area("part/later", Shape::One, &[read, write]),
                ],
                children: Children::System,
                network: false,
                ipc: false,
            },
            hidden: vec![self.path("open/agent").into(), self.path("open/binary").into()],
            limits: Limits::default(),
            abilities: sandbox::abilities(),
        }
    }

    /// What a script says, as a job of a shell.
    async fn run(&self, who: As, script: &str, plan: Plan) -> String {
        self.end_of(who, script, plan).await.0
    }

    /// The same, and how it ended.
    async fn end_of(&self, who: As, script: &str, plan: Plan) -> (String, Exit) {
        let (account, shell, option) = match who {
            As::User => (Account::numbered(UID), "/bin/sh", "-c"),
            As::Root => (Account::own(), "/bin/sh", "-c"),
            As::Childless => (Account::numbered(UID), "/usr/bin/perl", "-e"),
        };
        let files = tempfile::tempdir().unwrap();
        let shell = fs::canonicalize(shell).unwrap().to_str().unwrap().to_owned();
        let variables = [
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("D", self.dir.path().to_str().unwrap()),
            ("PORT", &self.port.to_string()),
            ("ABSTRACT", &self.name),
        ];
        let order = Order {
            attempt: Attempt::new(files.path().join("job"), 1),
            argv0: shell.clone(),
            args: vec![option.into(), script.into()],
            env: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            cwd: "/".to_owned(),
            account,
            file_bytes: None,
            plan,
            output_bytes: 1 << 16,
            secrets: Vec::new(),
            watch: None,
            transfer: None,
            timeout: Duration::from_secs(20),
            grace: Duration::from_millis(200),
        };
        let file = fs::File::open(&shell).unwrap();
        let launcher = Launcher::of_tests();
        let shim = launcher.prepare(&order, Things::only(&file)).unwrap().go().unwrap();
        shim.ended().await.unwrap();
        let exit = match order.attempt.left().unwrap() {
            Left::Exit(exit) => *exit,
            other @ (Left::Nothing | Left::Started) => panic!("{script}: {other:?}"),
        };
        assert_eq!(exit.cause, Cause::Ended, "{script}");
        let said = |stream, kept: Option<_>| {
            let part = kept.map(|kept| output(order.attempt.dir(), stream, kept));
            part.map(|part| String::from_utf8_lossy(&part.head.0).into_owned()).unwrap_or_default()
        };
        (said(Stream::Stdout, exit.stdout) + &said(Stream::Stderr, exit.stderr), exit)
    }
}

fn can_be_tried() -> bool {
    let able = sandbox::abilities();
    let all = able.root && able.namespaces && able.landlock > 0 && able.seccomp;
    if !all {
        eprintln!("not tried: {able:?}");
    }
    all
}

#[tokio::test]
async fn no_way_leads_out() {
    if !can_be_tried() {
        return;
    }
    let mut wrong = Vec::new();
    for (name, who, script) in ATTACKS {
        let free = Ground::new().run(*who, script, Plan::default()).await;
        let ground = Ground::new();
        let mut plan = ground.plan();
        if *who == As::Childless {
            plan.confinement.children = Children::None;
        }
        let held = ground.run(*who, script, plan).await;
        let [free_out, held_out] = [&free, &held].map(|said| said.contains("ESCAPED"));
        println!(
            "{name:60} free: {:8} held: {}",
            if free_out { "escapes" } else { "FAILS" },
            if held_out { "ESCAPES" } else { "stays" }
        );
        if !free_out || held_out {
            wrong.push(format!("{name}: free {free:?}, held {held:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn denies_hold_where_nothing_covers_them() {
    if !can_be_tried() {
        return;
    }
    let about = ["denies", "its folder", "exchange", "read only"];
    let these = ATTACKS.iter().filter(|(name, ..)| about.iter().any(|word| name.contains(word)));
    for (name, who, script) in these {
        let ground = Ground::new();
        let mut plan = ground.plan();
        plan.abilities.namespaces = false;
        let said = ground.run(*who, script, plan).await;
        assert!(!said.contains("ESCAPED"), "{name}: {said}");
    }
}

#[test]
fn the_table_for_people_has_every_attempt() {
    let page = include_str!("../../../docs/ENFORCEMENT.md");
    for (name, ..) in ATTACKS {
        assert!(page.contains(&format!("| {name} | succeeds | fails |")), "{name}");
    }
}

#[tokio::test]
async fn what_a_job_needs_it_has() {
    if !can_be_tried() {
        return;
    }
    let ground = Ground::new();
    for who in [As::User, As::Root] {
        for (name, script) in WAYS {
            let script = script
                .replace("$D/open/d", if who == As::Root { "$D/open/dr" } else { "$D/open/d" });
            let said = ground.run(who, &script, ground.plan()).await;
            assert!(said.contains("ok"), "{name}: {said:?}");
        }
    }
    let mut plan = ground.plan();
    plan.confinement.children = Children::None;
    // Whoever does not wait for its child ends it.
    let script = "defined($p = fork) or exit; wait if $p; print 'ok'";
    let said = ground.run(As::Childless, script, plan).await;
    assert_eq!(said, "okok", "a program that may start nothing");
}

#[tokio::test]
async fn a_job_that_uses_too_much_memory_is_ended_and_told_apart() {
    let plan = |memory_bytes| {
        let limits = Limits { memory_bytes: Some(memory_bytes), ..Limits::default() };
        Plan { limits, abilities: sandbox::abilities(), ..Plan::default() }
    };
    if !plan(0).abilities.limits.memory {
        eprintln!("no control group for memory here: not tried");
        return;
    }
    let script = "perl -e '$x = \"x\" x (64 << 20); print \"done\"'";
    let ground = Ground::new();
    let (said, exit) = ground.end_of(As::User, script, plan(16 << 20)).await;
    assert!(
        exit.out_of_memory && exit.code != Some(0) && !said.contains("done"),
        "{said} {exit:?}"
    );
    let (said, exit) = ground.end_of(As::User, script, plan(512 << 20)).await;
    assert_eq!((&*said, exit.out_of_memory, exit.code), ("done", false, Some(0)));
}

#[tokio::test]
async fn a_job_has_no_more_processes_than_it_may() {
    let limits = Limits { pids: Some(8), ..Limits::default() };
    let plan = Plan { limits, abilities: sandbox::abilities(), ..Plan::default() };
    if !plan.abilities.limits.pids {
        eprintln!("no control group for processes here: not tried");
        return;
    }
    let script = "perl -e 'for (1..50) { $p = fork; defined $p or last; $p or do { sleep 20; exit }; \
                  $n++ } print $n'";
    let ground = Ground::new();
    let few: u32 = ground.run(As::User, script, plan).await.trim().parse().unwrap();
    assert!((4..8).contains(&few), "{few}");
    assert_eq!(ground.run(As::User, script, Plan::default()).await.trim(), "50");
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn files_that_come_and_go_keep_no_job_from_starting() {
    if !can_be_tried() {
        return;
    }
    let ground = Ground::new();
    let churn = ground.dir.path().join("open/churn");
    fs::create_dir(&churn).unwrap();
    let mut plan = ground.plan();
    let area = |shape| Area {
        path: churn.to_str().unwrap().to_owned(),
        shape,
        access: [Access::Read, Access::Write].into(),
    };
    let all = format!("{}/*", churn.display());
    plan.confinement.open.push(area(Shape::Glob(all)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // However this ends, it ends the other thread, too.
        let ends = Ends(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for n in 0..50 {
                    fs::File::create(churn.join(n.to_string())).unwrap();
                }
                for n in 0..50 {
                    fs::remove_file(churn.join(n.to_string())).unwrap();
                }
            }
        });
        let runs = async {
            for _ in 0..30 {
                let said = ground.run(As::User, "echo ok", plan.clone()).await;
                assert_eq!(said, "ok\n");
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(runs));
        drop(ends);
    });
}
