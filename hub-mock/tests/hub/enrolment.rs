//! Who gets a certificate, and whose certificate counts.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use http::StatusCode;
use jtnt_hub_mock::{Handle, Hub, Kind, OldCertificates, Route, Standing};
use jtnt_proto::{
    bytes::Base64,
    hub::{EnrollRequest, RenewResponse},
};

use crate::agent::{Agent, Ask, Reply, enroll_request, send};

async fn enrol(hub: &Handle, request: &EnrollRequest) -> Reply {
    send(hub, None, Ask::post("/api/v1/enroll", request)).await.unwrap()
}

fn audit() -> SigningKey {
    SigningKey::from_bytes(&[9; 32])
}

#[tokio::test]
async fn an_enrolled_agent_may_speak_and_others_may_not() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let reply = agent.post(&hub, "/api/v1/heartbeat", &agent.heartbeat(&hub)).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(hub.agents()[0].host.hostname, "host");

    let ask = Ask::post("/api/v1/heartbeat", &agent.heartbeat(&hub));
    let reply = send(&hub, None, ask).await.unwrap();
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert_eq!(reply.reason(), "CLIENT_CERTIFICATE_REQUIRED");

    let mut other = agent.heartbeat(&hub);
    other.agent_id = Agent::enrol(&hub, 2).await.id;
    let reply = agent.post(&hub, "/api/v1/heartbeat", &other).await;
    assert_eq!((reply.status, reply.reason().as_str()), (StatusCode::FORBIDDEN, "AGENT_MISMATCH"));
}

#[tokio::test]
async fn a_token_counts_once() {
    let hub = Hub::builder().start().await.unwrap();
    let token = hub.token().await.unwrap();
    let (request, _) = enroll_request(&token, &audit());
    assert_eq!(enrol(&hub, &request).await.status, StatusCode::OK);
    let again = enrol(&hub, &request).await;
    assert_eq!((again.status, again.reason().as_str()), (StatusCode::FORBIDDEN, "TOKEN_USED"));
}

#[tokio::test]
async fn expired_and_forged_tokens_are_refused() {
    let hub = Hub::builder().start().await.unwrap();
    let token = hub.token_for(Some(Duration::ZERO)).await.unwrap();
    let (request, _) = enroll_request(&token, &audit());
    assert_eq!(enrol(&hub, &request).await.reason(), "TOKEN_EXPIRED");
    let (request, _) = enroll_request("jtnt_made_up", &audit());
    assert_eq!(enrol(&hub, &request).await.reason(), "TOKEN_UNKNOWN");
    assert!(hub.agents().is_empty());
}

#[tokio::test]
async fn a_request_that_does_not_hold_together_is_refused_and_keeps_the_token() {
    let hub = Hub::builder().start().await.unwrap();
    let token = hub.token().await.unwrap();
    let (good, _) = enroll_request(&token, &audit());

    let (other, _) = enroll_request(&token, &SigningKey::from_bytes(&[10; 32]));
    let wrong_id = EnrollRequest { agent_id: other.agent_id.clone(), ..good.clone() };
    assert_eq!(enrol(&hub, &wrong_id).await.reason(), "AGENT_ID");
    let wrong_proof = EnrollRequest { proof: Base64(vec![1; 64]), ..good.clone() };
    assert_eq!(enrol(&hub, &wrong_proof).await.reason(), "PROOF");
    let wrong_csr = EnrollRequest { csr: other.csr.clone(), ..good.clone() };
    assert_eq!(enrol(&hub, &wrong_csr).await.reason(), "PROOF");
    let unknown = serde_json::to_string(&good).unwrap().replacen('{', r#"{"extra":1,"#, 1);
    let ask = Ask::raw(http::Method::POST, "/api/v1/enroll", unknown);
    let reply = send(&hub, None, ask.with("content-type", "application/json")).await.unwrap();
    assert_eq!(reply.reason(), "MALFORMED");

    assert_eq!(enrol(&hub, &good).await.status, StatusCode::OK);
}

#[tokio::test]
async fn revoked_and_expired_certificates_are_told_apart() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    hub.judge_certificates(&agent.id, Standing::Expired).await.unwrap();
    assert_eq!(agent.get(&hub, "/api/v1/policy").await.reason(), "CERTIFICATE_EXPIRED");
    hub.judge_certificates(&agent.id, Standing::Revoked).await.unwrap();
    assert_eq!(agent.get(&hub, "/api/v1/policy").await.reason(), "CERTIFICATE_REVOKED");
}

#[tokio::test]
async fn a_certificate_whose_dates_are_over_may_only_renew() {
    let hub = Hub::builder().start().await.unwrap();
    hub.set_fault(Route::Enroll, Kind::Expired, Some(1)).unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    assert_eq!(agent.get(&hub, "/api/v1/policy").await.reason(), "CERTIFICATE_EXPIRED");
    let (request, key) = agent.renewal(&hub);
    let reply = agent.post(&hub, "/api/v1/certificates/renew", &request).await;
    let answer: RenewResponse = reply.json();
    let renewed = Agent { identity: (answer.certificate, key), ..agent };
    assert_eq!(renewed.get(&hub, "/api/v1/policy").await.reason(), "NO_POLICY");
}

#[tokio::test]
async fn a_renewal_needs_the_audit_key_and_can_end_the_old_certificate() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let (mut forged, _) = agent.renewal(&hub);
    forged.proof = Base64(vec![3; 64]);
    let reply = agent.post(&hub, "/api/v1/certificates/renew", &forged).await;
    assert_eq!(reply.reason(), "PROOF");

    hub.set_old_certificates(OldCertificates::OldDies);
    let (request, key) = agent.renewal(&hub);
    let renew = async || agent.post(&hub, "/api/v1/certificates/renew", &request).await;
    let answer: RenewResponse = renew().await.json();
    assert_eq!(agent.get(&hub, "/api/v1/policy").await.reason(), "CERTIFICATE_REPLACED");
    // Whoever lost the answer asks again, until the new one was seen.
    let again: RenewResponse = renew().await.json();
    assert_eq!(again.certificate, answer.certificate);
    let renewed = Agent { identity: (answer.certificate, key), ..agent.clone() };
    assert_eq!(renewed.get(&hub, "/api/v1/policy").await.reason(), "NO_POLICY");
    let (other, _) = agent.renewal(&hub);
    let late = agent.post(&hub, "/api/v1/certificates/renew", &other).await;
    assert_eq!(late.reason(), "CERTIFICATE_REPLACED");
}
