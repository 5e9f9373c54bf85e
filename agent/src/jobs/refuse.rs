//! How a refusal is written down. A verified job's refusal consumes its id; of what is not
//! verified only a bounded number of lines a minute is kept, or a hub could fill the disk.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jtnt_proto::{
    audit::{Event, Status},
    hub::JobStatusState,
};

use super::{
    core::{Core, bounded},
    permit::Permit,
    report::Report,
};
use crate::{
    audit::Record,
    domain::{
        admission::Refused,
        flood::Flood,
        ids::JobId,
        job::{Entry, Reject, State},
    },
    store::{Admission, Question, StoreError},
};

/// Lines a minute about jobs that nobody signed; a hub can make up as many as it likes.
const STRANGERS_A_MINUTE: u32 = 10;
/// The same about signed jobs that cannot run here: a hub can send those of other agents.
const SIGNED_A_MINUTE: u32 = 60;

/// A no, with everything that is told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reject,
    /// What is wrong with the path itself, where no rule was asked: told instead of `reason`.
    pub(super) path_fault: Option<&'static str>,
    pub(super) message: String,
    /// The policy's own word, where it was the policy that refused.
    pub(super) decision: Option<&'static str>,
    pub(super) rule: Option<String>,
    pub(super) policy_version: u64,
}

impl Refusal {
    pub(super) fn of(refused: Refused, policy_version: u64) -> Self {
        let Refused { reason, message } = refused;
        let message = bounded(message);
        Self { reason, path_fault: None, message, decision: None, rule: None, policy_version }
    }

    pub(super) fn by_policy(permit: &Permit) -> Self {
        let reason =
            if permit.reason == "ENFORCEMENT" { Reject::Enforcement } else { Reject::Denied };
        Self {
            reason,
            path_fault: permit.canonical.is_none().then_some(permit.reason),
            message: bounded(permit.message.clone()),
            decision: Some(permit.reason),
            rule: permit.rule.clone(),
            policy_version: permit.policy_version,
        }
    }

    /// The word for journal, hub and people. The metric has [`Reject`]'s, which are fewer.
    pub(super) fn told(&self) -> &'static str {
        self.path_fault.unwrap_or(self.reason.name())
    }
}

impl Core {
    /// Refuses a job whose id must not be consumed: nobody's signature stands behind it, or the id
    /// was used before.
    pub(super) async fn refuse_stranger(&self, claimed_id: &str, refused: Refused) {
        let refused = Refused { message: bounded(refused.message), ..refused };
        self.deps.metrics.jobs_rejected.with_label_values(&[refused.reason.name()]).inc();
        if let Ok(id) = JobId::try_from(claimed_id) {
            let (reason, message) = (refused.reason.name(), refused.message.clone());
            self.report(Report::rejected(id.clone(), reason, message, self.deps.clock.now()));
            if lock(&self.throttle.strangers).allows(self.deps.clock.uptime(), refused.reason) {
                let mut record = Record::of(Event::JobRejected)
                    .detail("reason", refused.reason.name())
                    .detail("message", refused.message);
                record.job_id = Some(id.to_string());
                record.status = Some(Status::Denied);
                self.log(record).await;
            }
        }
        self.log_suppressed().await;
    }

    /// One line for all that were not written, once their minute is over.
    pub(super) async fn log_suppressed(&self) {
        let now = self.deps.clock.uptime();
        for flood in [&self.throttle.strangers, &self.throttle.signed] {
            let held_back = lock(flood).due(now);
            self.log_held_back(held_back).await;
        }
    }

    /// The same before that, at the end.
    pub(super) async fn log_last_suppressed(&self) {
        let now = self.deps.clock.uptime();
        for flood in [&self.throttle.strangers, &self.throttle.signed] {
            let held_back = lock(flood).take(now);
            self.log_held_back(held_back).await;
        }
    }

    async fn log_held_back(&self, held_back: BTreeMap<Reject, u64>) {
        if held_back.is_empty() {
            return;
        }
        let total: u64 = held_back.values().sum();
        let reasons =
            held_back.into_iter().map(|(why, count)| (why.name().to_owned(), count.into()));
        let mut record = Record::of(Event::JobRejected)
            .detail("suppressed", total)
            .detail("reasons", reasons.collect::<serde_json::Map<_, _>>());
        record.status = Some(Status::Denied);
        record.object = Some("jobs".to_owned());
        self.log(record).await;
    }

    /// Refuses a verified job that the journal does not know yet, and consumes its id; `asked` is
    /// what the policy was asked, if it was.
    pub(super) async fn refuse_new(
        &self,
        mut entry: Entry,
        refusal: Refusal,
        asked: Option<Question>,
    ) -> Result<Admission, StoreError> {
        self.turn_down(&mut entry, &refusal);
        let admission = self.deps.journal.admit_asking(entry.clone(), asked).await?;
        if admission == Admission::New {
            self.tell_refusal(&entry, refusal).await;
        }
        Ok(admission)
    }

    /// Refuses a job that was accepted before and may no longer start.
    pub(super) async fn refuse_queued(
        &self,
        mut entry: Entry,
        refusal: Refusal,
    ) -> Result<(), StoreError> {
        self.turn_down(&mut entry, &refusal);
        self.deps.journal.update(entry.clone()).await?;
        self.tell_refusal(&entry, refusal).await;
        Ok(())
    }

    fn turn_down(&self, entry: &mut Entry, refusal: &Refusal) {
        entry.state = State::Rejected;
        entry.finished_at = Some(self.deps.clock.now());
        entry.reason = Some(refusal.told().to_owned());
        entry.message = Some(refusal.message.clone());
        entry.policy_version = refusal.policy_version;
        entry.rule.clone_from(&refusal.rule);
    }

    async fn tell_refusal(&self, entry: &Entry, refusal: Refusal) {
        let reason = refusal.reason.name();
        tracing::info!(
            job_id = %entry.job_id,
            "type" = entry.kind,
            rule = refusal.rule,
            outcome = entry.state.word(),
            reason = refusal.told(),
            "job refused"
        );
        self.deps.metrics.jobs_rejected.with_label_values(&[reason]).inc();
        let mut record = match refusal.decision {
            Some(decision) => {
                self.count_violation(&entry.kind);
                self.deps
                    .metrics
                    .jobs_executed
                    .with_label_values(&[entry.kind.as_str(), "denied"])
                    .inc();
                violation(decision, refusal.rule)
            }
            None if !lock(&self.throttle.signed)
                .allows(self.deps.clock.uptime(), refusal.reason) =>
            {
                self.tell_hub(entry);
                return;
            }
            None => Record::of(Event::JobRejected).detail("reason", reason),
        };
        record = record.detail("type", entry.kind.as_str()).detail("message", refusal.message);
        record.job_id = Some(entry.job_id.to_string());
        record.command = Some(entry.command.clone());
        record.status = Some(Status::Denied);
        record.policy_version = Some(refusal.policy_version);
        self.log(record).await;
        self.tell_hub(entry);
    }

    fn tell_hub(&self, entry: &Entry) {
        self.window.add(entry.job_id.clone());
        self.show();
    }

    /// Records a violation that monitor mode let pass.
    pub(super) async fn tell_monitored(&self, entry: &Entry, permit: &Permit) {
        self.count_violation(&entry.kind);
        let mut record = violation(permit.reason, permit.rule.clone())
            .detail("type", entry.kind.as_str())
            .detail("message", permit.message.clone())
            .detail("monitored", true);
        // It was let pass.
        record.status = Some(Status::Success);
        record.job_id = Some(entry.job_id.to_string());
        record.command = Some(entry.command.clone());
        record.policy_version = Some(permit.policy_version);
        self.log(record).await;
    }

    fn count_violation(&self, kind: &str) {
        let kind = if matches!(kind, "exec" | "script") { kind } else { "file" };
        self.deps.metrics.policy_violations.with_label_values(&[kind]).inc();
    }

    /// Logs what happens anyway: a refusal is not undone because it cannot be written down.
    pub(super) async fn log(&self, record: Record) {
        if let Err(error) = self.deps.audit.append(record).await {
            tracing::error!(%error, "an event is missing from the audit log");
        }
    }
}

fn violation(decision: &'static str, rule: Option<String>) -> Record {
    let record = Record::of(Event::PolicyViolation).detail("reason", decision);
    match rule {
        Some(rule) => record.detail("rule", rule),
        None => record,
    }
}

/// Counts lines, apart for those whom nobody signed: a flood of these hides none of the others.
#[derive(Debug)]
pub(super) struct Throttle {
    strangers: Mutex<Flood<Reject>>,
    signed: Mutex<Flood<Reject>>,
}

impl Default for Throttle {
    fn default() -> Self {
        let of = |most| Mutex::new(Flood::of(most));
        Self { strangers: of(STRANGERS_A_MINUTE), signed: of(SIGNED_A_MINUTE) }
    }
}

fn lock(flood: &Mutex<Flood<Reject>>) -> MutexGuard<'_, Flood<Reject>> {
    flood.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A state of the hub's that a record stands for, when a lease comes again.
pub(super) const fn status_of(state: State) -> Option<JobStatusState> {
    match state {
        State::Queued => Some(JobStatusState::Accepted),
        State::Starting | State::Running => Some(JobStatusState::Running),
        State::Finished(_) | State::Rejected => None,
    }
}
