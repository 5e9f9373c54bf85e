//! Leases, statuses, results.

use std::time::Duration;

use http::StatusCode;
use jtnt_hub_mock::{Handle, Hub};
use jtnt_proto::{
    bytes::Base64,
    hub::{
        HeartbeatResponse, JobStatusState, JobsResponse, MAX_CHUNK_BYTES, OutputChunk,
        OutputStream, ResultResponse,
    },
    job::{Exec, Job, Work},
};

use crate::agent::{Agent, Ask, result, status};

pub(crate) fn exec() -> Work {
    let env = std::collections::BTreeMap::new();
    Work::Exec(Exec { path: "/bin/true".into(), args: vec![], env, cwd: None, run_as: None })
}

pub(crate) async fn enqueue(hub: &Handle, agent: &Agent) -> String {
    let operator = hub.operator().unwrap();
    let job = operator.job(&agent.id, exec()).unwrap();
    hub.enqueue(&agent.id, operator.sign_job(&job)).await.unwrap()
}

/// A job whose output is to be heard while it runs.
pub(crate) async fn enqueue_loud(hub: &Handle, agent: &Agent) -> String {
    let operator = hub.operator().unwrap();
    let mut job = operator.job(&agent.id, exec()).unwrap();
    job.stream_output = true;
    hub.enqueue(&agent.id, operator.sign_job(&job)).await.unwrap()
}

/// The first piece of a job's output.
pub(crate) fn chunk(data: &[u8]) -> OutputChunk {
    let (stream, data) = (OutputStream::Stdout, Base64(data.to_vec()));
    OutputChunk { attempt: 1, stream, offset: 0, data, end: false }
}

#[tokio::test]
async fn live_output_is_taken_where_it_was_asked_for_and_within_bounds() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let id = enqueue_loud(&hub, &agent).await;
    let to = |id: &str| format!("/api/v1/jobs/{id}/output");
    let put = async |id: &str, chunk: &OutputChunk| {
        let reply = agent.ask(&hub, Ask::put(&to(id), chunk)).await.unwrap();
        (reply.status, reply.json::<serde_json::Value>())
    };
    let (status, state) = put(&id, &chunk(b"said")).await;
    assert_eq!((status, &state["received"]), (StatusCode::OK, &4.into()));
    let (_, state) = put(&id, &chunk(b"said")).await;
    assert_eq!(state["received"], 4, "a piece that comes again counts once");
    let large = OutputChunk { offset: 4, ..chunk(&vec![0; MAX_CHUNK_BYTES + 1]) };
    assert_eq!(put(&id, &large).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let far = OutputChunk { offset: u64::MAX, ..chunk(b"x") };
    assert_eq!(put(&id, &far).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let quiet = enqueue(&hub, &agent).await;
    let (status, problem) = put(&quiet, &chunk(b"x")).await;
    assert_eq!((status, &problem["reason"]), (StatusCode::CONFLICT, &"NOT_ASKED".into()));
    let stranger = Agent::enrol(&hub, 2).await;
    let reply = stranger.ask(&hub, Ask::put(&to(&id), &chunk(b"x"))).await.unwrap();
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    let hub = hub.restart().await.unwrap();
    assert_eq!(hub.live_output(&id).await.unwrap(), [chunk(b"said")]);
}

async fn poll(hub: &Handle, agent: &Agent, wait: u64) -> JobsResponse {
    agent.get(hub, &format!("/api/v1/jobs?wait={wait}")).await.json()
}

#[tokio::test]
async fn a_job_goes_there_and_its_result_comes_back() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    // The poll is there before the job is.
    let waiting = async { poll(&hub, &agent, 30).await };
    let (answer, id) = tokio::join!(waiting, enqueue(&hub, &agent));
    assert_eq!(answer.jobs[0].job_id, id);
    let signed = &answer.jobs[0].envelope;
    let root = hub.operator().unwrap().root().clone();
    assert_eq!(signed.signers(&root.keys_of(&root.roles.job)).len(), 1);
    let job: Job = jtnt_proto::json::from_slice(&signed.payload.0).unwrap();
    assert_eq!((job.job_id.as_str(), job.work), (id.as_str(), exec()));

    let to = |what: &str| format!("/api/v1/jobs/{id}/{what}");
    let reply = agent.post(&hub, &to("status"), &status(JobStatusState::Accepted)).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    assert!(poll(&hub, &agent, 0).await.jobs.is_empty());
    let reply = agent.post(&hub, &to("result"), &result(&id)).await;
    assert!(!reply.json::<ResultResponse>().duplicate);
    assert_eq!(hub.wait_job(&id).await.state, "ok");
}

#[tokio::test]
async fn a_job_that_nobody_acknowledges_is_given_again() {
    let hub = Hub::builder().lease(Duration::from_millis(50)).start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let id = enqueue(&hub, &agent).await;
    for _ in 0..3 {
        assert_eq!(poll(&hub, &agent, 30).await.jobs[0].job_id, id);
    }
    agent.post(&hub, &format!("/api/v1/jobs/{id}/status"), &status(JobStatusState::Accepted)).await;
    assert!(poll(&hub, &agent, 0).await.jobs.is_empty());
}

#[tokio::test]
async fn a_leased_job_is_not_given_twice_in_its_time() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    enqueue(&hub, &agent).await;
    assert_eq!(poll(&hub, &agent, 0).await.jobs.len(), 1);
    assert_eq!(poll(&hub, &agent, 0).await.jobs.len(), 0);
}

#[tokio::test]
async fn a_result_may_come_twice_but_not_differ() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let id = enqueue(&hub, &agent).await;
    let to = format!("/api/v1/jobs/{id}/result");
    let send = |r| agent.ask(&hub, Ask::post(&to, &r));
    assert!(!send(result(&id)).await.unwrap().json::<ResultResponse>().duplicate);
    assert!(send(result(&id)).await.unwrap().json::<ResultResponse>().duplicate);
    let mut other = result(&id);
    other.exit_code = Some(1);
    let reply = send(other).await.unwrap();
    assert_eq!((reply.status, reply.reason().as_str()), (StatusCode::CONFLICT, "RESULT_CONFLICT"));
    assert_eq!(hub.job(&id).unwrap().result.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn a_rejected_job_has_ended_and_can_have_no_result() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let id = enqueue(&hub, &agent).await;
    let mut rejected = status(JobStatusState::Rejected);
    rejected.reason = Some("POLICY_DENIED".into());
    agent.post(&hub, &format!("/api/v1/jobs/{id}/status"), &rejected).await;
    let job = hub.wait_job(&id).await;
    assert_eq!(
        (job.state.as_str(), job.summary().reason.as_deref()),
        ("rejected", Some("POLICY_DENIED"))
    );
    let reply = agent.post(&hub, &format!("/api/v1/jobs/{id}/result"), &result(&id)).await;
    assert_eq!(reply.reason(), "JOB_REJECTED");
}

#[tokio::test]
async fn another_agents_job_is_as_unknown_as_none() {
    let hub = Hub::builder().start().await.unwrap();
    let (one, two) = (Agent::enrol(&hub, 1).await, Agent::enrol(&hub, 2).await);
    let id = enqueue(&hub, &one).await;
    let reply = two.post(&hub, &format!("/api/v1/jobs/{id}/result"), &result(&id)).await;
    assert_eq!((reply.status, reply.reason().as_str()), (StatusCode::NOT_FOUND, "JOB_UNKNOWN"));
    assert!(poll(&hub, &two, 0).await.jobs.is_empty());
}

#[tokio::test]
async fn what_a_result_says_is_checked() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let id = enqueue(&hub, &agent).await;
    let to = format!("/api/v1/jobs/{id}/result");
    let mut odd = result("another");
    assert_eq!(agent.post(&hub, &to, &odd).await.reason(), "JOB_MISMATCH");
    odd = result(&id);
    odd.attempt = 0;
    assert_eq!(agent.post(&hub, &to, &odd).await.reason(), "ATTEMPT");
    let twice = serde_json::to_string(&result(&id)).unwrap();
    let twice = twice.replacen('{', r#"{"attempt":1,"#, 1);
    let ask = Ask::raw(http::Method::POST, &to, twice).with("content-type", "application/json");
    assert_eq!(agent.ask(&hub, ask).await.unwrap().reason(), "MALFORMED");
    let ask = Ask::raw(http::Method::POST, &to, vec![b' '; 5 << 20]);
    let reply = agent.ask(&hub, ask.with("content-type", "application/json")).await;
    // The hub answers before it has read all; the client may see the answer or the close.
    assert!(reply.map_or(true, |r| r.reason() == "TOO_LARGE"));
    assert!(!hub.job(&id).unwrap().ended);
}

#[tokio::test]
async fn a_cancel_reaches_the_agent_with_a_hint() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let id = enqueue(&hub, &agent).await;
    poll(&hub, &agent, 0).await;
    agent.post(&hub, &format!("/api/v1/jobs/{id}/status"), &status(JobStatusState::Running)).await;
    let cancel = hub.operator().unwrap().cancel(&id, &agent.id, Some("enough"));
    let waiting = async { poll(&hub, &agent, 30).await };
    let (answer, sent) = tokio::join!(waiting, hub.cancel(&id, cancel.clone()));
    sent.unwrap();
    assert_eq!(answer.cancels, [cancel]);
    let reply = agent.post(&hub, "/api/v1/heartbeat", &agent.heartbeat(&hub)).await;
    assert!(reply.json::<HeartbeatResponse>().hints.cancels);
}
