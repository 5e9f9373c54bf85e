//! The client's routes, and what it makes of answers no hub should give.

use std::time::Duration;

use jtnt_agent::{
    domain::{breaker::State, ids::JobId},
    hub::{HubError, UploadPart},
};
use jtnt_hub_mock::{Filter, Handle, Hub, Kind, Route, Standing};
use jtnt_proto::{
    bytes::Hash,
    hub::{JobStatus, JobStatusState},
    job::Work,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::support::Line;

fn content() -> Vec<u8> {
    (0..700_001_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect()
}

async fn enqueue(hub: &Handle, agent_id: &str) -> JobId {
    let work = serde_json::json!({"type": "exec", "command": {"path": "/usr/bin/true"}});
    let work: Work = serde_json::from_value(work).unwrap();
    let operator = hub.operator().unwrap();
    let job = operator.sign_job(&operator.job(agent_id, work).unwrap());
    JobId::try_from(hub.enqueue(agent_id, job).await.unwrap()).unwrap()
}

fn refusal(error: &HubError) -> (u16, &str) {
    let HubError::Refused { status, reason, .. } = error else { panic!("{error:?}") };
    (*status, reason)
}

#[tokio::test]
async fn a_policy_is_fetched_once() {
    let line = Line::to(Hub::builder()).await;
    let none = line.client.policy(None).await.unwrap_err();
    assert_eq!(refusal(&none), (404, "NO_POLICY"));
    assert!(!none.is_transient());
    let operator = line.hub.operator().unwrap();
    let envelope = operator.sign_bytes(
        jtnt_hub_mock::operator::Role::Policy,
        jtnt_proto::envelope::PayloadType::Policy,
        br#"{"version":1}"#.to_vec(),
    );
    line.hub.publish_policy(envelope.clone()).await.unwrap();
    let (fetched, etag) = line.client.policy(None).await.unwrap().unwrap();
    assert_eq!(fetched, envelope);
    assert_eq!(line.client.policy(Some(&etag)).await.unwrap(), None);
    assert!(line.client.policy(Some("\"other\"")).await.unwrap().is_some());
    assert_eq!(line.client.key_exchange().as_deref(), Some("X25519MLKEM768"));
    assert!(line.client.clock_offset().unwrap().abs() < jiff::SignedDuration::from_secs(60));
}

#[tokio::test]
async fn a_job_is_polled_for_and_reported() {
    let line = Line::to(Hub::builder()).await;
    let wait = line.client.jobs(Duration::from_secs(30));
    let (leased, id) = tokio::join!(wait, enqueue(&line.hub, &line.identity.agent_id));
    let leased = leased.unwrap();
    assert_eq!(leased.jobs[0].job_id, id.as_str());
    let status = JobStatus {
        attempt: 1,
        state: JobStatusState::Accepted,
        reason: None,
        message: None,
        policy_version: None,
        rule: None,
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    line.client.job_status(&id, &status).await.unwrap();
    let root = line.client.root(1).await.unwrap();
    assert_eq!(root, std::fs::read(line.hub.root_file()).unwrap());
    assert_eq!(refusal(&line.client.root(2).await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn an_artifact_comes_whole_in_parts_and_never_wrong() {
    let line = Line::to(Hub::builder()).await;
    let bytes = content();
    let artifact = line.hub.put_artifact(&bytes).unwrap();
    for offset in [0, 1, 300_000, 700_000, 700_001] {
        let mut body = line.client.artifact(artifact.sha256, artifact.size, offset).await.unwrap();
        let mut got = Vec::new();
        body.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, bytes[usize::try_from(offset).unwrap()..]);
    }
    let longer = line.client.artifact(artifact.sha256, artifact.size + 1, 0).await;
    assert!(matches!(longer, Err(HubError::BadAnswer(_))));
    let none = line.client.artifact(Hash([0; 32]), 1, 0).await.err().unwrap();
    assert_eq!(refusal(&none), (404, "ARTIFACT_UNKNOWN"));
    line.hub.set_fault(Route::Artifact, Kind::Cut, Some(1)).unwrap();
    let cut = match line.client.artifact(artifact.sha256, artifact.size, 0).await {
        Err(_) => true,
        Ok(mut body) => body.read_to_end(&mut Vec::new()).await.is_err(),
    };
    assert!(cut);
}

#[tokio::test]
async fn an_upload_goes_on_where_the_hub_is() {
    let line = Line::to(Hub::builder()).await;
    let id = enqueue(&line.hub, &line.identity.agent_id).await;
    let bytes = content();
    let part = |offset: u64, length| {
        let from = std::io::Cursor::new(bytes[usize::try_from(offset).unwrap()..].to_vec());
        UploadPart::Append { bytes: Box::new(from), offset, length }
    };
    let put = |part| line.client.upload(&id, "report.bin", part);
    assert_eq!(put(UploadPart::Ask).await.unwrap().received, 0);
    assert_eq!(put(part(0, 400_000)).await.unwrap().received, 400_000);
    // A wrong place is told, not appended.
    assert_eq!(put(part(7, 1000)).await.unwrap().received, 400_000);
    assert_eq!(put(part(400_000, 300_001)).await.unwrap().received, 700_001);
    let finish = UploadPart::Finish { size: 700_001, sha256: Hash::of(&bytes) };
    assert!(put(finish).await.unwrap().complete);
    assert_eq!(line.hub.artifact(Hash::of(&bytes)).unwrap(), bytes);
    let named = line.client.upload(&id, "../etc", UploadPart::Ask).await.unwrap_err();
    assert_eq!(refusal(&named), (422, "NAME"));
}

#[tokio::test]
async fn answers_that_break_the_contract_are_told_as_what_they_are() {
    let line = Line::to(Hub::builder()).await;
    for (kind, words) in [
        (Kind::Garbage, "breaks the contract"),
        (Kind::Oversized, "more than"),
        (Kind::Redirect, "a redirect to"),
        (Kind::WrongShape, "not the promised JSON"),
        (Kind::Cut, "broke"),
        (Kind::Refuse, "broke"),
    ] {
        // Twice, for a request over a rested connection is tried again over a new one.
        line.hub.set_fault(Route::Jobs, kind, Some(2)).unwrap();
        let error = line.client.jobs(Duration::ZERO).await.unwrap_err();
        assert!(error.to_string().contains(words), "{kind:?}: {error}");
        assert!(error.is_transient());
        line.hub.clear_faults();
        line.client.jobs(Duration::ZERO).await.unwrap();
    }
    line.hub.set_fault(Route::Jobs, Kind::TooMany, Some(1)).unwrap();
    let busy = line.client.jobs(Duration::ZERO).await.unwrap_err();
    assert_eq!((refusal(&busy).0, busy.retry_after()), (429, Some(Duration::from_secs(1))));
    assert_eq!(line.client.breaker(), State::Closed);
}

#[tokio::test]
async fn five_failures_open_the_breaker_for_all_routes_and_refusals_do_not() {
    let line = Line::to(Hub::builder()).await;
    for _ in 0..10 {
        line.client.policy(None).await.unwrap_err();
    }
    assert_eq!(line.client.breaker(), State::Closed);
    line.hub.set_fault(Route::Jobs, Kind::InternalError, None).unwrap();
    for _ in 0..5 {
        assert_eq!(refusal(&line.client.jobs(Duration::ZERO).await.unwrap_err()).0, 500);
    }
    let sent = line.hub.requests(&Filter::default()).len();
    let open = line.client.policy(None).await.unwrap_err();
    assert!(matches!(open, HubError::BreakerOpen(left) if left <= Duration::from_mins(1)));
    assert_eq!(line.hub.requests(&Filter::default()).len(), sent, "nothing was sent");
    let shown = |state| line.metrics.breaker.with_label_values(&[state]).get();
    assert!((shown("open") - 1.0).abs() < f64::EPSILON && shown("closed").abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_hub_that_restarts_is_found_again_without_an_error() {
    let Line { hub, client, identity, metrics, dir: _dir } = Line::to(Hub::builder()).await;
    client.jobs(Duration::ZERO).await.unwrap();
    let hub = hub.restart().await.unwrap();
    client.jobs(Duration::ZERO).await.unwrap();
    hub.judge_certificates(&identity.agent_id, Standing::Revoked).await.unwrap();
    let refused = client.jobs(Duration::ZERO).await.unwrap_err();
    assert_eq!(refusal(&refused), (403, "CERTIFICATE_REVOKED"));
    assert!((metrics.hub_connection.with_label_values(&["connected"]).get() - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_proxy_that_tunnels_is_used_and_one_that_does_not_is_told() {
    let line = Line::to(Hub::builder()).await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = line.client_through(&format!("http://{}", proxy.local_addr().unwrap()));
    let hub = line.hub.addr();
    let tunnel = async {
        let (mut from, _) = proxy.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(from.read_u8().await.unwrap());
        }
        assert!(head.starts_with(format!("CONNECT localhost:{} HTTP/1.1", hub.port()).as_bytes()));
        from.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
        let mut to = TcpStream::connect(hub).await.unwrap();
        copy_bidirectional(&mut from, &mut to).await
    };
    tokio::select! {
        answer = client.jobs(Duration::ZERO) => drop(answer.unwrap()),
        ended = tunnel => panic!("{ended:?}"),
    }
    let refusing = async {
        let (mut from, _) = proxy.accept().await.unwrap();
        from.write_all(b"HTTP/1.1 407 Who are you\r\n\r\n").await.unwrap();
        from.read_to_end(&mut Vec::new()).await
    };
    let client = line.client_through(&format!("http://{}", proxy.local_addr().unwrap()));
    let (refused, _) = tokio::join!(client.jobs(Duration::ZERO), refusing);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("the proxy makes no connection") && refused.contains("407"));
}
