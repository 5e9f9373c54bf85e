//! What every part of the jobs shares: the floors below, and the few things they own together.

use std::{
    fmt,
    future::Future,
    ops::RangeInclusive,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use jtnt_proto::job::Job;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use super::{
    board::Board, cancels::Cancels, refuse::Throttle, report::Report, results::Window, users::Pool,
};
use crate::{
    audit::Audit,
    domain::{
        admission::Facts,
        ids::JobId,
        job::{Entry, State},
    },
    gate::{Gate, PolicyWatch},
    hub::Link,
    identity::SealKey,
    runtime::{clock::SharedClock, entropy::SharedEntropy, tasks::Tasks},
    shim::{self, Launcher, Part, Stream},
    store::{Journal, StoreError, time::TrustedTime},
    telemetry::metrics::Metrics,
    trust::{Keyring, Verified},
};

/// Longer commands are cut in lists and logs; the signed job has them whole.
/// The most that one read of an output returns.
const MAX_READ_BYTES: usize = 256 * 1024;
/// How long a job waits for a policy that it asks for.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Jobs that ask for a policy the hub does not have lead to one request in this time.
const CATCH_UP_GAP: Duration = Duration::from_secs(2);

/// The floors below, handed in by the composition root.
#[derive(Debug, Clone)]
pub struct Deps {
    /// This agent.
    pub agent_id: String,
    /// Holds `jobs/` and `job_results_pending/`.
    pub state_dir: PathBuf,
    /// The journal.
    pub journal: Journal,
    /// The audit log.
    pub audit: Audit,
    /// Time by which expiry is judged.
    pub time: TrustedTime,
    /// Time for people.
    pub clock: SharedClock,
    /// Jitter.
    pub entropy: SharedEntropy,
    /// The keys in force; `None` while the agent is not enrolled.
    pub keyring: watch::Receiver<Option<Keyring>>,
    /// What opens secrets of jobs.
    pub seal: watch::Receiver<Option<Arc<SealKey>>>,
    /// The policy in force.
    pub policy: PolicyWatch,
    /// Its decision on real files.
    pub gate: Gate,
    /// The hub; `None` while the agent is not enrolled.
    pub link: Link,
    /// What is scraped.
    pub metrics: Metrics,
    /// Where jobs are spawned, and what tells them of a shutdown.
    pub tasks: Tasks,
    /// What starts processes.
    pub launcher: Launcher,
    /// Asks the hub for a newer policy, and returns when there is an answer.
    pub refresh_policy: Refresh,
}

/// See [`Deps::refresh_policy`].
#[derive(Clone)]
pub struct Refresh(pub Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>);

impl fmt::Debug for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refresh").finish()
    }
}

/// Bounds.
#[derive(Debug, Clone)]
pub struct Config {
    /// Jobs that run at once.
    pub max_concurrent: usize,
    /// Jobs that wait.
    pub queue: usize,
    /// User ids for jobs that name no user. The last one is no job's.
    pub uid_range: RangeInclusive<u32>,
    /// Bytes of results and outputs that are kept.
    pub cache_max_bytes: u64,
    /// How long outputs are kept.
    pub cache_max_age: SignedDuration,
    /// Time between the polite signal and the last one.
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent: 4,
            queue: 1000,
            uid_range: 61_184..=65_519,
            cache_max_bytes: 256 << 20,
            cache_max_age: SignedDuration::from_hours(168),
            grace: Duration::from_secs(5),
        }
    }
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) deps: Deps,
    pub(super) config: Config,
    pub(super) board: Board,
    pub(super) pool: Pool,
    pub(super) cancels: Cancels,
    pub(super) throttle: Throttle,
    pub(super) window: Window,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) pending_bytes: AtomicU64,
    /// There are more records of delivered jobs than are kept.
    pub(super) crowded: Notify,
    /// Output follows a result that was taken.
    pub(super) follow_up: Notify,
    /// Ask the hub now.
    pub(super) poke: Notify,
    /// When a job last made the agent ask for a newer policy; one does at a time.
    pub(super) caught_up: tokio::sync::Mutex<Option<Instant>>,
}

impl Core {
    /// The folder of one job's output.
    pub(super) fn job_dir(&self, id: &JobId) -> PathBuf {
        self.deps.state_dir.join("jobs").join(id.as_str())
    }

    /// See [`super::Jobs::read_output`].
    pub(super) async fn read_output(
        &self,
        id: &JobId,
        stream: Stream,
        offset: u64,
        max: usize,
    ) -> Result<Part, StoreError> {
        let ended = self.deps.journal.get(id)?.filter(|e| e.state.is_terminal());
        let total = ended.map(|e| match stream {
            Stream::Stdout => e.stdout_bytes,
            Stream::Stderr => e.stderr_bytes,
        });
        let (dir, max) = (self.job_dir(id), max.min(MAX_READ_BYTES));
        let read = move || shim::read(&dir, stream, offset, max, total);
        let part = tokio::task::spawn_blocking(read).await;
        part.map_err(|e| StoreError(e.to_string()))?.map_err(|e| StoreError(e.to_string()))
    }

    /// Where results wait for the hub.
    pub(super) fn pending_dir(&self) -> PathBuf {
        self.deps.state_dir.join("job_results_pending")
    }

    /// The file of one result.
    pub(super) fn result_file(&self, entry: &Entry) -> PathBuf {
        self.pending_dir().join(format!("{}.{}.json", entry.job_id, entry.attempt))
    }

    /// The keys in force.
    pub(super) fn keyring(&self) -> Option<Keyring> {
        self.deps.keyring.borrow().clone()
    }

    /// The policy in force; 0 without one.
    pub(super) fn policy_version(&self) -> u64 {
        self.deps.policy.borrow().as_ref().map_or(0, |policy| policy.verified.get().version)
    }

    /// A job that was signed after a policy often comes before it. Then the policy is fetched
    /// first, or the job would be refused for what is about to arrive.
    pub(super) async fn catch_up(&self, wanted: u64) {
        if self.policy_version() >= wanted {
            return;
        }
        let mut last = self.caught_up.lock().await;
        let soon = last.is_some_and(|at| at.elapsed() < CATCH_UP_GAP);
        if soon || self.policy_version() >= wanted {
            return;
        }
        let asked = tokio::time::timeout(CATCH_UP, (self.deps.refresh_policy.0)()).await;
        if asked.is_err() {
            tracing::warn!("the hub does not say whether there is a newer policy");
        }
        *last = Some(Instant::now());
    }

    /// What a job under `keyring` is held against at this moment.
    pub(super) fn facts<'a>(&'a self, keyring: &'a Keyring) -> Facts<'a> {
        let root = keyring.root();
        Facts {
            agent_id: &self.deps.agent_id,
            root_id: &root.root_id,
            root_version: root.version,
            policy_version: self.policy_version(),
            journal_created_at: self.deps.journal.created_at(),
            now: self.deps.time.now(),
        }
    }

    /// Brings the gauges up to date.
    pub(super) fn show(&self) {
        let (waiting, running) = self.board.counts();
        let pending = self.deps.journal.counts().undelivered;
        let bytes = self.pending_bytes.load(std::sync::atomic::Ordering::Relaxed);
        let metrics = &self.deps.metrics;
        metrics.jobs_queued.set(gauge(waiting as u64));
        metrics.jobs_active.set(gauge(running as u64));
        metrics.results_pending.set(gauge(pending));
        metrics.results_pending_bytes.set(gauge(bytes));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of fewer than 2^53")]
const fn gauge(n: u64) -> f64 {
    n as f64
}

/// The first record of a verified job.
pub(super) fn entry_of(
    job: &Verified<Job>,
    job_id: JobId,
    envelope: jtnt_proto::envelope::Envelope,
    now: Timestamp,
) -> Entry {
    let job = job.get();
    Entry {
        job_id,
        kind: job.work.kind().to_owned(),
        command: job.work.line(),
        envelope: Some(envelope),
        state: State::Queued,
        attempt: 1,
        reported: false,
        parts: Vec::new(),
        dropped: None,
        received_at: now,
        expires_at: job.expires_at,
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
        delivered: false,
    }
}

/// Cuts a text for people to what a hub must accept.
pub(super) fn bounded(mut text: String) -> String {
    const MAX_BYTES: usize = 1000;
    if text.len() > MAX_BYTES {
        text.truncate(text.floor_char_boundary(MAX_BYTES));
        text.push_str("...");
    }
    text
}
