//! The agent is killed as no handler can soften. Nothing runs twice, nothing is lost.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use jtnt_hub_mock::{Hub, Kind, Route};
use jtnt_proto::bytes::Hash;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    site::{Site, exec, rules},
    support::{Agent, eventually},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Times that the agent is killed, and jobs each time.
const ROUNDS: usize = 6;
const EACH: usize = 8;

/// Ends an agent as no handler can soften.
pub(crate) async fn kill(mut agent: Agent) {
    agent.signal(Signal::KILL).unwrap();
    let status = agent.ended().await.unwrap();
    assert_eq!(status.code(), None, "it was to be killed");
}

/// Files of undelivered results.
fn pending(site: &Site) -> Vec<String> {
    let Ok(files) = fs::read_dir(site.home.state().join("job_results_pending")) else {
        return Vec::new();
    };
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    // A part is a file that is being written.
    names.filter(|name| Path::new(name).extension().is_some_and(|e| e == "json")).collect()
}

/// Processes of the one job of these tests that sleeps; `None` where the system does not tell.
fn sleepers() -> Option<usize> {
    let running = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let line = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        (line == b"/usr/bin/sleep\x00317\0").then_some(())
    });
    Some(running.count())
}

#[tokio::test]
async fn a_job_outlives_its_agent_and_is_found_by_the_next() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let killed = site.order(exec("/usr/bin/sleep", &["317"]), |_| {}).await;
    site.running(&killed).await;
    kill(agent).await;
    assert!(matches!(sleepers(), None | Some(1)), "{:?}", sleepers());
    let agent = site.home.start().await.unwrap();
    let shown = site.home.asked(&["jobs", "show", &killed]).await.unwrap();
    assert_eq!(shown["state"], "running", "{shown}");
    // A stop is no end either.
    agent.stop().await.unwrap();
    assert!(matches!(sleepers(), None | Some(1)), "{:?}", sleepers());
    let agent = site.home.start().await.unwrap();
    site.home.ctl(&["jobs", "cancel", &killed]).await.unwrap().exits(0).unwrap();
    let view = site.end_of(&killed).await;
    assert_eq!(view.state.as_str(), "cancelled");
    assert!(matches!(sleepers(), None | Some(0)), "{:?}", sleepers());
    assert_eq!(site.audited(&killed), ["job_started", "job_executed"]);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_job_whose_shim_was_killed_too_is_indeterminate_and_never_runs_again() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let id = site.order(exec("/usr/bin/sleep", &["318"]), |_| {}).await;
    site.running(&id).await;
    kill(agent).await;
    site.home.kill_shims();
    let agent = site.home.start().await.unwrap();
    let view = site.end_of(&id).await;
    let result = view.result.unwrap();
    assert_eq!(
        (view.state.as_str(), result.reason.as_deref()),
        ("indeterminate", Some("AGENT_ENDED"))
    );
    assert_eq!(site.audited(&id), ["job_started", "job_executed"]);
    let shown = site.home.asked(&["jobs", "show", &id]).await.unwrap();
    assert_eq!((&shown["state"], &shown["attempt"]), (&json!("indeterminate"), &json!(1)));
    let told = site.home.asked(&["audit", "verify"]).await.unwrap();
    assert_eq!(told["verdict"], "OK", "{told}");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_result_that_the_hub_did_not_get_is_delivered_by_the_next_start() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"breaker_failures": 1000})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.hub.set_fault(Route::Result, Kind::InternalError, None).unwrap();
    let id = site.order(exec("/usr/bin/echo", &["kept"]), |_| {}).await;
    site.hub.await_request(|r| r.route == Some(Route::Result)).await;
    eventually("a result that has to wait becomes a file", async || match pending(&site) {
        files if files.len() == 1 => Ok(()),
        files => Err(format!("{files:?}")),
    })
    .await
    .unwrap();
    let cache = site.home.asked(&["cache", "status"]).await.unwrap();
    assert_eq!(cache["pending_results"], 1);
    let cleaned = site.home.asked(&["cache", "clean"]).await.unwrap();
    assert_eq!((&cleaned["kept_pending"], pending(&site).len()), (&json!(1), 1), "{cleaned}");
    kill(agent).await;
    site.hub.clear_faults();
    let agent = site.home.start().await.unwrap();
    let view = site.end_of(&id).await;
    assert_eq!(
        (view.state.as_str(), &view.result.unwrap().stdout.unwrap().head.0[..]),
        ("ok", &b"kept\n"[..])
    );
    assert_eq!(site.audited(&id), ["job_started", "job_executed"]);
    eventually("the delivered result leaves the disk", async || match pending(&site) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await
    .unwrap();
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_job_that_was_taken_but_not_acknowledged_runs_once() {
    let site = Site::ready(Hub::builder().lease(Duration::from_secs(1))).await;
    site.home.configure(&json!({"breaker_failures": 1000})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    // The hub hears nothing of the job, so it lends it again and again.
    site.hub.set_fault(Route::Status, Kind::InternalError, None).unwrap();
    site.hub.set_fault(Route::Result, Kind::InternalError, None).unwrap();
    let id = site.order(exec("/usr/bin/true", &[]), |_| {}).await;
    site.hub.await_request(|r| r.route == Some(Route::Result)).await;
    kill(agent).await;
    let agent = site.home.start().await.unwrap();
    site.hub.clear_faults();
    let view = site.end_of(&id).await;
    assert_eq!(view.state, "ok");
    assert_eq!(site.audited(&id), ["job_started", "job_executed"]);
    agent.stop().await.unwrap();
}

/// Leaves a trace of every run: nothing else proves that there was one.
const TRACE: &[u8] = b"echo ran >> \"$1\"\n";

#[tokio::test]
async fn however_often_it_is_killed_every_job_ends_and_none_runs_twice() {
    let mut site = Site::new(Hub::builder().lease(Duration::from_secs(1))).await;
    site.enrol().await;
    let mut rules = rules(&site.home);
    rules["script"] = json!([{"id": "trace", "effect": "allow", "interpreter": "/bin/sh",
        "sha256": Hash::of(TRACE), "args": "any"}]);
    let traces = site.home.path().join("traces");
    let (access, path) = (json!(["read", "write"]), format!("{}/**", traces.display()));
    rules["file"] = json!([{"id": "f", "effect": "allow", "access": access, "path": path}]);
    site.publish(1, &rules).await;
    // Jobs have users of their own, who must get there.
    fs::create_dir(&traces).unwrap();
    fs::set_permissions(&traces, Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(site.home.path(), Permissions::from_mode(0o711)).unwrap();

    let content = site.hub.put_artifact(TRACE).unwrap();
    let (mut ids, mut agent) = (Vec::new(), site.home.start().await.unwrap());
    site.in_force(1).await;
    for round in 0..ROUNDS {
        for n in 0..EACH {
            let trace = traces.join(format!("{round}.{n}"));
            let work = json!({"type": "script", "command":
                {"interpreter": "/bin/sh", "content": content, "args": [trace]}});
            ids.push((site.order(work, |_| {}).await, trace));
        }
        // Another moment each time: the hub has heard of more and more of them.
        let (heard, _) = &ids[round * EACH + round];
        let acknowledged = site.hub.await_job(heard, |job| job.acknowledged);
        timeout(PATIENCE, acknowledged).await.unwrap();
        kill(agent).await;
        agent = site.home.start().await.unwrap();
    }
    for (id, trace) in &ids {
        let view = site.end_of(id).await;
        let runs = fs::read_to_string(trace).unwrap_or_default().lines().count();
        match view.state.as_str() {
            // Its shim went on, or had not begun.
            "ok" => assert_eq!(runs, 1, "{view:?}"),
            _ => panic!("{view:?}"),
        }
        // Killed between its durable points, an end may be written down twice: the last word is
        // the one that the hub has.
        let mut ends = site.audit().into_iter();
        let last = ends.rfind(|line| line["job_id"] == *id && line["event"] == "job_executed");
        assert_eq!(last.unwrap()["details"]["state"], view.state.as_str(), "{view:?}");
    }
    let told = site.home.asked(&["audit", "verify"]).await.unwrap();
    assert_eq!(told["verdict"], "OK", "{told}");
    eventually("every delivered result leaves the disk", async || match pending(&site) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await
    .unwrap();
    agent.stop().await.unwrap();
}

/// A download whose artifact drips too slowly to end here. Returns once its process is at work.
async fn dripping(site: &Site) -> (String, std::path::PathBuf, Vec<u8>) {
    let bytes: Vec<u8> = (0..300_000).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let artifact = site.hub.put_artifact(&bytes).unwrap();
    site.hub.set_fault(Route::Artifact, Kind::Slow, None).unwrap();
    let dest = site.home.files().join("app.conf");
    let work = json!({"type": "download", "command": {"artifact": artifact, "dest": dest}});
    let id = site.order(work, |_| {}).await;
    let part = site.home.files().join(format!(".jtnt-{id}.part"));
    eventually("the download is under way", async || {
        if part.exists() { Ok(()) } else { Err(format!("{:?}", site.hub.job(&id))) }
    })
    .await
    .unwrap();
    (id, dest, bytes)
}

#[tokio::test]
async fn a_download_that_its_agent_left_leaves_nothing_and_begins_anew() {
    let site = Site::ready(Hub::builder().slow_pause(PATIENCE)).await;
    for cruel in [true, false] {
        let agent = site.home.start().await.unwrap();
        site.in_force(1).await;
        let (id, dest, bytes) = dripping(&site).await;
        if cruel {
            kill(agent).await;
        } else {
            agent.stop().await.unwrap();
        }
        eventually("the half file goes without an agent", async || {
            match fs::read_dir(site.home.files()).unwrap().count() {
                0 => Ok(()),
                left => Err(format!("{left} files")),
            }
        })
        .await
        .unwrap();
        site.hub.clear_faults();
        let agent = site.home.start().await.unwrap();
        let view = site.end_of(&id).await;
        let attempt = view.result.map(|result| result.attempt);
        assert_eq!((view.state.as_str(), attempt), ("ok", Some(2)));
        assert!(fs::read(&dest).unwrap() == bytes);
        fs::remove_file(&dest).unwrap();
        agent.stop().await.unwrap();
    }
}

/// Sends a signal to all children of the processes that keep jobs.
fn signal_jobs(site: &Site, signal: Signal) {
    for shim in site.home.shims() {
        let shim = shim.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        for child in children.split_whitespace() {
            let child = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
            rustix::process::kill_process(child, signal).unwrap();
        }
    }
}

#[tokio::test]
async fn a_transfer_that_does_not_end_holds_up_no_start_and_begins_anew_all_the_same() {
    let site = Site::ready(Hub::builder().slow_pause(PATIENCE)).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let (id, dest, bytes) = dripping(&site).await;
    signal_jobs(&site, Signal::STOP);
    kill(agent).await;
    site.hub.clear_faults();
    let agent = site.home.start().await.unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    assert!(!site.hub.job(&id).unwrap().ended);
    signal_jobs(&site, Signal::CONT);
    let view = site.end_of(&id).await;
    let attempt = view.result.map(|result| result.attempt);
    assert_eq!((view.state.as_str(), attempt), ("ok", Some(2)));
    assert!(fs::read(&dest).unwrap() == bytes);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_download_whose_process_was_killed_is_told_and_leaves_nothing() {
    let site = Site::ready(Hub::builder().slow_pause(PATIENCE)).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let (id, _, _) = dripping(&site).await;
    site.home.kill_shims();
    let view = site.end_of(&id).await;
    let result = view.result.unwrap();
    assert_eq!(
        (view.state.as_str(), result.reason.as_deref()),
        ("indeterminate", Some("SHIM_LOST"))
    );
    assert_eq!(fs::read_dir(site.home.files()).unwrap().count(), 0);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_damaged_journal_is_put_aside_and_nothing_of_it_runs_again() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let ran = site.order(exec("/usr/bin/true", &[]), |_| {}).await;
    assert_eq!(site.end_of(&ran).await.state, "ok");
    agent.stop().await.unwrap();
    let journal = site.home.state().join("jobs.redb");
    let mut bytes = fs::read(&journal).unwrap();
    for page in bytes.chunks_mut(4096).skip(2) {
        page[100..160].fill(0x5a);
    }
    fs::remove_file(&journal).unwrap();
    crate::support::put(&journal, &bytes).unwrap();
    let agent = site.home.start().await.unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    let kept = fs::read_dir(site.home.state()).unwrap().map(|file| file.unwrap().file_name());
    let kept: Vec<_> = kept.filter_map(|name| name.into_string().ok()).collect();
    assert!(kept.iter().any(|name| name.starts_with("jobs.redb.damaged-")), "{kept:?}");
    let degraded: Vec<_> =
        site.audit().into_iter().filter(|line| line["event"] == "degraded").collect();
    assert_eq!(degraded[0]["details"]["what"], "journal", "{degraded:?}");
    // Signed before the new journal began, so it may have run.
    let replayed = site.order(exec("/usr/bin/true", &[]), |job| {
        job.issued_at = crate::site::hence(-3600);
        job.not_before = job.issued_at;
    });
    let view = site.end_of(&replayed.await).await;
    assert_eq!(view.state.as_str(), "rejected", "{view:?}");
    agent.stop().await.unwrap();
}
