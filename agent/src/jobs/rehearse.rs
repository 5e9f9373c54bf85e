//! What would change for the jobs of the last days if another policy were in force: each of their
//! requests is asked once more, of the present policy and of the other, on the files of now.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Jobs, core::bounded};
use crate::{
    domain::{asked::Asked, policy::Engine},
    gate::{Rehearsal, Ruling},
    store::{History, Remembered, StoreError},
};

/// A question may read a whole program; so long after the first the last one is begun.
const WITHIN: Duration = Duration::from_secs(20);

/// Two policies, by what jobs asked.
#[derive(Debug)]
pub struct Comparison {
    /// The policy in force; 0 without one.
    pub present_version: u64,
    /// The other one's.
    pub candidate_version: u64,
    /// Nothing that was asked since then is missing.
    pub since: Timestamp,
    /// What is answered otherwise: what is newly denied, what is newly allowed, then the rest;
    /// each with the last asked first.
    pub changes: Vec<Change>,
    /// What is answered as before.
    pub unchanged: Tally,
    /// What neither was asked: what it names is not there now, or is no plain file; or it was too
    /// large to be kept.
    pub not_comparable: Tally,
    /// What there was no time for.
    pub unasked: Tally,
}

/// Requests, and the jobs that made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Different ones.
    pub requests: u64,
    /// Jobs.
    pub jobs: u64,
}

impl Tally {
    const fn add(&mut self, jobs: u64) {
        self.requests += 1;
        self.jobs += jobs;
    }
}

/// A request that is answered otherwise.
#[derive(Debug)]
pub struct Change {
    /// What was asked.
    pub asked: Asked,
    /// As in a list of jobs.
    pub command: String,
    /// `exec`, `script`, `download`, `upload`.
    pub kind: &'static str,
    /// Jobs that asked it.
    pub jobs: u64,
    /// When the last of them came.
    pub last_at: Timestamp,
    /// The last of them.
    pub last_job: String,
    /// What the present policy says.
    pub before: Ruling<()>,
    /// What the other one says.
    pub after: Ruling<()>,
}

impl Jobs {
    /// Asks `candidate` what jobs asked, as if it were in force; it never is.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub async fn rehearse(&self, candidate: Engine) -> Result<Comparison, StoreError> {
        let core = Arc::clone(&self.core);
        let compared = tokio::task::spawn_blocking(move || {
            let (now, stop) = (core.deps.time.now(), core.deps.tasks.shutdown());
            let history = core.deps.journal.asked(now)?;
            let end = Instant::now() + WITHIN;
            let gates = (core.deps.gate.present(), core.deps.gate.candidate(candidate));
            let goes_on = || !stop.is_cancelled() && Instant::now() < end;
            Ok(compare(history, (&gates.0, &gates.1), now, goes_on))
        });
        compared.await.map_err(|e| StoreError(e.to_string()))?
    }
}

/// Asks both about each request, for as long as it `goes_on`.
fn compare(
    history: History,
    (present, candidate): (&Rehearsal, &Rehearsal),
    now: Timestamp,
    goes_on: impl Fn() -> bool,
) -> Comparison {
    let mut compared = Comparison {
        present_version: present.version(),
        candidate_version: candidate.version(),
        since: history.since,
        changes: Vec::new(),
        unchanged: Tally::default(),
        not_comparable: Tally::default(),
        unasked: Tally::default(),
    };
    for Remembered { asked, jobs, last_at, last_job } in history.requests {
        let Some(asked) = asked else {
            compared.not_comparable.add(jobs);
            continue;
        };
        if !goes_on() {
            compared.unasked.add(jobs);
            continue;
        }
        let (before, after) = (brief(present.ask(&asked, now)), brief(candidate.ask(&asked, now)));
        if before.canonical.is_none() && after.canonical.is_none() {
            compared.not_comparable.add(jobs);
        } else if differ(&before, &after) {
            let work = asked.work();
            let (command, kind) = (work.line(), work.kind());
            compared.changes.push(Change {
                asked,
                command,
                kind,
                jobs,
                last_at,
                last_job,
                before,
                after,
            });
        } else {
            compared.unchanged.add(jobs);
        }
    }
    compared.changes.sort_by_key(|change| match (change.before.allowed, change.after.allowed) {
        (true, false) => 0,
        (false, true) => 1,
        (true, true) | (false, false) => 2,
    });
    compared
}

/// Whether the answers mean something else. What would hold a job that no policy starts is no part
/// of it.
fn differ(before: &Ruling<()>, after: &Ruling<()>) -> bool {
    let held = |r: &Ruling<()>| r.allowed.then(|| r.enforcement.clone());
    let of = |r: &Ruling<()>| (r.allowed, r.monitored, r.reason, held(r));
    of(before) != of(after) || before.rule != after.rule || before.run_as != after.run_as
}

/// A ruling among thousands: rules that did not decide are left to those who ask about one.
fn brief(ruling: Ruling<()>) -> Ruling<()> {
    Ruling { considered: Vec::new(), message: bounded(ruling.message), ..ruling }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        jobs::{
            fixture::{Desk, exec, in_force, leased, signed_by},
            recovery,
        },
        platform::paths::resolve,
    };

    fn allow(id: &str, path: &str) -> Value {
        json!({"id": id, "effect": "allow", "path": path, "args": "any"})
    }

    fn candidate(rules: &Value) -> Engine {
        Engine::compile(in_force(rules).engine.policy().clone(), &mut resolve).unwrap()
    }

    /// Of each change: whether it was and is allowed, the command, and both reasons.
    fn told(compared: &Comparison) -> Vec<(bool, bool, &str, &str, &str)> {
        let told = compared.changes.iter().map(|Change { before, after, command, .. }| {
            (before.allowed, after.allowed, command.as_str(), before.reason, after.reason)
        });
        told.collect()
    }

    #[tokio::test]
    async fn changes_come_in_order_and_the_rest_is_counted() {
        let desk = Desk::with(&json!({"exec": [
            allow("true", "/usr/bin/true"), allow("echo", "/usr/bin/echo"),
            allow("id", "/usr/bin/id"), allow("head", "/usr/bin/head"),
        ]}));
        for (id, path, args) in [
            ("other", "/usr/bin/id", &[][..]),
            ("new", "/usr/bin/sleep", &["1"]),
            ("same", "/usr/bin/true", &[]),
            ("same-2", "/usr/bin/true", &[]),
            ("denied", "/usr/bin/echo", &["a b"]),
            ("gone", "/usr/bin/head", &[]),
            ("nowhere", "/nowhere/at/all", &[]),
        ] {
            desk.take(leased(id, &exec(path, args))).await;
            desk.clock.advance(Duration::from_secs(1));
        }
        // Nobody signed this one, so nobody asks the policy.
        desk.take(signed_by(9, "stranger", &exec("/usr/bin/cat", &[]))).await;
        let compared = desk.jobs.rehearse(candidate(&json!({"exec": [
            allow("true", "/usr/bin/true"), allow("sleep", "/usr/bin/sleep"),
            {"id": "echo", "effect": "allow", "path": "/usr/bin/echo"},
            allow("another", "/usr/bin/id"),
        ]})));
        let compared = compared.await.unwrap();
        assert_eq!(
            told(&compared),
            [
                (true, false, "/usr/bin/head", "ALLOWED", "NO_RULE"),
                (true, false, "/usr/bin/echo 'a b'", "ALLOWED", "ARGUMENTS"),
                (false, true, "/usr/bin/sleep 1", "NO_RULE", "ALLOWED"),
                (true, true, "/usr/bin/id", "ALLOWED", "ALLOWED"),
            ]
        );
        assert_eq!(compared.unchanged, Tally { requests: 1, jobs: 2 });
        assert_eq!(compared.not_comparable, Tally { requests: 1, jobs: 1 });
        assert_eq!(compared.unasked, Tally::default());
        let denied = &compared.changes[1];
        assert_eq!((denied.jobs, denied.last_job.as_str(), denied.kind), (1, "denied", "exec"));
        assert_eq!((denied.before.rule.as_deref(), &denied.after.rule), (Some("echo"), &None));
    }

    #[tokio::test]
    async fn the_present_policy_says_what_it_said_to_the_job() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().canonicalize().unwrap().join("f");
        std::fs::File::create(&file).unwrap();
        let rules = json!({
            "exec": [allow("echo", "/usr/bin/echo")],
            "script": [{"id": "s", "effect": "allow", "interpreter": "/bin/sh", "env": ["A"],
                "sha256": "ab".repeat(32)}],
            "file": [{"id": "f", "effect": "allow", "path": file, "access": ["read"]}],
        });
        let desk = Desk::with(&rules);
        let script = json!({"interpreter": "/bin/sh", "env": {"A": "canary"},
            "content": {"sha256": "ab".repeat(32), "size": 1}});
        let to = json!({"dest": file, "artifact": {"sha256": "ab".repeat(32), "size": 1}});
        for (id, work) in [
            ("exec", exec("/usr/bin/echo", &["x"])),
            ("refused", exec("/usr/bin/id", &[])),
            ("script", json!({"type": "script", "command": script})),
            ("download", json!({"type": "download", "command": to})),
            ("upload", json!({"type": "upload", "command": {"path": file, "name": "n"}})),
        ] {
            desk.take(leased(id, &work)).await;
        }
        let now = desk.core.deps.time.now();
        let history = desk.core.deps.journal.asked(now).unwrap();
        assert_eq!(history.requests.len(), 5);
        for Remembered { asked, last_job, .. } in history.requests {
            let asked = asked.unwrap();
            let ruling = desk.core.deps.gate.present().ask(&asked, now);
            let (entry, work) = (desk.entry(&last_job), asked.work());
            assert_eq!(ruling.allowed, entry.reason.is_none(), "{last_job}: {}", ruling.message);
            assert_eq!((ruling.rule, work.line()), (entry.rule, entry.command));
            assert!(!format!("{asked:?}").contains("canary"));
        }
        let same = desk.jobs.rehearse(candidate(&rules)).await.unwrap();
        assert_eq!((same.changes.len(), same.unchanged.requests), (0, 5));
        let nothing = desk.jobs.rehearse(candidate(&json!({}))).await.unwrap();
        assert_eq!((nothing.changes.len(), nothing.unchanged.requests), (3, 2));
    }

    #[tokio::test]
    async fn a_job_that_waits_through_a_restart_is_counted_once() {
        let rules = json!({"exec": [allow("true", "/usr/bin/true")]});
        let desk = Desk::with(&rules);
        desk.take(leased("j", &json!({}))).await;
        let desk = desk.again(&rules);
        recovery::recover(&desk.core).await.unwrap();
        desk.until("j", |entry| entry.state.is_terminal()).await;
        desk.take(leased("j", &json!({}))).await;
        let compared = desk.jobs.rehearse(candidate(&rules)).await.unwrap();
        assert_eq!(compared.unchanged, Tally { requests: 1, jobs: 1 });
    }

    #[tokio::test]
    async fn without_a_policy_everything_is_new_and_what_has_no_time_is_told() {
        let desk = Desk::with(&json!({}));
        desk.policy.send_replace(None);
        for path in ["/usr/bin/true", "/usr/bin/id"] {
            desk.take(leased(path.rsplit('/').next().unwrap(), &exec(path, &[]))).await;
        }
        let rules = candidate(&json!({"exec": [allow("all", "/usr/bin/*")]}));
        let (gate, now) = (&desk.core.deps.gate, desk.core.deps.time.now());
        let (history, left) = (desk.core.deps.journal.asked(now).unwrap(), Cell::new(1_u32));
        let goes_on = || left.replace(left.get().saturating_sub(1)) > 0;
        let compared = compare(history, (&gate.present(), &gate.candidate(rules)), now, goes_on);
        assert_eq!(told(&compared), [(false, true, "/usr/bin/id", "NO_POLICY", "ALLOWED")]);
        assert_eq!((compared.present_version, compared.candidate_version), (0, 1));
        assert_eq!(compared.unasked, Tally { requests: 1, jobs: 1 });
    }
}
