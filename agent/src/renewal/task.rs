//! The one task that replaces certificates: by itself when it is time, and for whoever asks. So no two
//! changes ever meet.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use jtnt_proto::audit::{Caller, Event, Status};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    Deps, Replaced, Step,
    error::RenewError,
    keep::{clean_backup, facts},
};
use crate::{
    audit::{Audit, Record},
    domain::cert_rule::{Asked, Certificate, Plan, is_due, look_every, plan, wait_after},
    hub::Link,
    identity::{Identity, IdentityError},
    runtime::entropy::fraction,
    telemetry::metrics::Metrics,
};

/// Requests of people that wait for their turn.
const QUEUE: usize = 8;
/// News of one request that are not read yet.
const NEWS: usize = 16;
/// Soon after the start, when an earlier process left something unfinished.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Between two looks of an agent that has nothing to renew.
const UNENROLLED: Duration = Duration::from_secs(300);

/// An identity, or why there is none.
type Found = Result<Arc<Identity>, IdentityError>;

/// Takes up what is in place, once it has changed.
type TakeUp = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What somebody asked for hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Where it is.
    Step(Step),
    /// How it ended.
    End(Result<Replaced, RenewError>),
}

#[derive(Debug)]
struct Request {
    what: What,
    caller: Option<Caller>,
    report: mpsc::Sender<Report>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Renew(Asked),
    RollBack { prove: bool },
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RenewalStatus {
    /// When the certificate in place is due, and why.
    pub plan: Option<Plan>,
    /// The last time that one took the place of another, by this process.
    pub last_success: Option<Timestamp>,
    /// The last try that failed since, and why.
    pub last_failure: Option<(Timestamp, RenewError)>,
    /// When the hub asked for a renewal that was held back, and until when that is.
    pub held_back: Option<(Timestamp, Timestamp)>,
}

/// What others may ask. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Renewal {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<RenewalStatus>,
    daily: Arc<Notify>,
    hinted: Arc<Notify>,
}

impl Renewal {
    /// Renews now; news come over the channel, the end last. `force`: also where the last renewal
    /// is not long ago.
    ///
    /// # Errors
    /// When too many wait, or the agent stops.
    pub fn renew(
        &self,
        force: bool,
        caller: Option<Caller>,
    ) -> Result<mpsc::Receiver<Report>, String> {
        self.ask(What::Renew(if force { Asked::Force } else { Asked::Someone }), caller)
    }

    /// Puts the certificate before back in place; `prove`: only if the hub takes it.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub fn roll_back(
        &self,
        prove: bool,
        caller: Option<Caller>,
    ) -> Result<mpsc::Receiver<Report>, String> {
        self.ask(What::RollBack { prove }, caller)
    }

    fn ask(&self, what: What, caller: Option<Caller>) -> Result<mpsc::Receiver<Report>, String> {
        let (report, news) = mpsc::channel(NEWS);
        let asked = self.requests.try_send(Request { what, caller, report });
        asked.map(|()| news).map_err(|_full| "others are being served; try again soon".to_owned())
    }

    /// The daily check is due.
    pub fn check(&self) {
        self.daily.notify_one();
    }

    /// The hub would like it renewed.
    pub fn hint(&self) {
        self.hinted.notify_one();
    }

    /// How it went.
    #[must_use]
    pub fn status(&self) -> RenewalStatus {
        self.status.borrow().clone()
    }
}

/// The task's own.
pub struct Task {
    deps: Deps,
    identity: watch::Receiver<Found>,
    link: Link,
    audit: Audit,
    metrics: Metrics,
    take_up: TakeUp,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<RenewalStatus>,
    daily: Arc<Notify>,
    hinted: Arc<Notify>,
    failures: u32,
    /// Not again by itself before.
    rests_until: Option<Instant>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("deps", &self.deps).finish_non_exhaustive()
    }
}

impl Task {
    /// A handle, and the task that somebody must run.
    #[must_use]
    pub fn build(
        deps: Deps,
        (identity, link): (watch::Receiver<Found>, Link),
        (audit, metrics): (Audit, Metrics),
        take_up: TakeUp,
    ) -> (Renewal, Self) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let (status, seen) = watch::channel(RenewalStatus::default());
        let (daily, hinted) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let handle = Renewal {
            requests: sender,
            status: seen,
            daily: Arc::clone(&daily),
            hinted: Arc::clone(&hinted),
        };
        let task = Self {
            deps,
            identity,
            link,
            audit,
            metrics,
            take_up,
            requests,
            status,
            daily,
            hinted,
            failures: 0,
            rests_until: None,
        };
        (handle, task)
    }

    /// Renews when it is time, and serves requests, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut wait = FIRST_LOOK;
        loop {
            let (daily, hinted) = (Arc::clone(&self.daily), Arc::clone(&self.hinted));
            let work = async {
                tokio::select! {
                    () = sleep(wait) => self.look(Asked::Nobody, false).await,
                    () = daily.notified() => self.look(Asked::Nobody, true).await,
                    () = hinted.notified() => self.look(Asked::Someone, false).await,
                    changed = self.identity.changed() => if changed.is_ok() {
                        self.look(Asked::Nobody, false).await;
                    },
                    Some(request) = self.requests.recv() => self.serve(request).await,
                }
            };
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => return,
            }
            wait = self.next_look();
        }
    }

    /// Serves requests alone: for commands without a daemon.
    pub async fn serve_only(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                Some(request) = self.requests.recv() => self.serve(request).await,
                () = stop.cancelled() => return,
            }
        }
    }

    fn current(&self) -> Option<Arc<Identity>> {
        self.identity.borrow().clone().ok()
    }

    fn next_look(&self) -> Duration {
        let Some(identity) = self.current() else { return UNENROLLED };
        look_every(self.facts(&identity).life())
    }

    /// When the certificate in place is due; shows it, too.
    fn show(&self) {
        let planned = self.current().map(|identity| self.plan(&identity, Asked::Nobody));
        let at = planned.as_ref().map_or(0.0, |plan| seconds(plan.renew_at));
        self.metrics.cert_next_renewal.set(at);
        let begins = self.current().map_or(0.0, |identity| seconds(identity.cert.not_before));
        self.metrics.cert_not_before.set(begins);
        // Also what an earlier run of the agent did.
        let renewed = self.current().and_then(|identity| self.facts(&identity).last_renewal);
        if let Some(at) = renewed {
            self.metrics.cert_last_success.set(seconds(at));
        }
        self.status.send_modify(|status| status.plan = planned);
    }

    /// Renews if it is time; what an earlier try left unfinished is finished at any time.
    async fn look(&mut self, asked: Asked, daily: bool) {
        self.show();
        let tokens = self.deps.tokens();
        if daily && let Err(error) = clean_backup(&self.deps.paths, self.deps.clock.now()) {
            tracing::warn!(%error, "the backup of the cert stays");
        }
        let Some(identity) = self.current() else { return };
        if daily {
            self.deps.sweep(tokens, &identity.agent_id).await;
        }
        let unfinished = self.deps.is_unfinished();
        let (plan, now) = (self.plan(&identity, asked), self.deps.clock.now());
        // A pair in place that is broken is mended by another.
        let due = is_due(&plan, daily, now) || identity.makeshift.is_some();
        if asked == Asked::Someone && !due {
            let held_back = Some((now, plan.renew_at));
            self.status.send_modify(|status| status.held_back = held_back);
        }
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        // While the breaker is open nothing would be asked, so nothing is tried.
        let spared = self.link.borrow().as_ref().is_some_and(|hub| hub.breaker_rest().is_some());
        if rests || spared || !(due || unfinished) {
            return;
        }
        let renewed = self.renew(&identity, &mut |_| {}).await;
        self.conclude(&identity, renewed, None, false).await.ok();
    }

    fn plan(&self, identity: &Identity, asked: Asked) -> Plan {
        plan(&self.facts(identity), asked, self.deps.clock.now())
    }

    fn facts(&self, identity: &Identity) -> Certificate {
        facts(&self.deps.paths, &identity.cert)
    }

    async fn renew(
        &self,
        identity: &Arc<Identity>,
        told: &mut (dyn FnMut(Step) + Send),
    ) -> Result<Replaced, RenewError> {
        let hub = self.link.borrow().clone().ok_or_else(RenewError::no_hub)?;
        self.deps.renew(&hub, identity, told).await
    }

    async fn serve(&mut self, request: Request) {
        let Request { what, caller, report } = request;
        let identity = self.identity.borrow().clone();
        let news = report.clone();
        // Whoever asked may be gone; it is done all the same.
        let mut told = move |step| drop(news.try_send(Report::Step(step)));
        let identity = match identity {
            Ok(identity) => identity,
            Err(fault) => {
                let error = RenewError::no_identity(&fault);
                let _gone = report.send(Report::End(Err(error))).await;
                return;
            }
        };
        let (done, back) = match what {
            What::Renew(asked) => {
                let plan = self.plan(&identity, asked);
                let now = self.deps.clock.now();
                if is_due(&plan, true, now) {
                    if let Some(hub) = self.link.borrow().as_ref() {
                        hub.try_now();
                    }
                    (self.renew(&identity, &mut told).await, false)
                } else {
                    let error = RenewError::not_due(plan.renew_at, &plan.why);
                    let _gone = report.send(Report::End(Err(error))).await;
                    return;
                }
            }
            What::RollBack { prove } => (self.deps.roll_back(prove, &mut told).await, true),
        };
        let end = self.conclude(&identity, done, caller, back).await;
        let _gone = report.send(Report::End(end)).await;
    }

    /// Tells everybody how it went, and takes up what is in place now.
    async fn conclude(
        &mut self,
        identity: &Identity,
        done: Result<Replaced, RenewError>,
        caller: Option<Caller>,
        back: bool,
    ) -> Result<Replaced, RenewError> {
        let now = self.deps.clock.now();
        if !back {
            let word = if done.is_ok() { "success" } else { "error" };
            self.metrics.cert_rotation.with_label_values(&[word]).inc();
        }
        match &done {
            Ok(replaced) => {
                self.failures = 0;
                self.rests_until = None;
                (self.take_up)().await;
                tracing::info!(
                    before = replaced.before,
                    serial = replaced.cert.serial,
                    "the client cert was {}; it is valid until {}",
                    if back { "rolled back" } else { "renewed" },
                    replaced.cert.not_after
                );
                self.record(replaced, caller, back).await;
                if !back {
                    self.metrics.cert_last_success.set(seconds(now));
                }
                self.status.send_modify(|status| {
                    status.last_success = Some(now);
                    status.last_failure = None;
                    status.held_back = None;
                });
                self.show();
            }
            Err(error) if back => {
                tracing::warn!(
                    reason = &*error.reason,
                    "the client cert was not rolled back: {error}"
                );
            }
            Err(error) => {
                let told = self.status.borrow().last_failure.as_ref().map(|(_, e)| e.clone());
                // One line an outage: the plan and the metrics have the rest.
                if self.failures == 0 || told.as_ref() != Some(error) {
                    tracing::warn!(
                        reason = &*error.reason,
                        "the client cert was not renewed: {error}; {}",
                        error.advice
                    );
                } else {
                    tracing::debug!(reason = &*error.reason, "the cert was not renewed: {error}");
                }
                self.failures = self.failures.saturating_add(1);
                let (life, drawn) =
                    (self.facts(identity).life(), fraction(self.deps.entropy.as_ref()));
                let wait = wait_after(self.failures, life, drawn);
                self.rests_until = Some(Instant::now() + wait);
                self.metrics.cert_last_failure.set(seconds(now));
                let failure = Some((now, error.clone()));
                self.status.send_modify(|status| status.last_failure = failure);
            }
        }
        done
    }

    async fn record(&self, replaced: &Replaced, caller: Option<Caller>, back: bool) {
        let mut record = Record::of(Event::CertRotated)
            .detail("before", replaced.before.clone())
            .detail("serial", replaced.cert.serial.clone())
            .detail("not_after", replaced.cert.not_after.to_string());
        if back {
            record = record.detail("rolled_back", true);
        }
        record.status = Some(Status::Success);
        record.origin = Some(if caller.is_some() { "local" } else { "agent" });
        record.object = Some(replaced.cert.serial.clone());
        record.caller = caller;
        if let Err(error) = self.audit.append(record).await {
            tracing::error!(%error, "a new cert is not in the audit log");
        }
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}
