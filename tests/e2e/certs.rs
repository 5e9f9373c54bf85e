//! Certificates replace themselves under a running agent, and whoever asks sees it.

use std::{fs, time::Duration};

use jtnt_hub_mock::{Hub, Kind, OldCertificates, Recorded, Route};
use serde_json::json;

use crate::{
    crash::kill,
    site::{Site, exec},
    support::eventually,
};

/// Serials of the connections that asked for something since the hub saw `serial` first.
fn serials_since(site: &Site, serial: &str) -> Vec<String> {
    let all = site.hub.requests(&jtnt_hub_mock::Filter::default());
    let from = all.iter().position(|r| r.serial.as_deref() == Some(serial)).unwrap();
    all[from..].iter().filter_map(|r| r.serial.clone()).collect()
}

#[tokio::test]
async fn an_operator_renews_proves_and_goes_back() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let first = site.home.asked(&["cert", "check", "--prove"]).await.unwrap();
    assert_eq!(first["serial"], first["proof"]["seen_serial"], "{first}");
    assert_eq!(first["proof"]["key_exchange"], "X25519MLKEM768");
    let told = site.home.ctl(&["cert", "renew"]).await.unwrap().exits(0).unwrap();
    assert!(told.stdout.contains("showing it to the hub"), "{}", told.stdout);
    let second = site.home.asked(&["cert", "check", "--prove"]).await.unwrap();
    assert_ne!(second["serial"], first["serial"]);
    assert_eq!(second["serial"], second["proof"]["seen_serial"]);
    assert_eq!(second["backup"]["serial"], first["serial"], "{second}");
    // The other identity is in use at once, everywhere.
    let serial = second["serial"].as_str().unwrap().to_owned();
    site.hub.await_request(|r: &Recorded| r.serial.as_deref() == Some(&serial)).await;
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    let again = site.home.ctl(&["cert", "renew"]).await.unwrap().exits(1).unwrap();
    assert!(again.stderr.contains("NOT_DUE") && again.stderr.contains("--force"), "{again:?}");
    let back = site.home.ctl(&["cert", "rollback"]).await.unwrap().exits(0).unwrap();
    assert!(back.stdout.contains(first["serial"].as_str().unwrap()), "{}", back.stdout);
    let shown = site.home.asked(&["cert", "check"]).await.unwrap();
    assert_eq!(shown["serial"], first["serial"]);
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    let rotated: Vec<_> =
        site.audit().into_iter().filter(|line| line["event"] == "cert_rotated").collect();
    let serials: Vec<_> = rotated.iter().map(|line| &line["details"]["serial"]).collect();
    assert_eq!(serials.len(), 3, "{rotated:?}");
    assert_eq!((serials[0], serials[1]), (&second["serial"], &first["serial"]));
    assert_eq!(rotated[1]["details"]["rolled_back"], true);
    assert!(rotated.iter().all(|line| line["caller"]["uid"].is_u64()), "{rotated:?}");
    let page = agent.get("metrics_listen", "/metrics").await.unwrap().body;
    let count = "jtnt_agent_cert_rotation_total{status=\"success\"} 2";
    assert!(page.lines().any(|line| line == count), "{page}");
    agent.stop().await.unwrap();

    // And without a daemon.
    let now = site.home.agent(&["cert", "check", "-o", "json"]).await.unwrap().exits(0).unwrap();
    let back = site.home.agent(&["cert", "rollback"]).await.unwrap().exits(0).unwrap();
    let then = site.home.agent(&["cert", "check", "-o", "json"]).await.unwrap().exits(0).unwrap();
    assert_ne!(now.stdout, then.stdout, "{}", back.stdout);
}

#[tokio::test]
async fn a_hint_renews_and_from_then_on_the_old_one_is_not_seen() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"heartbeat_interval_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.hub.set_old_certificates(OldCertificates::OldDies);
    let before = site.hub.agents()[0].certificates[0].serial.clone();
    site.hub.hint_renewal(&site.id, true);
    let log = agent.says(0, "the client cert was renewed").await.unwrap();
    let serial = log["serial"].as_str().unwrap().to_owned();
    assert_ne!(serial, before);
    site.hub.await_request(|r| r.serial.as_deref() == Some(&serial)).await;
    for _ in 0..3 {
        assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    }
    let seen = serials_since(&site, &serial);
    // What was under way when it changed may still end; nothing begins with the old one.
    let old = seen.iter().skip(1).filter(|seen| **seen == before).count();
    assert!(old <= 1, "{seen:?}");
    // It was renewed lately, so that another wish is held back, and told.
    site.hub.hint_renewal(&site.id, true);
    let told = eventually("the plan tells of the wish", async || {
        let plan = site.home.asked(&["cert", "plan"]).await.map_err(|f| f.to_string())?;
        let held = plan["hub_asked_at"].is_string() && plan["held_back_until"].is_string();
        if held { Ok(()) } else { Err(plan.to_string()) }
    });
    told.await.unwrap();
    assert_eq!(site.hub.agents()[0].certificates.len(), 2);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_short_life_renews_itself_over_a_hub_that_is_away_and_an_agent_that_is_killed() {
    let site = Site::ready(Hub::builder().certificate_life(Duration::from_secs(40))).await;
    site.hub.set_old_certificates(OldCertificates::OldDies);
    // The hub issues one, and its answer is lost.
    site.hub.set_fault(Route::Renew, Kind::Cut, Some(1)).unwrap();
    let agent = site.home.start().await.unwrap();
    site.hub.await_request(|r| r.route == Some(Route::Renew)).await;
    kill(agent).await;
    let agent = site.home.start().await.unwrap();
    let log = agent.says(0, "the client cert was renewed").await.unwrap();
    let serial = log["serial"].as_str().unwrap().to_owned();
    assert_eq!(site.hub.agents()[0].certificates.last().unwrap().serial, serial);
    assert_eq!(site.hub.agents()[0].certificates.len(), 2);
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    assert!(!fs::exists(site.home.data().join("certs/client.key.pending")).unwrap());
    let plan = site.home.asked(&["cert", "plan"]).await.unwrap();
    assert!(plan["renew_at"].as_str() < plan["not_after"].as_str(), "{plan}");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_revoked_agent_says_so_and_how_to_come_back() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"heartbeat_interval_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.hub.judge_certificates(&site.id, jtnt_hub_mock::Standing::Revoked).await.unwrap();
    let told = site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(1).unwrap();
    assert!(told.stderr.contains("CERTIFICATE_REVOKED"), "{}", told.stderr);
    assert!(told.stderr.contains("jtnt-agent enroll --force"), "{}", told.stderr);
    let seen = eventually("the plan tells of it", async || {
        let plan = site.home.asked(&["cert", "plan"]).await.map_err(|f| f.to_string())?;
        let told = plan["last_failure_reason"] == "CERTIFICATE_REVOKED";
        if told { Ok(()) } else { Err(plan.to_string()) }
    });
    seen.await.unwrap();
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_renewal_loses_no_request_of_what_is_under_way() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"heartbeat_interval_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    fs::create_dir_all(site.home.files()).unwrap();
    let dest = site.home.files().join("large");
    // Long enough for several renewals.
    let content = vec![7; 1 << 30];
    let artifact = site.hub.put_artifact(&content).unwrap();
    let work = json!({"type": "download", "command": {"artifact": artifact, "dest": dest}});
    let large = site.order(work, |_| {}).await;
    site.hub.await_request(|r| r.route == Some(Route::Artifact)).await;
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let (renewed, job) = tokio::join!(
            site.home.ctl(&["cert", "renew", "--force", "-o", "json"]),
            site.run(exec("/usr/bin/true", &[])),
        );
        let told = renewed.unwrap().exits(0).unwrap().stdout;
        let done: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
        serials.insert(done["serial"].as_str().unwrap().to_owned());
        assert_eq!(job.state, "ok");
    }
    assert_eq!(serials.len(), 4, "a new one each time");
    let state = site.hub.job(&large).unwrap().state;
    assert!(["queued", "running"].contains(&state.as_str()), "the transfer saw them all: {state}");
    let end = site.end_of(&large).await;
    assert_eq!(end.state, "ok", "{end:?}");
    assert_eq!(fs::metadata(&dest).unwrap().len(), content.len() as u64);
    let refused: Vec<_> = site
        .hub
        .requests(&jtnt_hub_mock::Filter::default())
        .into_iter()
        .filter(|r| r.status >= 400 || r.status == 0)
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
    let artifacts = site.hub.requests(&jtnt_hub_mock::Filter::route(Route::Artifact));
    assert_eq!(artifacts.len(), 1, "the transfer went on over its connection");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_the_hub_calls_expired_is_renewed_by_its_holder() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"heartbeat_interval_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let expired = jtnt_hub_mock::Standing::Expired;
    site.hub.judge_certificates(&site.id, expired).await.unwrap();
    agent.says(0, "the client cert was renewed").await.unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    // Not in a loop, though: the next one is asked for by somebody, or refused for a while.
    let mark = agent.mark();
    site.hub.judge_certificates(&site.id, expired).await.unwrap();
    agent.says(mark, "the hub is lost").await.unwrap();
    let health = eventually("health tells of it", async || {
        let health = agent.get("health_listen", "/health").await.map_err(|f| f.to_string())?;
        let said = health.json().map_err(|f| f.to_string())?["checks"]["certificates"].clone();
        let message = said["message"].as_str().unwrap_or_default();
        if message.starts_with("NEEDS_REENROLL") { Ok(()) } else { Err(said.to_string()) }
    });
    health.await.unwrap();
    assert_eq!(site.hub.agents()[0].certificates.len(), 2, "no third one");
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    agent.stop().await.unwrap();
}

/// Has the root name all authorities that count, or only the one that issues.
async fn name_authorities(site: &Site, all: bool) {
    let mut operator = site.operator();
    let named = site.hub.authorities().into_iter().filter(|ca| all || ca.issues);
    let next = operator.root_naming(named.map(|ca| ca.certificate).collect()).unwrap();
    site.hub.publish_root(next.envelope.clone()).await.unwrap();
    next.commit(site.hub.dir(), &mut operator).unwrap();
}

/// Waits until the agent has the newest root, and works under it.
async fn heard(site: &Site) {
    let newest = site.operator().root().version;
    eventually("the agent has the newest root", async || {
        site.home.ctl(&["policy", "refresh"]).await.map_err(|f| f.to_string())?;
        let status = site.home.asked(&["status"]).await.map_err(|f| f.to_string())?;
        let has = status["root"]["version"] == newest;
        if has { Ok(()) } else { Err(status["root"].to_string()) }
    })
    .await
    .unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
}

#[tokio::test]
async fn one_authority_follows_another_and_no_machine_is_left_behind() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"heartbeat_interval_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let bundle = || {
        let pem = fs::read_to_string(site.home.data().join("certs/ca-bundle.crt")).unwrap();
        pem.matches("BEGIN CERTIFICATE").count()
    };
    let shown = async || site.home.asked(&["cert", "check"]).await.unwrap();
    let issuer = async || shown().await["issuer"].as_str().unwrap().to_owned();
    let first = issuer().await;
    site.hub.turn_authorities(jtnt_hub_mock::Step::Next).await.unwrap();
    name_authorities(&site, true).await;
    heard(&site).await;
    // The hub's own certificate is of the other one now, and it asks for a renewal.
    site.hub.turn_authorities(jtnt_hub_mock::Step::Switch).await.unwrap();
    eventually("the agent has a certificate of the new authority", async || {
        let now = issuer().await;
        if now == first { Err(now) } else { Ok(()) }
    })
    .await
    .unwrap();
    assert_eq!((bundle(), site.hub.agents()[0].certificates.len()), (2, 2));
    name_authorities(&site, false).await;
    site.hub.turn_authorities(jtnt_hub_mock::Step::Retire).await.unwrap();
    heard(&site).await;
    site.home.ctl(&["cert", "check", "--prove"]).await.unwrap().exits(0).unwrap();
    agent.stop().await.unwrap();
    // The pair before is of an authority that counts no more: there is no way back to it.
    let back = site.home.agent(&["cert", "rollback", "--no-probe"]).await.unwrap();
    assert_eq!(back.code, Some(1), "{}", back.stderr);
    let agent = site.home.start().await.unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    assert_eq!(bundle(), 1, "what the root does not name is not kept");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_a_dropped_authority_is_good_for_getting_another() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.hub.turn_authorities(jtnt_hub_mock::Step::Next).await.unwrap();
    name_authorities(&site, true).await;
    heard(&site).await;
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    site.hub.set_fault(Route::Renew, Kind::InternalError, None).unwrap();
    site.hub.turn_authorities(jtnt_hub_mock::Step::Switch).await.unwrap();
    site.hub.hint_renewal(&site.id, false);
    name_authorities(&site, false).await;
    heard(&site).await;
    let check = site.home.ctl(&["cert", "check"]).await.unwrap().exits(1).unwrap();
    assert!(check.stdout.contains("no longer names the authority"), "{}", check.stdout);
    let plan = site.home.asked(&["cert", "plan"]).await.unwrap();
    assert_eq!(plan["rule"], "authority_dropped", "{plan}");
    // A restart makes no difference, nor that it was renewed a moment ago.
    agent.stop().await.unwrap();
    site.hub.clear_faults();
    let agent = site.home.start().await.unwrap();
    eventually("it is renewed without being asked for", async || {
        let check = site.home.asked(&["cert", "check"]).await.map_err(|f| f.to_string())?;
        if check["chain_ok"] == true { Ok(()) } else { Err(check.to_string()) }
    })
    .await
    .unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_hub_of_an_authority_that_no_root_names_is_no_hub() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    agent.stop().await.unwrap();
    site.hub.turn_authorities(jtnt_hub_mock::Step::Next).await.unwrap();
    site.hub.turn_authorities(jtnt_hub_mock::Step::Switch).await.unwrap();
    let agent = site.home.start().await.unwrap();
    // Nobody has signed that the other authority counts, so this is no hub of its own.
    let status = site.home.asked(&["test-connection"]).await;
    assert!(status.is_err(), "{status:?}");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_the_hub_shuts_out_says_so_and_comes_back_by_an_enrolment() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"heartbeat_interval_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.hub.turn_authorities(jtnt_hub_mock::Step::Next).await.unwrap();
    name_authorities(&site, true).await;
    heard(&site).await;
    // As after a theft of the key: nobody is waited for.
    site.hub.set_fault(Route::Renew, Kind::InternalError, None).unwrap();
    site.hub.turn_authorities(jtnt_hub_mock::Step::Switch).await.unwrap();
    site.hub.turn_authorities(jtnt_hub_mock::Step::Retire).await.unwrap();
    agent.stop().await.unwrap();
    let agent = site.home.start().await.unwrap();
    eventually("health says that it is shut out", async || {
        let page = agent.get("health_listen", "/health").await.map_err(|f| f.to_string())?;
        let told = page.status == 503 && page.body.contains("NEEDS_REENROLL");
        if told { Ok(()) } else { Err(page.body) }
    })
    .await
    .unwrap();
    let renewed = site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(1).unwrap();
    assert!(renewed.stderr.contains("CLIENT_CERT_REFUSED"), "{}", renewed.stderr);
    assert!(renewed.stderr.contains("jtnt-agent enroll --force"), "{}", renewed.stderr);
    let token = site.token_file(&site.hub.token().await.unwrap());
    let root = site.hub.root_file();
    site.enrol_with(&token, &root, &["--force"]).await.exits(0).unwrap();
    let ran = tokio::time::timeout(Duration::from_secs(10), site.run(exec("/usr/bin/true", &[])));
    assert_eq!(ran.await.expect("jobs come at once").state, "ok");
    agent.stop().await.unwrap();
}
