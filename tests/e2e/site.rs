//! A hub whose faults are scripted, in this process, and the home of an agent that is a process.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use jtnt_hub_mock::{Builder, Handle, JobView, operator::Operator};
use jtnt_proto::{
    audit::Line,
    bytes::Hash,
    envelope::{Envelope, PayloadType},
    hub::JobStatusState,
    job::Job,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Home, Ran, eventually, is_root, put};

/// Nothing takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// The script that [`rules`] allow.
pub(crate) const SCRIPT: &[u8] = b"echo \"$1 $SITE\"; exit 4\n";

/// What outlives a run of the agent.
pub(crate) struct Site {
    pub(crate) hub: Handle,
    pub(crate) home: Home,
    /// Of the agent, once it is enrolled.
    pub(crate) id: String,
}

impl Site {
    /// A hub, and an agent that is not enrolled.
    pub(crate) async fn new(builder: Builder) -> Self {
        let hub = builder.start().await.unwrap();
        Self { hub, home: Home::new().unwrap(), id: String::new() }
    }

    /// A hub, and an agent that is enrolled and allowed what [`rules`] say.
    pub(crate) async fn ready(builder: Builder) -> Self {
        let mut site = Self::new(builder).await;
        site.enrol().await;
        site.publish(1, &rules(&site.home)).await;
        site
    }

    /// Enrols as an operator does, whether the agent runs or not.
    pub(crate) async fn enrol(&mut self) {
        let token = self.token_file(&self.hub.token().await.unwrap());
        let root = self.hub.root_file();
        let ran = self.enrol_with(&token, &root, &["--label", "site=b7"]).await;
        ran.exits(0).unwrap();
        self.id = self.hub.agents().pop().unwrap().agent_id;
    }

    /// `jtnt-agent enroll` with this hub.
    pub(crate) async fn enrol_with(&self, token: &Path, root: &Path, more: &[&str]) -> Ran {
        let (url, token, root) = (self.hub.url(), token.to_str().unwrap(), root.to_str().unwrap());
        let args = ["enroll", "--hub", &url, "--token-file", token, "--root", root];
        self.home.agent(&[&args, more].concat()).await.unwrap()
    }

    pub(crate) fn token_file(&self, token: &str) -> PathBuf {
        let path = self.home.path().join("token");
        put(&path, format!("{token}\n").as_bytes()).unwrap();
        path
    }

    pub(crate) fn operator(&self) -> Operator {
        self.hub.operator().unwrap()
    }

    /// Signs a policy of these rules and publishes it.
    pub(crate) async fn publish(&self, version: u64, rules: &Value) {
        let signed = self.policy(&json!({ "version": version }), rules);
        self.hub.publish_policy(signed).await.unwrap();
    }

    /// A signed policy, as the operator would sign it, with changes.
    pub(crate) fn policy(&self, changes: &Value, rules: &Value) -> Envelope {
        let role = jtnt_hub_mock::operator::Role::Policy;
        self.operator().sign(role, PayloadType::Policy, &self.document(changes, rules))
    }

    /// A policy that is not signed yet.
    pub(crate) fn document(&self, changes: &Value, rules: &Value) -> Value {
        let mut document = json!({
            "policy_id": "p", "audience": self.operator().audience(),
            "issued_at": Timestamp::now(), "expires_at": hence(24 * 3600),
            "require_enforcement": "none",
        });
        for part in [rules, changes] {
            document.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        }
        document
    }

    /// Waits until the running agent has this version in force.
    pub(crate) async fn in_force(&self, version: u64) {
        let shown = eventually("the policy is in force", async || {
            let shown = self.home.asked(&["policy", "show"]).await.map_err(|f| f.to_string())?;
            if shown["version"] == version { Ok(()) } else { Err(shown.to_string()) }
        });
        shown.await.unwrap();
    }

    /// Signs a job and leaves it at the hub; its id.
    pub(crate) async fn order(&self, work: Value, change: impl FnOnce(&mut Job)) -> String {
        let operator = self.operator();
        let mut job = operator.job(&self.id, serde_json::from_value(work).unwrap()).unwrap();
        change(&mut job);
        self.hub.enqueue(&self.id, operator.sign_job(&job)).await.unwrap()
    }

    /// The same, and waits for its end.
    pub(crate) async fn run(&self, work: Value) -> JobView {
        let id = self.order(work, |_| {}).await;
        self.end_of(&id).await
    }

    pub(crate) async fn end_of(&self, id: &str) -> JobView {
        let end = timeout(PATIENCE, self.hub.wait_job(id)).await;
        end.unwrap_or_else(|_late| panic!("it does not end: {:?}", self.hub.job(id)))
    }

    /// Waits until the hub hears that a job runs.
    pub(crate) async fn running(&self, id: &str) {
        let runs = |view: &JobView| {
            view.status.as_ref().is_some_and(|s| s.state == JobStatusState::Running)
        };
        let heard = timeout(PATIENCE, self.hub.await_job(id, runs)).await;
        heard.unwrap_or_else(|_late| panic!("it does not start: {:?}", self.hub.job(id)));
    }

    /// Every line of the audit log, in order. Each must tell what its event tells.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text: String = self.logs().iter().map(|p| fs::read_to_string(p).unwrap()).collect();
        // The last line may be under way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let flaws = serde_json::from_str::<Line>(line).unwrap().flaws();
            assert!(flaws.is_empty(), "{flaws:?} in {line}");
        }
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The audit log's files, in order.
    pub(crate) fn logs(&self) -> Vec<PathBuf> {
        let dir = self.home.data().join("audit");
        let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let mut logs: Vec<_> = all.filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
        logs.sort();
        logs
    }

    /// Names of the audit log's events about a job.
    pub(crate) fn audited(&self, id: &str) -> Vec<String> {
        let about = self.audit().into_iter().filter(|line| line["job_id"] == id);
        about.map(|line| line["event"].as_str().unwrap().to_owned()).collect()
    }

    /// What a refusal must leave as it is: configuration, identity, root and policy. Log and journal
    /// grow with every refusal, as they should, and results of other jobs come and go.
    pub(crate) fn kept(&self) -> BTreeMap<String, Hash> {
        let moves = ["audit/", "lock", "attempts", "jobs.redb", "job_results_pending"];
        let mut kept = BTreeMap::new();
        let mut folders = vec![self.home.data(), self.home.state()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                let name = path.strip_prefix(self.home.path()).unwrap().display().to_string();
                if path.is_dir() {
                    folders.push(path);
                } else if !moves.iter().any(|part| name.contains(part)) {
                    kept.insert(name, Hash::of(&fs::read(path).unwrap()));
                }
            }
        }
        let config = fs::read(self.home.config()).unwrap();
        kept.insert("config.json".to_owned(), Hash::of(&config));
        kept
    }
}

/// Seconds from now, or before now.
pub(crate) fn hence(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

/// A few programs, one script, and transfers in the folder for them.
pub(crate) fn rules(home: &Home) -> Value {
    let any = |name: &str| {
        json!({"id": name, "effect": "allow", "args": "any",
            "path": format!("/usr/bin/{name}")})
    };
    let mut files = json!({"id": "files", "effect": "allow", "access": ["read", "write"],
        "path": format!("{}/**", home.files().display())});
    if is_root() {
        files["run_as"] = json!("root");
    }
    json!({
        "exec": [any("true"), any("echo"), any("sleep")],
        "script": [{"id": "script", "effect": "allow", "interpreter": "/bin/sh",
            "sha256": Hash::of(SCRIPT), "args": "any", "env": ["SITE"]}],
        "file": [files],
    })
}

pub(crate) fn exec(path: &str, args: &[&str]) -> Value {
    json!({"type": "exec", "command": {"path": path, "args": args}})
}
