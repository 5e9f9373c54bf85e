//! Results: written durably, kept until the hub has them, sent oldest first. What the journal
//! knows of a job's end is enough to make its result again, without the output.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use jtnt_proto::{
    audit::{Caller, Event, Status},
    bytes::Hash,
    hub::{JobResult, JobStatusState, Outcome},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    core::{Core, bounded},
    report::Report,
    runner::Ended,
};
use crate::{
    audit::Record,
    domain::{
        ids::JobId,
        job::{Dropped, Entry, State},
    },
    hub::{
        HubClient, HubError,
        retry::{Retry, is_final, wanted},
    },
    store::StoreError,
};

/// Results under way at once.
const AT_ONCE: usize = 8;
/// Ids of undelivered jobs in memory; the journal has the rest.
const WINDOW: usize = 1024;
/// A result with both outputs at their bound, in base64, and room for the rest.
pub(super) const MAX_RESULT_BYTES: u64 = 1 << 20;

/// The oldest jobs whose end the hub does not know.
#[derive(Debug, Default)]
pub(super) struct Window {
    inner: Mutex<Ids>,
    added: Notify,
    /// What waited has gone.
    emptied: Notify,
}

#[derive(Debug)]
struct Ids {
    waiting: VecDeque<JobId>,
    under_way: BTreeSet<JobId>,
    /// The journal has more.
    more: bool,
}

impl Default for Ids {
    /// At the start everything is in the journal.
    fn default() -> Self {
        Self { waiting: VecDeque::new(), under_way: BTreeSet::new(), more: true }
    }
}

impl Window {
    /// One more, the newest.
    pub(super) fn add(&self, id: JobId) {
        let mut ids = self.lock();
        if ids.more || ids.waiting.len() >= WINDOW {
            ids.more = true;
        } else if !ids.waiting.contains(&id) {
            ids.waiting.push_back(id);
        }
        drop(ids);
        self.added.notify_one();
    }

    fn take(&self) -> Option<JobId> {
        let mut ids = self.lock();
        let id = ids.waiting.pop_front()?;
        ids.under_way.insert(id.clone());
        Some(id)
    }

    fn done(&self, id: &JobId) {
        self.lock().under_way.remove(id);
        self.emptied.notify_waiters();
    }

    /// Waits until no end of a job waits for the hub.
    pub(super) async fn idle(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.is_idle() {
                return;
            }
            emptied.await;
        }
    }

    fn is_idle(&self) -> bool {
        let ids = self.lock();
        ids.waiting.is_empty() && ids.under_way.is_empty() && !ids.more
    }

    fn again(&self, id: JobId) {
        let mut ids = self.lock();
        ids.under_way.remove(&id);
        ids.waiting.push_front(id);
    }

    fn wants_more(&self) -> bool {
        let ids = self.lock();
        ids.more && ids.waiting.is_empty()
    }

    fn fill(&self, undelivered: Vec<Entry>) {
        let mut ids = self.lock();
        let (under_way, mut new) = (&ids.under_way, VecDeque::new());
        let waits = |e: &Entry| !e.reported && !under_way.contains(&e.job_id);
        let mut rest = undelivered.into_iter().filter(waits).map(|e| e.job_id);
        new.extend(rest.by_ref().take(WINDOW));
        let more = rest.next().is_some();
        drop(rest);
        (ids.waiting, ids.more) = (new, more);
        drop(ids);
        self.emptied.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Ids> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Ends a job: first the result becomes durable, with the journal's record of the end or
    /// before it, then the audit line, and only then does the hub hear of it. A crash in between
    /// leaves the result, from which the next start makes the same line again; side by side, a
    /// line could be all that is left, and a second one contradict it.
    pub(super) async fn conclude(
        &self,
        mut entry: Entry,
        ended: Ended,
        caller: Option<Caller>,
    ) -> Result<(), StoreError> {
        self.board.vacate(&entry.job_id);
        entry.state = State::Finished(ended.outcome);
        entry.finished_at = Some(self.deps.clock.now());
        entry.exit_code = ended.exit_code;
        entry.signal = ended.signal;
        entry.reason = ended.reason.map(str::to_owned);
        entry.message = ended.message.map(bounded);
        let outputs = [&ended.stdout, &ended.stderr].into_iter().flatten();
        entry.parts = outputs.flat_map(|output| output.parts.clone()).collect();
        self.pending_bytes.fetch_add(entry.bytes_to_follow(), Ordering::Relaxed);
        let artifact = ended.artifact;
        let result = JobResult {
            stdout: ended.stdout,
            stderr: ended.stderr,
            artifact,
            ..summary(&entry, ended.outcome)
        };
        let body = serde_json::to_vec(&result).map_err(|e| StoreError(e.to_string()))?;
        entry.result_sha256 = Some(Hash::of(&body));
        let mut record = executed(&entry, ended.outcome);
        record.caller = caller;
        if let Some(artifact) = artifact {
            record = record.detail("artifact_sha256", artifact.sha256.to_string());
        }
        tracing::info!(
            job_id = %entry.job_id,
            "type" = entry.kind,
            rule = entry.rule,
            outcome = entry.state.word(),
            duration_ms = entry.duration_ms,
            exit_code = entry.exit_code,
            reason = entry.reason,
            "job ended"
        );
        let recorded = self.record_end(&mut entry, body, record).await;
        let status = status_name(ended.outcome);
        self.deps.metrics.jobs_executed.with_label_values(&[entry.kind.as_str(), status]).inc();
        recorded?;
        self.window.add(entry.job_id);
        self.show();
        Ok(())
    }

    async fn record_end(
        &self,
        entry: &mut Entry,
        body: Vec<u8>,
        record: Record,
    ) -> Result<(), StoreError> {
        let body = match self.enclose(entry, body) {
            Ok(()) => {
                let Err(error) = self.deps.journal.update(entry.clone()).await else {
                    self.log(record).await;
                    return Ok(());
                };
                tracing::error!(%error, job_id = %entry.job_id, "an end is not in the journal");
                self.disclose(entry)
            }
            Err(large) => large,
        };
        if let Err(error) = self.store_result(entry, body).await {
            tracing::error!(%error, job_id = %entry.job_id, "a result will go without its output");
        }
        self.log(record).await;
        self.deps.journal.update(entry.clone()).await
    }
}

/// What the journal knows of a job's end, as the hub reads it.
pub(super) fn summary(entry: &Entry, outcome: Outcome) -> JobResult {
    JobResult {
        job_id: entry.job_id.to_string(),
        attempt: entry.attempt,
        outcome,
        exit_code: entry.exit_code,
        signal: entry.signal,
        reason: entry.reason.clone(),
        message: entry.message.clone(),
        started_at: entry.started_at,
        finished_at: entry.finished_at.unwrap_or(entry.received_at),
        duration_ms: entry.duration_ms.unwrap_or(0),
        stdout: None,
        stderr: None,
        artifact: None,
        user: entry.user.clone(),
        enforcement: entry.enforcement.clone().unwrap_or_else(|| "none".to_owned()),
        policy_version: entry.policy_version,
        rule: entry.rule.clone(),
    }
}

/// The audit line of a job's end.
pub(super) fn executed(entry: &Entry, outcome: Outcome) -> Record {
    let mut record = Record::of(Event::JobExecuted)
        .detail("type", entry.kind.clone())
        .detail("state", State::Finished(outcome).word())
        .detail("duration_ms", entry.duration_ms.unwrap_or(0));
    let numbers = [("exit_code", entry.exit_code), ("signal", entry.signal)];
    for (name, number) in numbers {
        if let Some(number) = number {
            record = record.detail(name, number);
        }
    }
    let texts = [
        ("reason", entry.reason.clone()),
        ("rule", entry.rule.clone()),
        ("enforcement", entry.enforcement.clone()),
        ("result_sha256", entry.result_sha256.map(|h| h.to_string())),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            record = record.detail(name, text);
        }
    }
    record.job_id = Some(entry.job_id.to_string());
    record.command = Some(entry.command.clone());
    record.status = Some(status(outcome));
    record.user.clone_from(&entry.user);
    record.policy_version = Some(entry.policy_version);
    record
}

const fn status(outcome: Outcome) -> Status {
    match outcome {
        Outcome::Ok => Status::Success,
        Outcome::Timeout => Status::Timeout,
        Outcome::Cancelled => Status::Cancelled,
        Outcome::Failed | Outcome::Interrupted | Outcome::Indeterminate => Status::Error,
    }
}

/// The same as the metric's label.
const fn status_name(outcome: Outcome) -> &'static str {
    match status(outcome) {
        Status::Success => "success",
        Status::Error => "error",
        Status::Timeout => "timeout",
        Status::Denied => "denied",
        Status::Cancelled => "cancelled",
    }
}

/// Sends what the hub does not have, until the agent stops.
pub(super) async fn run(core: Arc<Core>, shutdown: CancellationToken) {
    if let Err(error) = core.mend().await {
        tracing::error!(%error, "a job's end may be missing from the audit log");
    }
    let mut retry = Retry::default();
    let mut link = core.deps.link.clone();
    loop {
        let hub = tokio::select! {
            hub = link.wait_for(Option::is_some) => hub.ok().and_then(|hub| hub.clone()),
            () = shutdown.cancelled() => return,
        };
        let Some(hub) = hub else { return };
        let pause = tokio::select! {
            pause = drain(&core, &hub, &mut retry) => retry.wait(pause, &*core.deps.entropy),
            changed = link.changed() => match changed {
                Ok(()) => Duration::ZERO,
                Err(_closed) => return,
            },
            () = shutdown.cancelled() => return,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Sends until something fails that may succeed later. Dropping it is safe: the ids that were
/// under way are read from the journal again.
async fn drain(core: &Core, hub: &HubClient, retry: &mut Retry) -> Duration {
    {
        let mut ids = core.window.lock();
        if !ids.under_way.is_empty() {
            ids.under_way.clear();
            ids.waiting.clear();
            ids.more = true;
        }
    }
    let mut posts = FuturesUnordered::new();
    let mut failed = None;
    loop {
        if failed.is_none() {
            if core.window.wants_more() {
                match core.deps.journal.undelivered() {
                    Ok(entries) => core.window.fill(entries),
                    Err(error) => {
                        tracing::error!(%error, "what the hub does not know cannot be read");
                        failed = Some(Duration::ZERO);
                    }
                }
            }
            while posts.len() < AT_ONCE
                && let Some(id) = core.window.take()
            {
                posts.push(async move { (deliver(core, hub, &id).await, id) });
            }
        }
        if posts.is_empty()
            && let Some(pause) = failed
        {
            return pause;
        }
        tokio::select! {
            Some((sent, id)) = posts.next(), if !posts.is_empty() => match sent {
                Ok(()) => {
                    core.window.done(&id);
                    retry.succeeded();
                    core.show();
                }
                Err(undelivered) => {
                    tracing::debug!(%undelivered, job_id = %id, "a job's end waits");
                    core.window.again(id);
                    let pause = match &undelivered {
                        Undelivered::Hub(error) => wanted(error),
                        Undelivered::Store(_) | Undelivered::File(_) => Duration::ZERO,
                    };
                    failed = Some(failed.unwrap_or_default().max(pause));
                }
            },
            () = core.window.added.notified(), if failed.is_none() => {}
        }
    }
}

/// Why the hub does not know of a job's end yet.
#[derive(Debug, thiserror::Error)]
enum Undelivered {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    File(#[from] io::Error),
}

async fn deliver(core: &Core, hub: &HubClient, id: &JobId) -> Result<(), Undelivered> {
    let entry = core.deps.journal.get(id)?;
    let Some(entry) = entry.filter(|e| !e.delivered && !e.reported) else { return Ok(()) };
    let sent = match entry.state {
        State::Finished(outcome) => {
            let body = core.result_body(&entry, outcome).await?;
            hub.job_result(id, body).await.map(drop)
        }
        State::Rejected => {
            let at = entry.finished_at.unwrap_or(entry.received_at);
            let (id, status) = Report::of(&entry, JobStatusState::Rejected, at).into_parts();
            hub.job_status(&id, &status).await
        }
        State::Queued | State::Starting | State::Running => return Ok(()),
    };
    match sent {
        Err(error) if is_final(&error) => {
            // The audit log keeps what happened; the hub does not want to know.
            tracing::error!(%error, job_id = %id, "the hub refuses a job's end for good");
            if !entry.parts.is_empty() {
                return Ok(core.drop_output(entry, Dropped::Refused).await?);
            }
        }
        Err(error) => {
            core.set_aside(entry).await?;
            return Err(error.into());
        }
        Ok(()) => {}
    }
    Ok(core.delivered(entry).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::fixture::entry;

    fn id(text: &str) -> JobId {
        JobId::try_from(text).unwrap()
    }

    #[test]
    fn the_window_sends_oldest_first_and_reads_the_rest_from_the_journal() {
        let window = Window::default();
        assert!(window.wants_more(), "after a start");
        window.fill((0..WINDOW + 1).map(|n| entry(&format!("j{n}"))).collect());
        window.add(id("new"));
        for n in 0..WINDOW {
            assert_eq!(window.take(), Some(id(&format!("j{n}"))));
        }
        assert_eq!(window.take(), None);
        assert!(window.wants_more(), "the newest are still in the journal");
        window.done(&id("j0"));
        window.fill(vec![entry("j1"), entry("new")]);
        assert_eq!(window.take(), Some(id("new")), "j1 is under way");
    }

    #[test]
    fn what_failed_goes_first_again() {
        let window = Window::default();
        window.fill(vec![entry("a"), entry("b")]);
        let first = window.take().unwrap();
        window.again(first);
        assert_eq!(window.take(), Some(id("a")));
        window.add(id("b"));
        assert_eq!((window.take(), window.take()), (Some(id("b")), None), "no id waits twice");
    }
}
