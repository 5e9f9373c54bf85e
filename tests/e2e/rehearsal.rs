//! A policy is compared with the one in force before anybody signs it, by what jobs have asked.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
};

use jtnt_hub_mock::Hub;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{
    site::{Site, exec, hence, rules},
    support::{binary, put},
};

/// What an author has before publishing: no id, no date, no audience.
fn draft(site: &Site, rules: &Value) -> Value {
    let mut draft = site.document(&json!({"version": 9}), rules);
    for filled in ["policy_id", "issued_at", "audience"] {
        draft.as_object_mut().unwrap().remove(filled);
    }
    draft
}

fn file(site: &Site, name: &str, document: &str) -> PathBuf {
    let path = site.home.path().join(name);
    put(&path, document.as_bytes()).unwrap();
    path
}

/// The answer about this document, under the agent's own name, with its exit code.
async fn diff(site: &Site, document: &Value, code: i32) -> Value {
    let path = file(site, "draft.json", &document.to_string());
    let args = ["-o", "json", "policy", "diff", path.to_str().unwrap()];
    site.home.agent(&args).await.unwrap().exits(code).unwrap().json().unwrap()
}

/// Of each change: allowed before and after, the command, its jobs.
fn changes(diff: &Value) -> Vec<Value> {
    let told =
        |c: &Value| json!([c["before"]["allowed"], c["after"]["allowed"], c["command"], c["jobs"]]);
    diff["changes"].as_array().unwrap().iter().map(told).collect()
}

#[tokio::test]
async fn a_draft_is_compared_by_what_jobs_have_asked_and_nothing_comes_into_force() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    for work in [
        exec("/usr/bin/echo", &["a b"]),
        exec("/usr/bin/echo", &["a b"]),
        exec("/usr/bin/touch", &["/nowhere/x"]),
        exec("/usr/bin/true", &[]),
        exec("/nowhere/at/all", &[]),
    ] {
        site.run(work).await;
    }
    let last = site.run(exec("/usr/bin/sleep", &["0"])).await.job_id;

    let same = diff(&site, &draft(&site, &rules(&site.home)), 0).await;
    assert_eq!(changes(&same), [Value::Null; 0]);
    assert_eq!((&same["present_version"], &same["document_version"]), (&json!(1), &json!(9)));
    assert_eq!((&same["unchanged_requests"], &same["unchanged_jobs"]), (&json!(4), &json!(5)));
    assert_eq!(same["not_comparable_requests"], 1);

    let mut other = rules(&site.home);
    other["exec"] = json!([
        {"id": "true", "effect": "allow", "path": "/usr/bin/true"},
        {"id": "echo", "effect": "allow", "path": "/usr/bin/echo"},
        {"id": "touch", "effect": "allow", "path": "/usr/bin/touch", "args": "any"},
    ]);
    let other = draft(&site, &other);
    let told = diff(&site, &other, 1).await;
    let expected = [
        json!([true, false, "/usr/bin/sleep 0", 1]),
        json!([true, false, "/usr/bin/echo 'a b'", 2]),
        json!([false, true, "/usr/bin/touch /nowhere/x", 1]),
    ];
    assert_eq!(changes(&told), expected);
    assert_eq!(told["changes"][0]["last_job"], json!(last));
    assert_eq!(told["changes"][1]["after"]["reason"], "ARGUMENTS");

    // Typed into the other name, and read by people.
    let mut command = Command::new(binary("jtntctl").unwrap());
    command.arg("--socket").arg(site.home.socket()).args(["policy", "diff", "-"]);
    let ran = fed(command, &other.to_string()).await;
    let said = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    for words in ["DENIED   allowed by echo", "denied (ARGUMENTS)", "ALLOWED  denied (NO_RULE)"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }

    // Nothing of it is in force, and an agent that starts again still knows.
    assert_eq!(site.home.asked(&["policy", "show"]).await.unwrap()["version"], 1);
    assert_eq!(site.run(exec("/usr/bin/echo", &["a b"])).await.state, "ok");
    agent.stop().await.unwrap();
    let draft = site.home.path().join("draft.json");
    site.home.ctl(&["policy", "diff", draft.to_str().unwrap()]).await.unwrap().exits(3).unwrap();
    let alone = diff(&site, &other, 1).await;
    let agent = site.home.start().await.unwrap();
    let again = diff(&site, &other, 1).await;
    for told in [alone, again] {
        assert_eq!(changes(&told)[0], json!([true, false, "/usr/bin/echo 'a b'", 3]));
    }
    agent.stop().await.unwrap();
}

async fn fed(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    child.wait_with_output().await.unwrap()
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_and_without_a_policy_everything_is_new() {
    let mut site = Site::new(Hub::builder()).await;
    site.enrol().await;
    let agent = site.home.start().await.unwrap();
    let refused = site.run(exec("/usr/bin/true", &[])).await;
    assert_eq!(refused.status.unwrap().reason.as_deref(), Some("DENIED"));
    let draft = draft(&site, &rules(&site.home));
    let told = diff(&site, &draft, 1).await;
    assert_eq!(told["present_version"], 0);
    assert_eq!(changes(&told), [json!([false, true, "/usr/bin/true", 1])]);
    assert_eq!(told["changes"][0]["before"]["reason"], "NO_POLICY");

    let mut old = draft.clone();
    old["expires_at"] = json!(hence(-60));
    for (name, document, code, words) in [
        ("torn", "{\"version\": 1,\n", 2, "line 1 column 15"),
        ("typo", &draft.to_string().replace("effect", "efect"), 2, "unknown field `efect`"),
        ("relative", &draft.to_string().replace("/usr/bin/true", "true"), 2, "rule \"true\""),
        ("old", &old.to_string(), 2, "a later expires_at"),
        ("long", &" ".repeat((1 << 20) + 1), 2, "larger than 1048576 bytes"),
    ] {
        let path = file(&site, name, document);
        let args = ["policy", "diff", path.to_str().unwrap()];
        for ran in [site.home.ctl(&args).await, site.home.agent(&args).await] {
            let ran = ran.unwrap().exits(code).unwrap();
            assert!(ran.stderr.contains(words), "no {words:?} in {}", ran.stderr);
        }
    }
    let nowhere = site.home.path().join("nowhere");
    let args = ["policy", "diff", nowhere.to_str().unwrap()];
    site.home.ctl(&args).await.unwrap().exits(6).unwrap();
    agent.stop().await.unwrap();
}
