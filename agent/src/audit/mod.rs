//! The audit log: one writer, lines that are chained, signed and on disk before anybody acts on
//! them; and what reads them back.
//!
//! All records that arrive while the last batch is being synced share the next sync. A batch that
//! could not be synced counts as lost: its callers are told, so that nothing happens that the log
//! does not hold, and the writer looks at the file anew before it writes again.

mod anew;
mod checkpoints;
mod files;
mod log;
mod prune;
pub mod query;
pub mod reader;
mod record;
mod recover;
mod rotate;
mod tree;
mod witnessing;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use jiff::tz::TimeZone;
use jtnt_proto::{
    audit::{Caller, Event, Status},
    bytes::Hash,
    key::PublicKey,
};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    domain::retention::Retention,
    runtime::{clock::SharedClock, entropy::Entropy, signer::AuditSigner, tasks},
};

/// How many records wait for the writer before their senders do.
const QUEUE: usize = 1024;
/// Readable for a group of auditors, writable for the agent.
const FILE_MODE: u32 = 0o640;

/// What is to be logged. The writer adds time, sequence, chain and signature.
#[derive(Debug, Clone)]
pub struct Record {
    /// What happened.
    pub event: Event,
    /// How it ended.
    pub status: Option<Status>,
    /// The job.
    pub job_id: Option<String>,
    /// Program and arguments, or the admin method.
    pub command: Option<String>,
    /// Whom the job ran as.
    pub user: Option<String>,
    /// The policy that decided.
    pub policy_version: Option<u64>,
    /// Who asked over the admin API.
    pub caller: Option<Caller>,
    /// `hub`, `local` or `agent`.
    pub origin: Option<&'static str>,
    /// What was acted on.
    pub object: Option<String>,
    /// What else is known.
    pub details: Map<String, Value>,
}

impl Record {
    /// A record of `event` with what is the same in each of them, and nothing else yet.
    #[must_use]
    pub fn of(event: Event) -> Self {
        let record::Always { status, origin, object } = record::always(event);
        Self {
            event,
            status,
            job_id: None,
            command: None,
            user: None,
            policy_version: None,
            caller: None,
            origin,
            object: object.map(str::to_owned),
            details: Map::new(),
        }
    }

    /// Adds to the details.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }
}

/// Why a line was not written, or the log cannot be used. Nothing that needed it may happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("audit log: {0}")]
pub struct AuditError(pub String);

/// Where and how to write.
#[derive(Debug, Clone)]
pub struct Config {
    /// `data_dir/audit`.
    pub dir: PathBuf,
    /// Whose log.
    pub agent_id: String,
    /// What is kept, and what may go.
    pub retention: Retention,
    /// Whose civil days name the files.
    pub zone: TimeZone,
}

/// Where the log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Names the log.
    pub log_id: String,
    /// Lines so far.
    pub size: u64,
    /// Leaf hash of the last line.
    pub head: Hash,
    /// Lines of it that a witness has seen.
    pub witnessed: u64,
    /// Lines of it that the hub holds, as it says since the start.
    pub held: u64,
    /// Lines up to the last that a witness should see at once.
    pub urgent: u64,
    /// Whether checkpoints can be made: not where the tree over the lines cannot be had.
    pub provable: bool,
    /// Logs that were put back to an earlier state, by their ids: kept in folders of their own.
    pub superseded: Vec<String>,
    /// Why it could not be written the last time; the next record tries again.
    pub error: Option<String>,
}

/// A checkpoint as it is shown to a witness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Names the log.
    pub log_id: String,
    /// Lines so far.
    pub size: u64,
    /// Leaf hash of the last line.
    pub head: Hash,
    /// The note, signed by the audit key.
    pub note: String,
    /// What a witness has seen of it.
    pub old_size: u64,
    /// That it only grew since.
    pub proof: Vec<Hash>,
}

/// What proves that a line is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inclusion {
    /// From the line up to the root.
    pub hashes: Vec<Hash>,
    /// The checkpoint that covers it, cosigned where there is such a one.
    pub note: String,
}

/// What retention removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cleaned {
    /// Names of the files.
    pub files: Vec<String>,
    /// Files that are old enough and stay, since the hub has not seen all of them, or does not hold
    /// them.
    pub kept: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
}

/// The writer's handle.
#[derive(Debug, Clone)]
pub struct Audit {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    signer: Arc<dyn AuditSigner>,
    commands: Option<mpsc::Sender<writer::Command>>,
    head: watch::Receiver<Head>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    /// Waits for the writer, so that the last handle's end is the log's.
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the audit log's writer panicked");
        }
    }
}

impl Audit {
    /// Takes the log in `config.dir` for this process alone, recovers it or begins one, and starts
    /// the writer, which ends when the last handle goes.
    ///
    /// # Errors
    /// When it is held by another process, cannot be read or written, or ends in a line that this
    /// key did not sign: a second beginning would be a fork.
    pub fn open(
        config: Config,
        signer: Arc<dyn AuditSigner>,
        clock: SharedClock,
        entropy: &dyn Entropy,
    ) -> Result<Self, AuditError> {
        let dir = config.dir.clone();
        let log = log::Log::open(config, Arc::clone(&signer), clock, entropy)?;
        let (publish, head) = watch::channel(log.head());
        let (commands, queue) = mpsc::channel(QUEUE);
        let writer = tasks::thread("audit", move || writer::run(log, queue, &publish))
            .map_err(|e| AuditError(format!("no thread for its writer: {e}")))?;
        let (commands, writer) = (Some(commands), Some(writer));
        Ok(Self { inner: Arc::new(Inner { dir, signer, commands, head, writer }) })
    }

    /// Writes a line and returns its seq once it is durable.
    ///
    /// # Errors
    /// When it is not durable; whatever needed it must not happen.
    pub async fn append(&self, record: Record) -> Result<u64, AuditError> {
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::Append(Box::new(record), reply)).await?;
        answer.await.map_err(|_closed| gone())?
    }

    /// Removes the files of days beyond the retention, after a record that says so.
    ///
    /// # Errors
    /// When the record is not durable, or a file cannot be removed.
    pub async fn clean(&self) -> Result<Cleaned, AuditError> {
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::Clean(reply)).await?;
        answer.await.map_err(|_closed| gone())?
    }

    /// Signs and keeps a checkpoint of all lines, with the proof that the log only grew since it had
    /// `since` lines; if not told, since a witness last cosigned.
    ///
    /// # Errors
    /// When it is not durable, the tree cannot be had, or the log has fewer lines than that.
    pub async fn checkpoint(&self, since: Option<u64>) -> Result<Offer, AuditError> {
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::Checkpoint(since, reply)).await?;
        answer.await.map_err(|_closed| gone())?
    }

    /// Keeps a checkpoint that a witness cosigned; whether it did is the caller's to know.
    ///
    /// # Errors
    /// When it is none of this log, or is not durable.
    pub async fn witnessed(&self, note: String) -> Result<(), AuditError> {
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::Witnessed(note, reply)).await?;
        answer.await.map_err(|_closed| gone())?
    }

    /// Takes note of a checkpoint of this log that our key has signed. Where these lines are not those of
    /// it, they were put back to an earlier state: then the log ends, and a new one begins.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub async fn rolled_back(&self, note: String) -> Result<bool, AuditError> {
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::RolledBack(note, reply)).await?;
        answer.await.map_err(|_closed| gone())?
    }

    /// The hub holds so many lines of the log of this id.
    pub async fn held(&self, log_id: String, lines: u64) {
        // Whoever cannot be told prunes nothing.
        let _gone = self.send(writer::Command::Held(log_id, lines)).await;
    }

    /// Has another key take the place of the one that signs; the number of the line that says so.
    ///
    /// # Errors
    /// When the new key cannot be kept, or the line is not durable.
    pub async fn rotate_key(&self) -> Result<(u64, PublicKey), AuditError> {
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::RotateKey(reply)).await?;
        answer.await.map_err(|_closed| gone())?
    }

    /// What proves that the line of this number is in the log.
    ///
    /// # Errors
    /// When there is no such line, or the log cannot be read.
    pub async fn prove(&self, seq: u64) -> Result<Inclusion, AuditError> {
        let (reply, answer) = oneshot::channel();
        self.send(writer::Command::Prove(seq, reply)).await?;
        answer.await.map_err(|_closed| gone())?
    }

    /// The newest checkpoint that a witness cosigned, as it is kept. Blocks.
    #[must_use]
    pub fn anchor(&self, agent_id: &str) -> Option<String> {
        let head = self.head();
        let origin = jtnt_proto::checkpoint::origin(agent_id, &head.log_id);
        let kept = checkpoints::Checkpoints::of(&self.inner.dir, &head.log_id, origin);
        kept.witnessed(&self.inner.signer.keys(), head.size).map(|seen| seen.note)
    }

    /// Every checkpoint that a witness cosigned, by the name of its file, oldest first. Blocks.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn anchors(&self, agent_id: &str) -> io::Result<Vec<(String, String)>> {
        self.anchors_of(agent_id, &self.head().log_id)
    }

    /// The same of a log of this id.
    ///
    /// # Errors
    /// As [`Self::anchors`].
    pub fn anchors_of(&self, agent_id: &str, log_id: &str) -> io::Result<Vec<(String, String)>> {
        let origin = jtnt_proto::checkpoint::origin(agent_id, log_id);
        checkpoints::Checkpoints::of(&self.inner.dir, log_id, origin).all()
    }

    /// Where its files are, for [`query`].
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Where the log stands.
    #[must_use]
    pub fn head(&self) -> Head {
        self.inner.head.borrow().clone()
    }

    /// Changes whenever the log does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.inner.head.clone()
    }

    async fn send(&self, command: writer::Command) -> Result<(), AuditError> {
        let commands = self.inner.commands.as_ref().ok_or_else(gone)?;
        commands.send(command).await.map_err(|_closed| gone())
    }
}

fn gone() -> AuditError {
    AuditError("its writer has ended; restart the agent".to_owned())
}

pub use rotate::rotations;

#[cfg(test)]
mod checkpoint_tests;
#[cfg(test)]
mod tests;
