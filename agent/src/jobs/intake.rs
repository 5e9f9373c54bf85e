//! The way in: a long poll, and for each job signature, replay, admission and policy, in this
//! order. What is taken is durable before the hub hears of it.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use jtnt_proto::{
    envelope::Envelope,
    hub::{JobStatusState, JobsResponse, LeasedJob, MAX_LEASED_JOBS},
    job::Job,
};
use tokio_util::sync::CancellationToken;

use super::{
    board::{CalledOff, Found, Item},
    core::{Core, entry_of},
    permit,
    refuse::{Refusal, status_of},
    report::Report,
    runner::{Ended, refused_by},
};
use crate::{
    domain::{
        admission::{Refused, admit, admit_cancel},
        ids::JobId,
        job::{Entry, Reject},
    },
    hub::{
        HubClient,
        retry::{Retry, wanted},
    },
    runtime::tasks::Class,
    store::{Admission, Question, StoreError},
    trust::{Keyring, Verified},
};

const WAIT: Duration = Duration::from_secs(30);
/// Jobs of one answer that are judged at once, so that they share the journal's commits.
const AT_ONCE: usize = 16;
/// A job that has ended by then was accepted, as its end tells.
const NEWS_AFTER: Duration = Duration::from_millis(100);
/// With more ends of jobs that the hub does not know, no job is taken.
const MAX_UNDELIVERED: u64 = 10_000;
/// How often a full agent looks whether it may go on.
const FULL: Duration = Duration::from_secs(5);

/// Asks the hub for jobs until the agent stops.
pub(super) async fn run(core: Arc<Core>, shutdown: CancellationToken) {
    let work = async {
        let mut retry = Retry::default();
        loop {
            let Some(hub) = ready(&core).await else { return };
            match hub.jobs(WAIT).await {
                Ok(answer) => {
                    retry.succeeded();
                    take(&core, answer).await;
                }
                Err(error) => {
                    let pause = retry.wait(wanted(&error), &*core.deps.entropy);
                    tracing::debug!(%error, ?pause, "no jobs from the hub");
                    let mut link = core.deps.link.clone();
                    link.mark_unchanged();
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = core.poke.notified() => {}
                        // What failed was said by another identity, or of another hub.
                        Ok(()) = link.changed() => retry.succeeded(),
                    }
                }
            }
            core.log_suppressed().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
    core.log_last_suppressed().await;
}

/// The hub, once there is one, a root to verify with, and room for an answer.
async fn ready(core: &Core) -> Option<HubClient> {
    let room = MAX_LEASED_JOBS.min(core.config.queue);
    loop {
        let moved = core.board.moved.notified();
        let full =
            core.board.room() < room || core.deps.journal.counts().undelivered >= MAX_UNDELIVERED;
        if !full {
            break;
        }
        tokio::select! {
            () = moved => {}
            () = tokio::time::sleep(FULL) => {}
        }
    }
    core.deps.keyring.clone().wait_for(Option::is_some).await.ok()?;
    let mut link = core.deps.link.clone();
    link.wait_for(Option::is_some).await.ok()?.clone()
}

pub(super) async fn take(core: &Arc<Core>, answer: JobsResponse) {
    for cancel in answer.cancels.into_iter().take(MAX_LEASED_JOBS) {
        if let Err(error) = take_cancel(core, &cancel).await {
            tracing::error!(%error, "a cancel was not carried out");
        }
    }
    let mut accepted = Vec::new();
    let jobs = answer.jobs.into_iter().take(MAX_LEASED_JOBS);
    let mut judged = stream::iter(jobs).map(|leased| take_job(core, leased)).buffered(AT_ONCE);
    while let Some(judged) = judged.next().await {
        match judged {
            Ok(Some(item)) => {
                let at = core.deps.clock.now();
                accepted.push(Report::of(&item.entry, JobStatusState::Accepted, at));
                core.board.push(item);
            }
            Ok(None) => {}
            // Not acknowledged, so the hub lends it again.
            Err(error) => tracing::error!(%error, "a job was not taken"),
        }
    }
    tell_later(core, accepted);
    core.show();
}

/// Tells the hub of the jobs that are still there after a moment. Of the others it hears the end
/// as soon, which says as much.
fn tell_later(core: &Arc<Core>, accepted: Vec<Report>) {
    if accepted.is_empty() {
        return;
    }
    let own = Arc::clone(core);
    let shutdown = core.deps.tasks.shutdown();
    core.deps.tasks.spawn("job-accepted", Class::OneShot, async move {
        tokio::select! {
            () = tokio::time::sleep(NEWS_AFTER) => {}
            () = shutdown.cancelled() => {}
        }
        for report in accepted.into_iter().filter(|report| own.board.holds(report.id())) {
            own.report(report);
        }
    });
}

/// Judges one job. `None` when there is nothing to run.
pub(super) async fn take_job(
    core: &Arc<Core>,
    leased: LeasedJob,
) -> Result<Option<Item>, StoreError> {
    let LeasedJob { job_id: claimed, envelope, .. } = leased;
    let Some(keyring) = core.keyring() else { return Ok(None) };
    let job = match keyring.job(&envelope) {
        Ok(job) => job,
        Err(error) => {
            core.refuse_stranger(&claimed, refused_by(&error)).await;
            return Ok(None);
        }
    };
    core.deps.time.observe(job.get().issued_at);
    let Ok(id) = JobId::try_from(job.get().job_id.as_str()) else {
        let message = "its job_id is no id".to_owned();
        core.refuse_stranger(&claimed, Refused { reason: Reject::Malformed, message }).await;
        return Ok(None);
    };
    if let Some(known) = core.deps.journal.get(&id)? {
        known_again(core, &known, &envelope).await;
        return Ok(None);
    }
    let (verdict, asked) = judge(core, &keyring, &job, &id).await?;
    let mut entry = entry_of(&job, id, envelope.clone(), core.deps.clock.now());
    let priority = job.get().priority;
    let admission = match verdict {
        Ok((policy_version, rule)) => {
            (entry.policy_version, entry.rule) = (policy_version, rule);
            core.deps.journal.admit_asking(entry.clone(), asked).await?
        }
        Err(refusal) => {
            let admission = core.refuse_new(entry, refusal, asked).await?;
            meet(core, admission, &envelope, &claimed).await;
            return Ok(None);
        }
    };
    let new = admission == Admission::New;
    meet(core, admission, &envelope, &claimed).await;
    Ok(new.then_some(Item { entry, priority }))
}

/// What to do about an id that turned out to be used.
async fn meet(core: &Core, admission: Admission, envelope: &Envelope, claimed: &str) {
    match admission {
        Admission::New => {}
        Admission::Replay(Some(known)) => known_again(core, &known, envelope).await,
        Admission::Replay(None) => core.refuse_stranger(claimed, replay()).await,
    }
}

fn replay() -> Refused {
    let message = "its id was used before; sign it again under a new one".to_owned();
    Refused { reason: Reject::Replay, message }
}

/// A lease that ran out brings the same job again: the hub is told what is recorded. Another job
/// under its id is a replay.
async fn known_again(core: &Core, known: &Entry, envelope: &Envelope) {
    if known.envelope.as_ref().is_none_or(|recorded| recorded.payload != envelope.payload) {
        core.refuse_stranger(known.job_id.as_str(), replay()).await;
        return;
    }
    match status_of(known.state) {
        Some(state) => core.report(Report::of(known, state, core.deps.clock.now())),
        None => core.window.add(known.job_id.clone()),
    }
}

type Verdict = Result<(u64, Option<String>), Refusal>;

/// Also what was asked of the policy, where it came to that.
async fn judge(
    core: &Arc<Core>,
    keyring: &Keyring,
    job: &Verified<Job>,
    id: &JobId,
) -> Result<(Verdict, Option<Question>), StoreError> {
    // Without any policy the first one is worth waiting for, whatever the job asks.
    core.catch_up(job.get().min_policy_version.max(1)).await;
    let policy_version = core.policy_version();
    let no = |refused| Ok((Err(Refusal::of(refused, policy_version)), None));
    let facts = core.facts(keyring);
    if let Err(refused) = admit(job.get(), &facts) {
        return no(refused);
    }
    if core.cancels.is_cancelled(id, facts.now) {
        let message = "it was called off before it came".to_owned();
        return no(Refused { reason: Reject::Cancelled, message });
    }
    if core.board.room() == 0 {
        let message = format!("{} jobs wait already", core.config.queue);
        return no(Refused { reason: Reject::QueueFull, message });
    }
    let (gate, keyring, work) = (core.deps.gate.clone(), keyring.clone(), job.get().clone());
    let now = facts.now;
    let ask = move || permit::ask(&gate, &keyring, &work, now);
    let permit = tokio::task::spawn_blocking(ask).await.map_err(|e| StoreError(e.to_string()))?;
    let asked = Question::of(&permit.asked);
    if !permit.allowed {
        return Ok((Err(Refusal::by_policy(&permit)), asked));
    }
    Ok((Ok((permit.policy_version, permit.rule)), asked))
}

async fn take_cancel(core: &Arc<Core>, envelope: &Envelope) -> Result<(), StoreError> {
    let Some(keyring) = core.keyring() else { return Ok(()) };
    let cancel = match keyring.cancel(envelope) {
        Ok(cancel) => cancel,
        Err(error) => {
            tracing::warn!(%error, "a cancel that nobody signed");
            return Ok(());
        }
    };
    let cancel = cancel.get();
    core.deps.time.observe(cancel.issued_at);
    let facts = core.facts(&keyring);
    if let Err(refused) = admit_cancel(cancel, &facts) {
        tracing::warn!(%refused, job_id = cancel.job_id.escape_debug().to_string(), "void cancel");
        return Ok(());
    }
    let Ok(id) = JobId::try_from(cancel.job_id.as_str()) else { return Ok(()) };
    let by = CalledOff { caller: None, reason: cancel.reason.clone() };
    match core.board.cancel(&id, by.clone()) {
        Found::Waiting(item) => {
            let ended = Ended::cancelled().called_off(&by);
            core.conclude(item.entry, ended, None).await
        }
        Found::Running => Ok(()),
        Found::Nowhere => {
            if core.deps.journal.get(&id)?.is_none() {
                core.cancels.remember(id, cancel.expires_at, facts.now);
            }
            Ok(())
        }
    }
}
