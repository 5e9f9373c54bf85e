//! What tests of the jobs need: an agent's floors in a temporary folder, real but for the clock,
//! and signed jobs.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ed25519_dalek::{Signer as _, SigningKey};
use jiff::{Timestamp, tz::TimeZone};
use jtnt_proto::{
    audit::Line,
    envelope::{Envelope, PayloadType},
    hub::{JobResult, LeasedJob},
    key::PublicKey,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use super::{Config, Deps, Jobs, Refresh, Work, core::Core, intake, runner};
use crate::{
    audit::{self, Audit},
    domain::{
        ids::JobId,
        job::{Entry, State},
        policy::Engine,
    },
    gate::{self, Gate, InForce},
    platform::paths::resolve,
    runtime::{
        clock::FixedClock,
        durable,
        entropy::SeededEntropy,
        signer::AuditSigner,
        tasks::{Essential, Tasks},
    },
    shim::{Attempt, Launcher, Shim},
    store::{Journal, time::TrustedTime},
    telemetry::metrics::Metrics,
    trust::fixture::{Installation, policy, secret},
};

pub(crate) const NOW: &str = "2026-06-02T00:00:00Z";

/// A job that waits.
pub(crate) fn entry(id: &str) -> Entry {
    let at: Timestamp = NOW.parse().unwrap();
    Entry {
        job_id: JobId::try_from(id).unwrap(),
        kind: "exec".into(),
        command: "/bin/true".into(),
        envelope: None,
        state: State::Queued,
        attempt: 1,
        received_at: at,
        expires_at: at,
        started_at: None,
        finished_at: None,
        duration_ms: None,
        process: None,
        exit_code: None,
        signal: None,
        reason: None,
        message: None,
        user: None,
        policy_version: 0,
        rule: None,
        monitored: false,
        enforcement: None,
        stdout_bytes: 0,
        stderr_bytes: 0,
        result: None,
        result_sha256: None,
        reported: false,
        parts: Vec::new(),
        dropped: None,
        delivered: false,
    }
}

/// A job signed for the agent, with what `changes` says otherwise, lent by the hub.
pub(crate) fn leased(id: &str, changes: &Value) -> LeasedJob {
    signed_by(3, id, changes)
}

/// The same, signed by key `key`; 3 is the job role's.
pub(crate) fn signed_by(key: u8, id: &str, changes: &Value) -> LeasedJob {
    let mut job = json!({
        "job_id": id, "agent_id": "agent", "root_id": "installation", "issued_at": NOW,
        "not_before": NOW, "expires_at": "2026-06-03T00:00:00Z",
        "type": "exec", "command": {"path": "/usr/bin/true"},
    });
    job.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let payload = serde_json::to_vec(&job).unwrap();
    LeasedJob {
        job_id: id.to_owned(),
        lease_expires_at: NOW.parse().unwrap(),
        envelope: Envelope::sign(PayloadType::Job, payload, &[&secret(key)]),
    }
}

pub(crate) fn exec(path: &str, args: &[&str]) -> Value {
    json!({"command": {"path": path, "args": args}})
}

#[derive(Debug)]
struct Key(SigningKey);

impl AuditSigner for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// A folder that takes the jobs with it that agents have left running there.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let jobs = std::fs::read_dir(self.path().join("jobs")).unwrap().map(|job| job.unwrap());
        let shims = jobs.map(|job| Shim::find(Attempt::new(job.path(), 1)));
        shims.for_each(|shim| shim.ok().flatten().iter().for_each(Shim::kill));
    }
}

type Offered = Arc<std::sync::Mutex<Option<Arc<InForce>>>>;

/// An agent that has a root and a policy, and no hub.
pub(crate) struct Desk {
    pub(crate) jobs: Jobs,
    pub(crate) core: Arc<Core>,
    pub(crate) clock: Arc<FixedClock>,
    pub(crate) policy: watch::Sender<Option<Arc<InForce>>>,
    /// What the hub has when it is asked for a newer policy.
    pub(crate) offered: Offered,
    pub(crate) tasks: Tasks,
    pub(crate) dir: Arc<Folder>,
    _work: Work,
    _essential: Essential,
    _link: watch::Sender<Option<crate::hub::HubClient>>,
    _keyring: watch::Sender<Option<crate::trust::Keyring>>,
}

pub(crate) fn in_force(rules: &Value) -> Arc<InForce> {
    let verified = Installation::new().keyring().policy(&policy(2, rules)).unwrap();
    let engine = Engine::compile(verified.get().clone(), &mut resolve).unwrap();
    Arc::new(InForce { engine: Arc::new(engine), verified })
}

/// Puts what is offered in force.
fn refresh(offered: Offered, policy: watch::Sender<Option<Arc<InForce>>>) -> Refresh {
    Refresh(Arc::new(move || {
        if let Some(new) = offered.lock().unwrap().take() {
            policy.send_replace(Some(new));
        }
        Box::pin(std::future::ready(()))
    }))
}

impl Desk {
    pub(crate) fn with(rules: &Value) -> Self {
        Self::with_cache(rules, Config::default().cache_max_bytes)
    }

    /// One that keeps no more than this for the hub.
    pub(crate) fn with_cache(rules: &Value, bytes: u64) -> Self {
        Self::at(Arc::new(Folder(tempfile::tempdir().unwrap())), rules, bytes)
    }

    /// The same folder after the end of the agent that used it.
    pub(crate) fn again(self, rules: &Value) -> Self {
        let dir = Arc::clone(&self.dir);
        drop(self);
        Self::at(dir, rules, Config::default().cache_max_bytes)
    }

    fn at(dir: Arc<Folder>, rules: &Value, cache_max_bytes: u64) -> Self {
        let clock = FixedClock::at(NOW);
        let shared: crate::runtime::clock::SharedClock = Arc::clone(&clock) as _;
        let entropy = SeededEntropy::new(1);
        let journal = Journal::open(&dir.path().join("jobs.redb"), Arc::clone(&shared)).unwrap();
        let audit = audit::Config {
            dir: dir.path().join("audit"),
            agent_id: "agent".into(),
            retention: crate::domain::retention::Retention::default(),
            zone: TimeZone::UTC,
        };
        let key = Arc::new(Key(secret(9)));
        let audit = Audit::open(audit, key, Arc::clone(&shared), &*entropy).unwrap();
        let offered: Offered = Arc::default();
        let (policy, watched) = watch::channel(Some(in_force(rules)));
        let (keyring, keys) = watch::channel(Some(Installation::new().keyring()));
        let (link, linked) = watch::channel(None);
        let (tasks, essential) = Tasks::new();
        let deps = Deps {
            agent_id: "agent".into(),
            state_dir: dir.path().to_owned(),
            time: TrustedTime::load(journal.clone(), Arc::clone(&shared)).unwrap(),
            journal,
            audit,
            clock: shared,
            entropy,
            keyring: keys,
            seal: watch::channel(None).1,
            gate: Gate::new(watched.clone(), gate::Config::default()),
            policy: watched,
            link: linked,
            metrics: Metrics::new("0").unwrap(),
            tasks: tasks.clone(),
            launcher: Launcher::of_tests(),
            refresh_policy: refresh(Arc::clone(&offered), policy.clone()),
        };
        // Tests run side by side, and what is left of a job's user is ended with the job.
        static FIRST_UID: AtomicU32 = AtomicU32::new(1_000_000);
        let first = FIRST_UID.fetch_add(100, Ordering::Relaxed);
        let config = Config {
            uid_range: first..=first + 99,
            grace: std::time::Duration::from_millis(200),
            cache_max_bytes,
            ..Config::default()
        };
        let (jobs, work) = Jobs::build(deps, config);
        durable::create_dir(&jobs.core.pending_dir(), 0o700).unwrap();
        durable::create_dir(&dir.path().join("jobs"), 0o700).unwrap();
        Self {
            core: Arc::clone(&jobs.core),
            jobs,
            clock,
            policy,
            offered,
            tasks,
            dir,
            _work: work,
            _essential: essential,
            _link: link,
            _keyring: keyring,
        }
    }

    /// Hands in a job as if the hub had; whether it was accepted.
    pub(crate) async fn take(&self, leased: LeasedJob) -> bool {
        let Some(item) = intake::take_job(&self.core, leased).await.unwrap() else { return false };
        self.core.board.push(item);
        true
    }

    /// Runs workers until `id` is as `wanted`.
    pub(crate) async fn until(&self, id: &str, wanted: impl Fn(&Entry) -> bool) -> Entry {
        let mut changes = self.core.deps.journal.changes();
        let job_id = JobId::try_from(id).unwrap();
        let reached = async {
            loop {
                let moved = self.core.board.moved.notified();
                let entry = self.entry(id);
                // The journal is one of several that are told of an end.
                if wanted(&entry) && !(entry.state.is_terminal() && self.core.board.holds(&job_id))
                {
                    return entry;
                }
                tokio::select! {
                    _news = changes.recv() => {}
                    () = moved => {}
                }
            }
        };
        tokio::select! {
            entry = reached => entry,
            () = runner::run(Arc::clone(&self.core), self.tasks.shutdown()) => {
                panic!("the workers ended")
            }
            () = tokio::time::sleep(std::time::Duration::from_secs(30)) => {
                panic!("{id} came no further than {:?}", self.entry(id))
            }
        }
    }

    /// Takes a job and runs it to its end.
    pub(crate) async fn run(&self, id: &str, changes: &Value) -> (Entry, JobResult) {
        assert!(self.take(leased(id, changes)).await, "{:?}", self.entry(id));
        let entry = self.until(id, |e| e.state.is_terminal()).await;
        let result = self.result(&entry);
        (entry, result)
    }

    pub(crate) fn entry(&self, id: &str) -> Entry {
        let id = JobId::try_from(id).unwrap();
        self.core.deps.journal.get(&id).unwrap().expect("the journal knows the job")
    }

    pub(crate) fn result(&self, entry: &Entry) -> JobResult {
        serde_json::from_slice(&self.result_bytes(entry)).unwrap()
    }

    /// The result as the hub would get it, wherever it is kept.
    pub(crate) fn result_bytes(&self, entry: &Entry) -> Vec<u8> {
        let entry = self.entry(entry.job_id.as_str());
        match entry.result {
            Some(ref body) => body.clone().into_bytes(),
            None => std::fs::read(self.core.result_file(&entry)).unwrap(),
        }
    }

    /// Every line of the audit log that is about `id`: event and line.
    pub(crate) fn audited(&self, id: &str) -> Vec<(String, Value)> {
        let about = self.all_lines().into_iter().filter(|line| line["job_id"] == id);
        about.map(|line| (line["event"].as_str().unwrap().to_owned(), line)).collect()
    }

    /// Every line of an event.
    pub(crate) fn lines(&self, event: &str) -> Vec<Value> {
        self.all_lines().into_iter().filter(|line| line["event"] == event).collect()
    }

    /// Each must tell what its event tells.
    fn all_lines(&self) -> Vec<Value> {
        let files = std::fs::read_dir(self.dir.path().join("audit")).unwrap();
        let logs = files
            .map(|f| f.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "log"))
            .map(|p| std::fs::read_to_string(p).unwrap());
        let texts: Vec<_> = logs.collect();
        for line in texts.iter().flat_map(|text| text.lines()) {
            let flaws = serde_json::from_str::<Line>(line).unwrap().flaws();
            assert!(flaws.is_empty(), "{flaws:?} in {line}");
        }
        let lines = texts.iter().flat_map(|text| text.lines());
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}
