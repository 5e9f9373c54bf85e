//! What an agent and a shim tell each other. Both are the same binary in most cases; an update
//! leaves shims of the version before it running, so fields are added, never changed.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use jtnt_proto::{bytes::Hash, job::Artifact};
use serde::{Deserialize, Serialize};

use super::files::Attempt;
use crate::{
    domain::asked::Asked,
    platform::{account::Account, process::LaunchError, sandbox::Plan},
};

/// The most that an order may measure: a signed job has a bound, and this is well above it.
pub(super) const MAX_ORDER_BYTES: u64 = 8 << 20;
/// The most that an exit may measure.
pub(super) const MAX_EXIT_BYTES: u64 = 64 << 10;
/// The most that what was seen of a job may measure: the request, and 4,096 files.
pub(super) const MAX_SEEN_BYTES: u64 = 8 << 20;

/// A program to run, or a file to transfer, to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Which run of which job.
    pub attempt: Attempt,
    /// The program's path, and the name it is told; of a transfer, the path of its descriptor.
    pub argv0: String,
    /// Arguments after the name, and after the script where there is one.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: String,
    /// Whom it runs as.
    pub account: Account,
    /// The largest file it may write.
    pub file_bytes: Option<u64>,
    /// What holds it once it runs.
    pub plan: Plan,
    /// How much of each output stream is kept.
    pub output_bytes: u64,
    /// Secrets that come with it, in the order of their descriptors.
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// What it asked, where it is to be watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Asked>,
    /// What is to be transferred, where nothing is to be executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// When it is asked to end.
    pub timeout: Duration,
    /// How long after that it is killed.
    pub grace: Duration,
}

/// One file to transfer. Its bytes go over a line that comes with the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transfer {
    /// Into the folder that comes with the order.
    Download(Target),
    /// From the file that comes with the order.
    Upload,
}

/// What a download makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its name until it is whole.
    pub part: String,
    /// Its name.
    pub name: String,
    /// Its permissions.
    pub mode: u32,
    /// Its content.
    pub artifact: Artifact,
    /// Whether it goes to the agent's user, since its own has its number for this job only.
    pub disown: bool,
}

/// What became of a transfer.
pub type Carried = Result<Artifact, Uncarried>;

/// Why a transfer did not come to its end. A download has left nothing behind then, unless it says
/// so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Uncarried {
    /// What kind of failure.
    pub fault: Snag,
    /// The same for people.
    pub message: String,
}

/// Kinds of failure of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Snag {
    /// The agent went, or gave it up, before all was there.
    Cut,
    /// It is not what was promised.
    Mismatch,
    /// The file cannot be read.
    Read,
    /// Nor written.
    Write,
    /// It changed while it was read.
    Changed,
}

impl Uncarried {
    pub(super) fn new(fault: Snag, message: impl Into<String>) -> Self {
        Self { fault, message: message.into() }
    }

    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.fault.reason()
    }
}

impl Snag {
    /// The stable reason.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Cut => "CUT_SHORT",
            Self::Mismatch => "ARTIFACT_MISMATCH",
            Self::Read => "READ_FAILED",
            Self::Write => "WRITE_FAILED",
            Self::Changed => "FILE_CHANGED",
        }
    }
}

/// How a program finds a secret. The secret itself is in a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its name, and that of its file.
    pub name: String,
    /// The variable that tells where it is.
    pub variable: String,
    /// In a file of the job's own; else in an open descriptor.
    pub as_file: bool,
}

/// What an agent hands over with an order.
pub(super) const WITH_COPY: u8 = 1;
pub(super) const WITH_SCRIPT: u8 = 2;
pub(super) const WITH_LINE: u8 = 4;

/// The shim's word before the program may begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    /// The program waits for "go"; which process is its shim.
    Ready(u32),
    /// It will not run.
    Failed(Unstarted),
}

/// Why a program did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Unstarted {
    /// What kind of failure.
    pub fault: Fault,
    /// The same for people.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The job's user does not reach the program.
    Unreachable,
    /// Nor the working directory.
    Cwd,
    /// The system does not execute it, or there is no process for it.
    Start,
}

impl Unstarted {
    /// The system did not do its part.
    pub(super) fn start(message: impl Into<String>) -> Self {
        Self { fault: Fault::Start, message: message.into() }
    }

    /// Its shim is no more.
    #[must_use]
    pub fn gone(error: &std::io::Error) -> Self {
        Self::start(format!("its shim ended before it began: {error}"))
    }

    /// The stable reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self.fault {
            Fault::Unreachable => "PROGRAM_UNREACHABLE",
            Fault::Cwd => "CWD_UNAVAILABLE",
            Fault::Start => "CANNOT_START",
        }
    }
}

impl From<LaunchError> for Unstarted {
    fn from(error: LaunchError) -> Self {
        let fault = match &error {
            LaunchError::Unreachable { .. } => Fault::Unreachable,
            LaunchError::Cwd { .. } => Fault::Cwd,
            LaunchError::Start { .. } => Fault::Start,
        };
        Self { fault, message: error.to_string() }
    }
}

/// Why a job came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// By itself.
    Ended,
    /// Its time was over.
    Timeout,
    /// Its shim was told to.
    Terminated,
    /// It did not begin.
    Unstarted(Unstarted),
    /// Its shim could no longer look after it, and ended it.
    Lost(String),
}

/// How a job ended: the content of `exit.N.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub cause: Cause,
    /// Exit code, where the program returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Whether the kernel ended something of it for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// Signal, where one ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The time it had.
    pub timeout: Duration,
    /// When, by the wall clock.
    pub finished_at: Timestamp,
    /// From the "go" on, by a clock that does not jump.
    pub duration: Duration,
    /// What became of a transfer, if it told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
    /// Standard output, if there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Kept>,
    /// Standard error, if there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Kept>,
}

/// All that a stream was, whatever is kept of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Bytes.
    pub total: u64,
    /// Their hash.
    pub sha256: Hash,
}
