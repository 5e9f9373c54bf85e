//! Enrolments happen in another process, often before the daemon ever ran: their traces are
//! counted and recorded here, and a new identity is taken up without a restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use jtnt_proto::audit::{Caller, Event, Status};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    published::Published,
    reload::{By, Reloader},
};
use crate::{
    audit::{Audit, Record},
    enrol::attempts::{Attempt, read_from},
    identity::{IdentityError, Paths},
    platform::{paths::Inode, users},
    store::Journal,
    telemetry::metrics::Metrics,
};

const LOOK: Duration = Duration::from_secs(2);
/// So many looks apart, an identity that cannot be used is read again.
const UNUSABLE_LOOKS: u64 = 5;
const CURSOR: &str = "enrolments";

/// Looks for new attempts, and for an identity that changed.
#[derive(Debug)]
pub(super) struct Enrolments {
    pub(super) data_dir: PathBuf,
    pub(super) journal: Journal,
    pub(super) audit: Audit,
    pub(super) metrics: Metrics,
    pub(super) published: Arc<Published>,
    pub(super) reloader: Arc<Reloader>,
}

/// What is known of attempts so far; outlives the process, as counters of a fleet must.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    next: u64,
    success: u64,
    error: u64,
}

/// Tells whether a file is the same as before, without reading it.
type Mark = Option<(Inode, u64, SystemTime)>;

impl Enrolments {
    /// Watches until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut known = self.known();
        for (status, count) in [("success", known.success), ("error", known.error)] {
            self.metrics.enrollment_attempts.with_label_values(&[status]).inc_by(count);
        }
        let paths = Paths { data_dir: self.data_dir.clone() };
        let (mut attempts, mut certificate) = (None, mark(&paths.client_crt()));
        let mut looks = 0_u64;
        loop {
            let seen = mark(&paths.attempts());
            // What could not be recorded stays to be read the next time.
            if seen != attempts && self.take(&mut known).await {
                attempts = seen;
            }
            let seen = mark(&paths.client_crt());
            if seen != certificate {
                certificate = seen;
                // The configuration names the hub that the identity is for.
                if let Err(error) = self.reloader.reload(By::Enrolment).await {
                    tracing::error!(error, "the configuration cannot be read again");
                    self.reloader.refresh_identity().await;
                }
            }
            // A full disk, say, may have been all that was wrong.
            looks += 1;
            let unusable =
                matches!(&*self.published.identity.borrow(), Err(IdentityError::Unusable(_)));
            if unusable && looks.is_multiple_of(UNUSABLE_LOOKS) {
                self.reloader.refresh_identity().await;
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.published.stale.notified() => self.reloader.refresh_identity().await,
                () = stop.cancelled() => return,
            }
        }
    }

    /// Counts and records what is new; whether all of it was.
    async fn take(&self, known: &mut Known) -> bool {
        let (dir, from) = (self.data_dir.clone(), known.next);
        let read = tokio::task::spawn_blocking(move || read_from(&dir, from)).await;
        let new = match read.map_err(io::Error::other) {
            Ok(Ok(new)) => new,
            Ok(Err(error)) | Err(error) => {
                tracing::warn!(%error, "attempts to enrol cannot be read");
                return false;
            }
        };
        for attempt in new {
            let status = if attempt.status == "success" { "success" } else { "error" };
            let next = attempt.seq.saturating_add(1);
            if let Err(error) = self.audit.append(record(attempt)).await {
                tracing::error!(%error, "an enrolment is not in the audit log");
                return false;
            }
            self.metrics.enrollment_attempts.with_label_values(&[status]).inc();
            known.next = next;
            *(if status == "success" { &mut known.success } else { &mut known.error }) += 1;
            self.remember(*known).await;
        }
        true
    }

    fn known(&self) -> Known {
        let stored = self.journal.cursor(CURSOR).ok().flatten().unwrap_or_default();
        serde_json::from_slice(&stored).unwrap_or_default()
    }

    async fn remember(&self, known: Known) {
        let value = serde_json::to_vec(&known).unwrap_or_default();
        if let Err(error) = self.journal.set_cursor(CURSOR, value).await {
            tracing::warn!(%error, "an enrolment may be recorded a second time");
        }
    }
}

fn mark(path: &Path) -> Mark {
    let meta = fs::symlink_metadata(path).ok()?;
    Some((Inode::of(&meta), meta.len(), meta.modified().ok()?))
}

fn record(attempt: Attempt) -> Record {
    let success = attempt.status == "success";
    let mut record = Record::of(Event::Enrollment).detail("at", attempt.at.to_string());
    for (name, value) in [
        ("reason", attempt.reason),
        ("message", attempt.message),
        ("enrolled_as", attempt.agent_id),
    ] {
        if let Some(value) = value {
            record = record.detail(name, value);
        }
    }
    record.status = Some(if success { Status::Success } else { Status::Error });
    record.caller = Some(match attempt.uid {
        Some(uid) => Caller { uid: Some(uid), pid: attempt.pid, name: users::name_of(uid) },
        // An older version did not keep it. Nobody but the agent's own user can have enrolled it.
        None => Caller { uid: Some(users::own_uid()), pid: None, name: None },
    });
    record.object = Some(attempt.hub);
    record
}
