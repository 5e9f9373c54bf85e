//! What survives, and what the server never needs.

use http::StatusCode;
use jtnt_hub_mock::Hub;
use jtnt_proto::{
    envelope::PayloadType,
    hub::{JobStatusState, JobsResponse, ResultResponse},
};
use serde_json::json;

use crate::{
    agent::{Agent, enroll_request, result, send, status},
    jobs::enqueue,
};

#[tokio::test]
async fn everything_that_was_answered_survives_a_restart() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let (done, taken, waiting) =
        (enqueue(&hub, &agent).await, enqueue(&hub, &agent).await, enqueue(&hub, &agent).await);
    agent.post(&hub, &format!("/api/v1/jobs/{done}/result"), &result(&done)).await;
    let accepted = status(JobStatusState::Accepted);
    agent.post(&hub, &format!("/api/v1/jobs/{taken}/status"), &accepted).await;
    let role = jtnt_hub_mock::operator::Role::Policy;
    let policy = json!({ "version": 3 });
    let policy = hub.operator().unwrap().sign(role, PayloadType::Policy, &policy);
    hub.publish_policy(policy).await.unwrap();
    let token = hub.token().await.unwrap();
    let url = hub.url();

    let hub = hub.restart().await.unwrap();
    assert_eq!(hub.url(), url);
    let jobs: JobsResponse = agent.get(&hub, "/api/v1/jobs").await.json();
    let ids: Vec<_> = jobs.jobs.iter().map(|j| j.job_id.as_str()).collect();
    assert_eq!(ids, [waiting.as_str()]);
    let again = agent.post(&hub, &format!("/api/v1/jobs/{done}/result"), &result(&done)).await;
    assert!(again.json::<ResultResponse>().duplicate);
    assert_eq!(agent.get(&hub, "/api/v1/policy").await.status, StatusCode::OK);
    let (request, _) = enroll_request(&token, &ed25519_dalek::SigningKey::from_bytes(&[8; 32]));
    let ask = crate::agent::Ask::post("/api/v1/enroll", &request);
    assert_eq!(send(&hub, None, ask).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn the_server_runs_without_the_operators_folder() {
    let hub = Hub::builder().start().await.unwrap();
    let operator = hub.operator().unwrap();
    let (here, away) = (hub.dir().join("operator"), hub.dir().join("elsewhere"));
    std::fs::rename(&here, &away).unwrap();
    let hub = hub.restart().await.unwrap();
    assert!(!here.exists());
    let agent = Agent::enrol(&hub, 1).await;
    let job = operator.job(&agent.id, crate::jobs::exec()).unwrap();
    let id = hub.enqueue(&agent.id, operator.sign_job(&job)).await.unwrap();
    agent.post(&hub, &format!("/api/v1/jobs/{id}/result"), &result(&id)).await;
    assert_eq!(hub.wait_job(&id).await.state, "ok");
    assert!(!here.exists());
}

#[cfg(unix)]
#[tokio::test]
async fn secrets_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let hub = Hub::builder().start().await.unwrap();
    let mode =
        |name: &str| std::fs::metadata(hub.dir().join(name)).unwrap().permissions().mode() & 0o777;
    for secret in
        ["ca.key", "witness.key", "control.token", "operator/root.key", "operator/job.key"]
    {
        assert_eq!(mode(secret), 0o600, "{secret}");
    }
    assert_eq!(mode("operator"), 0o700);
}
