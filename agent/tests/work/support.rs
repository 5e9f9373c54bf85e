//! An enrolled agent whose jobs run, and its hub.

use std::{
    collections::BTreeMap,
    io,
    ops::RangeInclusive,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::tz::TimeZone;
use jtnt_agent::{
    audit::{self, Audit},
    domain::{key_store::KeyStore, policy::Engine},
    enrol::{self, Options, RootPin, host_facts},
    gate::{self, Gate, InForce},
    hub::{Address, HubClient, HubConfig},
    identity::{self, Identity, Paths},
    jobs::{Config, Deps, Jobs, Refresh},
    platform::{paths::resolve, users::own_uid},
    runtime::{
        clock::{SharedClock, SystemClock},
        entropy::{Entropy, SharedEntropy, SystemEntropy},
        tasks::{Class, Essential, Tasks},
    },
    shim::{Attempt, Launcher, Shim},
    store::{Journal, time::TrustedTime},
    telemetry::metrics::Metrics,
};
use jtnt_hub_mock::{Builder, Handle, JobView};
use jtnt_proto::{hub::JobStatusState, job::Job, policy::Policy};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

/// Chance that never makes anybody wait.
#[derive(Debug)]
struct AtOnce;

impl Entropy for AtOnce {
    fn fill(&self, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
}

/// What outlives a run of the agent.
pub(crate) struct Site {
    pub(crate) hub: Handle,
    pub(crate) dir: TempDir,
    pub(crate) identity: Identity,
}

/// Jobs outlive their agent, and not the tests.
impl Drop for Site {
    fn drop(&mut self) {
        let jobs = std::fs::read_dir(self.state_dir().join("jobs")).into_iter().flatten();
        for job in jobs.map(|job| job.unwrap()) {
            let shim = Shim::find(Attempt::new(job.path(), 1));
            shim.ok().flatten().iter().for_each(Shim::kill);
        }
    }
}

/// One run of the agent.
pub(crate) struct Agent {
    pub(crate) jobs: Jobs,
    pub(crate) journal: Journal,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Metrics,
    _essential: Essential,
    _senders: Senders,
}

/// Nothing takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the agent watches; without its senders it would stop.
type Senders = (
    watch::Sender<Option<Arc<InForce>>>,
    watch::Sender<Option<jtnt_agent::trust::Keyring>>,
    watch::Sender<Option<HubClient>>,
);

/// Users of one agent's jobs. An agent ends whatever is left of a user of its range, so agents
/// that run side by side must not share one.
fn own_uids() -> RangeInclusive<u32> {
    const EACH: u32 = 64;
    static NEXT: AtomicU32 = AtomicU32::new(61_184);
    let first = NEXT.fetch_add(EACH, Ordering::Relaxed);
    first..=first + EACH - 1
}

impl Site {
    pub(crate) fn state_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) async fn new(builder: Builder) -> Self {
        let (hub, dir) = (builder.start().await.unwrap(), TempDir::new().unwrap());
        let options = Options {
            data_dir: dir.path().to_owned(),
            hub: Address::hub(&hub.url()).unwrap(),
            proxy: None,
            token: hub.token().await.unwrap().into(),
            root: RootPin::File(hub.root_file()),
            hub_ca: None,
            labels: BTreeMap::new(),
            host: host_facts("0.0.0"),
            config: None,
            key_store: KeyStore::File,
            force: false,
        };
        let deps = enrol::Deps {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            metrics: Metrics::new("test").unwrap(),
        };
        enrol::enroll(options, deps).await.unwrap();
        let identity = identity::load(&Paths { data_dir: dir.path().to_owned() }).unwrap();
        Self { hub, dir, identity }
    }

    fn in_force(&self, rules: &Value) -> Arc<InForce> {
        let operator = self.hub.operator().unwrap();
        let mut document = json!({
            "policy_id": "p", "version": 1, "audience": operator.audience(),
            "issued_at": "2020-01-01T00:00:00Z", "expires_at": "2100-01-01T00:00:00Z",
            "require_enforcement": "none",
        });
        document.as_object_mut().unwrap().extend(rules.as_object().unwrap().clone());
        let policy: Policy = serde_json::from_value(document).unwrap();
        let verified = self.identity.keyring.policy(&operator.sign_policy(&policy)).unwrap();
        let engine = Engine::compile(policy, &mut resolve).unwrap();
        Arc::new(InForce { engine: Arc::new(engine), verified })
    }

    /// Starts the agent under a policy.
    pub(crate) fn agent(&self, rules: &Value) -> Agent {
        let clock: SharedClock = Arc::new(SystemClock);
        let state_dir = self.state_dir();
        std::fs::create_dir_all(&state_dir).unwrap();
        let journal = Journal::open(&state_dir.join("jobs.redb"), Arc::clone(&clock)).unwrap();
        let paths = Paths { data_dir: self.dir.path().to_owned() };
        let system: SharedEntropy = Arc::new(SystemEntropy);
        let key = identity::audit_key(&paths, &system).unwrap();
        let log = audit::Config {
            dir: self.dir.path().join("audit"),
            agent_id: self.identity.agent_id.clone(),
            retention: jtnt_agent::domain::retention::Retention::default(),
            zone: TimeZone::UTC,
        };
        let audit = Audit::open(log, key, Arc::clone(&clock), &SystemEntropy).unwrap();
        let metrics = Metrics::new("test").unwrap();
        let client = HubClient::new(HubConfig {
            url: Address::hub(&self.hub.url()).unwrap(),
            proxy: None,
            tls: Arc::clone(&self.identity.tls),
            slow_key: false,
            breaker_failures: 50,
            metrics: metrics.clone(),
            clock: Arc::clone(&clock),
        });
        let (policy, policy_watch) = watch::channel(Some(self.in_force(rules)));
        let (keyring, keyring_watch) = watch::channel(Some(self.identity.keyring.clone()));
        let (link, link_watch) = watch::channel(Some(client));
        let (tasks, essential) = Tasks::new();
        let deps = Deps {
            agent_id: self.identity.agent_id.clone(),
            state_dir,
            time: TrustedTime::load(journal.clone(), Arc::clone(&clock)).unwrap(),
            journal: journal.clone(),
            audit,
            clock,
            entropy: Arc::new(AtOnce),
            keyring: keyring_watch,
            seal: watch::channel(self.identity.seal.clone()).1,
            gate: Gate::new(policy_watch.clone(), gate::Config::default()),
            policy: policy_watch,
            link: link_watch,
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            launcher: Launcher::of(env!("CARGO_BIN_EXE_jtnt-agent").into()),
            refresh_policy: Refresh(Arc::new(|| Box::pin(std::future::ready(())))),
        };
        let (jobs, work) = Jobs::build(deps, Config { uid_range: own_uids(), ..Config::default() });
        tasks.spawn("jobs", Class::Essential, work.run(tasks.shutdown()));
        let senders = (policy, keyring, link);
        Agent { jobs, journal, tasks, metrics, _essential: essential, _senders: senders }
    }

    /// Signs a job and leaves it at the hub; its id.
    pub(crate) async fn order(&self, work: Value, change: impl FnOnce(&mut Job)) -> String {
        let operator = self.hub.operator().unwrap();
        let work = serde_json::from_value(work).unwrap();
        let mut job = operator.job(&self.identity.agent_id, work).unwrap();
        change(&mut job);
        self.hub.enqueue(&self.identity.agent_id, operator.sign_job(&job)).await.unwrap()
    }

    /// The same, and waits for its end.
    pub(crate) async fn run(&self, work: Value) -> JobView {
        let id = self.order(work, |_| {}).await;
        self.end_of(&id).await
    }

    pub(crate) async fn end_of(&self, id: &str) -> JobView {
        let end = tokio::time::timeout(PATIENCE, self.hub.wait_job(id)).await;
        end.unwrap_or_else(|_late| panic!("{:?}", self.hub.job(id)))
    }

    /// Waits until the hub hears that a job runs.
    pub(crate) async fn running(&self, id: &str) {
        let runs = |view: &JobView| {
            view.status.as_ref().is_some_and(|s| s.state == JobStatusState::Running)
        };
        let heard = tokio::time::timeout(PATIENCE, self.hub.await_job(id, runs)).await;
        heard.unwrap_or_else(|_late| panic!("{:?}", self.hub.job(id)));
    }

    /// Every event of the audit log about a job.
    pub(crate) fn audited(&self, id: &str) -> Vec<String> {
        let files = std::fs::read_dir(self.dir.path().join("audit")).unwrap();
        let logs = files.map(|f| f.unwrap().path()).filter(|p| extension(p) == Some("log"));
        let text: String = logs.map(|p| std::fs::read_to_string(p).unwrap()).collect();
        let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        let about = lines.filter(|line| line["job_id"] == id);
        about.map(|line| line["event"].as_str().unwrap().to_owned()).collect()
    }
}

fn extension(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

impl Agent {
    /// Stops it as a signal would; a job under way is ended.
    pub(crate) async fn stop(self) {
        let late = self.tasks.drain(Duration::from_secs(20)).await;
        assert!(late.is_empty(), "{late:?}");
    }
}

/// The user of a rule whose transfers must reach a private folder of whoever runs the tests.
pub(crate) fn owner() -> Option<&'static str> {
    (own_uid() == 0).then_some("root")
}
