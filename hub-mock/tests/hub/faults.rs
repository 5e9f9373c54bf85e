//! Each fault as an agent sees it.

use std::time::Duration;

use http::StatusCode;
use jtnt_hub_mock::{Handle, Hub, Kind, Route, operator::Role};
use jtnt_proto::{
    envelope::{Envelope, PayloadType},
    hub::{HeartbeatResponse, JobsResponse, MAX_BODY_BYTES, ResultResponse},
    root::Root,
};
use serde_json::json;

use crate::{
    agent::{Agent, Ask, result},
    jobs::enqueue,
};

async fn started() -> (Handle, Agent) {
    let hub = Hub::builder().slow_pause(Duration::from_millis(1)).start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    (hub, agent)
}

async fn publish(hub: &Handle, version: u64) -> Envelope {
    let document = json!({ "version": version });
    let policy = hub.operator().unwrap().sign(Role::Policy, PayloadType::Policy, &document);
    hub.publish_policy(policy.clone()).await.unwrap();
    policy
}

#[tokio::test]
async fn a_refused_connection_is_closed_without_an_answer_and_then_all_is_well() {
    let (hub, agent) = started().await;
    publish(&hub, 1).await;
    for route in [Route::Any, Route::Policy] {
        hub.set_fault(route, Kind::Refuse, Some(1)).unwrap();
        agent.ask(&hub, Ask::get("/api/v1/policy")).await.unwrap_err();
        assert_eq!(agent.get(&hub, "/api/v1/policy").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn status_codes_come_with_what_belongs_to_them() {
    let (hub, agent) = started().await;
    for (kind, code, header) in [
        (Kind::InternalError, 500, None),
        (Kind::TooMany, 429, Some(("retry-after", "1"))),
        (Kind::Redirect, 307, Some(("location", "/elsewhere"))),
    ] {
        hub.set_fault(Route::Policy, kind, Some(1)).unwrap();
        let reply = agent.get(&hub, "/api/v1/policy").await;
        assert_eq!(reply.status.as_u16(), code);
        if let Some((name, value)) = header {
            assert_eq!(reply.header(name), value);
        }
    }
}

#[tokio::test]
async fn broken_bodies_are_broken_after_the_work_was_done() {
    let (hub, agent) = started().await;
    let id = enqueue(&hub, &agent).await;
    let to = format!("/api/v1/jobs/{id}/result");
    hub.set_fault(Route::Result, Kind::Cut, Some(1)).unwrap();
    agent.ask(&hub, Ask::post(&to, &result(&id))).await.unwrap_err();
    assert!(hub.wait_job(&id).await.ended);
    for kind in [Kind::Garbage, Kind::WrongShape, Kind::Oversized] {
        hub.set_fault(Route::Result, kind, Some(1)).unwrap();
        let reply = agent.post(&hub, &to, &result(&id)).await;
        assert_eq!(reply.status, StatusCode::OK);
        serde_json::from_slice::<ResultResponse>(&reply.body).unwrap_err();
        assert_eq!(kind == Kind::Oversized, reply.body.len() > MAX_BODY_BYTES);
    }
    hub.set_fault(Route::Result, Kind::Slow, Some(1)).unwrap();
    assert!(agent.post(&hub, &to, &result(&id)).await.json::<ResultResponse>().duplicate);
}

#[tokio::test]
async fn a_hanging_request_hangs_until_the_fault_is_cleared() {
    let (hub, agent) = started().await;
    hub.set_fault(Route::Heartbeat, Kind::Hang, None).unwrap();
    let asking = agent.ask(&hub, Ask::post("/api/v1/heartbeat", &agent.heartbeat(&hub)));
    let freeing = async {
        hub.await_request(|r| r.route == Some(Route::Heartbeat)).await;
        hub.clear_faults();
    };
    let (reply, ()) = tokio::join!(asking, freeing);
    reply.unwrap_err();
}

#[tokio::test]
async fn a_wrong_signature_is_wrong_and_nothing_else_is() {
    let (hub, agent) = started().await;
    let policy = publish(&hub, 1).await;
    hub.set_fault(Route::Policy, Kind::WrongSignature, Some(1)).unwrap();
    let spoiled: Envelope = agent.get(&hub, "/api/v1/policy").await.json();
    assert_eq!(spoiled.payload, policy.payload);
    let root = hub.operator().unwrap().root().clone();
    let keys = root.keys_of(&root.roles.policy);
    assert_eq!((spoiled.signers(&keys).len(), policy.signers(&keys).len()), (0, 1));
}

#[tokio::test]
async fn expired_documents_are_properly_signed() {
    let (hub, agent) = started().await;
    let operator = hub.operator().unwrap();
    let mut root: Root = operator.root().clone();
    (root.version, root.expires_at) = (2, jiff::Timestamp::UNIX_EPOCH);
    let root = operator.sign(Role::Root, PayloadType::Root, &root);
    hub.set_document_fault(Route::Root, root.clone(), Some(1)).unwrap();
    assert_eq!(agent.get(&hub, "/api/v1/trust/root/2").await.json::<Envelope>(), root);
    let mut job = operator.job(&agent.id, crate::jobs::exec()).unwrap();
    job.expires_at = jiff::Timestamp::UNIX_EPOCH;
    hub.set_document_fault(Route::Jobs, operator.sign_job(&job), Some(1)).unwrap();
    let answer: JobsResponse = agent.get(&hub, "/api/v1/jobs").await.json();
    assert_eq!(answer.jobs[0].job_id, job.job_id);
}

#[tokio::test]
async fn what_was_sent_before_is_replayed() {
    let (hub, agent) = started().await;
    let first = publish(&hub, 1).await;
    publish(&hub, 2).await;
    hub.set_fault(Route::Policy, Kind::Replay, Some(1)).unwrap();
    assert_eq!(agent.get(&hub, "/api/v1/policy").await.json::<Envelope>(), first);
    let id = enqueue(&hub, &agent).await;
    agent.post(&hub, &format!("/api/v1/jobs/{id}/result"), &result(&id)).await;
    hub.set_fault(Route::Jobs, Kind::Replay, Some(1)).unwrap();
    let answer: JobsResponse = agent.get(&hub, "/api/v1/jobs").await.json();
    assert_eq!(answer.jobs[0].job_id, id);
}

#[tokio::test]
async fn a_skewed_clock_shows_in_body_and_header() {
    let (hub, agent) = started().await;
    hub.set_fault(Route::Heartbeat, Kind::ClockSkew, Some(1)).unwrap();
    let reply = agent.post(&hub, "/api/v1/heartbeat", &agent.heartbeat(&hub)).await;
    let hub_time = reply.json::<HeartbeatResponse>().hub_time;
    let ahead = hub_time.as_second() - jiff::Timestamp::now().as_second();
    assert!((86_000..87_000).contains(&ahead), "{ahead}");
    let date = jiff::fmt::rfc2822::parse(reply.header("date")).unwrap().timestamp();
    assert!((date.as_second() - hub_time.as_second()).abs() < 5);
}
