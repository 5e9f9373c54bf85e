//! The heartbeat: tells the hub how the agent is, and passes its hints on.
//!
//! One task, and no state but the backoff: what to say comes from a closure, what was answered
//! goes to another. So the loop is tested without a hub, and the hub without the loop.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use jtnt_proto::hub::{AuditRefusal, HeartbeatRequest, HeartbeatResponse};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::backoff::{Backoff, Saved},
    hub::{HubError, Link},
    runtime::{
        clock::SharedClock,
        entropy::{SharedEntropy, fraction},
    },
    telemetry::metrics::Metrics,
};

/// Each wait differs from the interval by at most this part of it, so that agents that started
/// together drift apart.
const JITTER: f64 = 0.1;

/// What is wrong where other requests opened the breaker before a heartbeat failed.
const SPARED: &str = "nothing is sent while the circuit breaker is open";

/// How the last heartbeats went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeartbeatStatus {
    /// The last one that the hub answered.
    pub last_success: Option<Timestamp>,
    /// The same, since boot.
    pub last_success_uptime: Option<Duration>,
    /// What went wrong since; nothing when nothing did.
    pub last_error: Option<String>,
    /// The hub's reason, where it answered no.
    pub refused: Option<String>,
    /// Why the hub does not cosign the audit log, as its last answer said.
    pub audit_refusal: Option<AuditRefusal>,
    /// The next one.
    pub next_attempt_at: Option<Timestamp>,
    /// Failures in a row.
    pub consecutive_failures: u32,
}

/// What to say, once it is known.
pub type Saying = Pin<Box<dyn Future<Output = Option<HeartbeatRequest>> + Send>>;

/// What the heartbeat is made of.
#[derive(Debug)]
pub struct Deps<Facts, Answered, Remember> {
    /// Between two heartbeats.
    pub interval: Duration,
    /// Between two failures.
    pub backoff: Backoff,
    /// What an earlier process left of its backoff.
    pub saved: Option<Saved>,
    /// What to say, asked anew each time; nothing while there is no identity.
    pub facts: Facts,
    /// Takes each answer: hints, witness, the hub's time.
    pub answered: Answered,
    /// Keeps the backoff across restarts; called only when it changes.
    pub remember: Remember,
    /// Where the status is shown.
    pub status: watch::Sender<HeartbeatStatus>,
    /// Time.
    pub clock: SharedClock,
    /// Chance.
    pub entropy: SharedEntropy,
    /// Counters.
    pub metrics: Metrics,
}

/// Beats until `stop`. Waits while the agent is not enrolled, and beats at once when it is, or
/// when its client is replaced.
/// `urgent`: something that the hub should hear of at once, unless it is away.
pub async fn run<F, A, R>(
    deps: Deps<F, A, R>,
    mut link: Link,
    urgent: Arc<Notify>,
    stop: CancellationToken,
) where
    F: FnMut() -> Saying,
    A: FnMut(HeartbeatResponse),
    R: FnMut(Option<Saved>),
{
    let mut heart = Heart { deps, failures_told: 0, lost: None };
    let mut wait = heart.first_wait();
    loop {
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = link.changed() => changed.is_ok(),
            () = sleep(wait) => true,
            () = urgent.notified(), if heart.is_heard() => true,
        };
        if !changed {
            // Nobody will ever enrol this agent: the rest of it is gone.
            return;
        }
        let client = link.borrow_and_update().clone();
        wait = match client {
            None => Duration::MAX,
            Some(client) => {
                let beat = heart.beat(|body| async move { client.heartbeat(&body).await });
                tokio::select! {
                    () = stop.cancelled() => return,
                    wait = beat => wait,
                }
            }
        };
    }
}

struct Heart<F, A, R> {
    deps: Deps<F, A, R>,
    /// As last remembered.
    failures_told: u32,
    /// Since when this process has had no answer, by the time since boot.
    lost: Option<Duration>,
}

impl<F, A, R> Heart<F, A, R>
where
    F: FnMut() -> Saying,
    A: FnMut(HeartbeatResponse),
    R: FnMut(Option<Saved>),
{
    /// At once, unless an earlier process was told to wait. A clock that jumped back must not
    /// make it wait longer than any backoff would.
    fn first_wait(&mut self) -> Duration {
        let Some(saved) = self.deps.saved else { return Duration::ZERO };
        self.deps.backoff = self.deps.backoff.resumed(saved.failures);
        self.failures_told = saved.failures;
        let left = saved.not_before.duration_since(self.deps.clock.now());
        let left = Duration::try_from(left).unwrap_or_default();
        left.min(self.deps.backoff.ceiling())
    }

    /// Whether the last one was answered, so that another may come out of turn.
    fn is_heard(&self) -> bool {
        self.failures_told == 0
    }

    /// One heartbeat; returns how long to wait for the next.
    async fn beat<S, Fut>(&mut self, send: S) -> Duration
    where
        S: FnOnce(HeartbeatRequest) -> Fut,
        Fut: Future<Output = Result<HeartbeatResponse, HubError>>,
    {
        let Some(body) = (self.deps.facts)().await else { return self.interval() };
        let began = self.deps.clock.uptime();
        let answer = send(body).await;
        let took = self.deps.clock.uptime().saturating_sub(began);
        self.deps.metrics.heartbeat_duration.observe(took.as_secs_f64());
        match answer {
            Ok(answer) => self.succeeded(answer),
            Err(error) => self.failed(&error),
        }
    }

    fn succeeded(&mut self, answer: HeartbeatResponse) -> Duration {
        let now = self.deps.clock.now();
        self.deps.metrics.heartbeat.with_label_values(&["success"]).inc();
        self.deps.metrics.heartbeat_last_success.set(now.as_duration().as_secs_f64());
        let offset = now.duration_since(answer.hub_time).as_secs_f64();
        self.deps.metrics.clock_offset.set(offset);
        self.deps.backoff.reset();
        if let Some(since) = self.lost.take() {
            let away = self.deps.clock.uptime().saturating_sub(since);
            tracing::info!(away_seconds = away.as_secs(), "the hub is back");
        }
        if self.failures_told != 0 {
            self.failures_told = 0;
            (self.deps.remember)(None);
        }
        let wait = self.interval();
        let status = HeartbeatStatus {
            last_success: Some(now),
            last_success_uptime: Some(self.deps.clock.uptime()),
            last_error: None,
            refused: None,
            audit_refusal: answer.audit_refusal,
            next_attempt_at: Some(later(now, wait)),
            consecutive_failures: 0,
        };
        self.deps.status.send_replace(status);
        (self.deps.answered)(answer);
        wait
    }

    fn failed(&mut self, error: &HubError) -> Duration {
        self.deps.metrics.heartbeat.with_label_values(&["error"]).inc();
        let mut wait = self.deps.backoff.next(fraction(self.deps.entropy.as_ref()));
        if let Some(asked) = error.retry_after() {
            wait = wait.max(asked);
        } else if !error.is_transient() {
            // The same will be refused again; somebody has to do something first.
            wait = wait.max(self.deps.interval);
        }
        let next = later(self.deps.clock.now(), wait);
        let failures = self.deps.backoff.failures();
        let (cause, wait_ms) = (error.cause(), wait.as_millis());
        // One line an outage: the metrics and the status have the rest.
        if self.lost.is_none() {
            self.lost = Some(self.deps.clock.uptime());
            tracing::warn!(cause, failures, wait_ms, "the hub is lost, no heartbeat: {error}");
        } else {
            tracing::debug!(cause, failures, wait_ms, "no heartbeat: {error}");
        }
        self.deps.status.send_modify(|status| {
            // An open breaker is no news: what opened it is. How long it stays open is told by
            // the next attempt alone; a number written down here would not count down.
            if !matches!(error, HubError::BreakerOpen(_)) {
                status.last_error = Some(error.to_string());
            } else if status.last_error.is_none() {
                status.last_error = Some(SPARED.to_owned());
            }
            // That nobody answers makes no other answer of what was said before.
            if let Some(reason) = error.refusal() {
                status.refused = Some(reason.to_owned());
            }
            status.next_attempt_at = Some(next);
            status.consecutive_failures = failures;
        });
        self.failures_told = failures;
        (self.deps.remember)(Some(Saved { failures, not_before: next }));
        wait
    }

    fn interval(&self) -> Duration {
        let drawn = fraction(self.deps.entropy.as_ref());
        self.deps.interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * drawn)
    }
}

fn later(now: Timestamp, wait: Duration) -> Timestamp {
    SignedDuration::try_from(wait).ok().and_then(|w| now.checked_add(w).ok()).unwrap_or(now)
}

#[cfg(test)]
mod tests;
