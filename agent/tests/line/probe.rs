//! The connection test tells apart what can go wrong on the way.

use jtnt_agent::hub::{HubClient, ProbeStep};
use jtnt_hub_mock::{Hub, Kind, Route, Standing};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use crate::support::Line;

/// The step that failed, with its reason; all before it must have worked.
async fn failed(client: &HubClient) -> (&'static str, String) {
    let steps = client.probe().await;
    let last = steps.last().unwrap();
    assert!(!last.ok, "{steps:?}");
    assert!(!last.advice.is_empty() && !last.detail.is_empty());
    assert!(steps.iter().rev().skip(1).all(|s| s.ok && s.reason.is_empty()));
    (last.name, last.reason.clone())
}

fn told(step: &'static str, reason: &str) -> (&'static str, String) {
    (step, reason.to_owned())
}

#[tokio::test]
async fn all_is_well() {
    let line = Line::to(Hub::builder()).await;
    let steps = line.client.probe().await;
    let names: Vec<_> = steps.iter().map(|s| s.name).collect();
    assert_eq!(names, ["dns", "tcp", "tls", "client_certificate", "http", "clock"]);
    assert!(steps.iter().all(|ProbeStep { ok, .. }| *ok), "{steps:?}");
    assert!(steps[2].detail.contains("X25519MLKEM768"));
}

#[tokio::test]
async fn each_step_fails_with_a_reason_of_its_own() {
    let line = Line::to(Hub::builder()).await;
    let unknown = line.client_to("https://no-such-host.invalid");
    assert_eq!(failed(&unknown).await, told("dns", "DNS"));

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = closed.local_addr().unwrap();
    drop(closed);
    let refused = line.client_to(&format!("https://{at}"));
    assert_eq!(failed(&refused).await, told("tcp", "TCP_REFUSED"));

    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = line.client_to(&format!("https://{}", plain.local_addr().unwrap()));
    let answers = async {
        let (mut stream, _) = plain.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    };
    let (seen, _stream) = tokio::join!(failed(&client), answers);
    assert_eq!(seen, told("tls", "NOT_TLS"));

    let other = Line::to(Hub::builder()).await;
    assert_eq!(failed(&line.client_to(&other.hub.url())).await, told("tls", "HUB_UNTRUSTED"));
    let by_other_name = line.client_to(&format!("https://127.0.0.2:{}", line.hub.addr().port()));
    let (step, reason) = failed(&by_other_name).await;
    assert!(step == "tcp" || reason == "HUB_NAME", "{step} {reason}");
}

#[tokio::test]
async fn a_hub_that_answers_may_still_say_no() {
    let line = Line::to(Hub::builder()).await;
    line.hub.set_fault(Route::Policy, Kind::InternalError, Some(1)).unwrap();
    assert_eq!(failed(&line.client).await, told("http", "HTTP_ERROR"));
    line.hub.set_fault(Route::Policy, Kind::Redirect, Some(1)).unwrap();
    assert_eq!(failed(&line.client).await, told("http", "HTTP_NOT_A_HUB"));
    line.hub.set_fault(Route::Policy, Kind::ClockSkew, Some(1)).unwrap();
    assert_eq!(failed(&line.client).await, told("clock", "CLOCK_SKEW"));
    for standing in [Standing::Expired, Standing::Revoked] {
        line.hub.judge_certificates(&line.identity.agent_id, standing).await.unwrap();
        let refused = told("client_certificate", "CLIENT_CERT_REFUSED");
        assert_eq!(failed(&line.client).await, refused);
    }
}
