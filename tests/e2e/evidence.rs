//! What an auditor takes home: the proof of one line, and a log that is checked without its agent.

use std::fs;

use jtnt_hub_mock::Hub;
use jtnt_proto::checkpoint::{witness_name, witness_vkey};
use serde_json::{Value, json};

use crate::{
    site::{Site, exec},
    support::{Agent, Ran, put},
    witness::witnessed,
};

/// A site whose log the hub has seen, and the witness's key as others take it.
async fn seen() -> (Site, Agent, String) {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    witnessed(&site).await;
    let operator = site.operator();
    let root = operator.root();
    let key = &root.keys[root.roles.witness.keyids.iter().next().unwrap()];
    let key = witness_vkey(&witness_name(&root.root_id), key);
    (site, agent, key)
}

async fn report(site: &Site, args: &[&str], code: i32) -> Value {
    let all: Vec<_> = ["-o", "json", "audit", "verify"].iter().chain(args).copied().collect();
    let ran: Ran = site.home.ctl(&all).await.unwrap();
    ran.exits(code).unwrap().json().unwrap()
}

#[tokio::test]
async fn one_line_is_proven_by_a_file_alone() {
    let (site, agent, witness) = seen().await;
    let line = site.audit().into_iter().find(|line| line["event"] == "job_executed").unwrap();
    let seq = line["seq"].to_string();
    let proof = site.home.ctl(&["audit", "prove", &seq]).await.unwrap().exits(0).unwrap().stdout;
    agent.stop().await.unwrap();
    let path = site.home.path().join("line.tlog-proof");
    put(&path, proof.as_bytes()).unwrap();
    let (path, key) = (path.to_str().unwrap(), site.home.data().join("audit/audit.pub"));
    let by = ["--proof", path, "--key", key.to_str().unwrap(), "--witness", &witness];
    let told = report(&site, &by, 0).await;
    assert_eq!((&told["verdict"], &told["unknown"]), (&"OK".into(), &Value::Array(vec![])));
    let proven: Value = serde_json::from_str(told["proven"].as_str().unwrap()).unwrap();
    assert_eq!(proven, line);

    // Of a line that the hub has not seen there is a proof by the agent's word alone.
    let newest = site.audit().len() - 1;
    let proof = site.home.agent(&["audit", "prove", &newest.to_string()]).await.unwrap();
    put(by[1].as_ref(), proof.exits(0).unwrap().stdout.as_bytes()).unwrap();
    let told = report(&site, &by, 5).await;
    assert!(told["unknown"][0].as_str().unwrap().contains("cosigned"), "{told}");

    let none = site.home.agent(&["audit", "prove", "1000000"]).await.unwrap();
    assert!(none.exits(1).unwrap().stderr.contains("the log has"));
}

#[tokio::test]
async fn an_export_is_checked_where_there_is_no_agent() {
    let (site, agent, witness) = seen().await;
    let out = site.home.path().join("export");
    let out_text = out.to_str().unwrap();
    site.home.ctl(&["audit", "export", "--out", out_text]).await.unwrap().exits(0).unwrap();
    let again = site.home.ctl(&["audit", "export", "--out", out_text]).await.unwrap();
    assert!(again.exits(6).unwrap().stderr.contains("name a new one"));
    agent.stop().await.unwrap();
    let told = report(&site, &[out_text], 0).await;
    assert_eq!(told["verdict"], "OK", "{told}");
    assert!(told["unknown"].to_string().contains("the key came with it"), "{told}");
    let key = site.home.data().join("audit/audit.pub");
    let by = [out_text, "--key", key.to_str().unwrap(), "--witness", &witness];
    assert!(!report(&site, &by, 0).await["unknown"].to_string().contains("key"));
    let root = site.home.path().join("no/such/root");
    fs::create_dir_all(&root).unwrap();
    let not_one = site.home.ctl(&["audit", "verify", root.to_str().unwrap()]).await.unwrap();
    assert!(not_one.exits(6).unwrap().stderr.contains("audit export"));

    // What somebody adds is no part of it.
    put(&out.join("audit-2020-01-01.log"), b"").unwrap();
    let told = report(&site, &by, 1).await;
    assert!(
        told["findings"][0]["message"].as_str().unwrap().contains("does not list it"),
        "{told}"
    );
    fs::remove_file(out.join("audit-2020-01-01.log")).unwrap();

    // What is changed on the way shows by the manifest, and what fits the manifest by the rest.
    let log = fs::read_dir(&out).unwrap().map(|file| file.unwrap().path());
    let log = log.into_iter().find(|path| path.extension().is_some_and(|e| e == "log")).unwrap();
    let whole = fs::read(&log).unwrap();
    let cut = whole.iter().take(whole.len() - 1).rposition(|b| *b == b'\n').unwrap() + 1;
    put(&log, whole.get(..cut).unwrap()).unwrap();
    let told = report(&site, &by, 1).await;
    assert_eq!(told["findings"].as_array().unwrap().last().unwrap()["verdict"], "MALFORMED");
    fs::remove_file(&log).unwrap();
    let told = report(&site, &by, 1).await;
    assert_eq!(told["findings"][0]["verdict"], "TRUNCATED", "{told}");
}

#[tokio::test]
async fn a_key_is_replaced_and_nobody_loses_the_thread() {
    let (site, agent, witness) = seen().await;
    let old = fs::read_to_string(site.home.data().join("audit/audit.pub")).unwrap();
    let told = site.home.asked(&["audit", "rotate-key"]).await.unwrap();
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    witnessed(&site).await;
    let view = site.hub.agents().pop().unwrap();
    assert_eq!(view.audit_key.to_string(), told["public_key"].as_str().unwrap());
    assert!(view.logs.values().all(|log| log.trouble.is_none()));
    // The agent stays who it is: its certificate is renewed by the new key's proof.
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    let whole = site.home.asked(&["audit", "verify"]).await.unwrap();
    assert_eq!(whole["verdict"], "OK", "{whole}");
    agent.stop().await.unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    witnessed(&site).await;
    let out = site.home.path().join("export");
    let out = out.to_str().unwrap();
    site.home.ctl(&["audit", "export", "--out", out]).await.unwrap().exits(0).unwrap();
    agent.stop().await.unwrap();
    // By the key from before, and by the new one.
    let key = site.home.path().join("old.pub");
    put(&key, old.as_bytes()).unwrap();
    for by in [&["--key", key.to_str().unwrap()][..], &[]] {
        let all: Vec<_> =
            [out, "--witness", &witness].into_iter().chain(by.iter().copied()).collect();
        assert_eq!(report(&site, &all, 0).await["verdict"], "OK");
    }
    // Another enrolment leads over the same keys.
    let token = site.token_file(&site.hub.token().await.unwrap());
    let root = site.hub.root_file();
    let again = site.enrol_with(&token, &root, &["--force"]).await;
    again.exits(0).unwrap();
    // A proof by the newest key is none against the oldest, and none that it is wrong.
    let newest = site.audit().len() - 1;
    let proof = site.home.agent(&["audit", "prove", &newest.to_string()]).await.unwrap();
    let path = site.home.path().join("line.tlog-proof");
    put(&path, proof.exits(0).unwrap().stdout.as_bytes()).unwrap();
    let by = ["--proof", path.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let told = report(&site, &by, 5).await;
    assert!(told["unknown"].to_string().contains("UNKNOWN_KEY"), "{told}");
    // What was set while no agent ran is told at the next start.
    site.home.configure(&json!({"reader_groups": ["games"]})).unwrap();
    let agent = site.home.start().await.unwrap();
    agent.stop().await.unwrap();
    let lines = site.audit();
    let told = lines.iter().rfind(|line| line["event"] == "config_changed").unwrap();
    assert_eq!(told["details"]["changed"], json!(["reader_groups"]));
}
