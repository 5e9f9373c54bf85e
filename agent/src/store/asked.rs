//! What jobs asked of the policy in the last days, so that another policy can be asked the same.
//! Jobs that ask the same share a row: what is kept grows with the kinds of work, not with the jobs.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use jtnt_proto::bytes::Hash;
use redb::{
    ReadTransaction, ReadableTable, ReadableTableMetadata as _, Table, TableError, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::tables::{ASKED, ASKED_AT, CURSORS};
use crate::domain::{asked::Asked, ids::JobId};

/// So many different requests are remembered; of more, those that were asked last.
const MAX_REQUESTS: u64 = 2000;
/// A request of more bytes is counted, and not kept itself.
const MAX_REQUEST_BYTES: usize = 16 * 1024;
const KEPT_DAYS: i64 = 30;
const SECONDS_A_DAY: i64 = 86_400;
/// The cursor with the microsecond since when nothing was dropped before its time.
const SINCE: &str = "asked-since";

type Cursors<'txn> = Table<'txn, &'static str, &'static [u8]>;

/// What one job asked, ready to be counted.
#[derive(Debug, Clone)]
pub struct Question {
    key: String,
    /// `None` when it is too large to be kept.
    asked: Option<Box<RawValue>>,
}

impl Question {
    /// `None` only if it cannot be written as JSON.
    #[must_use]
    pub fn of(asked: &Asked) -> Option<Self> {
        let json = to_raw_value(asked).ok()?;
        let key = Hash::of(json.get().as_bytes()).to_string();
        Some(Self { key, asked: Some(json).filter(|json| json.get().len() <= MAX_REQUEST_BYTES) })
    }
}

/// What jobs asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Nothing that was asked since then is missing.
    pub since: Timestamp,
    /// The last asked first.
    pub requests: Vec<Remembered>,
}

/// A request, and the jobs that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// `None` where it was too large to be kept, or an agent kept it that knows more kinds of work.
    pub asked: Option<Asked>,
    /// How many jobs asked it since [`History::since`], its whole day included.
    pub jobs: u64,
    /// When the last of them came.
    pub last_at: Timestamp,
    /// The last of them.
    pub last_job: String,
}

/// What is known of a request. Fields are added, never changed.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    asked: Option<&'a RawValue>,
    /// Jobs by day since 1970: a sum could not forget those of a month ago.
    days: BTreeMap<i64, u64>,
    last_job: &'a str,
}

/// Counts one job.
pub(super) fn remember(
    txn: &WriteTransaction,
    cursors: &mut Cursors<'_>,
    question: &Question,
    at: Timestamp,
    job: &JobId,
) -> Result<(), redb::Error> {
    begin(cursors, at)?;
    let (mut rows, mut order) = (txn.open_table(ASKED)?, txn.open_table(ASKED_AT)?);
    let key = question.key.as_str();
    let known = rows.get(key)?.map(|row| {
        let (last, json) = row.value();
        // One that cannot be read is begun anew.
        (last, serde_json::from_slice::<Row<'_>>(json).map_or_else(|_| BTreeMap::new(), |r| r.days))
    });
    let (mut last, mut days) = (at.as_microsecond(), BTreeMap::new());
    if let Some((before, counted)) = known {
        order.remove((before, key))?;
        // Jobs that are judged side by side come here in any order.
        (last, days) = (last.max(before), counted);
    } else if rows.len()? >= MAX_REQUESTS {
        let oldest = order.pop_first()?.map(|(row, _)| (row.value().0, row.value().1.to_owned()));
        if let Some((at, key)) = oldest {
            rows.remove(key.as_str())?;
            cursors.insert(SINCE, at.to_string().as_bytes())?;
        }
    }
    *days.entry(day_of(at)).or_default() += 1;
    days.retain(|day, _| *day >= day_of(at) - KEPT_DAYS);
    let row = Row { asked: question.asked.as_deref(), days, last_job: job.as_str() };
    let json = serde_json::to_vec(&row)
        .map_err(|e| redb::Error::Corrupted(format!("what job {job} asked as JSON: {e}")))?;
    rows.insert(key, (last, json.as_slice()))?;
    order.insert((last, key), ())?;
    Ok(())
}

/// Forgets what no job asked for so long; whether anything changed.
pub(super) fn prune(
    txn: &WriteTransaction,
    cursors: &mut Cursors<'_>,
    now: Timestamp,
) -> Result<bool, redb::Error> {
    let begun = begin(cursors, now)?;
    let (mut rows, mut order) = (txn.open_table(ASKED)?, txn.open_table(ASKED_AT)?);
    let mut gone = Vec::new();
    for row in order.extract_from_if(..(oldest(now).as_microsecond(), ""), |_, ()| true)? {
        gone.push(row?.0.value().1.to_owned());
    }
    for key in &gone {
        rows.remove(key.as_str())?;
    }
    Ok(begun || !gone.is_empty())
}

/// What is remembered at `now`.
pub(super) fn history(txn: &ReadTransaction, now: Timestamp) -> Result<History, redb::Error> {
    let since = begun(&txn.open_table(CURSORS)?)?.unwrap_or(now).max(oldest(now));
    let (rows, order) = match (txn.open_table(ASKED), txn.open_table(ASKED_AT)) {
        (Ok(rows), Ok(order)) => (rows, order),
        // Of an agent that did not remember yet.
        (Err(TableError::TableDoesNotExist(_)), _) | (_, Err(TableError::TableDoesNotExist(_))) => {
            return Ok(History { since, requests: Vec::new() });
        }
        (Err(error), _) | (_, Err(error)) => return Err(error.into()),
    };
    let mut requests = Vec::new();
    for at in order.range((oldest(now).as_microsecond(), "")..)?.rev() {
        let (at, _) = at?;
        let (last, key) = at.value();
        if let Some(row) = rows.get(key)? {
            requests.push(remembered(key, last, row.value().1, since)?);
        }
    }
    Ok(History { since, requests })
}

fn remembered(
    key: &str,
    last: i64,
    json: &[u8],
    since: Timestamp,
) -> Result<Remembered, redb::Error> {
    let damaged = |e: &dyn std::fmt::Display| redb::Error::Corrupted(format!("request {key}: {e}"));
    let row: Row<'_> = serde_json::from_slice(json).map_err(|e| damaged(&e))?;
    Ok(Remembered {
        asked: row.asked.and_then(|asked| serde_json::from_str(asked.get()).ok()),
        jobs: row.days.range(day_of(since)..).map(|(_, jobs)| jobs).sum(),
        last_at: Timestamp::from_microsecond(last).map_err(|e| damaged(&e))?,
        last_job: row.last_job.to_owned(),
    })
}

/// Marks the beginning of all remembering; whether this was it.
fn begin(cursors: &mut Cursors<'_>, now: Timestamp) -> Result<bool, redb::Error> {
    let first = cursors.get(SINCE)?.is_none();
    if first {
        cursors.insert(SINCE, now.as_microsecond().to_string().as_bytes())?;
    }
    Ok(first)
}

fn begun(
    cursors: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<Timestamp>, redb::Error> {
    let text = cursors.get(SINCE)?.map(|text| String::from_utf8_lossy(text.value()).into_owned());
    Ok(text.and_then(|text| Timestamp::from_microsecond(text.parse().ok()?).ok()))
}

fn oldest(now: Timestamp) -> Timestamp {
    now.saturating_sub(SignedDuration::from_hours(KEPT_DAYS * 24)).unwrap_or(Timestamp::MIN)
}

fn day_of(at: Timestamp) -> i64 {
    at.as_second().div_euclid(SECONDS_A_DAY)
}

#[cfg(test)]
mod tests {
    use jtnt_proto::policy::Limits;

    use super::*;
    use crate::{
        domain::{asked::Action, job::State},
        store::{
            Admission, Journal,
            tests::{entry, hours, open},
        },
    };

    fn asked(path: &str) -> Asked {
        let action = Action::Exec { path: path.to_owned(), args: Vec::new() };
        Asked { action, run_as: None, env: Vec::new(), limits: Limits::default() }
    }

    /// A job that asks to run `path`, so many hours after the beginning.
    async fn take(journal: &Journal, n: u64, path: &str, hour: i64) -> Admission {
        let job_id = JobId::try_from(format!("j{n}")).unwrap();
        let entry = crate::domain::job::Entry {
            job_id,
            received_at: hours(hour),
            ..entry(0, State::Rejected)
        };
        journal.admit_asking(entry, Question::of(&asked(path))).await.unwrap()
    }

    fn seen(journal: &Journal, hour: i64) -> Vec<(String, u64, String)> {
        let path = |asked: Option<Asked>| match asked.map(|asked| asked.action) {
            Some(Action::Exec { path, .. }) => path,
            _ => String::new(),
        };
        let history = journal.asked(hours(hour)).unwrap();
        history.requests.into_iter().map(|r| (path(r.asked), r.jobs, r.last_job)).collect()
    }

    fn row(path: &str, jobs: u64, last: u64) -> (String, u64, String) {
        (path.to_owned(), jobs, format!("j{last}"))
    }

    #[tokio::test]
    async fn jobs_that_ask_the_same_share_a_row_and_one_that_comes_again_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let journal = open(&path).unwrap();
        assert_eq!(seen(&journal, 0), []);
        for n in 0..50 {
            take(&journal, n, "/a", 1).await;
        }
        take(&journal, 50, "/b", 2).await;
        take(&journal, 51, "/a", 3).await;
        assert_ne!(take(&journal, 51, "/a", 4).await, Admission::New);
        let all = [row("/a", 51, 51), row("/b", 1, 50)];
        assert_eq!(seen(&journal, 4), all);
        drop(journal);
        let journal = open(&path).unwrap();
        assert_eq!(seen(&journal, 4), all);
        assert_eq!(journal.asked(hours(4)).unwrap().since, hours(1));
    }

    #[tokio::test]
    async fn of_too_many_requests_those_asked_last_are_kept_and_it_is_told_since_when() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir.path().join("j")).unwrap();
        for n in 0..MAX_REQUESTS {
            take(&journal, n, &format!("/{n}"), 1).await;
        }
        take(&journal, 9000, "/0", 2).await;
        take(&journal, 9001, "/new", 3).await;
        let seen = seen(&journal, 4);
        assert_eq!(seen.len() as u64, MAX_REQUESTS);
        assert_eq!(seen[..2], [row("/new", 1, 9001), row("/0", 2, 9000)]);
        let gone = (1..MAX_REQUESTS).filter(|n| !seen.iter().any(|r| r.0 == format!("/{n}")));
        assert_eq!(gone.count(), 1);
        assert_eq!(journal.asked(hours(4)).unwrap().since, hours(1));
    }

    #[tokio::test]
    async fn a_month_later_a_request_is_forgotten_and_its_old_jobs_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir.path().join("j")).unwrap();
        let day = |days: i64| days * 24;
        take(&journal, 0, "/once", day(0)).await;
        take(&journal, 1, "/daily", day(0)).await;
        take(&journal, 2, "/daily", day(20)).await;
        assert_eq!(seen(&journal, day(29)), [row("/daily", 2, 2), row("/once", 1, 0)]);
        // Not pruned yet, and no longer told.
        assert_eq!(seen(&journal, day(31)), [row("/daily", 1, 2)]);
        assert_eq!(journal.asked(hours(day(31))).unwrap().since, hours(day(1)));
        journal.prune(Timestamp::MIN, hours(day(31))).await.unwrap();
        assert_eq!(seen(&journal, day(20)), [row("/daily", 2, 2)]);
        take(&journal, 3, "/daily", day(40)).await;
        assert_eq!(seen(&journal, day(40)), [row("/daily", 2, 3)]);
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_is_counted_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir.path().join("j")).unwrap();
        let (fits, large) = ("x".repeat(MAX_REQUEST_BYTES - 100), "y".repeat(MAX_REQUEST_BYTES));
        take(&journal, 0, &large, 0).await;
        take(&journal, 1, &large, 0).await;
        take(&journal, 2, &fits, 1).await;
        assert_eq!(seen(&journal, 2), [row(&fits, 1, 2), row("", 2, 1)]);
    }

    #[tokio::test]
    async fn what_another_agent_wrote_is_counted_on() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir.path().join("j")).unwrap();
        let known = Question::of(&asked("/a")).unwrap();
        let newer = RawValue::from_string(r#"{"type":"dance"}"#.to_owned()).unwrap();
        let question = Question { asked: Some(newer), ..known };
        let admitted = journal.admit_asking(entry(1, State::Rejected), Some(question));
        assert_eq!(admitted.await.unwrap(), Admission::New);
        assert_eq!(seen(&journal, 1), [("".to_owned(), 1, "job-1".to_owned())]);
        take(&journal, 2, "/a", 1).await;
        assert_eq!(seen(&journal, 1), [row("/a", 2, 2)]);
    }

    #[tokio::test]
    async fn a_journal_of_an_agent_that_did_not_remember_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(&dir.path().join("j")).unwrap();
        let nothing = History { since: hours(5), requests: Vec::new() };
        assert_eq!(journal.asked(hours(5)).unwrap(), nothing);
        journal.prune(Timestamp::MIN, hours(2)).await.unwrap();
        assert_eq!(journal.asked(hours(5)).unwrap().since, hours(2));
    }
}
