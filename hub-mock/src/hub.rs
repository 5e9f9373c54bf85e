//! The hub itself, without any network: state, journal, leases, and whoever waits for a change.

use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use jtnt_proto::{
    bytes::Hash,
    envelope::Envelope,
    hub::{HeartbeatRequest, Hints, JobStatusState, JobsResponse, LeasedJob, MAX_LEASED_JOBS},
    identity,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    authorities::Authorities,
    clock,
    error::{HubError, random},
    faults::Faults,
    journal::{Journal, Seq},
    record::Recorder,
    routes::{lines::Lines, streams::Streams, uploads::Uploads},
    state::{Agent, Event, Job, State},
    view::{AgentView, JobView},
    witness::Witness,
};

/// A poll's answer stays below this many bytes of payload.
const MAX_POLL_PAYLOAD_BYTES: usize = 2 << 20;

/// What a hub may be told at its start.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) dir: PathBuf,
    pub(crate) lease: Duration,
    pub(crate) certificate_life: Duration,
    pub(crate) token_life: Duration,
    pub(crate) slow_pause: Duration,
    pub(crate) renews_expired: bool,
}

/// The hub.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) authorities: Authorities,
    pub(crate) witness: Witness,
    pub(crate) faults: Faults,
    pub(crate) recorder: Recorder,
    pub(crate) uploads: Uploads,
    pub(crate) streams: Streams,
    pub(crate) lines: Lines,
    pub(crate) stop: CancellationToken,
    inner: Mutex<Inner>,
    journal: Journal,
    changes: watch::Sender<u64>,
    /// Counts ends of jobs, for the many who wait for nothing else.
    ends: watch::Sender<u64>,
    /// After the journal, which is written to the end before the folder is given up.
    _lock: File,
}

/// State with what need not survive a restart.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) state: State,
    live: BTreeMap<String, Live>,
}

/// What is known of an agent since the start.
#[derive(Debug)]
struct Live {
    /// When jobs and cancels may be sent again.
    leases: BTreeMap<String, Instant>,
    cancels: BTreeMap<String, Instant>,
    wake: watch::Sender<u64>,
    heartbeat: Option<(Timestamp, HeartbeatRequest)>,
    renew: bool,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            leases: BTreeMap::new(),
            cancels: BTreeMap::new(),
            wake: watch::Sender::new(0),
            heartbeat: None,
            renew: false,
        }
    }
}

impl Core {
    pub(crate) fn new(
        settings: Settings,
        (authorities, witness): (Authorities, Witness),
        (state, journal, lock): (State, Journal, File),
    ) -> Self {
        Self {
            settings,
            authorities,
            witness,
            faults: Faults::new(),
            recorder: Recorder::new(),
            uploads: Uploads::default(),
            streams: Streams::default(),
            lines: Lines::default(),
            stop: CancellationToken::new(),
            inner: Mutex::new(Inner { state, live: BTreeMap::new() }),
            journal,
            _lock: lock,
            changes: watch::Sender::new(0),
            ends: watch::Sender::new(0),
        }
    }

    /// The state, to look at.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `event` true and tells all who wait. The lock is the caller's, so that what it
    /// decided still holds.
    pub(crate) fn record(&self, inner: &mut Inner, event: Event) -> Seq {
        let seq = self.journal.append(&event);
        let end = match &event {
            Event::JobEnded { .. } => true,
            Event::JobReported { status, .. } => status.state == JobStatusState::Rejected,
            Event::TokenMade { .. }
            | Event::Enrolled { .. }
            | Event::CertificateIssued { .. }
            | Event::CertificateUsed { .. }
            | Event::AuditKeyRotated { .. }
            | Event::CertificateJudged { .. }
            | Event::OldCertificatesSet { .. }
            | Event::RootPublished { .. }
            | Event::PolicyPublished { .. }
            | Event::JobEnqueued { .. }
            | Event::CancelSent { .. }
            | Event::LogSeen { .. }
            | Event::LogInTrouble { .. }
            | Event::ArtifactStored { .. } => false,
        };
        inner.state.apply(event);
        if end {
            self.ends.send_modify(|n| *n += 1);
        }
        self.changes.send_modify(|n| *n += 1);
        seq
    }

    /// The newest event, whether it is on disk or not.
    pub(crate) fn last_event(&self) -> Seq {
        self.journal.last()
    }

    /// Waits until event `seq` is on disk.
    pub(crate) async fn durable(&self, seq: Seq) -> Result<(), HubError> {
        self.journal.durable(seq).await
    }

    /// Looks at the state after every change until `look` has an answer.
    pub(crate) async fn await_state<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        self.look_after(&self.changes, look).await
    }

    /// The same after every end of a job.
    pub(crate) async fn await_end<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        self.look_after(&self.ends, look).await
    }

    async fn look_after<T>(
        &self,
        changes: &watch::Sender<u64>,
        look: impl Fn(&State) -> Option<T>,
    ) -> T {
        let mut changes = changes.subscribe();
        loop {
            changes.borrow_and_update();
            let found = look(&self.lock().state);
            if let Some(found) = found {
                return found;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Remembers that an agent came with a certificate.
    pub(crate) fn used(&self, agent_id: &str, serial: &str) {
        let mut inner = self.lock();
        if inner.state.certificate(agent_id, serial).is_some_and(|known| !known.used) {
            let (agent_id, serial) = (agent_id.to_owned(), serial.to_owned());
            self.record(&mut inner, Event::CertificateUsed { agent_id, serial });
        }
    }

    /// Whether an agent has come with the newest of its certificates.
    pub(crate) fn newest_was_used(&self, agent_id: &str) -> bool {
        let inner = self.lock();
        let agent = inner.state.agents.get(agent_id);
        agent.and_then(|agent| agent.certificates.back()).is_none_or(|newest| newest.used)
    }

    /// Makes a one-time token.
    pub(crate) fn make_token(&self, life: Option<Duration>) -> Result<(String, Seq), HubError> {
        let token = format!("jtnt_{}", hex::encode(random::<20>()?));
        let expires_at = clock::after(life.unwrap_or(self.settings.token_life));
        let hash = Hash::of(token.as_bytes());
        let seq = self.record(&mut self.lock(), Event::TokenMade { hash, expires_at });
        Ok((token, seq))
    }

    /// Takes a job for delivery to `agent_id`. What is signed is the agent's to judge; the hub
    /// only needs to know the id.
    pub(crate) async fn enqueue(
        &self,
        agent_id: &str,
        envelope: Envelope,
    ) -> Result<String, HubError> {
        let job_id = text_field(&envelope, "job_id")
            .filter(|id| identity::is_id(id))
            .ok_or_else(|| HubError::refused("JOB_ID", "the payload names no proper job_id"))?;
        let seq = {
            let mut inner = self.lock();
            if !inner.state.agents.contains_key(agent_id) {
                return Err(unknown_agent(agent_id));
            }
            if inner.state.jobs.contains_key(&job_id) {
                let why = format!("a job {job_id} exists already; sign one with a new id");
                return Err(HubError::refused("JOB_EXISTS", why));
            }
            let (job_id, agent_id) = (job_id.clone(), agent_id.to_owned());
            let event = Event::JobEnqueued { job_id, agent_id, envelope, at: clock::now() };
            self.record(&mut inner, event)
        };
        self.durable(seq).await?;
        self.wake(agent_id);
        Ok(job_id)
    }

    /// Takes a signed cancellation for delivery.
    pub(crate) async fn cancel(&self, job_id: &str, envelope: Envelope) -> Result<(), HubError> {
        let (seq, agent_id) = {
            let mut inner = self.lock();
            let job = inner.state.jobs.get(job_id).ok_or_else(|| unknown_job(job_id))?;
            if job.has_ended() {
                let why = format!("job {job_id} has ended already: {}", job.state());
                return Err(HubError::refused("JOB_ENDED", why));
            }
            let agent_id = job.agent_id.clone();
            let event = Event::CancelSent { job_id: job_id.to_owned(), envelope };
            (self.record(&mut inner, event), agent_id)
        };
        self.durable(seq).await?;
        self.wake(&agent_id);
        Ok(())
    }

    /// Publishes a policy.
    pub(crate) async fn publish_policy(&self, envelope: Envelope) -> Result<u64, HubError> {
        let version = version_of(&envelope)?;
        let event = Event::PolicyPublished { version, envelope };
        let seq = self.record(&mut self.lock(), event);
        self.durable(seq).await?;
        Ok(version)
    }

    /// Publishes a root.
    pub(crate) async fn publish_root(&self, envelope: Envelope) -> Result<u64, HubError> {
        let version = version_of(&envelope)?;
        let event = Event::RootPublished { version, envelope };
        let seq = self.record(&mut self.lock(), event);
        self.durable(seq).await?;
        Ok(version)
    }

    /// Ends the waiting of an agent's poll.
    pub(crate) fn wake(&self, agent_id: &str) {
        let mut inner = self.lock();
        let live = inner.live.entry(agent_id.to_owned()).or_default();
        live.wake.send_modify(|n| *n += 1);
    }

    /// What tells a poll of `agent_id` to look again.
    pub(crate) fn woken(&self, agent_id: &str) -> watch::Receiver<u64> {
        let mut inner = self.lock();
        inner.live.entry(agent_id.to_owned()).or_default().wake.subscribe()
    }

    /// Leases what waits for `agent_id`; else tells when to look again, if that is known.
    pub(crate) fn lease(&self, agent_id: &str) -> (JobsResponse, Option<Instant>) {
        let mut guard = self.lock();
        let Inner { state, live } = &mut *guard;
        let live = live.entry(agent_id.to_owned()).or_default();
        let (now, until) = (Instant::now(), Instant::now() + self.settings.lease);
        let mut answer = JobsResponse::default();
        let (mut next, mut bytes) = (None::<Instant>, 0);
        let mut due = |lent: &mut BTreeMap<String, Instant>, job: &Job| match lent.get(&job.job_id)
        {
            Some(end) if *end > now => {
                next = Some(next.map_or(*end, |n| n.min(*end)));
                false
            }
            _ => lent.insert(job.job_id.clone(), until).is_none_or(|_| true),
        };
        for job in state.open_jobs(agent_id) {
            let full = answer.jobs.len() + answer.cancels.len() >= MAX_LEASED_JOBS
                || bytes > MAX_POLL_PAYLOAD_BYTES;
            if full {
                break;
            }
            if !job.acknowledged && due(&mut live.leases, job) {
                bytes += job.envelope.payload.0.len();
                answer.jobs.push(LeasedJob {
                    job_id: job.job_id.clone(),
                    lease_expires_at: clock::after(self.settings.lease),
                    envelope: job.envelope.clone(),
                });
            }
            if let Some(cancel) = &job.cancel
                && due(&mut live.cancels, job)
            {
                answer.cancels.push(cancel.clone());
            }
        }
        (answer, next)
    }

    /// Forgets the lease of a job that was acknowledged or has ended.
    pub(crate) fn release(inner: &mut Inner, agent_id: &str, job_id: &str) {
        let ended = inner.state.jobs.get(job_id).is_none_or(Job::has_ended);
        if let Some(live) = inner.live.get_mut(agent_id) {
            live.leases.remove(job_id);
            if ended {
                live.cancels.remove(job_id);
            }
        }
    }

    /// Remembers a heartbeat and tells what is worth fetching.
    pub(crate) fn heartbeat(&self, said: HeartbeatRequest) -> Hints {
        let mut guard = self.lock();
        let Inner { state, live } = &mut *guard;
        let mut hints = Hints {
            policy_version: state.policies.back().map(|p| p.version),
            root_version: Some(state.root_version()),
            ..Hints::default()
        };
        for job in state.open_jobs(&said.agent_id) {
            hints.jobs |= !job.acknowledged;
            hints.cancels |= job.cancel.is_some();
        }
        let live = live.entry(said.agent_id.clone()).or_default();
        hints.renew = live.renew;
        live.heartbeat = Some((clock::now(), said));
        drop(guard);
        self.changes.send_modify(|n| *n += 1);
        hints
    }

    /// Whether heartbeats ask `agent_id` to renew its certificate.
    pub(crate) fn hint_renewal(&self, agent_id: &str, renew: bool) {
        self.lock().live.entry(agent_id.to_owned()).or_default().renew = renew;
    }

    /// A job as clients see it.
    pub(crate) fn job(&self, job_id: &str) -> Option<JobView> {
        self.lock().state.jobs.get(job_id).map(JobView::of)
    }

    /// All agents as clients see them.
    pub(crate) fn agents(&self) -> Vec<AgentView> {
        let inner = self.lock();
        let view = |(id, agent): (&String, &Agent)| {
            let live = inner.live.get(id).and_then(|l| l.heartbeat.as_ref());
            AgentView::of(id, agent, live)
        };
        inner.state.agents.iter().map(view).collect()
    }
}

/// No such agent.
pub(crate) fn unknown_agent(agent_id: &str) -> HubError {
    HubError::refused("AGENT_UNKNOWN", format!("no agent {agent_id} is enrolled; see `agents`"))
}

/// No such job.
pub(crate) fn unknown_job(job_id: &str) -> HubError {
    HubError::refused("JOB_UNKNOWN", format!("there is no job {job_id}; see `job list`"))
}

/// A text of the payload, unverified.
fn text_field(envelope: &Envelope, name: &str) -> Option<String> {
    let payload: serde_json::Value = serde_json::from_slice(&envelope.payload.0).ok()?;
    payload.get(name)?.as_str().map(str::to_owned)
}

/// The version a payload names, unverified.
fn version_of(envelope: &Envelope) -> Result<u64, HubError> {
    serde_json::from_slice::<serde_json::Value>(&envelope.payload.0)
        .ok()
        .and_then(|payload| payload.get("version")?.as_u64())
        .ok_or_else(|| HubError::refused("VERSION", "the payload names no version"))
}

/// Shared by all connections.
pub(crate) type Shared = Arc<Core>;
