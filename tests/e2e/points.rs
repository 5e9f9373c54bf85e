//! The agent, or a process that keeps a job, is killed at one system call after another, while a
//! job leaves a trace of each of its runs. After each, an agent that nothing disturbs takes over.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use jtnt_hub_mock::Hub;
use jtnt_proto::{bytes::Hash, job::Artifact};
use serde_json::json;
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

/// Where a run was killed, and what became of its job.
#[derive(Debug)]
struct Point {
    call: &'static str,
    at: usize,
    agent_died: bool,
    state: String,
    runs: usize,
}

#[tokio::test]
#[ignore = "takes minutes and strace: `cargo test --test e2e -- --ignored --nocapture points`"]
async fn wherever_it_is_killed_a_job_runs_at_most_once_and_ends_once() {
    let ground = Ground::new().await;
    let mut points = Vec::new();
    for call in CALLS {
        for at in 1..=MOST_OF_ONE {
            match ground.kill_at(call, at).await {
                Some(point) => {
                    println!(
                        "{:16} {:3}  {:12} {:14} runs {}",
                        point.call,
                        point.at,
                        if point.agent_died { "agent" } else { "other" },
                        point.state,
                        point.runs
                    );
                    points.push(point);
                }
                // Nobody makes this call so often.
                None => break,
            }
        }
    }
    let told = ground.site.home.agent(&["audit", "verify"]).await.unwrap();
    told.exits(0).unwrap();
    let mut states = BTreeMap::new();
    for point in &points {
        *states.entry((point.state.as_str(), point.runs)).or_insert(0) += 1;
    }
    println!("{} points; state and runs of their jobs: {states:?}", points.len());
    assert!(points.len() >= LEAST, "{} points", points.len());
}

struct Ground {
    site: Site,
    content: Artifact,
    traces: PathBuf,
}

impl Ground {
    async fn new() -> Self {
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
        Self { site, content, traces }
    }

    /// Kills whoever first makes `call` for the `at`th time; `None` when nobody does.
    async fn kill_at(&self, call: &'static str, at: usize) -> Option<Point> {
        let trace = self.traces.join(format!("{call}.{at}"));
        let work = json!({"type": "script", "command":
            {"interpreter": "/bin/sh", "content": self.content, "args": [trace]}});
        let id = self.site.order(work, |_| {}).await;
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
        let runs = fs::read_to_string(&trace).unwrap_or_default().lines().count();
        let place = format!("{call} {at}: {view:?}");
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
