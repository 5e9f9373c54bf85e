//! The hub is a witness of the audit log: what it has seen cannot be taken back unseen, not even by
//! whoever has the agent's keys and all of its disk.

use std::{fs, path::Path};

use jtnt_hub_mock::{Hub, SeenLog};
use jtnt_proto::{
    checkpoint::{Note, witness_name},
    hub::AuditRefusal,
};

use crate::{
    site::{Site, exec},
    support::{Home, eventually, put},
};

/// What the hub has seen of the agent's log.
fn seen(site: &Site) -> Option<SeenLog> {
    site.hub.agents().pop()?.logs.into_values().next()
}

/// Waits until the hub has seen all lines that the agent has.
pub(crate) async fn witnessed(site: &Site) -> u64 {
    let all = eventually("the hub has seen the log", async || {
        let status = site.home.asked(&["status"]).await.map_err(|f| f.to_string())?;
        let audit = &status["audit"];
        let (lines, seen) = (audit["size"].as_u64(), audit["witnessed"].as_u64());
        if lines == seen { lines.ok_or_else(String::new) } else { Err(audit.to_string()) }
    });
    all.await.unwrap()
}

/// The hub lists the log as one in trouble; the agent tells so, and has begun another, which the hub
/// sees.
async fn anew(site: &Site, kind: AuditRefusal) {
    let old = site.hub.agents().pop().unwrap().logs;
    let old = old.keys().next().unwrap();
    let found = eventually("the hub tells that something is wrong", async || {
        let logs = site.hub.agents().pop().ok_or("no agent")?.logs;
        let trouble = logs[old].trouble.as_ref().map(|trouble| trouble.kind);
        if trouble == Some(kind) && logs.len() == 2 { Ok(()) } else { Err(format!("{trouble:?}")) }
    });
    found.await.unwrap();
    witnessed(site).await;
    let status = site.home.asked(&["status"]).await.unwrap();
    assert_eq!(status["audit"]["superseded"], serde_json::json!([old]));
    assert_ne!(status["audit"]["log_id"], old.as_str());
    assert!(status["advice"].to_string().contains("AUDIT_ROLLED_BACK"), "{status}");
    let told = site.audit().into_iter().find(|line| line["event"] == "degraded").unwrap();
    assert_eq!(told["details"]["what"], "AUDIT_ROLLED_BACK");
    let out = site.home.path().join("export");
    let args = ["audit", "export", "--out", out.to_str().unwrap()];
    site.home.ctl(&args).await.unwrap().exits(0).unwrap();
    assert!(out.join(format!("superseded-{old}/checkpoint.note")).exists());
    let export = ["audit", "verify", out.to_str().unwrap()];
    assert_eq!(site.home.asked(&export).await.unwrap()["verdict"], "OK");
    // What is there is a log of its own, and nothing of the old one is lost.
    let report = site.home.asked(&["audit", "verify"]).await.unwrap();
    assert_eq!((&report["verdict"], &report["first_seq"]), (&"OK".into(), &0.into()), "{report}");
    let kept = site.home.data().join(format!("audit/superseded-{old}"));
    assert!(fs::read_dir(kept).unwrap().count() > 0);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn the_hub_cosigns_what_grows_over_restarts_of_both() {
    let mut site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let first = witnessed(&site).await;
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    assert!(witnessed(&site).await > first);
    agent.stop().await.unwrap();
    site.hub = site.hub.restart().await.unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let lines = witnessed(&site).await;
    let log = seen(&site).unwrap();
    assert_eq!((log.size, log.trouble), (lines, None));
    // Whoever has the hub's key can tell that it did.
    let operator = site.operator();
    let root = operator.root();
    let witness = root.roles.witness.keyids.iter().next().unwrap();
    let note = Note::parse(&log.note).unwrap();
    assert!(note.cosigned_by(&witness_name(&root.root_id), &root.keys[witness]).is_some());
    // And whoever verifies is told of nothing that is open.
    let report = site.home.asked(&["audit", "verify"]).await.unwrap();
    assert_eq!(report["verdict"], "OK", "{report}");
    assert!(!report["unknown"].to_string().contains("no checkpoint"), "{report}");
    let metric = agent.get("metrics_listen", "/metrics").await.unwrap().body;
    let line = format!("jtnt_agent_audit_witnessed_lines {lines}");
    assert!(metric.lines().any(|l| l == line), "{line}");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_log_that_is_put_back_to_what_it_was_is_seen() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    witnessed(&site).await;
    agent.stop().await.unwrap();
    let (audit, saved) = (site.home.data().join("audit"), site.home.path().join("saved"));
    copy(&audit, &saved);
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    for _ in 0..10 {
        assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    }
    witnessed(&site).await;
    agent.stop().await.unwrap();

    // Everything but the hub forgets the last ten jobs.
    fs::remove_dir_all(&audit).unwrap();
    copy(&saved, &audit);
    let agent = site.home.start().await.unwrap();
    anew(&site, AuditRefusal::Shrunk).await;
    agent.stop().await.unwrap();
    // An auditor sees it with what the hub has kept, and without it cannot.
    let anchor = site.home.path().join("anchor.note");
    let logs = site.hub.agents().pop().unwrap().logs.into_iter();
    let (old, log) = logs.into_iter().find(|(_, log)| log.trouble.is_some()).unwrap();
    let kept = audit.join(format!("superseded-{old}"));
    let beside = fs::read_to_string(kept.join("checkpoint.note")).unwrap();
    assert_eq!(log.note, beside, "the agent keeps what showed it");
    put(&anchor, log.note.as_bytes()).unwrap();
    let files = fs::read_dir(kept).unwrap().map(|file| file.unwrap().path());
    let files: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "log")).collect();
    let mut args = vec!["-o", "json", "audit", "verify", "--key"];
    let key = audit.join("audit.pub");
    args.push(key.to_str().unwrap());
    args.extend(files.iter().map(|file| file.to_str().unwrap()));
    let report = site.home.ctl(&args).await.unwrap().exits(0).unwrap().json().unwrap();
    assert_eq!(report["verdict"], "OK");
    args.extend(["--anchor", anchor.to_str().unwrap()]);
    let report = site.home.ctl(&args).await.unwrap().exits(1).unwrap().json().unwrap();
    assert_eq!(report["findings"][0]["verdict"], "TRUNCATED", "{report}");
}

#[tokio::test]
async fn a_log_that_goes_on_differently_is_seen() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    witnessed(&site).await;
    agent.stop().await.unwrap();
    let (audit, saved) = (site.home.data().join("audit"), site.home.path().join("saved"));
    copy(&audit, &saved);
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    witnessed(&site).await;
    agent.stop().await.unwrap();
    let lines = seen(&site).unwrap().size;

    fs::remove_dir_all(&audit).unwrap();
    copy(&saved, &audit);
    // By the agent's own key, and as many lines as before, without a word to the hub.
    let url = site.hub.url();
    site.home.configure(&serde_json::json!({"hub_url": "https://localhost:1"})).unwrap();
    let mut longer = 0;
    while longer <= lines {
        let agent = site.home.start().await.unwrap();
        let status = site.home.asked(&["status"]).await.unwrap();
        agent.stop().await.unwrap();
        longer = status["audit"]["size"].as_u64().unwrap();
    }
    site.home.configure(&serde_json::json!({ "hub_url": url })).unwrap();
    let agent = site.home.start().await.unwrap();
    anew(&site, AuditRefusal::Forked).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_clone_gets_a_log_of_its_own_and_the_other_machine_keeps_its_witness() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    witnessed(&site).await;
    agent.stop().await.unwrap();
    let clone = Home::new().unwrap();
    copy(&site.home.data(), &clone.data());
    clone.configure(&serde_json::json!({ "hub_url": site.hub.url() })).unwrap();
    let first = site.home.start().await.unwrap();
    witnessed(&site).await;
    let second = clone.start().await.unwrap();
    let apart = eventually("each has a log that the hub has seen", async || {
        let mut ids = Vec::new();
        for home in [&site.home, &clone] {
            let status = home.asked(&["status"]).await.map_err(|f| f.to_string())?;
            let audit = &status["audit"];
            if audit["size"] != audit["witnessed"] || audit["witness_refusal"].is_string() {
                return Err(audit.to_string());
            }
            ids.push(audit["log_id"].clone());
        }
        if ids[0] == ids[1] { Err("one log".to_owned()) } else { Ok(ids) }
    });
    apart.await.unwrap();
    let logs = site.hub.agents().pop().unwrap().logs;
    let trouble: Vec<_> = logs.values().map(|log| log.trouble.is_some()).collect();
    assert_eq!(trouble.iter().filter(|t| **t).count(), 1, "{logs:?}");
    second.stop().await.unwrap();
    first.stop().await.unwrap();
}

#[tokio::test]
async fn what_matters_is_seen_at_once() {
    let site = Site::ready(Hub::builder()).await;
    // By the clock it would be minutes.
    site.home.configure(&serde_json::json!({"heartbeat_interval_seconds": 120})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let denied = site.run(exec("/usr/bin/touch", &["/nowhere/x"])).await;
    assert_eq!(denied.state, "rejected");
    let lines = eventually("the hub has seen the violation", async || {
        let lines = site.audit();
        let line = lines.iter().rfind(|line| line["event"] == "policy_violation");
        let seq = line.and_then(|line| line["seq"].as_u64()).ok_or("no line yet")?;
        let size = seen(&site).map_or(0, |log| log.size);
        if size > seq { Ok(()) } else { Err(format!("{size} lines, and it is {seq}")) }
    });
    lines.await.unwrap();
    agent.stop().await.unwrap();
}
