//! What the journal knows of a job, and the states it goes through.

use jiff::Timestamp;
use jtnt_proto::{
    bytes::Hash,
    envelope::Envelope,
    hub::{Outcome, OutputPart},
};
use serde::{Deserialize, Serialize};

use super::ids::JobId;

/// Where a job stands. Each is durable before its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "outcome")]
pub enum State {
    /// Taken and allowed; waits for a worker.
    Queued,
    /// About to be started; whether it was is not yet known.
    Starting,
    /// Runs, under [`Entry::process`].
    Running,
    /// Ended.
    Finished(Outcome),
    /// Refused, with [`Entry::reason`].
    Rejected,
}

impl State {
    /// The word that commands show: `queued`, `running`, `ok`, ...
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting | Self::Running => "running",
            Self::Finished(Outcome::Ok) => "ok",
            Self::Finished(Outcome::Failed) => "failed",
            Self::Finished(Outcome::Timeout) => "timeout",
            Self::Finished(Outcome::Cancelled) => "cancelled",
            Self::Finished(Outcome::Interrupted) => "interrupted",
            Self::Finished(Outcome::Indeterminate) => "indeterminate",
            Self::Rejected => "rejected",
        }
    }

    /// Whether nothing more will happen to the job itself.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Finished(_) | Self::Rejected)
    }
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id, also that of its group.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_time: u64,
    /// The boot it belongs to.
    pub boot_id: String,
    /// Its cgroup, where it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// One job in the journal. This is the journal's record format: fields are added, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The job.
    pub job_id: JobId,
    /// `exec`, `script`, `download`, `upload`.
    pub kind: String,
    /// Program and arguments, or the transfer's path, for people.
    pub command: String,
    /// The signed job, to be verified again after a restart. Absent once delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<Envelope>,
    /// Where it stands.
    #[serde(flatten)]
    pub state: State,
    /// Which run, from 1.
    pub attempt: u32,
    /// When it was taken.
    pub received_at: Timestamp,
    /// From then on its id may be forgotten.
    pub expires_at: Timestamp,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended or was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Wall time by a clock that does not jump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// The process, once it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Stable reason of anything but `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whom it ran as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The policy that decided; 0 without one.
    pub policy_version: u64,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Whether violations passed, so that it was watched.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub monitored: bool,
    /// What the operating system enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<String>,
    /// Bytes the job wrote to standard output.
    #[serde(default)]
    pub stdout_bytes: u64,
    /// Bytes the job wrote to standard error.
    #[serde(default)]
    pub stderr_bytes: u64,
    /// The result as the hub gets it, while it is small and need not wait; else it has a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// SHA-256 of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_sha256: Option<Hash>,
    /// Whether the hub has the result, and waits for [`Self::parts`].
    #[serde(default)]
    pub reported: bool,
    /// Output that follows the result, as long as the hub does not have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<OutputPart>,
    /// Why output that was kept for the hub is not there any more: a [`Dropped`]'s name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
    /// Whether the hub has all of the result, or the rejection.
    #[serde(default)]
    pub delivered: bool,
}

impl Entry {
    /// Bytes of the output that follows the result.
    #[must_use]
    pub fn bytes_to_follow(&self) -> u64 {
        self.parts.iter().map(|part| part.size).sum()
    }
}

/// Why output that was kept for the hub goes. The end of a job never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// There is more than the cache may hold, in bytes or in files.
    Full,
    /// It waited for longer than the cache keeps anything.
    Old,
    /// The hub does not take it.
    Refused,
    /// It is not there, or cannot be read.
    Lost,
}

impl Dropped {
    /// Every reason, for metrics that begin at zero.
    pub const ALL: [Self; 4] = [Self::Full, Self::Old, Self::Refused, Self::Lost];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "SPOOL_FULL",
            Self::Old => "SPOOL_OLD",
            Self::Refused => "REFUSED",
            Self::Lost => "LOST",
        }
    }
}

/// Why a job is refused. The names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reject {
    /// Not signed by enough keys of the job role.
    BadSignature,
    /// Signed, but no job this agent understands: an unknown type, key or value.
    Malformed,
    /// For another agent or another root.
    NotForMe,
    /// Past its end.
    Expired,
    /// Before its beginning.
    NotYetValid,
    /// Its validity is longer than allowed.
    ValidTooLong,
    /// An id that was used before.
    Replay,
    /// Issued before this journal began: a replay onto wiped or restored state.
    BeforeJournal,
    /// Asks for a newer policy or root than there is.
    VersionTooOld,
    /// The policy forbids it.
    Denied,
    /// The operating system cannot enforce what is required.
    Enforcement,
    /// The queue is full.
    QueueFull,
    /// Called off before it was queued.
    Cancelled,
    /// The audit log or the disk does not take a record; no job starts then.
    CannotRecord,
}

impl Reject {
    /// Every reason, for metrics that begin at zero.
    pub const ALL: [Self; 14] = [
        Self::BadSignature,
        Self::Malformed,
        Self::NotForMe,
        Self::Expired,
        Self::NotYetValid,
        Self::ValidTooLong,
        Self::Replay,
        Self::BeforeJournal,
        Self::VersionTooOld,
        Self::Denied,
        Self::Enforcement,
        Self::QueueFull,
        Self::Cancelled,
        Self::CannotRecord,
    ];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadSignature => "BAD_SIGNATURE",
            Self::Malformed => "MALFORMED",
            Self::NotForMe => "NOT_FOR_ME",
            Self::Expired => "EXPIRED",
            Self::NotYetValid => "NOT_YET_VALID",
            Self::ValidTooLong => "VALID_TOO_LONG",
            Self::Replay => "REPLAY",
            Self::BeforeJournal => "BEFORE_JOURNAL",
            Self::VersionTooOld => "VERSION_TOO_OLD",
            Self::Denied => "DENIED",
            Self::Enforcement => "ENFORCEMENT",
            Self::QueueFull => "QUEUE_FULL",
            Self::Cancelled => "CANCELLED",
            Self::CannotRecord => "CANNOT_RECORD",
        }
    }
}
