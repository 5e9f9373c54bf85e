//! A running agent and a hub whose answers break the contract: the agent says so, keeps what it
//! has, and goes on as soon as the hub does.

use jtnt_hub_mock::{Hub, Kind, Route, Standing};
use serde_json::json;

use crate::{
    site::{Site, exec},
    support::eventually,
};

/// What the hub does, and the agent's words for it: of a policy, and of a heartbeat.
const BROKEN: [(Kind, &str, &str); 7] = [
    (Kind::Garbage, "breaks the contract", "not the promised JSON"),
    (Kind::WrongShape, "breaks the contract", "not the promised JSON"),
    (Kind::Oversized, "more than", "more than"),
    (Kind::Redirect, "a redirect to", "a redirect to"),
    (Kind::Cut, "broke", "broke"),
    (Kind::Refuse, "broke", "broke"),
    (Kind::InternalError, "answered 500", "answered 500"),
];

#[tokio::test]
async fn broken_answers_are_named_and_change_nothing() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"breaker_failures": 1000, "retry_max_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let before = site.kept();
    for (kind, of_policy, of_heartbeat) in BROKEN {
        // Until cleared: a request over a rested connection is tried again over a new one.
        site.hub.set_fault(Route::Policy, kind, None).unwrap();
        let ran = site.home.ctl(&["policy", "refresh"]).await.unwrap();
        assert!(ran.code.is_some_and(|code| code != 0), "{kind:?}: {ran:?}");
        assert!(ran.stderr.contains(of_policy), "{kind:?}: {}", ran.stderr);
        site.hub.clear_faults();

        let mark = agent.mark();
        site.hub.set_fault(Route::Heartbeat, kind, None).unwrap();
        let line = agent.says(mark, "no heartbeat").await.unwrap();
        assert!(line["message"].as_str().unwrap().contains(of_heartbeat), "{kind:?}: {line}");
        assert_eq!(line["level"], "WARN", "{line}");
        site.hub.clear_faults();
        let line = agent.says(mark, "the hub is back").await.unwrap();
        assert_eq!(line["level"], "INFO", "{line}");
        assert_eq!(site.kept(), before, "{kind:?}");
    }
    site.in_force(1).await;
    let refreshed = site.home.asked(&["policy", "refresh"]).await.unwrap();
    assert_eq!(refreshed["version"], 1);
    for kind in [Kind::Garbage, Kind::WrongShape, Kind::Oversized, Kind::Cut, Kind::Redirect] {
        site.hub.set_fault(Route::Jobs, kind, Some(1)).unwrap();
    }
    // The agent polls through all of them, and then the job comes.
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_differs_is_named_and_changes_no_expiry() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.hub.set_fault(Route::Policy, Kind::ClockSkew, Some(1)).unwrap();
    let ran = site.home.ctl(&["test-connection"]).await.unwrap().exits(1).unwrap();
    assert!(ran.stdout.contains("CLOCK_SKEW"), "{}", ran.stdout);
    site.hub.set_fault(Route::Heartbeat, Kind::ClockSkew, Some(2)).unwrap();
    site.hub.await_request(|r| r.route == Some(Route::Heartbeat) && r.status == 200).await;
    // A job of today is neither expired nor too early.
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_revoked_certificate_is_named_and_the_agent_waits_for_a_new_one() {
    let mut site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let before = site.kept();
    site.hub.judge_certificates(&site.id, Standing::Revoked).await.unwrap();
    agent.says(0, "no heartbeat").await.unwrap();
    let ran = site.home.ctl(&["test-connection"]).await.unwrap().exits(1).unwrap();
    assert!(ran.stdout.contains("CLIENT_CERT_REFUSED"), "{}", ran.stdout);
    assert_eq!(site.kept(), before);
    let old = site.home.asked(&["status"]).await.unwrap()["certificate"]["serial"].clone();

    let token = site.token_file(&site.hub.token().await.unwrap());
    let root = site.hub.root_file();
    site.enrol_with(&token, &root, &["--force"]).await.exits(0).unwrap();
    site.id = site.hub.agents().pop().unwrap().agent_id;
    let back = eventually("the agent is back under its new certificate", async || {
        let status = site.home.asked(&["status"]).await.map_err(|f| f.to_string())?;
        let back = status["hub"]["connected"] == true && status["certificate"]["serial"] != old;
        if back { Ok(()) } else { Err(status.to_string()) }
    });
    back.await.unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    agent.stop().await.unwrap();
}
