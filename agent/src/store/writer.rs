//! The one writer: what has gathered while the last commit was under way becomes the next one.
//!
//! A commit that somebody waits for is one sync of the disk. It leaves out what redb needs to open
//! the file without a look at all of it; that is written once the journal has been quiet for a
//! while, so only a crash in the midst of work costs the next start such a look.

use std::time::Duration;

use jiff::Timestamp;
use redb::{Durability, ReadableTable as _, Table, WriteTransaction};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    Admission, Counts, Question, SKEW, StoreError, asked,
    database::Shared,
    tables::{
        CONSUMED, CURSORS, DELIVERED, JOBS, ORDER, Place, UNDELIVERED, UNFINISHED, entry_of, parse,
    },
};
use crate::domain::{ids::JobId, job::Entry};

/// Changes in one commit.
const BATCH: usize = 256;
/// With no change for so long, the journal settles.
const QUIET: Duration = Duration::from_secs(1);

/// A change that somebody waits for.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) op: Op,
    pub(super) reply: oneshot::Sender<Result<Answer, StoreError>>,
}

#[derive(Debug)]
pub(super) enum Op {
    /// With what it asked of the policy, if it came that far.
    Admit(Box<Entry>, Option<Box<Question>>),
    Update(Box<Entry>),
    /// An update that a crash may undo.
    Note(Box<Entry>),
    Cursor {
        name: String,
        value: Vec<u8>,
    },
    Prune {
        before: Timestamp,
        now: Timestamp,
    },
    /// Delivered jobs beyond so many, the oldest ends first.
    Thin {
        keep: u64,
    },
}

#[derive(Debug)]
pub(super) enum Answer {
    Admitted(Admission),
    Done,
    Pruned(Vec<JobId>),
}

/// What a commit promises; of several in one batch, the greatest holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Commit {
    /// Readers see it; a crash may undo it.
    Seen,
    /// It survives a crash, and the next start is quick.
    Settled,
    /// It survives a crash, and somebody waits for it.
    Durable,
}

impl Op {
    const fn wants(&self) -> Commit {
        match self {
            Self::Note(_) | Self::Thin { .. } => Commit::Seen,
            Self::Admit(..) | Self::Update(_) => Commit::Durable,
            // Nobody is kept waiting by these, and they may be all there is for hours.
            Self::Cursor { .. } | Self::Prune { .. } => Commit::Settled,
        }
    }
}

/// What lets the writer's thread wait for a time.
pub(super) fn clock() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_time().build()
}

/// Commits batch after batch until the last handle is gone.
pub(super) fn run(shared: &Shared, mut queue: mpsc::Receiver<Command>, clock: &Runtime) {
    let mut settled = true;
    loop {
        let next = if settled {
            Ok(queue.blocking_recv())
        } else {
            clock.block_on(async { timeout(QUIET, queue.recv()).await })
        };
        let first = match next {
            Ok(Some(first)) => first,
            // Closing the file settles it.
            Ok(None) => return,
            Err(_quiet) => {
                // A failure is told and mended like any other, and is nobody's loss.
                serve(shared, Vec::new(), Commit::Settled);
                settled = true;
                continue;
            }
        };
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let commit = batch.iter().map(|c| c.op.wants()).max().unwrap_or(Commit::Durable);
        serve(shared, batch, commit);
        settled = commit == Commit::Settled;
    }
}

/// A failed commit is nobody's: every caller hears of it, and the next batch starts from what is
/// really in the file.
fn serve(shared: &Shared, batch: Vec<Command>, promise: Commit) {
    let (ops, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|c| (c.op, c.reply)).unzip();
    match commit(shared, &ops, promise) {
        Ok(answers) => {
            shared.set_failed(None);
            for (op, answer) in ops.into_iter().zip(&answers) {
                if let (Op::Admit(entry, _), Ok(Answer::Admitted(Admission::New)))
                | (Op::Update(entry) | Op::Note(entry), Ok(Answer::Done)) = (op, answer)
                {
                    // Without a watcher there is nobody to tell.
                    let _watchers = shared.changes.send(*entry);
                }
            }
            for (reply, answer) in replies.into_iter().zip(answers) {
                // Whoever no longer waits has its change all the same.
                let _gone = reply.send(answer);
            }
        }
        Err(error) => {
            tracing::error!(%error, changes = replies.len(), "journal commit failed");
            shared.set_failed(Some(error.clone()));
            for reply in replies {
                let _gone = reply.send(Err(error.clone()));
            }
            if let Err(error) = shared.reopen() {
                tracing::error!(%error, "journal stays closed");
            }
        }
    }
}

type Answers = Vec<Result<Answer, StoreError>>;

fn commit(shared: &Shared, ops: &[Op], promise: Commit) -> Result<Answers, StoreError> {
    if shared.slot().is_none() {
        shared.reopen()?;
    }
    let slot = shared.slot();
    let db = slot.as_ref().ok_or_else(|| shared.closed())?;
    let work = || -> Result<_, redb::Error> {
        let mut txn = db.begin_write()?;
        txn.set_quick_repair(promise == Commit::Settled);
        if promise == Commit::Seen {
            txn.set_durability(Durability::None)?;
        }
        let mut change = Change::begin(&txn, shared.counts())?;
        let answers = ops.iter().map(|op| change.apply(op)).collect::<Result<Answers, _>>()?;
        let (counts, changed) = (change.counts, change.changed);
        drop(change);
        // Replays and refusals alone need no trip to the disk. Settling has no changes.
        if changed || ops.is_empty() {
            txn.commit()?;
        } else {
            txn.abort()?;
        }
        Ok((answers, counts))
    };
    let (answers, counts) = work().map_err(|e| shared.fault(&e))?;
    shared.set_counts(counts);
    Ok(answers)
}

/// The tables of a transaction under way.
struct Change<'txn> {
    txn: &'txn WriteTransaction,
    jobs: Table<'txn, &'static str, (u64, &'static [u8])>,
    order: Table<'txn, u64, &'static str>,
    unfinished: Table<'txn, u64, &'static str>,
    undelivered: Table<'txn, u64, &'static str>,
    delivered: Table<'txn, (i64, u64), &'static str>,
    consumed: Table<'txn, &'static str, i64>,
    cursors: Table<'txn, &'static str, &'static [u8]>,
    counts: Counts,
    changed: bool,
}

impl<'txn> Change<'txn> {
    fn begin(txn: &'txn WriteTransaction, counts: Counts) -> Result<Self, redb::Error> {
        Ok(Self {
            txn,
            jobs: txn.open_table(JOBS)?,
            order: txn.open_table(ORDER)?,
            unfinished: txn.open_table(UNFINISHED)?,
            undelivered: txn.open_table(UNDELIVERED)?,
            delivered: txn.open_table(DELIVERED)?,
            consumed: txn.open_table(CONSUMED)?,
            cursors: txn.open_table(CURSORS)?,
            counts,
            changed: false,
        })
    }

    /// The outer error ends the transaction, the inner one is this caller's alone.
    fn apply(&mut self, op: &Op) -> Result<Result<Answer, StoreError>, redb::Error> {
        Ok(match op {
            Op::Admit(entry, question) => {
                let admission = self.admit(entry)?;
                if let (Admission::New, Some(question)) = (&admission, question) {
                    let (at, id) = (entry.received_at, &entry.job_id);
                    asked::remember(self.txn, &mut self.cursors, question, at, id)?;
                }
                Ok(Answer::Admitted(admission))
            }
            Op::Update(entry) | Op::Note(entry) => self.update(entry)?,
            Op::Cursor { name, value } => {
                self.changed = true;
                self.cursors.insert(name.as_str(), value.as_slice())?;
                Ok(Answer::Done)
            }
            Op::Prune { before, now } => Ok(Answer::Pruned(self.prune(*before, *now)?)),
            Op::Thin { keep } => Ok(Answer::Pruned(self.thin(*keep)?)),
        })
    }

    fn admit(&mut self, entry: &Entry) -> Result<Admission, redb::Error> {
        let id = entry.job_id.as_str();
        if let Some(known) = entry_of(&self.jobs, id)? {
            return Ok(Admission::Replay(Some(Box::new(known))));
        }
        if self.consumed.get(id)?.is_some() {
            return Ok(Admission::Replay(None));
        }
        let number = self.order.last()?.map_or(0, |(last, _)| last.value() + 1);
        self.order.insert(number, id)?;
        self.consumed.insert(id, entry.expires_at.as_microsecond())?;
        self.enter(number, id, Place::of(entry))?;
        self.counts.enter(Place::of(entry));
        self.write(number, entry)?;
        Ok(Admission::New)
    }

    fn update(&mut self, entry: &Entry) -> Result<Result<Answer, StoreError>, redb::Error> {
        let id = entry.job_id.as_str();
        let old = match self.jobs.get(id)? {
            Some(row) => {
                let (number, json) = row.value();
                Some((number, Place::of(&parse(id, json)?)))
            }
            None => None,
        };
        let Some((number, place)) = old else {
            return Ok(Err(StoreError(format!("job {id} is not in it, so it cannot change"))));
        };
        let next = Place::of(entry);
        if !place.same_index(next) {
            self.leave(number, place)?;
            self.enter(number, id, next)?;
        }
        self.counts.leave(place);
        self.counts.enter(next);
        self.write(number, entry)?;
        Ok(Ok(Answer::Done))
    }

    fn write(&mut self, number: u64, entry: &Entry) -> Result<(), redb::Error> {
        self.changed = true;
        let id = entry.job_id.as_str();
        let json = serde_json::to_vec(entry)
            .map_err(|e| redb::Error::Corrupted(format!("job {id} as JSON: {e}")))?;
        self.jobs.insert(id, (number, json.as_slice())).map(drop)?;
        Ok(())
    }

    fn enter(&mut self, number: u64, id: &str, place: Place) -> Result<(), redb::Error> {
        match place {
            Place::Queued | Place::Running => self.unfinished.insert(number, id).map(drop)?,
            Place::Undelivered => self.undelivered.insert(number, id).map(drop)?,
            Place::Delivered(end) => self.delivered.insert((end, number), id).map(drop)?,
        }
        Ok(())
    }

    fn leave(&mut self, number: u64, place: Place) -> Result<(), redb::Error> {
        match place {
            Place::Queued | Place::Running => self.unfinished.remove(number).map(drop)?,
            Place::Undelivered => self.undelivered.remove(number).map(drop)?,
            Place::Delivered(end) => self.delivered.remove((end, number)).map(drop)?,
        }
        Ok(())
    }

    fn prune(&mut self, before: Timestamp, now: Timestamp) -> Result<Vec<JobId>, redb::Error> {
        let mut gone = Vec::new();
        let end = before.as_microsecond();
        for row in self.delivered.extract_from_if(..(end, 0), |_, _| true)? {
            let (key, id) = row?;
            gone.push((key.value().1, id.value().to_owned()));
        }
        self.remove(&gone)?;
        let forget = now.saturating_sub(SKEW).map_or(i64::MIN, Timestamp::as_microsecond);
        let mut forgotten = false;
        self.consumed.retain(|_, expires| {
            let keep = expires > forget;
            forgotten |= !keep;
            keep
        })?;
        let unasked = asked::prune(self.txn, &mut self.cursors, now)?;
        self.changed |= forgotten || unasked;
        Ok(ids(gone))
    }

    fn thin(&mut self, keep: u64) -> Result<Vec<JobId>, redb::Error> {
        let mut gone = Vec::new();
        for _ in keep..self.counts.delivered {
            let Some((key, id)) = self.delivered.pop_first()? else { break };
            gone.push((key.value().1, id.value().to_owned()));
        }
        self.remove(&gone)?;
        Ok(ids(gone))
    }

    /// Removes the records of jobs that are in no index but that of the order any more.
    fn remove(&mut self, gone: &[(u64, String)]) -> Result<(), redb::Error> {
        for (number, id) in gone {
            self.order.remove(number)?;
            self.jobs.remove(id.as_str())?;
        }
        self.counts.delivered = self.counts.delivered.saturating_sub(gone.len() as u64);
        self.changed |= !gone.is_empty();
        Ok(())
    }
}

/// Every id in the tables was a [`JobId`] when it was written.
fn ids(gone: Vec<(u64, String)>) -> Vec<JobId> {
    gone.into_iter().filter_map(|(_, id)| JobId::try_from(id).ok()).collect()
}
