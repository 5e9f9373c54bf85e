//! The tables of the journal and what is read from them. This is the file format: tables are
//! added, never changed; a change of meaning raises [`FORMAT`].

use jiff::Timestamp;
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable, ReadableTableMetadata as _,
    TableDefinition,
};

use super::Counts;
use crate::domain::job::{Entry, State};

/// Job id to its number and its [`Entry`] as JSON.
pub(super) const JOBS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("jobs");
/// Number to job id: the order in which jobs came.
pub(super) const ORDER: Numbered = TableDefinition::new("order");
/// Those of [`ORDER`] that have not ended.
pub(super) const UNFINISHED: Numbered = TableDefinition::new("unfinished");
/// Those of [`ORDER`] that have ended and are not delivered.
pub(super) const UNDELIVERED: Numbered = TableDefinition::new("undelivered");
/// Those that are delivered, by the microsecond of their end.
pub(super) const DELIVERED: TableDefinition<'_, (i64, u64), &str> =
    TableDefinition::new("delivered");
/// Every id ever admitted, to the microsecond of its expiry.
pub(super) const CONSUMED: TableDefinition<'_, &str, i64> = TableDefinition::new("consumed");
/// SHA-256 of what a job asked of the policy, in hex, to the microsecond of the last such job and
/// what is known of them, as JSON.
pub(super) const ASKED: TableDefinition<'_, &str, (i64, &[u8])> = TableDefinition::new("asked");
/// Those by that microsecond.
pub(super) const ASKED_AT: TableDefinition<'_, (i64, &str), ()> = TableDefinition::new("asked_at");
/// Small values by name.
pub(super) const CURSORS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("cursors");
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");

pub(super) type Numbered = TableDefinition<'static, u64, &'static str>;

/// The format this agent writes.
pub(super) const FORMAT: u32 = 1;

/// Why a database is not used.
pub(super) enum BeginError {
    Newer(u32),
    Foreign,
    Database(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for BeginError {
    fn from(error: E) -> Self {
        Self::Database(error.into())
    }
}

/// Makes the tables of an empty database, or checks those of an old one; returns when the journal
/// was created.
pub(super) fn begin(db: &Database, now: Timestamp) -> Result<Timestamp, BeginError> {
    let reading = db.begin_read()?;
    if reading.list_tables()?.next().is_some() {
        let meta = match reading.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::Storage(e)) => return Err(e.into()),
            Err(_) => return Err(BeginError::Foreign),
        };
        let format = parsed(&meta, "format")?.ok_or(BeginError::Foreign)?;
        if format > FORMAT {
            return Err(BeginError::Newer(format));
        }
        return parsed(&meta, "created_at")?.ok_or(BeginError::Foreign);
    }
    drop(reading);
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    for table in [ORDER, UNFINISHED, UNDELIVERED] {
        txn.open_table(table)?;
    }
    txn.open_table(JOBS)?;
    txn.open_table(DELIVERED)?;
    txn.open_table(CONSUMED)?;
    txn.open_table(CURSORS)?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert("format", FORMAT.to_string().as_str())?;
        meta.insert("created_at", now.to_string().as_str())?;
    }
    txn.commit()?;
    Ok(now)
}

fn parsed<T: std::str::FromStr>(
    meta: &impl ReadableTable<&'static str, &'static str>,
    name: &str,
) -> Result<Option<T>, redb::Error> {
    Ok(meta.get(name)?.and_then(|value| value.value().parse().ok()))
}

/// Counts without reading what has ended, however much that is.
pub(super) fn count(db: &Database) -> Result<Counts, redb::Error> {
    let txn = db.begin_read()?;
    let undelivered = txn.open_table(UNDELIVERED)?.len()?;
    let delivered = txn.open_table(DELIVERED)?.len()?;
    let mut counts = Counts { undelivered, delivered, ..Counts::default() };
    for entry in listed(&txn, UNFINISHED)? {
        match Place::of(&entry) {
            Place::Queued => counts.queued += 1,
            Place::Running => counts.running += 1,
            Place::Undelivered | Place::Delivered(_) => {}
        }
    }
    Ok(counts)
}

/// One entry by id.
pub(super) fn entry_of(
    jobs: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    id: &str,
) -> Result<Option<Entry>, redb::Error> {
    jobs.get(id)?.map(|row| parse(id, row.value().1)).transpose()
}

/// The entries whose ids an index lists, in its order.
pub(super) fn listed(txn: &ReadTransaction, index: Numbered) -> Result<Vec<Entry>, redb::Error> {
    let jobs = txn.open_table(JOBS)?;
    let index = txn.open_table(index)?;
    let mut out = Vec::new();
    for row in index.iter()? {
        out.extend(entry_of(&jobs, row?.1.value())?);
    }
    Ok(out)
}

/// Reads an entry.
pub(super) fn parse(id: &str, json: &[u8]) -> Result<Entry, redb::Error> {
    serde_json::from_slice(json)
        .map_err(|e| redb::Error::Corrupted(format!("the record of job {id}: {e}")))
}

/// Which index a job stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Queued,
    Running,
    Undelivered,
    /// With the microsecond of its end.
    Delivered(i64),
}

impl Place {
    pub(super) fn of(entry: &Entry) -> Self {
        match entry.state {
            State::Queued => Self::Queued,
            State::Starting | State::Running => Self::Running,
            State::Finished(_) | State::Rejected if !entry.delivered => Self::Undelivered,
            State::Finished(_) | State::Rejected => {
                Self::Delivered(entry.finished_at.unwrap_or(entry.received_at).as_microsecond())
            }
        }
    }

    /// Whether a job may go from one to the other without a change of any index.
    pub(super) fn same_index(self, other: Self) -> bool {
        let unfinished = |place| matches!(place, Self::Queued | Self::Running);
        self == other || unfinished(self) && unfinished(other)
    }
}

impl Counts {
    pub(super) const fn enter(&mut self, place: Place) {
        *self.of(place) += 1;
    }

    pub(super) const fn leave(&mut self, place: Place) {
        let count = self.of(place);
        *count = count.saturating_sub(1);
    }

    const fn of(&mut self, place: Place) -> &mut u64 {
        match place {
            Place::Queued => &mut self.queued,
            Place::Running => &mut self.running,
            Place::Undelivered => &mut self.undelivered,
            Place::Delivered(_) => &mut self.delivered,
        }
    }
}
