//! Enrolments that must fail: each says why and what to do, and leaves the disk as it was.

use std::{path::Path, time::Duration};

use jtnt_hub_mock::{Filter, Hub, Kind, Route};

use crate::{
    site::Site,
    support::{Ran, eventually, put},
};

/// The command failed with these words, and nothing that was kept has changed.
fn refused(
    site: &Site,
    before: &std::collections::BTreeMap<String, jtnt_proto::bytes::Hash>,
    ran: &Ran,
    words: &[&str],
) {
    assert!(matches!(ran.code, Some(1 | 2 | 6)), "{ran:?}");
    for part in words {
        assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
    }
    let mut after = site.kept();
    // The audit key may be made: the agent's id follows from it, and the next try uses it.
    after.remove("data/keys/audit.key");
    let mut before = before.clone();
    before.remove("data/keys/audit.key");
    assert_eq!(after, before, "{words:?}");
}

#[tokio::test]
async fn a_hub_that_cannot_prove_itself_gets_no_token() {
    let site = Site::new(Hub::builder()).await;
    let other = Hub::builder().start().await.unwrap();
    let before = site.kept();
    let token = site.token_file(&site.hub.token().await.unwrap());

    let ran = site.enrol_with(&token, &other.root_file(), &[]).await;
    let words = ["signed by an authority this agent does not trust", "HUB_UNTRUSTED", "sha256sum"];
    refused(&site, &before, &ran, &words);
    assert!(!ran.stderr.contains("hub_url"), "it was typed as --hub: {}", ran.stderr);

    let ca = other.ca_file();
    let more = ["--hub-ca", ca.to_str().unwrap()];
    let ran = site.enrol_with(&token, &site.hub.root_file(), &more).await;
    refused(&site, &before, &ran, &words);

    let ran = site.enrol_with(&token, Path::new("/no/such/root.json"), &[]).await;
    refused(&site, &before, &ran, &["/no/such/root.json"]);
    ran.exits(6).unwrap();
    let ran = site.enrol_with(Path::new("/no/such/token"), &site.hub.root_file(), &[]).await;
    refused(&site, &before, &ran, &["/no/such/token"]);
    ran.exits(6).unwrap();
    let more = ["--hub-ca", token.to_str().unwrap()];
    let ran = site.enrol_with(&token, &site.hub.root_file(), &more).await;
    refused(&site, &before, &ran, &["HUB_CA_UNREADABLE", "PEM"]);
    ran.exits(2).unwrap();
    assert_eq!(site.hub.requests(&Filter::route(Route::Enroll)).len(), 0);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_with_both_names() {
    let site = Site::new(Hub::builder().names(["hub.example"])).await;
    let before = site.kept();
    let token = site.token_file(&site.hub.token().await.unwrap());
    let ran = site.enrol_with(&token, &site.hub.root_file(), &[]).await;
    let words = ["the cert of the hub is for", "hub.example", "not for localhost", "HUB_NAME"];
    refused(&site, &before, &ran, &words);
    assert_eq!(site.hub.requests(&Filter::route(Route::Enroll)).len(), 0);
}

#[tokio::test]
async fn tokens_that_do_not_count_are_told_apart() {
    let mut site = Site::new(Hub::builder()).await;
    let root = site.hub.root_file();
    let expired = site.hub.token_for(Some(Duration::ZERO)).await.unwrap();
    for (token, words) in [
        ("forged", ["TOKEN_UNKNOWN", "check the token"]),
        (expired.as_str(), ["TOKEN_EXPIRED", "a new token"]),
    ] {
        let before = site.kept();
        let file = site.token_file(token);
        let ran = site.enrol_with(&file, &root, &[]).await;
        refused(&site, &before, &ran, &words);
        assert!(!ran.stderr.contains(&expired), "a token is a secret: {}", ran.stderr);
        assert_eq!(ran.stderr.matches("operator").count(), 1, "advised once: {}", ran.stderr);
    }
    // The daemon was not there, and tells of it all the same.
    let agent = site.home.start().await.unwrap();
    let failed = "jtnt_agent_enrollment_attempts_total{status=\"error\"} 2";
    eventually("failed enrolments are counted", async || {
        let page = agent.get("metrics_listen", "/metrics").await.map_err(|f| f.to_string())?;
        if page.body.lines().any(|line| line == failed) { Ok(()) } else { Err(page.body) }
    })
    .await
    .unwrap();
    let lines = site.audit().into_iter().filter(|line| line["event"] == "enrollment");
    let reasons: Vec<_> = lines.map(|line| line["details"]["reason"].clone()).collect();
    assert_eq!(reasons, ["TOKEN_UNKNOWN", "TOKEN_EXPIRED"]);
    agent.stop().await.unwrap();

    site.enrol().await;
    let used = site.home.path().join("token");
    let before = site.kept();
    let ran = site.enrol_with(&used, &root, &["--force"]).await;
    refused(&site, &before, &ran, &["TOKEN_USED", "a new token"]);

    let fresh = site.token_file(&site.hub.token().await.unwrap());
    let ran = site.enrol_with(&fresh, &root, &[]).await;
    refused(&site, &before, &ran, &["has an identity already", &site.id, "--force"]);
    site.enrol_with(&fresh, &root, &["--force"]).await.exits(0).unwrap();
    assert_eq!(site.hub.agents().len(), 1, "the same agent under a new certificate");
}

#[tokio::test]
async fn answers_that_no_hub_gives_change_nothing() {
    let site = Site::new(Hub::builder()).await;
    let root = site.hub.root_file();
    let before = site.kept();
    for (kind, words) in [
        (Kind::Garbage, "BAD_ANSWER"),
        (Kind::Oversized, "BAD_ANSWER"),
        (Kind::WrongShape, "BAD_ANSWER"),
        (Kind::Redirect, "a redirect to"),
        (Kind::Cut, "CONNECTION_LOST"),
        (Kind::WrongSignature, "BAD_CERTIFICATE"),
    ] {
        let token = site.token_file(&site.hub.token().await.unwrap());
        site.hub.set_fault(Route::Enroll, kind, Some(1)).unwrap();
        let ran = site.enrol_with(&token, &root, &[]).await;
        refused(&site, &before, &ran, &[words]);
        site.hub.clear_faults();
    }
    // A configuration that cannot be read is not written over.
    put(&site.home.config(), b"{\"log_level\": \"info\",}").unwrap();
    let before = site.kept();
    let token = site.token_file(&site.hub.token().await.unwrap());
    let ran = site.enrol_with(&token, &root, &[]).await;
    refused(&site, &before, &ran, &["config.json:1:", "not JSON: trailing comma"]);
}

#[tokio::test]
async fn an_answer_that_drips_is_given_up() {
    let site = Site::new(Hub::builder().slow_pause(Duration::from_secs(5))).await;
    let before = site.kept();
    let token = site.token_file(&site.hub.token().await.unwrap());
    site.hub.set_fault(Route::Enroll, Kind::Slow, Some(1)).unwrap();
    let ran = site.enrol_with(&token, &site.hub.root_file(), &[]).await;
    refused(&site, &before, &ran, &["no answer within 30 s", "HUB_TIMEOUT"]);
}

#[tokio::test]
async fn an_enrolment_without_a_root_needs_one_from_before() {
    let mut site = Site::new(Hub::builder()).await;
    let token = site.token_file(&site.hub.token().await.unwrap());
    let again = ["enroll", "--force", "--token-file", token.to_str().unwrap()];
    let ran = site.home.agent(&again).await.unwrap().exits(2).unwrap();
    assert!(ran.stderr.contains("no hub is configured"), "{}", ran.stderr);
    let url = site.hub.url();
    let hub = [&again[..], &["--hub", &url]].concat();
    let ran = site.home.agent(&hub).await.unwrap().exits(2).unwrap();
    assert!(ran.stderr.contains("there is no root of roles"), "{}", ran.stderr);
    site.enrol().await;
    let token = site.token_file(&site.hub.token().await.unwrap());
    let again = ["enroll", "--token-file", token.to_str().unwrap()];
    site.home.agent(&again).await.unwrap().exits(2).unwrap();
    let again = [&again[..], &["--force"]].concat();
    let ran = site.home.agent(&again).await.unwrap().exits(0).unwrap();
    assert!(ran.stdout.contains("from outside the hub"), "{}", ran.stdout);
    assert_eq!(site.hub.agents().len(), 1);
}
