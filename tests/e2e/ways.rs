//! The other ways to enrol: the root by its hash or on trust, the token by argument or environment.

use jtnt_hub_mock::Hub;
use jtnt_proto::bytes::Hash;
use serde_json::json;

use crate::{
    site::Site,
    support::{eventually, run},
};

#[tokio::test]
async fn a_root_may_come_by_its_hash_and_a_token_by_the_environment() {
    let site = Site::new(Hub::builder()).await;
    let pin = Hash::of(&std::fs::read(site.hub.root_file()).unwrap()).to_string();
    let (url, token) = (site.hub.url(), site.hub.token().await.unwrap());
    let enroll = ["enroll", "--hub", &url];
    let mut command = site.home.agent_command(&enroll).unwrap();
    command.args(["--root-sha256", &pin]).env("JTNT_ENROLL_TOKEN", &token);
    let told = run(&mut command).await.unwrap().exits(0).unwrap();
    assert!(told.stdout.contains(&pin) && !told.stdout.contains(&token), "{}", told.stdout);

    // No token, no root, two roots: nothing is sent.
    let usage = |more: &'static [&'static str]| [&enroll[..], more].concat();
    for (args, words) in [
        (usage(&["--root-sha256", "00"]), "64 hex digits"),
        (usage(&["--token", "t"]), "--root"),
        (usage(&["--token", "t", "--root", "f", "--trust-hub-root"]), "cannot be used with"),
        (usage(&["--trust-hub-root"]), "there is no token"),
    ] {
        let ran = site.home.agent(&args).await.unwrap().exits(2).unwrap();
        assert!(ran.stderr.contains(words), "{args:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn a_root_that_was_taken_on_trust_is_shown_for_ever() {
    let site = Site::new(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    let (url, token) = (site.hub.url(), site.hub.token().await.unwrap());
    let ca = site.hub.ca_file();
    let args = ["enroll", "--hub", &url, "--token", &token, "--trust-hub-root", "--hub-ca"];
    let args = [&args[..], &[ca.to_str().unwrap()]].concat();
    let told = site.home.agent(&args).await.unwrap().exits(0).unwrap();
    assert!(told.stdout.contains("FROM THE HUB ITSELF"), "{}", told.stdout);
    let shown = eventually("the agent takes it up", async || {
        let status = site.home.asked(&["status"]).await.map_err(|f| f.to_string())?;
        if status["hub"]["connected"] == true { Ok(status) } else { Err(status.to_string()) }
    });
    assert_eq!(shown.await.unwrap()["root"]["source"], "trusted_hub");
    let health = agent.get("health_listen", "/health").await.unwrap().json().unwrap();
    assert_eq!(health["checks"]["enrolled"]["status"], json!("warn"), "{health}");
    let page = agent.get("metrics_listen", "/metrics").await.unwrap();
    assert!(page.body.lines().any(|line| line == "jtnt_agent_root_trusted_from_hub 1"));
    agent.stop().await.unwrap();
}
