//! Refused callers, counted: one audit line a minute for each user, so that nobody fills the disk
//! by knocking.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jtnt_proto::audit::{Caller, Event};
use tokio_util::sync::CancellationToken;

use crate::{audit::Audit, audit::Record, platform::users, telemetry::metrics::Metrics};

const EVERY: Duration = Duration::from_secs(60);
/// Users that are told apart in one minute; the rest share a line.
const MAX_USERS: usize = 64;

/// Why a caller was turned away, as the metric has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// The kernel did not say who it is.
    NoCredential,
    /// Its role is not enough.
    Role,
    /// Too many connections, or too fast.
    Rate,
    /// It does not speak HTTP/2.
    Protocol,
}

impl Why {
    const fn word(self) -> &'static str {
        match self {
            Self::NoCredential => "no_credential",
            Self::Role => "role",
            Self::Rate => "rate",
            Self::Protocol => "protocol",
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    pid: Option<u32>,
    method: Option<String>,
    counts: BTreeMap<Why, u64>,
}

/// Refusals since the last line.
#[derive(Debug)]
pub(super) struct Refusals {
    metrics: Metrics,
    /// By uid; `None` for those that are unknown or too many.
    tallies: Mutex<BTreeMap<Option<u32>, Tally>>,
}

impl Refusals {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, tallies: Mutex::default() }
    }

    /// Counts one.
    pub(super) fn count(&self, why: Why, uid: Option<u32>, pid: Option<u32>, method: Option<&str>) {
        self.metrics.admin_refused.with_label_values(&[why.word()]).inc();
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tallies.len() < MAX_USERS || tallies.contains_key(&uid);
        let tally = tallies.entry(uid.filter(|_| known)).or_default();
        *tally.counts.entry(why).or_default() += 1;
        tally.pid = tally.pid.or(pid);
        if tally.method.is_none() {
            tally.method = method.map(|m| m.chars().take(128).collect());
        }
    }

    /// What there is to write, one record a user.
    fn take(&self) -> Vec<Record> {
        let tallies =
            std::mem::take(&mut *self.tallies.lock().unwrap_or_else(PoisonError::into_inner));
        tallies.into_iter().map(|(uid, tally)| record(uid, tally)).collect()
    }

    /// Writes a line a minute for each refused user, and what is left at the end.
    pub(super) async fn run(&self, audit: &Audit, shutdown: CancellationToken) {
        let mut last = false;
        while !last {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = shutdown.cancelled() => last = true,
            }
            for record in self.take() {
                if let Err(error) = audit.append(record).await {
                    tracing::error!(%error, "refused callers are not in the audit log");
                }
            }
        }
    }
}

fn record(uid: Option<u32>, tally: Tally) -> Record {
    let mut record = Record::of(Event::Refused);
    for (why, count) in tally.counts {
        record = record.detail(why.word(), count);
    }
    record.command = tally.method;
    match uid {
        Some(uid) => record.caller = Some(caller(uid, tally.pid)),
        None => record = record.detail("by", "users who are not known, or too many"),
    }
    record
}

/// A caller as the log has it.
pub(super) fn caller(uid: u32, pid: Option<u32>) -> Caller {
    Caller { uid: Some(uid), pid, name: users::name_of(uid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_user_is_one_line() {
        let metrics = Metrics::new("test").unwrap();
        let refusals = Refusals::new(metrics.clone());
        for _ in 0..500 {
            refusals.count(Why::Role, Some(1000), Some(9), Some("/a.B/C"));
        }
        refusals.count(Why::Rate, Some(1000), Some(10), None);
        let records = refusals.take();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].details["role"], 500);
        assert_eq!(records[0].details["rate"], 1);
        assert_eq!(records[0].command.as_deref(), Some("/a.B/C"));
        assert_eq!(records[0].caller.as_ref().unwrap().uid, Some(1000));
        assert!(refusals.take().is_empty());
        assert_eq!(metrics.admin_refused.with_label_values(&["role"]).get(), 500);
    }

    #[test]
    fn a_flood_of_many_users_is_a_bounded_number_of_lines() {
        let refusals = Refusals::new(Metrics::new("test").unwrap());
        for uid in 0..10_000 {
            refusals.count(Why::Role, Some(uid), None, None);
        }
        assert_eq!(refusals.take().len(), MAX_USERS + 1);
    }
}
