//! The life of one job from the queue to its end. Policy, keys and time are asked again right
//! before the start; the journal and the audit log have it on disk before it begins.

use std::{sync::Arc, time::Duration};

use jtnt_proto::{
    audit::Event,
    hub::{Outcome, Output},
    job::{Artifact, Job, Priority, Work},
    policy::Limits,
};
use tokio_util::sync::CancellationToken;

use super::{
    board::{CalledOff, Grant, Item, Live},
    core::{self, Core},
    permit,
    permit::Permit,
    recovery,
    refuse::Refusal,
    stream, transfer,
    users::{self, Identity},
    work::{self, Ready},
};
use crate::{
    audit::Record,
    domain::{
        admission::{Refused, still_valid},
        asked::Asked,
        ids::JobId,
        job::{Entry, Process, Reject, State},
        seen::Seen,
    },
    platform::sweep::{self, Swept},
    runtime::tasks::Class,
    shim::{Attempt, Shim, Snag},
    store::StoreError,
    trust::{Keyring, TrustError, Verified},
};

/// Of a job that names none, under a policy that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3600);
const DEFAULT_OUTPUT_BYTES: u64 = 1 << 20;

/// How the work itself ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) reason: Option<&'static str>,
    pub(super) message: Option<String>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) artifact: Option<Artifact>,
}

impl Ended {
    pub(super) const fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            exit_code: None,
            signal: None,
            reason: None,
            message: None,
            stdout: None,
            stderr: None,
            artifact: None,
        }
    }

    pub(super) fn because(
        outcome: Outcome,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { reason: Some(reason), message: Some(message.into()), ..Self::of(outcome) }
    }

    pub(super) fn failed(reason: &'static str, message: impl Into<String>) -> Self {
        Self::because(Outcome::Failed, reason, message)
    }

    pub(super) fn cancelled() -> Self {
        Self::because(Outcome::Cancelled, "CANCELLED", "called off")
    }

    /// With the reason that was given, if that is how it ended.
    pub(super) fn called_off(self, by: &CalledOff) -> Self {
        match &by.reason {
            Some(reason) if self.outcome == Outcome::Cancelled => {
                Self { message: Some(core::bounded(format!("called off: {reason}"))), ..self }
            }
            _ => self,
        }
    }

    /// A transfer whose other side went.
    pub(super) fn cut() -> Self {
        Self::failed(Snag::Cut.reason(), "it was cut short; order it again")
    }

    pub(super) fn is_cut(&self) -> bool {
        self.reason == Some(Snag::Cut.reason())
    }

    pub(super) fn nothing_opened() -> Self {
        Self::failed("NOTHING_OPENED", "the policy allowed it, but nothing was opened")
    }

    pub(super) fn timed_out(after: Duration) -> Self {
        let message = format!("ended after its timeout of {} s", after.as_secs());
        Self::because(Outcome::Timeout, "TIMEOUT", message)
    }
}

/// What the work needs beside its own request.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) core: Arc<Core>,
    pub(super) attempt: Attempt,
    pub(super) identity: Arc<Identity>,
    pub(super) live: Live,
    pub(super) stop: CancellationToken,
    pub(super) timeout: Duration,
    pub(super) output_bytes: u64,
    pub(super) limits: Limits,
    /// What it asked, where it is to be watched.
    pub(super) watch: Option<Asked>,
}

/// Starts what waits, as many as may run at once, until the agent stops.
pub(super) async fn run(core: Arc<Core>, shutdown: CancellationToken) {
    loop {
        let moved = core.board.moved.notified();
        tokio::pin!(moved);
        moved.as_mut().enable();
        while !shutdown.is_cancelled()
            && core.board.counts().1 < core.config.max_concurrent
            && let Some(grant) = core.board.take()
        {
            start(&core, grant);
        }
        core.show();
        tokio::select! {
            () = moved => {}
            () = shutdown.cancelled() => return,
        }
    }
}

fn start(core: &Arc<Core>, grant: Grant) {
    let id = grant.item.entry.job_id.clone();
    let own = Arc::clone(core);
    spawn(core, id, async move { attempt(own, grant).await.map(|()| None) });
}

/// Stays with a job that began under an earlier run of the agent.
pub(super) fn resume(core: &Arc<Core>, entry: Entry, shim: Shim) {
    let id = entry.job_id.clone();
    let grant = core.board.adopt(Item { entry, priority: Priority::Normal });
    let Grant { item: Item { mut entry, .. }, live } = grant;
    let user = entry.user.clone().unwrap_or_default();
    // How long it may run, and how much it may write, its shim knows. This is for a shim that does
    // not do its part any more.
    let timeout = work::attempt_of(core, &entry).timeout();
    let timeout_seconds = Some(timeout.map_or(u64::MAX, |timeout| timeout.as_secs()));
    let unlimited = Limits { timeout_seconds, ..Limits::default() };
    let identity = users::of_running(&user, &core.pool);
    let context = Context::of((core, &entry, live), identity, unlimited, None);
    if verified(core, &entry).is_ok_and(|(_, job)| job.get().stream_output) {
        stream::begin(&context, id.clone(), entry.attempt, None);
    }
    spawn(core, id, async move {
        let Some(ended) = work::supervise(&context, &mut entry, shim).await else {
            return Ok(None);
        };
        // The other side of it was an agent that is no more.
        if ended.is_cut()
            && let Some(again) = recovery::repeat(&context.core, entry.clone()).await?
        {
            sweep(&context, &again.job_id).await;
            return Ok(Some(again));
        }
        if ended.outcome == Outcome::Indeterminate && entry.kind == "download" {
            recovery::remove_part(&context.core, &entry).await;
        }
        finish(&context, entry, ended).await.map(|()| None)
    });
}

/// `work` may give the job back, for another run.
fn spawn<W>(core: &Arc<Core>, id: JobId, work: W)
where
    W: Future<Output = Result<Option<Entry>, StoreError>> + Send + 'static,
{
    let own = Arc::clone(core);
    core.deps.tasks.spawn("job", Class::OneShot, async move {
        let ends = EndsOnDrop { core: own, id: id.clone() };
        let again = Box::pin(work).await.unwrap_or_else(|error| {
            // What the journal last said holds: the next start of the agent takes it up there.
            tracing::error!(%error, job_id = %id, "a job was dropped; the journal has it");
            None
        });
        let core = Arc::clone(&ends.core);
        drop(ends);
        if let Some(entry) = again {
            recovery::wait_again(&core, entry);
        }
    });
}

/// Leaves the board even if the work panics.
struct EndsOnDrop {
    core: Arc<Core>,
    id: JobId,
}

impl Drop for EndsOnDrop {
    fn drop(&mut self) {
        self.core.board.end(&self.id);
        self.core.show();
    }
}

async fn attempt(core: Arc<Core>, grant: Grant) -> Result<(), StoreError> {
    let Grant { item: Item { mut entry, .. }, live } = grant;
    let (keyring, job) = match verified(&core, &entry) {
        Ok(found) => found,
        Err(refused) => {
            let refusal = Refusal::of(refused, core.policy_version());
            return core.refuse_queued(entry, refusal).await;
        }
    };
    let job = Arc::new(job);
    if let Err(refused) = still_valid(job.get(), &core.facts(&keyring)) {
        let refusal = Refusal::of(refused, core.policy_version());
        return core.refuse_queued(entry, refusal).await;
    }
    if live.cancel.is_cancelled() {
        let by = live.called_off();
        return core.conclude(entry, Ended::cancelled().called_off(&by), by.caller).await;
    }
    let (mut permit, identity) = prepare(&core, keyring, &job).await?;
    if !permit.allowed {
        let refusal = Refusal::by_policy(&permit);
        return core.refuse_queued(entry, refusal).await;
    }
    if permit.monitored {
        core.tell_monitored(&entry, &permit).await;
    }
    entry.policy_version = permit.policy_version;
    entry.rule.clone_from(&permit.rule);
    let identity = match identity {
        Ok(identity) => identity,
        Err(none) => {
            let ended = Ended::failed(none.reason(), none.to_string());
            return core.conclude(entry, ended, None).await;
        }
    };
    let limits = within(job.get().limits, permit.limits);
    let watch = permit.to_watch();
    entry.monitored = watch.is_some();
    let context = Context::of((&core, &entry, live), identity, limits, watch);
    // What is slow is done side by side; nothing begins before it is on disk that it is about to.
    let (work, opened) = (&job.get().work, permit.opened.take());
    let recorded = record_start(&core, &mut entry, &job, &permit, &context.identity);
    let (recorded, ready) = tokio::join!(recorded, work::ready(&context, job.get(), opened));
    if let Err(ended) = recorded? {
        drop(ready);
        core.conclude(entry, ended, None).await?;
        context.attempt.forget();
        return Ok(());
    }
    if let (Some(asked), Some(path)) = (&context.watch, &permit.canonical)
        && matches!(ready, Ready::Transfer(_))
    {
        see(&context, Seen::of(asked.clone(), path.clone())).await;
    }
    // Never the command: arguments may hold secrets, and the log has other readers than the audit.
    tracing::info!(job_id = %entry.job_id, "type" = entry.kind, rule = entry.rule, "job started");
    if job.get().stream_output && matches!(ready, Ready::Program(_)) {
        stream::begin(&context, entry.job_id.clone(), entry.attempt, Some(0));
    }
    perform(&context, entry, work, ready).await
}

/// A transfer is all that it asks; of a program, its shim writes more.
async fn see(context: &Context, seen: Seen) {
    let attempt = context.attempt.clone();
    let written = tokio::task::spawn_blocking(move || attempt.see(&seen)).await;
    if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
        tracing::warn!(%error, "nothing can be learned of a job");
    }
}

impl Context {
    fn of(
        grant: (&Arc<Core>, &Entry, Live),
        identity: Identity,
        limits: Limits,
        watch: Option<Asked>,
    ) -> Arc<Self> {
        let (core, entry, live) = grant;
        Arc::new(Self {
            core: Arc::clone(core),
            attempt: work::attempt_of(core, entry),
            identity: Arc::new(identity),
            live,
            stop: core.deps.tasks.shutdown(),
            timeout: limits.timeout_seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs),
            output_bytes: limits.output_bytes.unwrap_or(DEFAULT_OUTPUT_BYTES),
            limits,
            watch,
        })
    }
}

/// The smaller of what is asked and what is allowed.
fn within(asked: Limits, most: Limits) -> Limits {
    let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
    Limits {
        timeout_seconds: least(asked.timeout_seconds, most.timeout_seconds),
        output_bytes: least(asked.output_bytes, most.output_bytes),
        memory_bytes: least(asked.memory_bytes, most.memory_bytes),
        pids: least(asked.pids, most.pids),
        cpu_percent: least(asked.cpu_percent, most.cpu_percent),
        io_weight: least(asked.io_weight, most.io_weight),
        file_bytes: least(asked.file_bytes, most.file_bytes),
    }
}

/// Verifies the recorded envelope under the keys of now.
pub(super) fn verified(core: &Core, entry: &Entry) -> Result<(Keyring, Verified<Job>), Refused> {
    let bad = |message: String| Refused { reason: Reject::BadSignature, message };
    let keyring = core.keyring().ok_or_else(|| bad("this agent has no root".to_owned()))?;
    let envelope = entry
        .envelope
        .as_ref()
        .ok_or_else(|| bad("the journal no longer has the signed job".to_owned()))?;
    let job = keyring.job(envelope).map_err(|error| refused_by(&error))?;
    Ok((keyring, job))
}

/// The reason for a job that is not believed or not understood.
pub(super) fn refused_by(error: &TrustError) -> Refused {
    let understood = !matches!(error, TrustError::Malformed(_));
    let reason = if understood { Reject::BadSignature } else { Reject::Malformed };
    Refused { reason, message: error.to_string() }
}

type Prepared = (Permit, Result<Identity, users::NoUser>);

/// Opens, decides and finds the user, where it may block.
async fn prepare(
    core: &Arc<Core>,
    keyring: Keyring,
    job: &Arc<Verified<Job>>,
) -> Result<Prepared, StoreError> {
    let (core, job, now) = (Arc::clone(core), Arc::clone(job), core.deps.time.now());
    let blocking = move || {
        let permit = permit::ask(&core.deps.gate, &keyring, job.get(), now);
        let identity = users::identify(permit.run_as.as_deref(), &core.pool);
        (permit, identity)
    };
    tokio::task::spawn_blocking(blocking).await.map_err(|e| StoreError(e.to_string()))
}

/// Makes "about to start" durable in journal and audit log, both or no start.
async fn record_start(
    core: &Core,
    entry: &mut Entry,
    job: &Verified<Job>,
    permit: &Permit,
    identity: &Identity,
) -> Result<Result<(), Ended>, StoreError> {
    entry.state = State::Starting;
    entry.started_at = Some(core.deps.clock.now());
    entry.user = Some(identity.account.name.clone());
    entry.enforcement = Some(permit.enforcement.to_string());
    // No process yet, but the boot it would belong to.
    entry.process = sweep::boot_id().ok().map(|boot_id| Process {
        pid: 0,
        start_time: 0,
        boot_id,
        cgroup: None,
    });
    let record = started(entry, job, permit);
    let (journaled, logged) =
        tokio::join!(core.deps.journal.update(entry.clone()), core.deps.audit.append(record));
    journaled?;
    Ok(logged.map(drop).map_err(|error| {
        let message = format!("not started, since it could not be logged: {error}");
        Ended::failed(Reject::CannotRecord.name(), message)
    }))
}

fn started(entry: &Entry, job: &Verified<Job>, permit: &Permit) -> Record {
    let mut record = Record::of(Event::JobStarted)
        .detail("type", entry.kind.clone())
        .detail("payload_sha256", job.payload_sha256().to_string());
    if let Some(rule) = &permit.rule {
        record = record.detail("rule", rule.clone());
    }
    if let Some(sha256) = permit.sha256 {
        record = record.detail("program_sha256", sha256.to_string());
    }
    record.job_id = Some(entry.job_id.to_string());
    record.command = Some(entry.command.clone());
    record.user.clone_from(&entry.user);
    record.policy_version = Some(permit.policy_version);
    record.object.clone_from(&permit.canonical);
    record
}

async fn perform(
    context: &Arc<Context>,
    mut entry: Entry,
    work: &Work,
    ready: Ready,
) -> Result<(), StoreError> {
    let clock = &context.core.deps.clock;
    let began = clock.uptime();
    let ended = match (work, ready) {
        (_, Ready::Program(prepared)) => work::run(context, &mut entry, *prepared).await,
        (_, Ready::Transfer(load)) => transfer::run(context, &mut entry, work, *load).await,
        (_, Ready::Never(ended)) => Some(*ended),
        (_, Ready::Stopped) => None,
    };
    // Otherwise the agent stops: a program goes on, and what has not begun or was cut short begins
    // when the next start finds it.
    let Some(ended) = ended else { return Ok(()) };
    let took = clock.uptime().saturating_sub(began).as_millis();
    entry.duration_ms.get_or_insert(u64::try_from(took).unwrap_or(u64::MAX));
    finish(context, entry, ended).await
}

/// What is to be done at the end of every job.
async fn finish(context: &Context, entry: Entry, ended: Ended) -> Result<(), StoreError> {
    let core = &context.core;
    let took = Duration::from_millis(entry.duration_ms.unwrap_or(0)).as_secs_f64();
    core.deps.metrics.job_duration.with_label_values(&[&entry.kind]).observe(took);
    sweep(context, &entry.job_id).await;
    let by = context.live.called_off();
    core.conclude(entry, ended.called_off(&by), by.caller).await?;
    context.attempt.forget();
    Ok(())
}

/// Before the end of a job is told, nothing runs as a user of its own: what has left the session is
/// found by that.
async fn sweep(context: &Context, id: &JobId) {
    let identity = Arc::clone(&context.identity);
    let swept = match &identity.lease {
        // Nearly always nothing runs, and asking costs less than another thread.
        Some(lease) if sweep::runs_anything(lease.uid) => {
            tokio::task::spawn_blocking(move || identity.sweep()).await
        }
        _ => return,
    };
    match swept {
        Ok(Swept { ended: 0, clean: true }) => {}
        Ok(Swept { ended, clean: true }) => {
            tracing::warn!(job_id = %id, ended, "a job left processes behind; they were ended");
        }
        Ok(Swept { ended, clean: false }) => {
            tracing::error!(job_id = %id, ended, "processes of a job do not end; its user id stays taken");
        }
        Err(error) => tracing::error!(%error, job_id = %id, "a job's user was not swept"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_asks_for_less_and_never_gets_more() {
        let limits = |timeout_seconds, output_bytes| Limits {
            timeout_seconds,
            output_bytes,
            ..Limits::default()
        };
        let within = within(limits(Some(10), Some(900)), limits(Some(60), Some(100)));
        assert_eq!((within.timeout_seconds, within.output_bytes), (Some(10), Some(100)));
        let open = super::within(limits(None, Some(5)), limits(Some(60), None));
        assert_eq!((open.timeout_seconds, open.output_bytes), (Some(60), Some(5)));
    }
}
