//! What must survive a crash: the job journal, small cursors, and the mark that keeps time from
//! going back. One database, one writer thread that commits what has gathered.
//!
//! Writers wait until their change is on disk; all that came in while the last commit was under
//! way share the next one. Readers see the last commit, on their own thread, and wait for nobody.

mod asked;
mod database;
mod tables;
pub mod time;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use jiff::Timestamp;
use redb::ReadableTable as _;
use tokio::sync::{broadcast, mpsc, oneshot};

pub use self::asked::{History, Question, Remembered};
use self::{
    database::Shared,
    writer::{Answer, Command, Op},
};
use crate::{
    domain::{
        ids::JobId,
        job::{Entry, State},
    },
    runtime::{clock::SharedClock, durable, tasks},
};

/// How many changes wait for the writer before their senders do.
const QUEUE: usize = 1024;

/// How long an id is remembered beyond its job's end, for clocks that differ.
pub const SKEW: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("journal: {0}")]
pub struct StoreError(pub String);

/// Why a journal was not opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// What is in the file is no journal any more.
    #[error(transparent)]
    Damaged(StoreError),
    /// The file may be whole: it cannot be read now, is in use, or of a newer agent.
    #[error(transparent)]
    Other(StoreError),
}

impl From<OpenError> for StoreError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Damaged(error) | OpenError::Other(error) => error,
        }
    }
}

/// What became of a new job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is in the journal.
    New,
    /// Its id was used before; this is what is known of that use.
    Replay(Option<Box<Entry>>),
}

/// Jobs by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Queued.
    pub queued: u64,
    /// Starting or running.
    pub running: u64,
    /// Ended or rejected, and not delivered.
    pub undelivered: u64,
    /// Delivered, and still in the journal.
    pub delivered: u64,
}

/// The journal's handle.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    created_at: Timestamp,
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    /// Waits for the writer, so that the file is closed when the last handle is gone.
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the journal's writer panicked");
        }
    }
}

impl Journal {
    /// Gives a damaged file another name, beside those of earlier damages; which one.
    ///
    /// # Errors
    /// As the system's; the file has its name then.
    pub fn put_aside(path: &Path, now: Timestamp) -> std::io::Result<PathBuf> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".damaged-{}", now.strftime("%Y%m%dT%H%M%SZ")));
        let aside = PathBuf::from(aside);
        std::fs::rename(path, &aside)?;
        durable::sync_parent(path)?;
        Ok(aside)
    }

    /// Opens or creates the database and starts its writer thread, which ends when the last
    /// handle goes.
    ///
    /// # Errors
    /// When the file cannot be opened, is open elsewhere, is damaged, is no journal, or was
    /// written by a newer agent. It is never emptied.
    #[expect(clippy::needless_pass_by_value, reason = "handed in by the composition root")]
    pub fn open(path: &Path, clock: SharedClock) -> Result<Self, OpenError> {
        let (shared, created_at) = Shared::open(path, clock.now())?;
        let shared = Arc::new(shared);
        let (commands, queue) = mpsc::channel(QUEUE);
        let of_writer = Arc::clone(&shared);
        let no_thread = |e| OpenError::Other(StoreError(format!("no thread for its writer: {e}")));
        let clock = writer::clock().map_err(no_thread)?;
        let writer = tasks::thread("journal", move || writer::run(&of_writer, queue, &clock))
            .map_err(no_thread)?;
        let (commands, writer) = (Some(commands), Some(writer));
        Ok(Self { inner: Arc::new(Inner { shared, created_at, commands, writer }) })
    }

    /// When this journal was created; jobs issued earlier are not for it.
    #[must_use]
    pub fn created_at(&self) -> Timestamp {
        self.inner.created_at
    }

    /// Records a job that was never seen, durably, and remembers its id until it expires.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub async fn admit(&self, entry: Entry) -> Result<Admission, StoreError> {
        self.admit_asking(entry, None).await
    }

    /// The same, and counts what the job asked of the policy, if it is new.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub async fn admit_asking(
        &self,
        entry: Entry,
        asked: Option<Question>,
    ) -> Result<Admission, StoreError> {
        match self.ask(Op::Admit(Box::new(entry), asked.map(Box::new))).await? {
            Answer::Admitted(admission) => Ok(admission),
            Answer::Done | Answer::Pruned(_) => Err(mixed_up()),
        }
    }

    /// Replaces a job's record, durably before it returns.
    ///
    /// # Errors
    /// When it could not be made durable, or the job was never admitted.
    pub async fn update(&self, entry: Entry) -> Result<(), StoreError> {
        self.ask(Op::Update(Box::new(entry))).await.map(drop)
    }

    /// Replaces a job's record without waiting for the disk: readers see it, and a crash in the
    /// next second may undo it. For what is merely done again then.
    ///
    /// # Errors
    /// When it could not be recorded, or the job was never admitted.
    pub async fn note(&self, entry: Entry) -> Result<(), StoreError> {
        self.ask(Op::Note(Box::new(entry))).await.map(drop)
    }

    /// One job.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn get(&self, id: &JobId) -> Result<Option<Entry>, StoreError> {
        self.inner.shared.read(|txn| {
            let jobs = txn.open_table(tables::JOBS)?;
            tables::entry_of(&jobs, id.as_str())
        })
    }

    /// The newest jobs, newest first, that `keep` accepts.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn recent(
        &self,
        limit: usize,
        keep: &dyn Fn(State) -> bool,
    ) -> Result<Vec<Entry>, StoreError> {
        self.inner.shared.read(|txn| {
            let jobs = txn.open_table(tables::JOBS)?;
            let order = txn.open_table(tables::ORDER)?;
            let mut out = Vec::new();
            for row in order.iter()?.rev() {
                if out.len() >= limit {
                    break;
                }
                let entry = tables::entry_of(&jobs, row?.1.value())?;
                out.extend(entry.filter(|e| keep(e.state)));
            }
            Ok(out)
        })
    }

    /// Jobs that have not ended, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn unfinished(&self) -> Result<Vec<Entry>, StoreError> {
        self.inner.shared.read(|txn| tables::listed(txn, tables::UNFINISHED))
    }

    /// Jobs that have ended and whose result or rejection the hub does not have, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn undelivered(&self) -> Result<Vec<Entry>, StoreError> {
        self.inner.shared.read(|txn| tables::listed(txn, tables::UNDELIVERED))
    }

    /// Jobs by state, kept in memory.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner.shared.counts()
    }

    /// Why the last change could not be made durable; the next one tries again.
    #[must_use]
    pub fn last_error(&self) -> Option<StoreError> {
        self.inner.shared.failed()
    }

    /// Every change from now on. A slow reader loses the oldest and is told so.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Entry> {
        self.inner.shared.changes.subscribe()
    }

    /// What jobs asked of the policy in the last 30 days.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn asked(&self, now: Timestamp) -> Result<History, StoreError> {
        self.inner.shared.read(|txn| asked::history(txn, now))
    }

    /// Removes delivered jobs that ended before `before`, and forgets ids that expired more than
    /// [`SKEW`] before `now` and what no job asked in the 30 days before it; returns the jobs
    /// removed, whose files may go.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub async fn prune(&self, before: Timestamp, now: Timestamp) -> Result<Vec<JobId>, StoreError> {
        match self.ask(Op::Prune { before, now }).await? {
            Answer::Pruned(ids) => Ok(ids),
            Answer::Done | Answer::Admitted(_) => Err(mixed_up()),
        }
    }

    /// Removes delivered jobs beyond `keep`, those that ended first; their ids stay used. Returns the
    /// jobs removed, whose files may go. A crash in the next second may undo it.
    ///
    /// # Errors
    /// When it could not be recorded.
    pub async fn thin(&self, keep: u64) -> Result<Vec<JobId>, StoreError> {
        match self.ask(Op::Thin { keep }).await? {
            Answer::Pruned(ids) => Ok(ids),
            Answer::Done | Answer::Admitted(_) => Err(mixed_up()),
        }
    }

    /// A small value by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn cursor(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.shared.read(|txn| {
            let cursors = txn.open_table(tables::CURSORS)?;
            Ok(cursors.get(name)?.map(|value| value.value().to_vec()))
        })
    }

    /// Sets a small value, durably before it returns.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub async fn set_cursor(&self, name: &str, value: Vec<u8>) -> Result<(), StoreError> {
        self.ask(Op::Cursor { name: name.to_owned(), value }).await.map(drop)
    }

    async fn ask(&self, op: Op) -> Result<Answer, StoreError> {
        let gone = || StoreError("its writer has ended; restart the agent".to_owned());
        let commands = self.inner.commands.as_ref().ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        commands.send(Command { op, reply }).await.map_err(|_closed| gone())?;
        answer.await.map_err(|_closed| gone())?
    }
}

fn mixed_up() -> StoreError {
    StoreError("its writer answered another question".to_owned())
}

#[cfg(test)]
mod failure_tests;
#[cfg(test)]
mod tests;
