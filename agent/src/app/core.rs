//! What every process that may write the agent's state is made of, daemon or not. Whoever has it
//! holds the lock of the data folder.

use std::{ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, tz::TimeZone};
use jtntctl::{Exit, Failure};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{certs, published::Published};
use crate::{
    audit::{self, Audit},
    config::Config,
    domain::enforcement::Abilities,
    gate::{self, Gate, PolicyWatch},
    heartbeat::HeartbeatStatus,
    hub::HubError,
    identity,
    jobs::{self, Jobs, Refresh, Work},
    overview::{Overview, Sources, VERSION},
    platform::{host, users},
    policy::{self, Keeper, NoNewer, Offer, PolicyKeeper, Source},
    renewal::{Renewal, Task},
    runtime::{
        clock::{SharedClock, SystemClock},
        durable,
        entropy::{SharedEntropy, SystemEntropy},
        lock::{Lock, LockError},
        signer::AuditSigner,
        tasks::{Essential, Tasks},
    },
    shim::Launcher,
    store::{Journal, OpenError, StoreError, time::TrustedTime},
    telemetry::metrics::Metrics,
};

/// Jobs that may wait.
const QUEUE: usize = 1000;
/// Between the polite signal and the last one: a stop of the agent has five seconds in all.
const GRACE: Duration = Duration::from_secs(3);
/// What a package or a service manager has of the agent, and no job may touch.
const PROTECTED: [&str; 6] = [
    "/etc/systemd/system/jtnt-agent.service",
    "/etc/systemd/system/jtnt-agent.service.d",
    "/usr/lib/systemd/system/jtnt-agent.service",
    "/usr/lib/jtnt-agent",
    "/usr/bin/jtnt-agent",
    "/usr/bin/jtntctl",
];

/// What everything else is made with.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) config: Config,
    pub(super) path: PathBuf,
    pub(super) clock: SharedClock,
    pub(super) entropy: SharedEntropy,
    pub(super) zone: TimeZone,
    pub(super) metrics: Metrics,
    pub(super) tasks: Tasks,
}

/// What is on disk, open.
#[derive(Debug)]
pub(super) struct State {
    pub(super) agent_id: String,
    /// The audit key.
    pub(super) signer: Arc<dyn AuditSigner>,
    pub(super) audit: Audit,
    pub(super) journal: Journal,
    pub(super) time: TrustedTime,
    /// A damaged journal that this one took the place of.
    pub(super) lost: Option<PathBuf>,
}

/// The parts, put together and not yet at work.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) base: Base,
    pub(super) state: State,
    pub(super) essential: Essential,
    pub(super) published: Arc<Published>,
    pub(super) keeper: PolicyKeeper,
    pub(super) jobs: Jobs,
    pub(super) heartbeat: watch::Sender<HeartbeatStatus>,
    pub(super) ready: watch::Sender<bool>,
    pub(super) overview: Overview,
    pub(super) renewal: Renewal,
    pub(super) renewals: Option<Task>,
    pub(super) work: Option<(Keeper, Work)>,
    _held: Held,
}

/// An agent that was killed while it started a job leaves a child that has the lock until it
/// becomes the job's program. Whoever starts right after waits for that, and no longer.
const LINGERING: Duration = Duration::from_millis(500);
const TRY_LOCK: Duration = Duration::from_millis(20);

/// The data folder, for this process alone.
#[derive(Debug)]
pub(super) struct Held {
    _lock: Lock,
}

impl Held {
    /// Makes the folders, checks whose they are, and takes the lock. `who` is what others read
    /// who find it taken.
    pub(super) async fn take(config: &Config, who: &str) -> Result<Self, Failure> {
        let failed = |what: String, why: String| Failure::new(Exit::Io, what, why);
        for (dir, mode) in [(&config.data_dir, 0o755), (&config.state_dir, 0o700)] {
            durable::create_dir(dir, mode)
                .map_err(|e| of_io(&format!("make the folder {}", dir.display()), &e))?;
            host::owned(dir, users::own_uid())
                .map_err(|e| failed(format!("use {}", dir.display()), e.to_string()))?;
        }
        let who = format!("jtnt-agent {who}");
        let path = config.paths().lock();
        let mut taken = Lock::take(&path, &who);
        let given_up = Instant::now() + LINGERING;
        let held = |e: &LockError| !matches!(e, LockError::Io { .. });
        while taken.as_ref().is_err_and(held) && Instant::now() < given_up {
            sleep(TRY_LOCK).await;
            taken = Lock::take(&path, &who);
        }
        match taken {
            Ok(lock) => Ok(Self { _lock: lock }),
            Err(LockError::Io { path, source }) => {
                Err(of_io(&format!("lock {}", path.display()), &source))
            }
            Err(held) => {
                let what = format!("use {}", config.data_dir.display());
                let failure = Failure::new(Exit::No, what, held.to_string());
                if matches!(held, LockError::Unnamed { .. }) {
                    // Its own words say what to do.
                    return Err(failure);
                }
                let advice = "stop that process first (sudo jtnt-agent service stop, or Ctrl-C where \
                              it runs in the foreground), or give each agent a data_dir of its own";
                Err(failure.advise(advice))
            }
        }
    }
}

/// A failure of the file system, with the exit code that fits it.
pub(super) fn of_io(what: &str, error: &std::io::Error) -> Failure {
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    if denied {
        return Failure::new(Exit::Denied, what, error.to_string()).advise("use sudo");
    }
    Failure::new(Exit::Io, what, error.to_string())
}

/// Opens the audit log under the agent's key; the agent's id follows from that key.
pub(super) fn open_audit(
    config: &Config,
    zone: &TimeZone,
    clock: &SharedClock,
    entropy: &SharedEntropy,
) -> Result<(String, Arc<dyn AuditSigner>, Audit), Failure> {
    let failed = |why: String| Failure::new(Exit::Io, "open the audit log", why);
    let paths = identity::Paths { data_dir: config.data_dir.clone() };
    let key = identity::audit_key(&paths, entropy).map_err(|e| failed(e.to_string()))?;
    let agent_id = identity::id_of(key.as_ref());
    let log = audit::Config {
        dir: config.paths().audit(),
        agent_id: agent_id.clone(),
        retention: config.retention(),
        zone: zone.clone(),
    };
    let audit = Audit::open(log, Arc::clone(&key), Arc::clone(clock), entropy.as_ref())
        .map_err(|e| failed(e.0))?;
    Ok((agent_id, key, audit))
}

impl Core {
    /// Puts the parts together. `abilities` is asked once everything else is open.
    pub(super) async fn open(
        config: Config,
        path: PathBuf,
        who: &str,
        abilities: impl FnOnce() -> Abilities + Send,
    ) -> Result<Self, Failure> {
        let held = Held::take(&config, who).await?;
        let (base, essential) = Base::new(config, path)?;
        let state = State::open(&base)?;
        let Base { config, clock, metrics, .. } = &base;
        let published = Published::new(config, metrics.clone(), Arc::clone(clock));
        published.refresh(config).await;
        let (keeper_task, keeper, policy) =
            policy::keeper(policy_config(&base, &state, &published));
        let gate = Gate::new(policy.clone(), gate_config(config, &base.path, abilities()));
        let deps = jobs_deps(&base, &state, &published, (&policy, &gate, &keeper));
        let (jobs, work) = Jobs::build(deps, jobs_config(config));
        let (heartbeat, ready) =
            (watch::Sender::new(HeartbeatStatus::default()), watch::Sender::new(false));
        let overview = Overview::new(Sources {
            agent_id: state.agent_id.clone(),
            data_dir: config.data_dir.clone(),
            zone: base.zone.clone(),
            clock: Arc::clone(clock),
            time: state.time.clone(),
            identity: published.identity.subscribe(),
            hub_url: published.hub_url.subscribe(),
            labels: published.labels.subscribe(),
            heartbeat: heartbeat.subscribe(),
            link: published.link.subscribe(),
            policy,
            keeper: keeper.clone(),
            gate,
            journal: state.journal.clone(),
            audit: state.audit.clone(),
            metrics: metrics.clone(),
            ready: ready.subscribe(),
        });
        let (renewal, renewals) = certs::renewal(&base, &state, &published, &overview)
            .map_err(|e| Failure::new(Exit::Io, "open the audit key", e.to_string()))?;
        let (work, renewals) = (Some((keeper_task, work)), Some(renewals));
        Ok(Self {
            base,
            state,
            essential,
            published,
            keeper,
            jobs,
            heartbeat,
            ready,
            overview,
            renewal,
            renewals,
            work,
            _held: held,
        })
    }
}

impl Base {
    fn new(config: Config, path: PathBuf) -> Result<(Self, Essential), Failure> {
        let failed =
            |e: prometheus::Error| Failure::new(Exit::Io, "make the metrics", e.to_string());
        let metrics = Metrics::new(VERSION).map_err(failed)?;
        if let Some(own) = host::process_collector() {
            metrics.registry.register(own).map_err(failed)?;
        }
        let (tasks, essential) = Tasks::new();
        let base = Self {
            config,
            path,
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            zone: TimeZone::system(),
            metrics,
            tasks,
        };
        Ok((base, essential))
    }
}

impl State {
    fn open(base: &Base) -> Result<Self, Failure> {
        let Base { config, clock, entropy, zone, .. } = base;
        let (agent_id, signer, audit) = open_audit(config, zone, clock, entropy)?;
        let failed = |e: StoreError| Failure::new(Exit::Io, "open the journal", e.0);
        let path = config.paths().journal();
        let (journal, lost) = match Journal::open(&path, Arc::clone(clock)) {
            // Without an agent the machine could not even be asked. What may have run is refused by
            // the date of the new journal.
            Err(OpenError::Damaged(why)) => {
                let aside = Journal::put_aside(&path, clock.now());
                let aside = aside
                    .map_err(|e| Failure::new(Exit::Io, "put a journal aside", e.to_string()))?;
                tracing::error!("{why}: it is {} now", aside.display());
                (Journal::open(&path, Arc::clone(clock)), Some(aside))
            }
            opened => (opened, None),
        };
        let journal = journal.map_err(|e| failed(e.into()))?;
        let time = TrustedTime::load(journal.clone(), Arc::clone(clock)).map_err(failed)?;
        Ok(Self { agent_id, signer, audit, journal, time, lost })
    }
}

fn policy_config(base: &Base, state: &State, published: &Arc<Published>) -> policy::Config {
    policy::Config {
        data_dir: base.config.data_dir.clone(),
        agent_id: state.agent_id.clone(),
        labels: published.labels.subscribe(),
        keyring: published.keyring.subscribe(),
        source: source(published),
        time: state.time.clone(),
        audit: state.audit.clone(),
        entropy: Arc::clone(&base.entropy),
        metrics: base.metrics.clone(),
    }
}

fn jobs_deps(
    base: &Base,
    state: &State,
    published: &Published,
    (policy, gate, keeper): (&PolicyWatch, &Gate, &PolicyKeeper),
) -> jobs::Deps {
    let keeper = keeper.clone();
    jobs::Deps {
        agent_id: state.agent_id.clone(),
        state_dir: base.config.state_dir.clone(),
        journal: state.journal.clone(),
        audit: state.audit.clone(),
        time: state.time.clone(),
        clock: Arc::clone(&base.clock),
        entropy: Arc::clone(&base.entropy),
        keyring: published.keyring.subscribe(),
        seal: published.seal.subscribe(),
        policy: policy.clone(),
        gate: gate.clone(),
        link: published.link.subscribe(),
        metrics: base.metrics.clone(),
        tasks: base.tasks.clone(),
        launcher: Launcher::of_this_binary(),
        refresh_policy: Refresh(Arc::new(move || {
            let keeper = keeper.clone();
            Box::pin(async move {
                // The keeper says itself what went wrong.
                let _told = keeper.refresh().await;
            })
        })),
    }
}

/// Nobody knows whether there is a newer policy; with an open breaker, nobody has asked either.
fn no_answer(error: &HubError) -> NoNewer {
    match error {
        HubError::BreakerOpen(_) => NoNewer::hub(format!(
            "the hub was not asked: {error}, after which the agent asks again by itself"
        )),
        HubError::Unreachable(_)
        | HubError::Deadline(_)
        | HubError::Refused { status: 500.., .. } => NoNewer::hub(error.to_string()),
        HubError::Refused { .. } | HubError::BadAnswer(_) => error.to_string().into(),
    }
}

/// The hub, as the policy's keeper sees it.
fn source(published: &Arc<Published>) -> Source {
    let (policy, root) = (published.link.subscribe(), published.link.subscribe());
    let adopt = Arc::clone(published);
    let nobody = || "not connected to a hub".to_owned();
    Source {
        policy: Box::new(move |etag| {
            let hub = policy.borrow().clone();
            Box::pin(async move {
                match hub.ok_or_else(nobody)?.policy(etag.as_deref()).await {
                    Ok(None) => Ok(Offer::Same),
                    Ok(Some((envelope, etag))) => Ok(Offer::Policy(Box::new(envelope), etag)),
                    Err(HubError::Refused { status: 404, .. }) => Ok(Offer::Nothing),
                    Err(error) => Err(no_answer(&error)),
                }
            })
        }),
        root: Box::new(move |version| {
            let hub = root.borrow().clone();
            Box::pin(async move {
                match hub.ok_or_else(nobody)?.root(version).await {
                    Ok(root) => Ok(Some(root)),
                    Err(HubError::Refused { status: 404, .. }) => Ok(None),
                    Err(error) => Err(error.to_string()),
                }
            })
        }),
        adopt_root: Box::new(move |keyring| adopt.adopt(keyring)),
    }
}

fn gate_config(config: &Config, path: &std::path::Path, abilities: Abilities) -> gate::Config {
    let mut protected: Vec<PathBuf> = PROTECTED.iter().map(PathBuf::from).collect();
    protected.extend([
        config.data_dir.clone(),
        config.state_dir.clone(),
        config.install_dir.clone(),
        config.admin_socket.clone(),
        path.to_owned(),
    ]);
    protected.extend(std::env::current_exe().ok());
    // A job sees them by their real names; what is not there yet has a folder that is.
    let protected = protected.iter().map(|path| real(path)).collect();
    gate::Config { protected, require_enforcement: config.require_enforcement, abilities }
}

fn real(path: &std::path::Path) -> PathBuf {
    let of_parent = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(of_parent).unwrap_or_else(|| path.to_owned())
}

fn jobs_config(config: &Config) -> jobs::Config {
    let hours = i64::try_from(config.result_cache_max_age_hours).unwrap_or(i64::MAX);
    let defaults = jobs::Config::default();
    jobs::Config {
        max_concurrent: usize::try_from(config.max_concurrent_jobs).unwrap_or(1),
        queue: QUEUE,
        uid_range: uid_range(&config.job_uid_range).unwrap_or(defaults.uid_range),
        cache_max_bytes: config.result_cache_max_bytes,
        cache_max_age: SignedDuration::from_hours(hours.min(87_660)),
        grace: GRACE,
    }
}

/// `FIRST-LAST`, as the configuration has checked it.
fn uid_range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-')?;
    Some(first.parse().ok()?..=last.parse().ok()?)
}
