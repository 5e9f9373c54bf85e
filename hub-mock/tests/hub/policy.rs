//! The policy and the roots.

use http::StatusCode;
use jtnt_hub_mock::{Hub, operator::Role};
use jtnt_proto::{
    envelope::{Envelope, PayloadType},
    root::Root,
};
use serde_json::json;

use crate::agent::{Agent, Ask, send};

#[tokio::test]
async fn a_policy_is_sent_once_and_again_when_it_changes() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let operator = hub.operator().unwrap();
    let reply = agent.get(&hub, "/api/v1/policy").await;
    assert_eq!((reply.status, reply.reason().as_str()), (StatusCode::NOT_FOUND, "NO_POLICY"));

    let sign = |v: u64| operator.sign(Role::Policy, PayloadType::Policy, &json!({ "version": v }));
    hub.publish_policy(sign(1)).await.unwrap();
    let reply = agent.get(&hub, "/api/v1/policy").await;
    assert_eq!(reply.json::<Envelope>(), sign(1));
    let tag = reply.header("etag").to_owned();
    let again = || Ask::get("/api/v1/policy").with("if-none-match", &tag);
    let reply = agent.ask(&hub, again()).await.unwrap();
    assert_eq!((reply.status, reply.body.len()), (StatusCode::NOT_MODIFIED, 0));
    hub.publish_policy(sign(2)).await.unwrap();
    assert_eq!(agent.ask(&hub, again()).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn the_next_root_is_signed_by_the_old_keys_and_the_new() {
    let hub = Hub::builder().start().await.unwrap();
    let mut operator = hub.operator().unwrap();
    let first = operator.root().clone();
    let next = operator.next_root(&[Role::Root, Role::Job]).unwrap();
    hub.publish_root(next.envelope.clone()).await.unwrap();
    next.commit(hub.dir(), &mut operator).unwrap();

    let reply = send(&hub, None, Ask::get("/api/v1/trust/root/2")).await.unwrap();
    assert_eq!(std::fs::read(hub.root_file()).unwrap(), reply.body);
    let envelope: Envelope = reply.json();
    let second: Root = jtnt_proto::json::from_slice(&envelope.payload.0).unwrap();
    second.check().unwrap();
    assert_eq!(second.version, 2);
    for root in [&first, &second] {
        assert_eq!(envelope.signers(&root.keys_of(&root.roles.root)).len(), 1);
    }
    assert_ne!(first.roles.job, second.roles.job);
    assert_eq!(first.roles.policy, second.roles.policy);
    assert_eq!(hub.operator().unwrap().root(), &second);
    let reply = send(&hub, None, Ask::get("/api/v1/trust/root/3")).await.unwrap();
    assert_eq!(reply.reason(), "ROOT_UNKNOWN");
}
