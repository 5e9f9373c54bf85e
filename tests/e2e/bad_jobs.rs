//! Jobs that must not run: each is refused with its own reason, nothing starts, nothing on disk
//! changes but log and journal, and the agent works on.

use jtnt_hub_mock::{Hub, Route, operator::Role};
use jtnt_proto::{
    envelope::{Envelope, PayloadType},
    job::Job,
};
use serde_json::{Value, json};

use crate::site::{Site, exec, hence};

/// A signed job that would leave a trace, with changes to its document.
fn forged(site: &Site, role: Role, changes: &Value) -> (String, Envelope) {
    let operator = site.operator();
    let work = serde_json::from_value(exec("/usr/bin/true", &[])).unwrap();
    let job = operator.job(&site.id, work).unwrap();
    let mut document = serde_json::to_value(&job).unwrap();
    document.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    (job.job_id, operator.sign(role, PayloadType::Job, &document))
}

/// The hub is told why, in these words.
async fn refused(site: &Site, (id, envelope): (String, Envelope), reason: &str, words: &str) {
    site.hub.enqueue(&site.id, envelope).await.unwrap();
    let view = site.end_of(&id).await;
    let status = view.status.unwrap();
    assert_eq!((view.state.as_str(), status.reason.as_deref()), ("rejected", Some(reason)));
    let message = status.message.unwrap();
    assert!(message.contains(words), "{reason}: {message:?} says nothing of {words:?}");
    let events = site.audited(&id);
    assert!(!events.contains(&"job_started".to_owned()), "{reason}: {events:?}");
    assert!(view.result.is_none(), "{reason}");
}

#[tokio::test]
async fn each_bad_job_is_refused_for_its_own_reason() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let before = site.kept();
    let command = |path: &str| json!({"command": {"path": path}});
    for (role, changes, reason, words) in [
        (Role::Policy, json!({}), "BAD_SIGNATURE", "signature"),
        (Role::Script, json!({}), "BAD_SIGNATURE", "signature"),
        (Role::Job, json!({"agent_id": "somebody-else"}), "NOT_FOR_ME", "agent somebody-else"),
        (Role::Job, json!({"root_id": "another"}), "NOT_FOR_ME", "root another"),
        (Role::Job, json!({"not_before": hence(3600)}), "NOT_YET_VALID", "not valid before"),
        (Role::Job, json!({"expires_at": hence(8 * 86_400)}), "VALID_TOO_LONG", "7 days"),
        (
            Role::Job,
            json!({"issued_at": hence(-86_400), "not_before": hence(-86_400)}),
            "BEFORE_JOURNAL",
            "sign it again",
        ),
        (Role::Job, json!({"min_policy_version": 9}), "VERSION_TOO_OLD", "policy version 9"),
        (Role::Job, json!({"type": "dance"}), "MALFORMED", "dance"),
        (Role::Job, json!({"surprise": 1}), "MALFORMED", "surprise"),
        (Role::Job, command("usr/bin/true"), "MALFORMED", "not an absolute path: usr/bin/true"),
        (Role::Job, command("/usr/bin/../bin/true"), "PATH_NOT_NORMAL", ".."),
    ] {
        refused(&site, forged(&site, role, &changes), reason, words).await;
    }
    let upload = json!({"type": "upload", "command": {"path": "etc/passwd", "name": "x"}});
    refused(&site, forged(&site, Role::Job, &upload), "MALFORMED", "etc/passwd").await;
    assert_eq!(site.kept(), before);
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok", "it works on");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_expired_job_and_a_used_id_start_nothing() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    // Over before it comes, though it was signed after the journal began.
    let late = |job: &mut Job| {
        job.expires_at = job.not_before + jiff::SignedDuration::from_millis(1);
    };
    let id = site.order(exec("/usr/bin/true", &[]), late).await;
    let status = site.end_of(&id).await.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("EXPIRED"));
    assert!(status.message.unwrap().contains("expired at"));

    let ran = site.run(exec("/usr/bin/true", &[])).await;
    let mut other = serde_json::to_value(
        site.operator()
            .job(&site.id, serde_json::from_value(exec("/usr/bin/echo", &["again"])).unwrap())
            .unwrap(),
    )
    .unwrap();
    other["job_id"] = json!(ran.job_id);
    let other = site.operator().sign(Role::Job, PayloadType::Job, &other);
    let before = site.kept();
    site.hub.set_document_fault(Route::Jobs, other, Some(1)).unwrap();
    // The poll that is under way ends with the next job; the one after brings the replay.
    for _ in 0..2 {
        assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    }
    let replay = crate::support::eventually("the replay is refused", async || {
        let lines = site.audit();
        let mut about = lines.iter().filter(|line| line["job_id"] == ran.job_id.as_str());
        let refused = about.rfind(|line| line["event"] == "job_rejected").cloned();
        refused.ok_or_else(|| format!("{:?}", site.audited(&ran.job_id)))
    });
    let replay = replay.await.unwrap();
    assert_eq!(
        (&replay["status"], &replay["details"]["reason"]),
        (&json!("denied"), &json!("REPLAY"))
    );
    let message = replay["details"]["message"].as_str().unwrap();
    assert!(message.contains("was used before"), "{message}");
    assert_eq!(site.audited(&ran.job_id), ["job_started", "job_executed", "job_rejected"]);
    let shown = site.home.asked(&["jobs", "show", &ran.job_id]).await.unwrap();
    assert_eq!((&shown["state"], &shown["command"]), (&json!("ok"), &json!("/usr/bin/true")));
    assert_eq!(site.kept(), before);
    agent.stop().await.unwrap();
}
