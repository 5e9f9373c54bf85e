//! Real shims: this test binary starts itself as one.

use std::{fs::File, time::Duration};

use tempfile::TempDir;

use super::*;
use crate::{
    platform::{account::Account, process::sealed, sandbox::Plan},
    runtime::durable,
};

#[test]
#[ignore = "not a test: it is what other tests start as a shim"]
fn a_shim() {
    assert_eq!(keep(), std::process::ExitCode::SUCCESS);
}

/// A job of a shell, in a folder of its own.
pub(super) struct Job {
    pub(super) dir: TempDir,
    pub(super) order: Order,
}

impl Job {
    pub(super) fn of(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let order = Order {
            attempt: Attempt::new(dir.path().join("job"), 1),
            argv0: std::fs::canonicalize("/bin/sh").unwrap().to_str().unwrap().to_owned(),
            args: vec!["-c".into(), script.into()],
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
            cwd: dir.path().to_str().unwrap().to_owned(),
            account: Account::own(),
            file_bytes: None,
            plan: Plan::default(),
            output_bytes: 1 << 20,
            secrets: Vec::new(),
            watch: None,
            transfer: None,
            timeout: Duration::from_secs(60),
            grace: Duration::from_millis(200),
        };
        Self { dir, order }
    }

    fn prepare(&self, script: Option<&File>) -> Result<Prepared, Unstarted> {
        let program = self.program();
        Launcher::of_tests().prepare(&self.order, Things { script, ..Things::only(&program) })
    }

    fn program(&self) -> File {
        File::open(&self.order.argv0).unwrap()
    }

    pub(super) fn go(&self) -> Shim {
        self.prepare(None).unwrap().go().unwrap()
    }

    pub(super) async fn run(&self) -> Exit {
        exit(left(self, &self.go()).await)
    }

    /// Waits until its marker is there.
    async fn says_it_began(&self) {
        let began = async {
            while self.order.attempt.timeout().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), began).await.unwrap();
    }

    fn written(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Waits for a line in a file that the job writes.
    async fn says(&self, name: &str) -> String {
        let wait = async {
            loop {
                match self.written(name) {
                    text if text.ends_with('\n') => return text.trim().to_owned(),
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap()
    }
}

pub(super) async fn left(job: &Job, shim: &Shim) -> Left {
    tokio::time::timeout(Duration::from_secs(20), shim.ended()).await.unwrap().unwrap();
    job.order.attempt.left().unwrap()
}

fn exit(left: Left) -> Exit {
    match left {
        Left::Exit(exit) => *exit,
        other @ (Left::Nothing | Left::Started) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_job_wrote_and_how_it_ended_is_written_down() {
    let job = Job::of("printf out; printf error >&2; exit 7");
    let exit = job.run().await;
    assert_eq!((exit.cause, exit.code, exit.signal), (Cause::Ended, Some(7), None));
    let dir = job.order.attempt.dir();
    let out = output(dir, Stream::Stdout, exit.stdout.unwrap());
    let err = output(dir, Stream::Stderr, exit.stderr.unwrap());
    assert_eq!((&out.head.0[..], &err.head.0[..]), (&b"out"[..], &b"error"[..]));
    let attempt = &job.order.attempt;
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 5);
    attempt.forget();
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2, "the output stays");
    assert_eq!(attempt.left().unwrap(), Left::Nothing);
}

#[tokio::test]
async fn a_process_that_traces_the_program_keeps_nobody_waiting() {
    let job = Job::of(
        "exec perl -MPOSIX -e 'pipe(R, W); if (!fork) { setsid; \
         syscall(101, 0x4206, getppid, 0, 0); syswrite(W, \"x\"); sleep 60 } \
         sysread(R, $x, 1); exit 3'",
    );
    let exit = job.run().await;
    assert_eq!((exit.cause, exit.code), (Cause::Ended, Some(3)));
}

#[tokio::test]
async fn how_long_a_program_may_run_is_written_down_when_it_begins() {
    let job = Job::of("sleep 60");
    let shim = job.go();
    job.says_it_began().await;
    assert_eq!(job.order.attempt.timeout(), Some(job.order.timeout));
    shim.kill();
    assert_eq!(left(&job, &shim).await, Left::Started);
}

#[tokio::test]
async fn an_end_that_cannot_be_written_down_is_told() {
    let job = Job::of("echo started > out; exit 5");
    let attempt = &job.order.attempt;
    let prepared = job.prepare(None).unwrap();
    // Nothing can take the place of a folder that has something in it.
    std::fs::create_dir_all(attempt.dir().join("exit.1.json/x")).unwrap();
    let shim = prepared.go().unwrap();
    tokio::time::timeout(Duration::from_secs(20), shim.ended()).await.unwrap().unwrap();
    assert!(attempt.left().is_err());
    assert_eq!(shim.told().unwrap().code, Some(5));
}

#[tokio::test]
async fn a_silent_job_leaves_nothing_behind() {
    let job = Job::of("true");
    assert_eq!(job.run().await.stdout, None);
    job.order.attempt.forget();
    assert!(!job.order.attempt.dir().exists());
}

#[tokio::test]
async fn without_a_go_nothing_runs() {
    let job = Job::of("echo ran > trace");
    drop(job.prepare(None).unwrap());
    assert_eq!(job.order.attempt.left().unwrap(), Left::Nothing);
    assert_eq!(job.written("trace"), "");
    // And what was not run can be.
    assert_eq!(job.run().await.code, Some(0));
    assert_eq!(job.written("trace"), "ran\n");
}

#[tokio::test]
async fn nothing_begins_twice() {
    let job = Job::of("echo ran >> trace");
    job.run().await;
    let second = job.go();
    exit(left(&job, &second).await);
    assert_eq!(job.written("trace"), "ran\n");
}

#[tokio::test]
async fn two_shims_do_not_keep_one_run() {
    let job = Job::of("sleep 600");
    let first = job.go();
    let refused = job.prepare(None).unwrap_err();
    assert!(refused.message.contains("is held by jtnt-agent shim"), "{refused}");
    first.terminate();
    assert_eq!(exit(left(&job, &first).await).cause, Cause::Terminated);
}

#[tokio::test]
async fn time_ends_a_job_politely_first() {
    let mut job = Job::of("trap 'echo bye; exit 3' TERM; echo $$ > pid; sleep 600 & wait");
    job.order.timeout = Duration::from_millis(300);
    let exit = job.run().await;
    assert_eq!((exit.cause, exit.code), (Cause::Timeout, Some(3)));
    assert_eq!(exit.stdout.unwrap().total, 4);
}

#[tokio::test]
async fn what_does_not_listen_is_killed_after_its_grace() {
    let mut job = Job::of("trap '' TERM; while :; do sleep 600; done");
    job.order.timeout = Duration::from_millis(100);
    let exit = job.run().await;
    assert_eq!((exit.cause, exit.signal), (Cause::Timeout, Some(9)));
    assert!(exit.duration >= Duration::from_millis(300), "{:?}", exit.duration);
}

#[tokio::test]
async fn another_agent_finds_the_shim_and_how_the_job_ended() {
    let job = Job::of("echo $$ > pid; read line < fifo; echo $line");
    let fifo = job.dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let first = job.go();
    job.says("pid").await;
    drop(first);
    let second = Shim::find(job.order.attempt.clone()).unwrap().unwrap();
    assert_eq!(job.order.attempt.left().unwrap(), Left::Started);
    tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(fifo))
        .await
        .unwrap()
        .map(|mut fifo| std::io::Write::write_all(&mut fifo, b"found\n").unwrap())
        .unwrap();
    let exit = exit(left(&job, &second).await);
    assert_eq!((exit.code, exit.stdout.unwrap().total), (Some(0), 6));
    assert!(Shim::find(job.order.attempt.clone()).unwrap().is_none());
}

/// Everything a job can do to stay: sessions, orphans, signals, stopped processes, and forks that
/// no list of processes keeps up with.
#[tokio::test]
async fn nothing_of_a_job_outlives_it() {
    let stays = "trap '' TERM HUP; echo $$ >> pids; setsid sh -c 'echo $$ >> pids; \
                 (trap \"\" TERM; echo $$ >> pids; sleep 600) & sleep 600' & \
                 nohup sh -c 'echo $$ >> pids; kill -STOP $$' >/dev/null 2>&1 & \
                 perl -e 'for (;;) { fork and exit }' & \
                 while [ $(wc -l < pids) -lt 4 ]; do sleep 0.01; done; grep ^NSpid \
                 /proc/self/status; exit 0";
    let job = Job::of(stays);
    if Account::own().uid != 0 {
        eprintln!("not root: nothing holds all of a job's processes together");
        return;
    }
    let shim = job.go();
    let exit = exit(left(&job, &shim).await);
    assert_eq!((exit.cause, exit.code), (Cause::Ended, Some(0)));
    // Numbers of another namespace say little here: nothing is left that was started in the folder.
    let here = job.dir.path().canonicalize().unwrap();
    let inside = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let cwd = std::fs::read_link(entry.ok()?.path().join("cwd")).ok()?;
        (cwd == here).then_some(cwd)
    });
    assert_eq!(inside.count(), 0);
}

#[tokio::test]
async fn a_shim_that_is_killed_takes_its_job_with_it() {
    let job = Job::of("echo ready > ready; exec sleep 600");
    let shim = job.go();
    job.says("ready").await;
    let here = job.dir.path().canonicalize().unwrap();
    let inside = || {
        let all = std::fs::read_dir("/proc").unwrap();
        let cwds = all.filter_map(|e| std::fs::read_link(e.ok()?.path().join("cwd")).ok());
        cwds.filter(|cwd| *cwd == here).count()
    };
    assert_eq!(inside(), 1);
    shim.kill();
    assert_eq!(left(&job, &shim).await, Left::Started);
    let gone = async {
        while inside() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn a_script_is_read_by_its_descriptor() {
    let mut job = Job::of("");
    job.order.args = vec!["x".into()];
    let script = sealed("t", b"echo from the script $1 > trace").unwrap();
    let shim = job.prepare(Some(&script)).unwrap().go().unwrap();
    assert_eq!(exit(left(&job, &shim).await).code, Some(0));
    assert_eq!(job.written("trace"), "from the script x\n");
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let mut lost = Job::of("true");
    lost.order.cwd = lost.dir.path().join("gone").to_str().unwrap().to_owned();
    assert_eq!(lost.prepare(None).unwrap_err().reason(), "CWD_UNAVAILABLE");
    let mut job = Job::of("");
    let path = job.dir.path().join("data");
    durable::replace(&path, b"\x7fELF but not really", 0o755).unwrap();
    job.order.argv0 = path.to_str().unwrap().to_owned();
    let exit = job.run().await;
    let Cause::Unstarted(why) = exit.cause else { panic!("{exit:?}") };
    assert_eq!(why.reason(), "CANNOT_START");
}

#[test]
fn whoever_types_the_word_is_told() {
    assert!(as_process(["jtnt-agent".into(), "status".into()].into_iter()).is_none());
    assert!(as_process(["jtnt-agent".into()].into_iter()).is_none());
}

#[tokio::test]
async fn a_nursery_that_has_ended_is_replaced() {
    let job = Job::of("echo ran >> trace");
    let launcher = Launcher::of_tests();
    for attempt in 1..=3 {
        let order = Order {
            attempt: Attempt::new(job.dir.path().join("job"), attempt),
            ..job.order.clone()
        };
        let program = job.program();
        let shim = launcher.prepare(&order, Things::only(&program)).unwrap().go().unwrap();
        tokio::time::timeout(Duration::from_secs(20), shim.ended()).await.unwrap().unwrap();
        exit(order.attempt.left().unwrap());
        launcher.end_nursery(attempt == 1);
    }
    assert_eq!(job.written("trace"), "ran\nran\nran\n");
}
