//! The one writer: what has gathered while the last commit was under way becomes the next one.

use jiff::Timestamp;
use redb::{ReadableTable as _, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::{
    Admission, Counts, SKEW, StoreError,
    database::Shared,
    tables::{
        CONSUMED, CURSORS, DELIVERED, JOBS, ORDER, Place, UNDELIVERED, UNFINISHED, entry_of, parse,
    },
};
use crate::domain::{ids::JobId, job::Entry};

/// Changes in one commit.
const BATCH: usize = 256;

/// A change that somebody waits for.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) op: Op,
    pub(super) reply: oneshot::Sender<Result<Answer, StoreError>>,
}

#[derive(Debug)]
pub(super) enum Op {
    Admit(Box<Entry>),
    Update(Box<Entry>),
    Cursor { name: String, value: Vec<u8> },
    Prune { before: Timestamp, now: Timestamp },
}

#[derive(Debug)]
pub(super) enum Answer {
    Admitted(Admission),
    Done,
    Pruned(Vec<JobId>),
}

/// Commits batch after batch until the last handle is gone.
pub(super) fn run(shared: &Shared, mut queue: mpsc::Receiver<Command>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        serve(shared, batch);
    }
}

/// A failed commit is nobody's: every caller hears of it, and the next batch starts from what is
/// really in the file.
fn serve(shared: &Shared, batch: Vec<Command>) {
    let (ops, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|c| (c.op, c.reply)).unzip();
    match commit(shared, &ops) {
        Ok(answers) => {
            shared.set_failed(None);
            for (op, answer) in ops.into_iter().zip(&answers) {
                if let (Op::Admit(entry), Ok(Answer::Admitted(Admission::New)))
                | (Op::Update(entry), Ok(Answer::Done)) = (op, answer)
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

fn commit(shared: &Shared, ops: &[Op]) -> Result<Answers, StoreError> {
    if shared.slot().is_none() {
        shared.reopen()?;
    }
    let slot = shared.slot();
    let db = slot.as_ref().ok_or_else(|| shared.closed())?;
    let work = || -> Result<_, redb::Error> {
        let mut txn = db.begin_write()?;
        txn.set_quick_repair(true);
        let mut change = Change::begin(&txn, shared.counts())?;
        let answers = ops.iter().map(|op| change.apply(op)).collect::<Result<Answers, _>>()?;
        let (counts, changed) = (change.counts, change.changed);
        drop(change);
        // Replays and refusals alone need no trip to the disk.
        if changed {
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
            Op::Admit(entry) => Ok(Answer::Admitted(self.admit(entry)?)),
            Op::Update(entry) => self.update(entry)?,
            Op::Cursor { name, value } => {
                self.changed = true;
                self.cursors.insert(name.as_str(), value.as_slice())?;
                Ok(Answer::Done)
            }
            Op::Prune { before, now } => Ok(Answer::Pruned(self.prune(*before, *now)?)),
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
        self.put(number, entry)?;
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
        self.leave(number, place)?;
        self.put(number, entry)?;
        Ok(Ok(Answer::Done))
    }

    fn put(&mut self, number: u64, entry: &Entry) -> Result<(), redb::Error> {
        self.changed = true;
        let id = entry.job_id.as_str();
        let json = serde_json::to_vec(entry)
            .map_err(|e| redb::Error::Corrupted(format!("job {id} as JSON: {e}")))?;
        self.jobs.insert(id, (number, json.as_slice()))?;
        match Place::of(entry) {
            Place::Queued => {
                self.counts.queued += 1;
                self.unfinished.insert(number, id)?;
            }
            Place::Running => {
                self.counts.running += 1;
                self.unfinished.insert(number, id)?;
            }
            Place::Undelivered => {
                self.counts.undelivered += 1;
                self.undelivered.insert(number, id)?;
            }
            Place::Delivered(end) => {
                self.delivered.insert((end, number), id)?;
            }
        }
        Ok(())
    }

    fn leave(&mut self, number: u64, place: Place) -> Result<(), redb::Error> {
        match place {
            Place::Queued => {
                self.counts.queued = self.counts.queued.saturating_sub(1);
                self.unfinished.remove(number)?;
            }
            Place::Running => {
                self.counts.running = self.counts.running.saturating_sub(1);
                self.unfinished.remove(number)?;
            }
            Place::Undelivered => {
                self.counts.undelivered = self.counts.undelivered.saturating_sub(1);
                self.undelivered.remove(number)?;
            }
            Place::Delivered(end) => {
                self.delivered.remove((end, number))?;
            }
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
        for (number, id) in &gone {
            self.order.remove(number)?;
            self.jobs.remove(id.as_str())?;
        }
        let forget = now.saturating_sub(SKEW).map_or(i64::MIN, Timestamp::as_microsecond);
        let mut forgotten = false;
        self.consumed.retain(|_, expires| {
            let keep = expires > forget;
            forgotten |= !keep;
            keep
        })?;
        self.changed |= forgotten || !gone.is_empty();
        // Every id in the tables was a JobId when it was written.
        Ok(gone.into_iter().filter_map(|(_, id)| JobId::try_from(id).ok()).collect())
    }
}
