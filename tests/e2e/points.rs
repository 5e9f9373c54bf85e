//! The agent, or a process that keeps or does a job, is killed at one system call after another:
//! while a script leaves a trace of each of its runs, and while a file is downloaded. After each, an
//! agent that nothing disturbs takes over.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jtnt_hub_mock::Hub;
use jtnt_proto::{bytes::Hash, job::Artifact};
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};

use crate::{
    site::{Site, rules},
    support::Agent,
};

/// A job has ended, or an agent was killed, long before.
const PATIENCE: Duration = Duration::from_secs(30);
/// Leaves a trace of every run: nothing else proves that there was one.
const TRACE: &[u8] = b"echo ran >> \"$1\"\n";
/// Calls by which an agent or a shim changes or learns something.
const CALLS: &[&str] = &[
    "openat",
    "openat2",
    "write",
    "read",
    "close",
    "fdatasync",
    "fsync",
    "pwrite64",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "sendmsg",
    "recvmsg",
    "sendto",
    "recvfrom",
    "socketpair",
    "connect",
    "clone",
    "clone3",
    "fork",
    "vfork",
    "execve",
    "execveat",
    "unshare",
    "mount",
    "move_mount",
    "open_tree",
    "mount_setattr",
    "setsid",
    "wait4",
    "pidfd_open",
    "kill",
    "poll",
    "epoll_wait",
    "timerfd_create",
    "memfd_create",
    "pipe2",
    "dup2",
    "fchmod",
    "ftruncate",
    "flock",
    "prctl",
    "setresuid",
    "futex",
    "fcntl",
    "statx",
    "lseek",
];
/// Of one call no more than these; its later times are of the same kind.
const MOST_OF_ONE: usize = 20;
/// Fewer would mean that it was not the agent that was traced.
const LEAST: usize = 300;
/// The same of a download, which differs from a script where the file is touched.
const MOST_OF_DOWNLOAD: usize = 6;
const LEAST_OF_DOWNLOAD: usize = 120;

/// Where a run was killed, and what became of its job.
#[derive(Debug)]
struct Point {
    call: &'static str,
    at: usize,
    agent_died: bool,
    state: String,
    runs: usize,
}

/// What is done while somebody is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Script,
    Download,
}

#[tokio::test]
#[ignore = "takes minutes and strace: `cargo test --test e2e -- --ignored --nocapture points`"]
async fn wherever_it_is_killed_a_job_runs_at_most_once_and_ends_once() {
    let points = Ground::new(What::Script).await.kill_everywhere(MOST_OF_ONE).await;
    assert!(points >= LEAST, "{points} points");
}

#[tokio::test]
#[ignore = "takes minutes and strace: `cargo test --test e2e -- --ignored --nocapture points`"]
async fn wherever_it_is_killed_a_download_is_whole_or_not_there() {
    let points = Ground::new(What::Download).await.kill_everywhere(MOST_OF_DOWNLOAD).await;
    assert!(points >= LEAST_OF_DOWNLOAD, "{points} points");
}

struct Ground {
    what: What,
    site: Site,
    content: Artifact,
    traces: PathBuf,
}

impl Ground {
    async fn new(what: What) -> Self {
        let mut site = Site::new(Hub::builder().lease(Duration::from_secs(1))).await;
        site.enrol().await;
        let traces = site.home.path().join("traces");
        fs::create_dir(&traces).unwrap();
        fs::set_permissions(&traces, Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(site.home.path(), Permissions::from_mode(0o711)).unwrap();
        let (access, path) = (json!(["read", "write"]), format!("{}/**", traces.display()));
        let mut rules = rules(&site.home);
        rules["file"] = json!([{"id": "f", "effect": "allow", "access": access, "path": path}]);
        rules["script"] = json!([{"id": "trace", "effect": "allow", "interpreter": "/bin/sh",
            "sha256": Hash::of(TRACE), "args": "any"}]);
        site.publish(1, &rules).await;
        let agent = site.home.start().await.unwrap();
        site.in_force(1).await;
        agent.stop().await.unwrap();
        let content = site.hub.put_artifact(TRACE).unwrap();
        Self { what, site, content, traces }
    }

    /// At no call more often than `most`; at how many points.
    async fn kill_everywhere(&self, most: usize) -> usize {
        let mut states = BTreeMap::new();
        let mut points = 0;
        for call in CALLS {
            for at in 1..=most {
                // Or nobody makes this call so often.
                let Some(point) = self.kill_at(call, at).await else { break };
                println!(
                    "{:?} {:16} {:3}  {:12} {:14} runs {}",
                    self.what,
                    point.call,
                    point.at,
                    if point.agent_died { "agent" } else { "other" },
                    point.state,
                    point.runs
                );
                *states.entry((point.state, point.runs)).or_insert(0) += 1;
                points += 1;
            }
        }
        let told = self.site.home.agent(&["audit", "verify"]).await.unwrap();
        told.exits(0).unwrap();
        println!("{points} points; state and runs of their jobs: {states:?}");
        points
    }

    fn work(&self, trace: &Path) -> Value {
        match self.what {
            What::Script => json!({"type": "script", "command":
                {"interpreter": "/bin/sh", "content": self.content, "args": [trace]}}),
            What::Download => json!({"type": "download", "command":
                {"artifact": self.content, "dest": trace}}),
        }
    }

    /// How often the job has left its trace there; nothing else may be left.
    fn runs(&self, trace: &Path, place: &str) -> usize {
        let left = fs::read(trace).unwrap_or_default();
        match self.what {
            What::Script => String::from_utf8_lossy(&left).lines().count(),
            What::Download => {
                let parts = fs::read_dir(&self.traces).unwrap().map(|file| file.unwrap().path());
                let parts: Vec<_> =
                    parts.filter(|p| p.extension() == Some("part".as_ref())).collect();
                assert!(parts.is_empty(), "{parts:?}: {place}");
                let is_there = trace.exists();
                assert!(!is_there || left == TRACE, "{left:?}: {place}");
                usize::from(is_there)
            }
        }
    }

    /// Kills whoever first makes `call` for the `at`th time; `None` when nobody does.
    async fn kill_at(&self, call: &'static str, at: usize) -> Option<Point> {
        let trace = self.traces.join(format!("{call}.{at}"));
        let id = self.site.order(self.work(&trace), |_| {}).await;
        let log = self.site.home.path().join("strace");
        let mut agent = self.traced(call, at, &log);
        let ended = tokio::select! {
            status = agent.ended() => { status.unwrap(); true }
            _ = self.site.hub.wait_job(&id) => false,
        };
        // One that has outlived its job may be killed while it stops.
        let ended = ended || agent.stop().await.is_err();
        let agent = self.site.home.start().await.unwrap();
        let view = timeout(PATIENCE, self.site.hub.wait_job(&id)).await;
        let view = view.unwrap_or_else(|_| panic!("{call} {at}: {:?}", self.site.hub.job(&id)));
        agent.stop().await.unwrap();
        let place = format!("{call} {at}: {view:?}");
        let runs = self.runs(&trace, &place);
        match view.state.as_str() {
            "ok" => assert_eq!(runs, 1, "{place}"),
            "indeterminate" | "failed" => assert!(runs <= 1, "{place}"),
            _ => panic!("{place}"),
        }
        let lines = self.site.audit();
        let mut ends = lines.iter().filter(|l| l["job_id"] == *id && l["event"] == "job_executed");
        let last = ends.next_back().unwrap_or_else(|| panic!("no line: {place}"));
        assert_eq!(last["details"]["state"], view.state.as_str(), "{place}");
        let hit = ended || made(&log, call) >= at;
        hit.then_some(Point { call, at, agent_died: ended, state: view.state, runs })
    }

    fn traced(&self, call: &str, at: usize, log: &Path) -> Agent {
        let plain = self.site.home.agent_command(&["run"]).unwrap();
        let plain = plain.as_std();
        let mut command = Command::new("strace");
        // The agent keeps the place of the started process; who traces stands aside.
        command.args(["-D", "-f", "-qq", "-o"]).arg(log);
        command.arg("-e").arg(format!("trace={call}"));
        command.arg("-e").arg(format!("inject={call}:signal=KILL:when={at}"));
        command.arg(plain.get_program()).args(plain.get_args()).env_remove("JTNT_SOCKET");
        self.site.home.spawn(&mut command).unwrap()
    }
}

/// How often the busiest process made the call.
fn made(log: &Path, call: &str) -> usize {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        if let Some((pid, what)) = line.split_once(' ')
            && what.trim_start().starts_with(&format!("{call}("))
        {
            *counts.entry(pid).or_default() += 1;
        }
    }
    counts.into_values().max().unwrap_or(0)
}
