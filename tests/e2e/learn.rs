//! From a monitored run to the rules that let the same job run again, and nothing more: under full
//! enforcement, so only where jobs get users and views of their own.

use std::{fs, os::unix::fs::PermissionsExt as _};

use jtnt_hub_mock::Hub;
use jtnt_proto::bytes::Hash;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    site::{Site, exec, hence},
    support::{is_root, put},
};

/// Copies its input, then what the input names.
const SCRIPT: &[u8] = b"set -e
cat \"$1\" > \"$2\"
while read name; do cat \"$name\" >> \"$2\"; done < \"$1\"
";

/// The value of a variable, which nobody is to learn.
const CANARY: &str = "canary-7c1d-of-the-learn-test";

/// A folder that no job has of its own.
struct Ground(TempDir);

impl Ground {
    fn new() -> Self {
        let ground = Self(tempfile::tempdir_in("/var/lib").unwrap());
        fs::set_permissions(ground.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["in", "out", "copy", "more"] {
            put(ground.at(name).as_ref(), b"").unwrap();
            // Each run has another user.
            fs::set_permissions(ground.at(name), fs::Permissions::from_mode(0o666)).unwrap();
        }
        put(ground.at("more").as_ref(), b"canary\n").unwrap();
        ground
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn script(&self, site: &Site, args: &[&str]) -> Value {
        let content = site.hub.put_artifact(SCRIPT).unwrap();
        let args: Vec<_> = args.iter().map(|name| self.at(name)).collect();
        json!({"type": "script", "command":
            {"interpreter": "/bin/sh", "content": content, "args": args, "env": {"SITE": CANARY}}})
    }
}

/// An agent under a policy that only monitors; `None` where nothing could be enforced afterwards.
async fn monitored() -> Option<(Site, crate::support::Agent)> {
    if !is_root() {
        eprintln!("not root: not tried");
        return None;
    }
    let mut site = Site::new(Hub::builder()).await;
    site.enrol().await;
    site.publish(1, &json!({"mode": "monitor", "require_enforcement": "partial"})).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let shown = site.home.asked(&["policy", "show"]).await.unwrap();
    if shown["enforcement"] != "full" {
        eprintln!("{} is all that can be enforced here: not tried", shown["enforcement"]);
        return None;
    }
    Some((site, agent))
}

/// The rules that a job teaches, which a policy takes as they are.
async fn learned(site: &Site, job: &str) -> Value {
    let told = site.home.ctl(&["policy", "learn", job]).await.unwrap().exits(0).unwrap();
    let by_agent = site.home.agent(&["policy", "learn", job]).await.unwrap();
    assert_eq!(by_agent.exits(0).unwrap().stdout, told.stdout);
    assert!(told.stderr.lines().all(|line| line.starts_with("note: ")), "{}", told.stderr);
    let rules: Value = serde_json::from_str(&told.stdout).unwrap();
    let whole = site.home.asked(&["policy", "learn", job]).await.unwrap();
    assert_eq!((&whole["document"], &whole["complete"]), (&rules, &json!(true)));
    let mut document = rules.clone();
    document["version"] = 1.into();
    document["expires_at"] = hence(3600).to_string().into();
    let draft = site.home.path().join("draft.json");
    put(&draft, document.to_string().as_bytes()).unwrap();
    let linted = site.home.ctl(&["policy", "lint", draft.to_str().unwrap()]).await.unwrap();
    linted.exits(0).unwrap();
    rules
}

/// The paths that file rules open, each with how.
fn files(rules: &Value) -> Vec<(String, Value)> {
    let rules = rules["file"].as_array().unwrap();
    let mut files: Vec<_> = rules
        .iter()
        .map(|rule| (rule["path"].as_str().unwrap().to_owned(), rule["access"].clone()))
        // What a C library reads depends on the machine.
        .filter(|(path, _)| !path.starts_with("/etc/"))
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

/// One document of the rules of several.
fn together(all: &[&Value]) -> Value {
    let mut one = json!({"mode": "enforce", "require_enforcement": "full"});
    for kind in ["exec", "script", "file"] {
        let rules = all.iter().filter_map(|rules| rules[kind].as_array()).flatten();
        one[kind] = rules.cloned().collect();
    }
    one
}

#[tokio::test]
async fn what_is_learned_of_a_run_lets_the_same_run_again_and_nothing_more() {
    let Some((site, agent)) = monitored().await else { return };
    let ground = Ground::new();
    let script = ground.script(&site, &["in", "out"]);
    let copy = exec("/usr/bin/cp", &[&ground.at("in"), &ground.at("copy")]);
    let upload = json!({"type": "upload", "command": {"path": ground.at("in"), "name": "in"}});
    let mut lessons = Vec::new();
    for work in [&script, &copy, &upload] {
        let id = site.order(work.clone(), |_| {}).await;
        assert_eq!(site.end_of(&id).await.state, "ok");
        let seen = site.home.state().join("jobs").join(&id).join("seen.1.json");
        assert!(!fs::read_to_string(seen).unwrap().contains(CANARY));
        lessons.push(learned(&site, &id).await);
    }
    let [of_script, of_copy, of_upload] = &lessons[..] else { panic!("{lessons:?}") };
    let rule = &of_script["script"][0];
    assert_eq!(rule["sha256"], json!(Hash::of(SCRIPT)));
    assert_eq!(rule["args"], json!([ground.at("in"), ground.at("out")]));
    assert_eq!(rule["env"], json!(["SITE"]));
    assert_eq!(
        files(of_script),
        [(ground.at("in"), json!(["read"])), (ground.at("out"), json!(["write"]))]
    );
    let rule = &of_copy["exec"][0];
    assert_eq!(rule["sha256"], json!(Hash::of(&fs::read("/usr/bin/cp").unwrap())));
    assert_eq!(
        files(of_copy),
        [(ground.at("copy"), json!(["write"])), (ground.at("in"), json!(["read"]))]
    );
    assert_eq!(files(of_upload), [(ground.at("in"), json!(["read"]))]);

    site.publish(2, &together(&[of_script, of_copy, of_upload])).await;
    site.in_force(2).await;
    // No whole line, so it names nothing.
    put(ground.at("in").as_ref(), b"x").unwrap();
    for work in [&script, &copy, &upload] {
        let again = site.run(work.clone()).await;
        let result = again.result.unwrap();
        assert_eq!((again.state.as_str(), result.enforcement.as_str()), ("ok", "full"));
    }
    assert_eq!(fs::read(ground.at("copy")).unwrap(), b"x");

    // The very same job, which touches one more file now.
    put(ground.at("in").as_ref(), format!("{}\n", ground.at("more")).as_bytes()).unwrap();
    let more = site.run(script).await;
    let result = more.result.unwrap();
    let said = String::from_utf8(result.stderr.unwrap().head.0).unwrap();
    assert_eq!(more.state, "failed");
    assert!(said.contains("more: Permission denied"), "{said}");
    assert!(!fs::read_to_string(ground.at("out")).unwrap().contains("canary"));
    // And with other arguments it does not begin.
    let other = site.run(exec("/usr/bin/cp", &[&ground.at("in"), &ground.at("more")])).await;
    assert_eq!(other.status.unwrap().reason.as_deref(), Some("DENIED"));
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn where_nothing_can_be_learned_it_is_told_why() {
    let Some((site, agent)) = monitored().await else { return };
    let refused = async |job: &str, reason: &str| {
        let told = site.home.ctl(&["policy", "learn", job]).await.unwrap().exits(1).unwrap();
        assert!(told.stderr.contains(reason) && told.stdout.is_empty(), "{}", told.stderr);
    };
    refused("none", "UNKNOWN_JOB").await;
    let id = site.order(exec("/usr/bin/sleep", &["300"]), |_| {}).await;
    site.running(&id).await;
    refused(&id, "NOT_ENDED").await;
    site.home.ctl(&["jobs", "cancel", &id]).await.unwrap().exits(0).unwrap();
    site.end_of(&id).await;
    let told = site.home.ctl(&["policy", "learn", &id]).await.unwrap().exits(0).unwrap();
    assert!(told.stderr.contains("ended as cancelled"), "{}", told.stderr);
    let delivered = crate::support::eventually("its end is delivered", async || {
        let shown = site.home.asked(&["jobs", "show", &id]).await.map_err(|f| f.to_string())?;
        if shown["delivered"] == true { Ok(()) } else { Err(shown.to_string()) }
    });
    delivered.await.unwrap();
    site.home.ctl(&["cache", "clean"]).await.unwrap().exits(0).unwrap();
    refused(&id, "NOT_KEPT").await;

    let rules = json!({"exec": [{"id": "x", "effect": "allow", "path": "/usr/bin/true"}]});
    site.publish(2, &rules).await;
    site.in_force(2).await;
    let id = site.order(exec("/usr/bin/true", &[]), |_| {}).await;
    assert_eq!(site.end_of(&id).await.state, "ok");
    refused(&id, "NOT_MONITORED").await;
    agent.stop().await.unwrap();
}
