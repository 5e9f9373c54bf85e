//! Content by hash, and uploads that break off.

use http::{Method, StatusCode};
use jtnt_hub_mock::{Handle, Hub};
use jtnt_proto::{bytes::Hash, hub::UploadState};

use crate::{
    agent::{Agent, Ask, Reply},
    jobs::enqueue,
};

fn content() -> Vec<u8> {
    (0..1_000_003_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect()
}

#[tokio::test]
async fn an_artifact_comes_whole_and_in_parts() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let bytes = content();
    let path = format!("/api/v1/artifacts/{}", hub.put_artifact(&bytes).unwrap().sha256);
    assert_eq!(agent.get(&hub, &path).await.body, bytes);

    let reply = agent.ask(&hub, Ask::get(&path).with("range", "bytes=1000-")).await.unwrap();
    assert_eq!(reply.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(reply.header("content-range"), "bytes 1000-1000002/1000003");
    assert_eq!(reply.body, bytes[1000..]);
    let reply = agent.ask(&hub, Ask::get(&path).with("range", "bytes=2000000-")).await.unwrap();
    assert_eq!(reply.status, StatusCode::RANGE_NOT_SATISFIABLE);

    let reply = agent.get(&hub, &format!("/api/v1/artifacts/{}", Hash([0; 32]))).await;
    assert_eq!(reply.reason(), "ARTIFACT_UNKNOWN");
    let reply = agent.get(&hub, "/api/v1/artifacts/..%2f..%2fca.key").await;
    assert_eq!(reply.reason(), "HASH");
}

async fn put(hub: &Handle, agent: &Agent, path: &str, part: &[u8]) -> Reply {
    agent.ask(hub, Ask::raw(Method::PUT, path, part.to_vec())).await.unwrap()
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off_even_after_a_restart() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let id = enqueue(&hub, &agent).await;
    let (bytes, base) = (content(), format!("/api/v1/artifacts/{id}/report.bin"));
    let reply = put(&hub, &agent, &format!("{base}?offset=0"), &bytes[..400_000]).await;
    assert_eq!(reply.json::<UploadState>(), UploadState { received: 400_000, complete: false });

    let hub = hub.restart().await.unwrap();
    let reply = put(&hub, &agent, &format!("{base}?offset=7"), b"x").await;
    assert_eq!(reply.status, StatusCode::CONFLICT);
    let asked = put(&hub, &agent, &format!("{base}?offset=0"), b"").await.json::<UploadState>();
    assert_eq!(asked.received, 400_000);
    put(&hub, &agent, &format!("{base}?offset=400000"), &bytes[400_000..]).await;
    let end = format!("{base}?offset={}&sha256={}", bytes.len(), Hash::of(&bytes));
    for _ in 0..2 {
        let state = put(&hub, &agent, &end, b"").await.json::<UploadState>();
        assert_eq!(state, UploadState { received: 1_000_003, complete: true });
    }
    let stored = hub.job(&id).unwrap().artifacts["report.bin"];
    assert_eq!(hub.artifact(stored.sha256).unwrap(), bytes);
}

#[tokio::test]
async fn an_upload_with_another_hash_starts_over() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let id = enqueue(&hub, &agent).await;
    let base = format!("/api/v1/artifacts/{id}/file");
    put(&hub, &agent, &format!("{base}?offset=0"), b"hello").await;
    let end = format!("{base}?offset=5&sha256={}", Hash::of(b"other"));
    let reply = put(&hub, &agent, &end, b"").await;
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(reply.reason(), "HASH_MISMATCH");
    let state = put(&hub, &agent, &format!("{base}?offset=0"), b"").await.json::<UploadState>();
    assert_eq!(state, UploadState { received: 0, complete: false });
}

#[tokio::test]
async fn only_the_agent_of_the_job_uploads_and_only_proper_names() {
    let hub = Hub::builder().start().await.unwrap();
    let (one, two) = (Agent::enrol(&hub, 1).await, Agent::enrol(&hub, 2).await);
    let id = enqueue(&hub, &one).await;
    let reply = put(&hub, &two, &format!("/api/v1/artifacts/{id}/f?offset=0"), b"x").await;
    assert_eq!(reply.reason(), "JOB_UNKNOWN");
    let reply = put(&hub, &one, &format!("/api/v1/artifacts/{id}/..%2Fx?offset=0"), b"x").await;
    assert_eq!(reply.reason(), "NAME");
}
