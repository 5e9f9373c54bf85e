//! From the hub and back, and what faults on the way change: nothing but the time it takes.

use std::time::Duration;

use jtnt_agent::{
    domain::ids::JobId,
    shim::{Attempt, Shim},
};
use jtnt_hub_mock::{Hub, Kind, Route};
use jtnt_proto::bytes::Hash;
use serde_json::{Value, json};

use crate::support::Site;

const SCRIPT: &[u8] = b"echo \"$1 $SITE $0\" | sed 's,/proc/self/fd/[0-9]*,-,'; exit 4\n";

fn rules() -> Value {
    let any = |name: &str| {
        json!({"id": name, "effect": "allow", "args": "any",
        "path": format!("/usr/bin/{name}")})
    };
    json!({"exec": [any("true"), any("echo"), any("sleep")]})
}

fn exec(path: &str, args: &[&str]) -> Value {
    json!({"type": "exec", "command": {"path": path, "args": args}})
}

fn script(site: &Site) -> Value {
    let artifact = site.hub.put_artifact(SCRIPT).unwrap();
    json!({"type": "script", "command": {"interpreter": "/bin/sh", "content": artifact,
        "args": ["hello"], "env": {"SITE": "here"}}})
}

#[tokio::test]
async fn a_job_is_taken_run_and_reported() {
    let site = Site::new(Hub::builder()).await;
    let agent = site.agent(&rules());
    let view = site.run(exec("/usr/bin/echo", &["hello"])).await;
    let result = view.result.unwrap();
    assert_eq!((view.state.as_str(), &result.stdout.unwrap().head.0[..]), ("ok", &b"hello\n"[..]));
    assert!(view.acknowledged);
    assert_eq!(site.audited(&view.job_id), ["job_started", "job_executed"]);
    let id = JobId::try_from(view.job_id.as_str()).unwrap();
    let mut changes = agent.journal.changes();
    while !agent.journal.get(&id).unwrap().unwrap().delivered {
        changes.recv().await.unwrap();
    }
    let entry = agent.journal.get(&id).unwrap().unwrap();
    assert_eq!(entry.envelope, None, "delivered");
    agent.stop().await;
    // A stop may come before the file is gone; then it goes at the next start.
    site.agent(&rules()).stop().await;
    let pending = site.dir.path().join("state/job_results_pending");
    assert_eq!(std::fs::read_dir(pending).unwrap().count(), 0);
}

#[tokio::test]
async fn a_script_runs_by_its_hash_or_by_whoever_endorsed_it() {
    let site = Site::new(Hub::builder()).await;
    let rule = |pin: Value| {
        let mut rule = json!({"id": "s", "effect": "allow", "interpreter": "/bin/sh",
            "args": "any", "env": ["SITE"]});
        rule.as_object_mut().unwrap().extend(pin.as_object().unwrap().clone());
        json!({"script": [rule]})
    };
    let agent = site.agent(&rule(json!({"sha256": Hash::of(SCRIPT)})));
    let view = site.run(script(&site)).await;
    let result = view.result.unwrap();
    assert_eq!((view.state.as_str(), result.exit_code), ("failed", Some(4)), "{result:?}");
    assert_eq!(result.stdout.unwrap().head.0, b"hello here -\n");
    agent.stop().await;

    let operator = site.hub.operator().unwrap();
    let signer = operator.key_id(jtnt_hub_mock::operator::Role::Script).unwrap();
    let agent = site.agent(&rule(json!({"signer": signer})));
    assert_eq!(site.run(script(&site)).await.state, "rejected", "nobody endorsed it");
    let endorsed = |bytes: &[u8], interpreter| {
        let mut work = script(&site);
        work["command"]["endorsement"] =
            serde_json::to_value(operator.endorse("s", bytes, interpreter)).unwrap();
        work
    };
    assert_eq!(site.run(endorsed(SCRIPT, "/bin/bash")).await.state, "rejected");
    assert_eq!(site.run(endorsed(b"other", "/bin/sh")).await.state, "rejected");
    assert_eq!(site.run(endorsed(SCRIPT, "/bin/sh")).await.state, "failed", "it ran");
    agent.stop().await;
}

#[tokio::test]
async fn the_hub_is_told_why_a_job_was_refused() {
    let site = Site::new(Hub::builder()).await;
    let agent = site.agent(&rules());
    let view = site.run(exec("/usr/bin/touch", &["/tmp/x"])).await;
    let status = view.status.unwrap();
    assert_eq!((view.state.as_str(), status.reason.as_deref()), ("rejected", Some("DENIED")));
    assert!(status.message.unwrap().contains("/usr/bin/touch"));
    assert_eq!(site.audited(&view.job_id), ["policy_violation"]);
    let late = site.order(exec("/usr/bin/true", &[]), |job| {
        job.issued_at = "2020-01-01T00:00:00Z".parse().unwrap();
        job.not_before = job.issued_at;
        job.expires_at = "2020-01-02T00:00:00Z".parse().unwrap();
    });
    let late = site.end_of(&late.await).await;
    assert_eq!(late.status.unwrap().reason.as_deref(), Some("BEFORE_JOURNAL"));
    agent.stop().await;
}

#[tokio::test]
async fn a_running_job_is_called_off_by_a_signed_cancel() {
    let site = Site::new(Hub::builder()).await;
    let agent = site.agent(&rules());
    let id = site.order(exec("/usr/bin/sleep", &["600"]), |_| {}).await;
    site.running(&id).await;
    let cancel =
        site.hub.operator().unwrap().cancel(&id, &site.identity.agent_id, Some("too slow"));
    site.hub.cancel(&id, cancel).await.unwrap();
    let view = site.end_of(&id).await;
    assert_eq!(view.state, "cancelled");
    assert_eq!(view.result.unwrap().message.as_deref(), Some("called off: too slow"));
    agent.stop().await;
}

#[tokio::test]
async fn a_result_waits_for_the_hub_and_arrives_once() {
    let site = Site::new(Hub::builder()).await;
    let agent = site.agent(&rules());
    site.hub.set_fault(Route::Result, Kind::InternalError, Some(3)).unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    agent.stop().await;
}

#[tokio::test]
async fn a_lease_that_runs_out_runs_nothing_twice() {
    let site = Site::new(Hub::builder().lease(Duration::from_millis(100))).await;
    let agent = site.agent(&rules());
    // The hub hears neither that the job was taken nor how it ended, for a while.
    site.hub.set_fault(Route::Status, Kind::InternalError, Some(3)).unwrap();
    site.hub.set_fault(Route::Result, Kind::InternalError, Some(3)).unwrap();
    let view = site.run(exec("/usr/bin/sleep", &["0.5"])).await;
    assert_eq!(view.state, "ok");
    assert_eq!(site.audited(&view.job_id), ["job_started", "job_executed"]);
    agent.stop().await;
}

#[tokio::test]
async fn a_replay_by_the_hub_runs_nothing_again() {
    let site = Site::new(Hub::builder()).await;
    let agent = site.agent(&rules());
    let view = site.run(exec("/usr/bin/true", &[])).await;
    site.hub.set_fault(Route::Jobs, Kind::Replay, Some(2)).unwrap();
    let other = site.run(exec("/usr/bin/true", &[])).await;
    assert_eq!(other.state, "ok");
    let started = |id: &str| site.audited(id).iter().filter(|e| *e == "job_started").count();
    assert_eq!((started(&view.job_id), started(&other.job_id)), (1, 1));
    agent.stop().await;
}

#[tokio::test]
async fn what_was_under_way_when_the_agent_stopped_is_reported_by_the_next() {
    let site = Site::new(Hub::builder()).await;
    let agent = site.agent(&rules());
    let id = site.order(exec("/usr/bin/sleep", &["600"]), |_| {}).await;
    site.running(&id).await;
    agent.stop().await;
    // It ends while no agent is there.
    let attempt = Attempt::new(site.state_dir().join("jobs").join(&id), 1);
    let shim = Shim::find(attempt).unwrap().unwrap();
    shim.terminate();
    shim.ended().await.unwrap();
    let agent = site.agent(&rules());
    let view = site.end_of(&id).await;
    assert_eq!(view.state, "interrupted");
    assert_eq!(view.result.unwrap().signal, Some(15));
    agent.stop().await;
}

#[tokio::test]
async fn many_jobs_at_once_all_come_back() {
    let site = Site::new(Hub::builder()).await;
    let agent = site.agent(&rules());
    let mut ids = Vec::new();
    for n in 0..40 {
        ids.push(site.order(exec("/usr/bin/echo", &[&n.to_string()]), |_| {}).await);
    }
    for id in ids {
        assert_eq!(site.end_of(&id).await.state, "ok");
    }
    let executed = agent.metrics.jobs_executed.with_label_values(&["exec", "success"]);
    assert_eq!(executed.get(), 40);
    agent.jobs.poke();
    agent.stop().await;
}
