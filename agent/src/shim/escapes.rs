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
    time::Duration,
};

use jtnt_proto::policy::{Access, Children, Limits};

use super::{Attempt, Cause, Exit, Launcher, Left, Order, Stream, Things, output};
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

/// Who tries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    /// A user of the job's own.
    User,
    /// Root, as a rule may say.
    Root,
    /// As [`As::User`], under a rule that lets it start nothing. Its script is for perl.
    Childless,
}

/// An attempt: its name, who, and a script that says ESCAPED where it succeeds. `$D` is a folder
/// with `secret` in it, and `open/` is what the policy opens.
type Attack = (&'static str, As, &'static str);

/// Work where nothing holds a job.
const ATTACKS: &[Attack] = &[
    ("read a file that no rule opens", As::User, "grep -q key $D/secret && echo ESCAPED"),
    (
        "read it through a symbolic link",
        As::User,
        "ln -s $D/secret $D/open/l; grep -q key $D/open/l && echo ESCAPED",
    ),
    (
        "read it through a link that another process changes, 10,000 times",
        As::User,
        "perl -e '$d = \"$ENV{D}/open\"; sub to { symlink $_[0], \"$d/n\"; \
         rename \"$d/n\", \"$d/race\" } \
         sub see { open F, \"<\", \"$d/race\" and <F> =~ /key/ and $seen = 1 } \
         open F, \">\", \"$d/fine\"; close F; to(\"$d/fine\"); \
         if ($p = fork) { for (1..10000) { see } kill 9, $p; wait; to(\"$ENV{D}/secret\"); see; \
         print \"ESCAPED\" if $seen } \
         else { while (1) { to(\"$ENV{D}/secret\"); to(\"$d/fine\") } }'",
    ),
    (
        "read it through a link where a rule's own file was",
        As::User,
        "grep -q key $D/out/planted && echo ESCAPED",
    ),
    ("read it through ..", As::User, "grep -q key $D/open/../secret && echo ESCAPED"),
    (
        "read it through /proc/self/root",
        As::User,
        "grep -q key /proc/self/root$D/secret && echo ESCAPED",
    ),
    (
        "read it through a new hard link",
        As::User,
        "ln $D/secret $D/open/h; grep -q key $D/open/h && echo ESCAPED",
    ),
    ("list a folder that no rule opens", As::User, "ls $D | grep -q secret && echo ESCAPED"),
    ("write to it", As::User, "echo x >> $D/secret && echo ESCAPED"),
    ("truncate it", As::User, "perl -e 'truncate($ENV{D}.\"/secret2\", 0) && print \"ESCAPED\"'"),
    ("remove it", As::User, "rm $D/out/victim && echo ESCAPED"),
    ("move a file out", As::User, "echo x > $D/open/f; mv $D/open/f $D/out/f && echo ESCAPED"),
    ("change its mode", As::User, "chmod 4777 $D/secret3 && echo ESCAPED"),
    ("read a file that a rule denies", As::User, "grep -q key $D/part/closed && echo ESCAPED"),
    (
        "rename what a rule denies, then read it",
        As::User,
        "mv $D/part/closed2 $D/part/c; grep -q key $D/part/c && echo ESCAPED",
    ),
    (
        "move its folder away, then read it",
        As::User,
        "mv $D/part/sub $D/part/s2; grep -q key $D/part/s2/closed && echo ESCAPED",
    ),
    (
        "exchange it for another",
        As::User,
        "echo key > $D/part/free/x; mv $D/part/free/x $D/part/closed && echo ESCAPED",
    ),
    (
        "make a file that a rule denies and that is not there yet",
        As::User,
        "echo x > $D/part/later && echo ESCAPED",
    ),
    (
        "read what a rule denies where all may be executed",
        As::User,
        "grep -q key $D/bin/closed && echo ESCAPED",
    ),
    ("write to a file that may be read only", As::User, "echo x >> $D/part/fixed && echo ESCAPED"),
    (
        "execute a file that it wrote",
        As::User,
        "cp /usr/bin/true $D/open/t && $D/open/t && echo ESCAPED",
    ),
    (
        "execute a file in its temporary folder",
        As::User,
        "cp /usr/bin/true /tmp/jtnt-t && /tmp/jtnt-t && echo ESCAPED",
    ),
    (
        "execute it by the loader",
        As::User,
        "cp /usr/bin/true $D/open/u && /lib64/ld-linux-x86-64.so.2 $D/open/u && echo ESCAPED",
    ),
    (
        "execute a file in memory",
        As::User,
        "perl -e '$n = \"x\"; $f = syscall(319, $n, 0); exit if $f < 0; open(F, \"+<&=\", $f); \
         open(I, \"<\", \"/usr/bin/true\"); print F $_ while <I>; \
         open(R, \"<\", \"/proc/self/fd/$f\"); close(F); \
         system(\"/proc/self/fd/\" . fileno(R)) == 0 && print \"ESCAPED\"'",
    ),
    (
        "execute one by the loader",
        As::User,
        "perl -e '$n = \"x\"; $f = syscall(319, $n, 8); exit if $f < 0; open(F, \"+<&=\", $f); \
         open(I, \"<\", \"/usr/bin/true\"); print F $_ while <I>; close(I); F->flush; \
         $^F = 99; open(R, \"<\", \"/proc/self/fd/$f\"); \
         system(\"/lib64/ld-linux-x86-64.so.2\", \"/proc/self/fd/\" . fileno(R)) == 0 \
         && print \"ESCAPED\"'",
    ),
    (
        "reach a Unix socket by its path",
        As::User,
        "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) && \
         connect(S, pack_sockaddr_un($ENV{D}.\"/open/sock\")) && print \"ESCAPED\"'",
    ),
    (
        "reach an abstract Unix socket",
        As::User,
        "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) && \
         connect(S, pack_sockaddr_un(\"\\0\".$ENV{ABSTRACT})) && print \"ESCAPED\"'",
    ),
    (
        "send to a Unix socket from one of a pair",
        As::User,
        "perl -MSocket -e 'socketpair(A, B, AF_UNIX, SOCK_DGRAM, 0) && \
         send(A, \"x\", 0, pack_sockaddr_un($ENV{D}.\"/open/dgram\")) && print \"ESCAPED\"'",
    ),
    (
        "send to one from another kind of pair",
        As::User,
        "perl -MSocket -e 'socketpair(A, B, AF_UNIX, SOCK_RAW, 0) && \
         send(A, \"x\", 0, pack_sockaddr_un($ENV{D}.\"/open/dgram\")) && print \"ESCAPED\"'",
    ),
    (
        "reach the network where the policy says none",
        As::User,
        "perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0) && \
         connect(S, pack_sockaddr_in($ENV{PORT}, INADDR_LOOPBACK)) && print \"ESCAPED\"'",
    ),
    ("make a user namespace", As::User, "unshare -U true && echo ESCAPED"),
    (
        "make one by clone",
        As::User,
        "perl -e '$p = syscall(56, 0x10000000 | 17, 0, 0, 0, 0); exit unless defined $p; \
         exit if $p == 0; $p > 0 && print \"ESCAPED\"'",
    ),
    (
        "make a child of whoever keeps the job",
        As::User,
        "perl -e '$p = syscall(56, 0x8000 | 17, 0, 0, 0, 0); exit unless defined $p; \
         exit if $p == 0; $p > 0 && print \"ESCAPED\"'",
    ),
    (
        "leave a set-user-id program behind",
        As::User,
        "cp /usr/bin/true $D/open/s && chmod 6755 $D/open/s && echo ESCAPED",
    ),
    (
        "make one as it is opened",
        As::User,
        "perl -MFcntl -e 'sysopen(F, $ENV{D}.\"/open/s2\", O_CREAT|O_WRONLY, 04755) && \
         (stat(F))[2] & 04000 && print \"ESCAPED\"'",
    ),
    (
        "open io_uring",
        As::User,
        "perl -e '$p = \"\\0\" x 120; syscall(425, 4, $p) >= 0 && print \"ESCAPED\"'",
    ),
    (
        "use the kernel's keys",
        As::User,
        "perl -e 'syscall(250, 0, -3, 1) >= 0 && print \"ESCAPED\"'",
    ),
    (
        "open a socket to the hypervisor",
        As::User,
        "perl -e 'socket(S, 40, 1, 0) && print \"ESCAPED\"'",
    ),
    ("see the machine's devices", As::User, "test -e /dev/ptmx && echo ESCAPED"),
    (
        "see what runs on the machine",
        As::User,
        "test -e /run && test -n \"$(ls -A /run)\" && echo ESCAPED",
    ),
    (
        "trace a process",
        As::User,
        "sleep 5 & perl -e 'syscall(101, 16, 0 + shift, 0, 0) == 0 && print \"ESCAPED\"' $!; kill $!",
    ),
    ("root: read a file that no rule opens", As::Root, "grep -q key $D/secret && echo ESCAPED"),
    (
        "root: read the agent's files under a rule for everything",
        As::Root,
        "grep -q key $D/open/agent/key && echo ESCAPED",
    ),
    ("root: replace the agent's program", As::Root, "echo x >> $D/open/binary && echo ESCAPED"),
    (
        "root: set a mode on a file of the system",
        As::Root,
        "chmod 4777 $D/out/victim2 && echo ESCAPED",
    ),
    (
        "root: change a device by its own input",
        As::Root,
        "perl -e 'chmod(0666, *STDIN) && print \"ESCAPED\"'",
    ),
    ("root: change the machine's devices", As::Root, "chmod 666 /dev/null && echo ESCAPED"),
    ("root: switch the machine", As::Root, "test -w /sys/power/state && echo ESCAPED"),
    ("root: mount", As::Root, "mount -t tmpfs x /mnt && echo ESCAPED && umount /mnt"),
    (
        "root: make what is read-only writable",
        As::Root,
        "mount -o remount,bind,rw / && echo ESCAPED",
    ),
    ("root: make a device", As::Root, "mknod $D/open/disk b 8 0 && echo ESCAPED"),
    (
        "root: write to the kernel's settings",
        As::Root,
        "test -w /proc/sys/kernel/hostname && echo ESCAPED",
    ),
    ("root: change the root folder", As::Root, "chroot $D/.. true; chroot / true && echo ESCAPED"),
    (
        "root: load a program into the kernel",
        As::Root,
        "perl -e '$a = pack(\"LLLLLL\", 2, 4, 4, 1, 0, 0) . \"\\0\" x 100; \
         syscall(321, 0, $a, 72) >= 0 && print \"ESCAPED\"'",
    ),
    (
        "childless: start a program",
        As::Childless,
        "system('/usr/bin/true') == 0 and print 'ESCAPED'",
    ),
    ("childless: become one", As::Childless, "exec '/usr/bin/echo', 'ESCAPED'"),
    (
        "childless: start one by the loader",
        As::Childless,
        "exec '/lib64/ld-linux-x86-64.so.2', '/usr/bin/echo', 'ESCAPED'",
    ),
    (
        "childless: start itself again",
        As::Childless,
        "exec '/usr/bin/perl', '-e', 'print \"ESCAPED\"'",
    ),
    (
        "childless: start itself by its descriptor",
        As::Childless,
        "open(F, '<', '/usr/bin/perl'); $a = pack('ppp', 'perl', '-e', 'print \"ESCAPED\"'); \
         $n = ''; $a .= \"\\0\" x 8; $e = \"\\0\" x 8; syscall(322, fileno(F), $n, $a, $e, 4096)",
    ),
];

/// What a job is to be able to do.
const WAYS: &[(&str, &str)] = &[
    ("read what a rule opens", "grep -q key $D/open/plain && echo ok"),
    ("read around what a rule denies", "grep -q key $D/part/free/plain && echo ok"),
    ("write around it", "echo x > $D/part/free/new && rm $D/part/free/new && echo ok"),
    ("read what it may only read", "grep -q key $D/part/fixed && echo ok"),
    ("write there", "echo x > $D/open/new && echo y >> $D/open/new && rm $D/open/new && echo ok"),
    (
        "move within it",
        "mkdir $D/open/d && echo x > $D/open/m && mv $D/open/m $D/open/d/m && echo ok",
    ),
    (
        "use a temporary folder",
        "echo x > /tmp/x && mkdir /var/tmp/y && mv /tmp/x /var/tmp/y/x && echo ok",
    ),
    ("use shared memory", "echo x > /dev/shm/x && echo ok"),
    ("use its devices", "head -c 8 /dev/urandom > /dev/null && echo ok"),
    ("use its own streams", "echo ok > /dev/stdout"),
    ("start programs of the system", "ls / > /dev/null 2>&1; uname | grep -q Linux && echo ok"),
    ("look up its user", "getent passwd root > /dev/null && echo ok"),
    ("look at its own processes", "ps ax > /dev/null && echo ok"),
    ("use threads and pipes", "seq 100 | sort -R --parallel=2 | wc -l | grep -q 100 && echo ok"),
];

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
