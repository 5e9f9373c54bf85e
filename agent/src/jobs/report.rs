//! News of a job that the hub may miss: `accepted` and `running`, and refusals of what was never
//! verified. A hub that missed them lends the job again, and they are sent again.

use jiff::Timestamp;
use jtnt_proto::hub::{JobStatus, JobStatusState};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::core::Core;
use crate::{
    domain::{ids::JobId, job::Entry},
    runtime::tasks::Class,
};

/// News that waits; more is dropped.
pub(super) const QUEUE: usize = 1024;
const AT_ONCE: usize = 8;

/// One piece of news.
#[derive(Debug)]
pub(super) struct Report {
    id: JobId,
    status: JobStatus,
}

impl Report {
    pub(super) fn of(entry: &Entry, state: JobStatusState, at: Timestamp) -> Self {
        let status = JobStatus {
            attempt: entry.attempt,
            state,
            reason: entry.reason.clone(),
            message: entry.message.clone(),
            policy_version: Some(entry.policy_version).filter(|v| *v > 0),
            rule: entry.rule.clone(),
            at,
        };
        Self { id: entry.job_id.clone(), status }
    }

    pub(super) fn rejected(id: JobId, reason: &str, message: String, at: Timestamp) -> Self {
        let status = JobStatus {
            attempt: 1,
            state: JobStatusState::Rejected,
            reason: Some(reason.to_owned()),
            message: Some(message),
            policy_version: None,
            rule: None,
            at,
        };
        Self { id, status }
    }

    /// The job.
    pub(super) const fn id(&self) -> &JobId {
        &self.id
    }

    /// The words of it, for whoever must be sure that they arrive.
    pub(super) fn into_parts(self) -> (JobId, JobStatus) {
        (self.id, self.status)
    }
}

impl Core {
    /// Leaves news to be sent, without waiting.
    pub(super) fn report(&self, report: Report) {
        if let Err(lost) = self.reports.try_send(report) {
            tracing::debug!(%lost, "news for the hub was dropped");
        }
    }
}

/// Sends news, a few at a time, until the agent stops.
pub(super) async fn run(
    core: std::sync::Arc<Core>,
    mut queue: mpsc::Receiver<Report>,
    shutdown: CancellationToken,
) {
    let slots = std::sync::Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let next = async {
            let slot = std::sync::Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, queue.recv().await?))
        };
        let (slot, report) = tokio::select! {
            next = next => match next { Some(next) => next, None => return },
            () = shutdown.cancelled() => return,
        };
        let Some(hub) = core.deps.link.borrow().clone() else { continue };
        let stop = shutdown.clone();
        core.deps.tasks.spawn("job-news", Class::OneShot, async move {
            let sent = tokio::select! {
                sent = hub.job_status(&report.id, &report.status) => sent,
                () = stop.cancelled() => return,
            };
            if let Err(error) = sent {
                tracing::debug!(%error, job_id = %report.id, "the hub missed news of a job");
            }
            drop(slot);
        });
    }
}
