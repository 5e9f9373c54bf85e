//! How the agent is, for whoever asks: health, status and metrics are three views of the same
//! facts, gathered here and nowhere else.

mod pages;

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use tokio::sync::watch;

use crate::{
    audit::Audit,
    domain::{
        breaker,
        health::{self, Enrolled, Facts, LastJob, Report},
        job::State,
    },
    gate::{Gate, PolicyWatch},
    heartbeat::HeartbeatStatus,
    hub::Link,
    identity::{Identity, IdentityError, RootSource},
    platform::host,
    policy::{Labels, PolicyKeeper},
    runtime::clock::SharedClock,
    store::{Journal, time::TrustedTime},
    telemetry::{metrics::Metrics, system::Machine},
};

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The identity, or why there is none; it changes when the agent enrols.
pub type IdentityWatch = watch::Receiver<Result<Arc<Identity>, IdentityError>>;

/// Where the facts come from.
#[derive(Debug)]
pub struct Sources {
    /// UUID of the agent.
    pub agent_id: String,
    /// `data_dir`: its file system is the one that must not fill up.
    pub data_dir: PathBuf,
    /// For dates in messages.
    pub zone: TimeZone,
    /// Time for people.
    pub clock: SharedClock,
    /// Time by which expiry is judged.
    pub time: TrustedTime,
    /// Who the agent is.
    pub identity: IdentityWatch,
    /// The hub's address.
    pub hub_url: watch::Receiver<Option<String>>,
    /// Labels of the configuration.
    pub labels: watch::Receiver<Labels>,
    /// How the heartbeat goes.
    pub heartbeat: watch::Receiver<HeartbeatStatus>,
    /// The hub's client.
    pub link: Link,
    /// The policy in force.
    pub policy: PolicyWatch,
    /// Why there is no newer one.
    pub keeper: PolicyKeeper,
    /// What is enforced.
    pub gate: Gate,
    /// Jobs.
    pub journal: Journal,
    /// The audit log.
    pub audit: Audit,
    /// What is scraped.
    pub metrics: Metrics,
    /// True from the moment everything is up until the agent stops.
    pub ready: watch::Receiver<bool>,
}

/// The views. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Overview {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sources: Sources,
    machine: Machine,
    started_at: Timestamp,
    /// Since boot, when the agent started.
    started: Duration,
}

impl Overview {
    /// The agent starts now.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        let (started_at, started) = (sources.clock.now(), sources.clock.uptime());
        let machine = Machine::default();
        Self { inner: Arc::new(Inner { sources, machine, started_at, started }) }
    }

    /// Where its facts come from.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.inner.sources
    }

    /// When the agent started.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        self.inner.started_at
    }

    /// Since then, by a clock that does not jump.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.inner.sources.clock.uptime().saturating_sub(self.inner.started)
    }

    /// The six checks of the operations guide.
    #[must_use]
    pub fn health(&self) -> Report {
        health::report(&self.facts(), VERSION, self.inner.sources.agent_id.clone())
    }

    /// What the checks look at.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let s = &self.inner.sources;
        let (enrolled, certificate) = match &*s.identity.borrow() {
            Ok(identity) => {
                let enrolled = match identity.root_source {
                    RootSource::Pinned => Enrolled::Yes,
                    RootSource::TrustedHub => Enrolled::TrustedHub,
                };
                (enrolled, Some((identity.cert.not_before, identity.cert.not_after)))
            }
            Err(IdentityError::NotEnrolled) => (Enrolled::No, None),
            Err(IdentityError::Unusable(why)) => (Enrolled::Unusable(why.clone()), None),
        };
        let uptime = s.clock.uptime();
        let last_success = s.heartbeat.borrow().last_success_uptime;
        let policy_expires_at =
            s.policy.borrow().as_ref().map(|policy| policy.verified.get().expires_at);
        Facts {
            // What expires does so by the clock that cannot be set back.
            now: s.time.now(),
            zone: s.zone.clone(),
            enrolled,
            certificate,
            makeshift: s.identity.borrow().as_ref().is_ok_and(|i| i.makeshift.is_some()),
            refused: s.heartbeat.borrow().refused.clone(),
            heartbeat_age: last_success.map(|at| uptime.saturating_sub(at)),
            uptime: self.uptime(),
            policy_expires_at,
            disk: host::disk(&s.data_dir).ok(),
            unrecorded: self.unrecorded(),
            last_job: self.last_job(),
        }
    }

    /// Why the last record was not written.
    fn unrecorded(&self) -> Option<String> {
        let s = self.sources();
        s.audit.head().error.or_else(|| s.journal.last_error().map(|error| error.to_string()))
    }

    /// Whether the hub answered the last heartbeat, and requests are sent to it at all.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let sources = self.sources();
        let spared =
            sources.link.borrow().as_ref().is_some_and(|hub| hub.breaker() == breaker::State::Open);
        let heartbeat = sources.heartbeat.borrow();
        heartbeat.last_success.is_some() && heartbeat.last_error.is_none() && !spared
    }

    fn last_job(&self) -> Option<LastJob> {
        let ran = |state| matches!(state, State::Finished(_));
        let found = match self.inner.sources.journal.recent(1, &ran) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the last job cannot be looked up");
                return None;
            }
        };
        let entry = found.into_iter().next()?;
        Some(LastJob {
            job_id: entry.job_id.to_string(),
            finished_at: entry.finished_at?,
            state: entry.state.word(),
        })
    }
}
