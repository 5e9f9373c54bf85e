//! The task that keeps the policy: it waits, fetches, judges, records, stores and publishes.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jtnt_proto::{
    audit::{Event, Status},
    bytes::Hash,
    envelope::Envelope,
    policy::Policy,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Config, NoNewer, Offer, Outcome, Standing,
    judge::{self, Floor, Reader, Refused},
    roots,
    stored::Stored,
};
use crate::{
    audit::Record,
    domain::policy::Engine,
    gate::InForce,
    platform::paths::resolve,
    runtime::entropy::fraction,
    trust::{Keyring, Verified},
};

/// How often the hub is asked without a reason.
const EVERY: Duration = Duration::from_mins(5);
/// The first wait after a failure; it doubles up to [`EVERY`].
const RETRY: Duration = Duration::from_secs(15);
/// Hints lead to one try in this time.
const HINT_GAP: Duration = Duration::from_secs(5);
/// A hub that makes up documents fills the log with one line in this time.
const REFUSAL_GAP: Duration = Duration::from_mins(1);
/// So many refused documents are remembered, each to be recorded once.
const REFUSALS: usize = 64;

/// Where requests to the keeper arrive.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) asked: mpsc::Receiver<oneshot::Sender<Outcome>>,
    pub(super) hints: Arc<Notify>,
    pub(super) newest_root: watch::Receiver<u64>,
}

/// Keeps the policy. One task owns it, so nothing here is locked.
#[derive(Debug)]
pub struct Keeper {
    config: Config,
    inbox: Inbox,
    publish: watch::Sender<Option<Arc<InForce>>>,
    tell: watch::Sender<Standing>,
    /// The last that took effect, in force or not.
    floor: Option<Floor>,
    etag: Option<String>,
    refused: BTreeSet<Hash>,
    refused_at: Option<Instant>,
    begun: bool,
    shutdown: CancellationToken,
}

/// Why the keeper woke.
enum Wake {
    Asked(oneshot::Sender<Outcome>),
    /// Another root, other labels: what is stored must be judged again.
    Changed,
    Due,
    Stop,
}

impl Keeper {
    pub(super) fn new(
        config: Config,
        inbox: Inbox,
        publish: watch::Sender<Option<Arc<InForce>>>,
        tell: watch::Sender<Standing>,
    ) -> Self {
        Self {
            config,
            inbox,
            publish,
            tell,
            floor: None,
            etag: None,
            refused: BTreeSet::new(),
            refused_at: None,
            begun: false,
            shutdown: CancellationToken::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn set_source(&mut self, source: super::Source) {
        self.config.source = source;
    }

    /// Puts the stored policy in force. A job that is judged before this meets no policy at all and
    /// is refused for good, so nothing that judges jobs starts earlier.
    pub async fn begin(&mut self) {
        if !self.begun {
            self.begun = true;
            self.reload().await;
        }
    }

    /// Begins, then keeps the policy up to date until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.shutdown = shutdown;
        self.begin().await;
        let (mut due, mut tried, mut retry) = (Instant::now(), None, RETRY);
        loop {
            let reply = match self.wake(due, tried).await {
                Wake::Stop => return,
                Wake::Due => None,
                Wake::Asked(reply) => Some(reply),
                Wake::Changed => {
                    self.reload().await;
                    None
                }
            };
            let enrolled = self.config.keyring.borrow().is_some();
            let outcome = if enrolled { self.refresh().await } else { Err(not_enrolled().into()) };
            // Without a root there is nothing to try again until one appears.
            let wait = match (&outcome, enrolled) {
                (Err(_), true) => retry,
                _ => EVERY,
            };
            retry = if outcome.is_ok() { RETRY } else { (retry * 2).min(EVERY) };
            tried = Some(Instant::now());
            // From nine tenths to eleven tenths, so that a fleet does not ask at once.
            let jitter = 0.9 + 0.2 * fraction(self.config.entropy.as_ref());
            due = Instant::now() + wait.mul_f64(jitter);
            if let Some(reply) = reply {
                // Whoever asked may have gone.
                let _gone = reply.send(outcome);
            }
        }
    }

    async fn wake(&mut self, due: Instant, tried: Option<Instant>) -> Wake {
        let hinted = async {
            self.inbox.hints.notified().await;
            if let Some(tried) = tried {
                sleep_until(tried + HINT_GAP).await;
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Wake::Stop,
            Ok(()) = self.config.keyring.changed() => Wake::Changed,
            Ok(()) = self.config.labels.changed() => Wake::Changed,
            asked = self.inbox.asked.recv() => asked.map_or(Wake::Stop, Wake::Asked),
            () = hinted => Wake::Due,
            () = sleep_until(due) => Wake::Due,
        }
    }

    /// One try: newer roots when there are said to be, then the policy. Shown either way.
    pub(super) async fn refresh(&mut self) -> Outcome {
        let outcome = self.fetch().await;
        match &outcome {
            // That the hub is away is told once, by the heartbeat.
            Err(NoNewer { reason: "HUB_UNAVAILABLE", message: error }) => {
                tracing::debug!(error, "no newer policy");
            }
            Err(NoNewer { message: error, .. }) => tracing::warn!(error, "no newer policy"),
            Ok(_) => {}
        }
        let last_error = outcome.as_ref().err().map(|e| e.message.clone());
        let now = self.config.time.now();
        self.tell.send_modify(|s| {
            s.checked_at = if last_error.is_none() { Some(now) } else { s.checked_at };
            s.last_error = last_error;
        });
        outcome.map(|changed| (self.version(), changed))
    }

    async fn fetch(&mut self) -> Result<bool, NoNewer> {
        let mut keyring = self.config.keyring.borrow().clone().ok_or_else(not_enrolled)?;
        if *self.inbox.newest_root.borrow() > keyring.root().version {
            keyring = self.follow_roots(keyring).await?;
        }
        let asked = self.unless_stopping((self.config.source.policy)(self.etag.clone()));
        let (envelope, etag) = match asked.await?? {
            Offer::Nothing | Offer::Same => return Ok(false),
            Offer::Policy(envelope, etag) => (*envelope, etag),
        };
        let mut judged = self.judge(&envelope, &keyring);
        if judged.as_ref().is_err_and(|r| r.reason == "BAD_SIGNATURE") {
            // Perhaps by keys of a root that nobody has hinted at yet.
            keyring = self.follow_roots(keyring).await?;
            judged = self.judge(&envelope, &keyring);
        }
        let accepted = match judged {
            Ok(policy) => self.accept(policy, envelope.clone(), etag, &keyring).await,
            Err(refused) => Err(refused),
        };
        match accepted {
            Ok(changed) => Ok(changed),
            Err(refused) => {
                self.record_refusal(Hash::of(&envelope.payload.0), &refused, "hub").await;
                Err(format!("the hub's policy was refused: {refused}").into())
            }
        }
    }

    fn judge(&self, envelope: &Envelope, keyring: &Keyring) -> Result<Verified<Policy>, Refused> {
        let labels = self.config.labels.borrow().clone();
        let reader = Reader { agent_id: &self.config.agent_id, labels: &labels };
        let policy = judge::stands(envelope, keyring, reader)?;
        judge::may_follow(&policy, keyring.root(), self.floor, self.config.time.now())?;
        Ok(policy)
    }

    /// Compiled, recorded, durable, published: in this order, and not at all if one of them fails.
    async fn accept(
        &mut self,
        policy: Verified<Policy>,
        envelope: Envelope,
        etag: String,
        keyring: &Keyring,
    ) -> Result<bool, Refused> {
        let floor = Floor::of(&policy);
        if self.in_force() == Some(floor) {
            self.etag = Some(etag);
            return Ok(false);
        }
        let in_force = compile(policy).await?;
        let record = changed(&in_force, self.version());
        self.config.audit.append(record).await.map_err(|e| {
            Refused::new("CANNOT_RECORD", format!("{e}; the policy before it stays in force"))
        })?;
        let stored = Stored::new(keyring.root(), etag, envelope);
        self.etag.clone_from(&stored.etag);
        let data_dir = self.config.data_dir.clone();
        blocking(move || stored.write(&data_dir)).await?.map_err(|e| {
            Refused::new("CANNOT_STORE", format!("{e}; the policy before it stays in force"))
        })?;
        self.floor = Some(floor);
        self.config.time.observe(in_force.verified.get().issued_at);
        self.show(Some(in_force));
        Ok(true)
    }

    /// Judges what is stored under the root and the labels of now, and publishes the outcome. Its
    /// expiry is not judged: an expired policy is what denies.
    pub(super) async fn reload(&mut self) {
        let keyring = self.config.keyring.borrow_and_update().clone();
        self.config.labels.borrow_and_update();
        let (floor, etag, in_force) = match keyring {
            Some(keyring) => self.restore(&keyring).await,
            None => (None, None, None),
        };
        self.floor = floor;
        self.etag = etag.filter(|_| in_force.is_some());
        self.show(in_force);
    }

    async fn restore(
        &mut self,
        keyring: &Keyring,
    ) -> (Option<Floor>, Option<String>, Option<InForce>) {
        let stored = match Stored::read(&self.config.data_dir) {
            Ok(Some(stored)) if stored.root_id == keyring.root().root_id => stored,
            Ok(_) => return (None, None, None),
            Err(error) => {
                let error = format!("policy/policy.json cannot be used: {error}");
                tracing::error!(error, "no policy until the hub sends one");
                self.tell.send_modify(|s| s.last_error = Some(error));
                return (None, None, None);
            }
        };
        let same_role = stored.role == keyring.root().roles.policy;
        let floor = keyring.policy(&stored.envelope).ok().filter(|_| same_role);
        let floor = floor.as_ref().map(Floor::of);
        let labels = self.config.labels.borrow().clone();
        let reader = Reader { agent_id: &self.config.agent_id, labels: &labels };
        let judged = match judge::stands(&stored.envelope, keyring, reader) {
            Ok(policy) => compile(policy).await,
            Err(refused) => Err(refused),
        };
        match judged {
            Ok(in_force) => (floor, stored.etag, Some(in_force)),
            Err(refused) => {
                let payload = Hash::of(&stored.envelope.payload.0);
                self.record_refusal(payload, &refused, "agent").await;
                let error = format!("the stored policy is not in force any more: {refused}");
                self.tell.send_modify(|s| s.last_error = Some(error));
                (floor, None, None)
            }
        }
    }

    /// Takes over newer roots. The newest that was reached is recorded, stored and published, and
    /// the stored policy judged under it.
    async fn follow_roots(&mut self, keyring: Keyring) -> Result<Keyring, String> {
        let chain = roots::follow(&self.config.source, &keyring);
        let (reached, followed) = self.unless_stopping(chain).await?;
        let Some(reached) = reached else { return followed.map(|()| keyring) };
        let (was, is) = (keyring.root().version, reached.keyring.root().version);
        let mut record = Record::of(Event::RootChanged)
            .detail("old_version", was)
            .detail("new_version", is)
            .detail("sha256", Hash::of(&reached.bytes).to_string());
        record.object = Some(reached.keyring.root().root_id.clone());
        self.config.audit.append(record).await.map_err(|e| format!("root {is}: {e}"))?;
        let (data_dir, bytes) = (self.config.data_dir.clone(), reached.bytes);
        blocking(move || roots::keep(&data_dir, &bytes))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| format!("root {is}: {e}"))?;
        tracing::info!(was, is, "a newer root of roles");
        (self.config.source.adopt_root)(reached.keyring.clone());
        let (floor, etag, in_force) = self.restore(&reached.keyring).await;
        (self.floor, self.etag) = (floor, etag);
        self.show(in_force);
        followed.map(|()| reached.keyring)
    }

    /// Waits for the hub no longer than the agent runs. What follows an answer is not cut short.
    async fn unless_stopping<T>(&self, answer: impl Future<Output = T>) -> Result<T, String> {
        let stopped = self.shutdown.run_until_cancelled(answer).await;
        stopped.ok_or_else(super::ended)
    }

    /// Once for each document, and not in a flood.
    async fn record_refusal(&mut self, payload: Hash, refused: &Refused, origin: &'static str) {
        let soon = self.refused_at.is_some_and(|at| at.elapsed() < REFUSAL_GAP);
        if soon || self.refused.contains(&payload) {
            return;
        }
        if self.refused.len() >= REFUSALS {
            self.refused.clear();
        }
        let mut record = Record::of(Event::PolicyChanged)
            .detail("reason", refused.reason)
            .detail("message", refused.message.as_str())
            .detail("sha256", payload.to_string());
        record.status = Some(Status::Denied);
        record.origin = Some(origin);
        record.object = Some("policy".to_owned());
        record.policy_version = Some(self.version());
        match self.config.audit.append(record).await {
            Ok(_) => {
                self.refused.insert(payload);
                self.refused_at = Some(Instant::now());
            }
            Err(error) => tracing::error!(%error, "a refused policy is not in the audit log"),
        }
    }

    fn show(&self, in_force: Option<InForce>) {
        let (version, expires) = in_force.as_ref().map_or((0, 0), |p| {
            let policy = p.verified.get();
            (policy.version, policy.expires_at.as_second())
        });
        self.config.metrics.policy_version.set(version as f64);
        self.config.metrics.policy_expiration.set(expires as f64);
        if in_force.is_some() {
            tracing::info!(version, "policy in force");
        } else {
            tracing::info!("no policy is in force, so no job may run");
        }
        self.publish.send_replace(in_force.map(Arc::new));
    }

    fn version(&self) -> u64 {
        self.publish.borrow().as_ref().map_or(0, |p| p.verified.get().version)
    }

    fn in_force(&self) -> Option<Floor> {
        self.publish.borrow().as_ref().map(|p| Floor::of(&p.verified))
    }
}

async fn compile(verified: Verified<Policy>) -> Result<InForce, Refused> {
    blocking(move || {
        let engine = Engine::compile(verified.get().clone(), &mut resolve)
            .map_err(|e| Refused::new("MALFORMED", e.to_string()))?;
        Ok(InForce { engine: Arc::new(engine), verified })
    })
    .await?
}

/// Files are looked at and synced on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Refused::new("INTERNAL", format!("this is a fault of the agent: {e}")))
}

fn changed(new: &InForce, old_version: u64) -> Record {
    let policy = new.verified.get();
    let signers: Vec<_> = new.verified.signers().iter().map(ToString::to_string).collect();
    let mut record = Record::of(Event::PolicyChanged)
        .detail("old_version", old_version)
        .detail("new_version", policy.version)
        .detail("expires_at", policy.expires_at.to_string())
        .detail("sha256", new.verified.payload_sha256().to_string())
        .detail("signers", signers);
    record.status = Some(Status::Success);
    record.origin = Some("hub");
    record.object = Some(policy.policy_id.clone());
    record.policy_version = Some(policy.version);
    record
}

fn not_enrolled() -> String {
    "not enrolled, so there is no root of roles to verify a policy with".to_owned()
}
