//! Enrolments that were tried, for the daemon to count and to write into the audit log: they
//! happen in another process, often before the daemon ever ran.

use std::{io, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{EnrolError, Enrolled};
use crate::{identity::Paths, platform::users, runtime::durable};

/// So many are kept; what the daemon has not read by then was of no use to it.
const MAX_KEPT: usize = 200;
const MAX_BYTES: u64 = 1 << 20;
const MAX_MESSAGE: usize = 1024;

/// One try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1, 2, 3, ...
    #[serde(default)]
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The user who tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// And its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Which hub.
    pub hub: String,
    /// `success` or `error`.
    pub status: String,
    /// Stable reason of an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Who was enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
}

impl Attempt {
    pub(super) fn new(at: Timestamp, hub: String, outcome: &Result<Enrolled, EnrolError>) -> Self {
        let (status, reason, message, agent_id) = match outcome {
            Ok(enrolled) => ("success", None, None, Some(enrolled.agent_id.clone())),
            Err(e) => {
                let message = e.message.chars().take(MAX_MESSAGE).collect();
                ("error", Some(e.reason.clone().into_owned()), Some(message), None)
            }
        };
        let (uid, pid) = (Some(users::own_uid()), Some(std::process::id()));
        Self { seq: 0, at, uid, pid, hub, status: status.to_owned(), reason, message, agent_id }
    }
}

/// Adds an attempt, whole or not at all; gives it its number. The caller holds the enrolment's
/// lock.
///
/// # Errors
/// As the system's.
pub fn record(data_dir: &Path, attempt: Attempt) -> io::Result<u64> {
    let mut all = read_from(data_dir, 0)?;
    let seq = all.last().map_or(1, |last| last.seq + 1);
    all.push(Attempt { seq, ..attempt });
    let mut text = Vec::new();
    for attempt in all.iter().skip(all.len().saturating_sub(MAX_KEPT)) {
        serde_json::to_writer(&mut text, attempt)?;
        text.push(b'\n');
    }
    durable::replace(&path(data_dir), &text, durable::PUBLIC)?;
    Ok(seq)
}

/// The attempts with numbers from `cursor` on, oldest first.
///
/// # Errors
/// As the system's; no file is none, and a damaged line is passed over.
pub fn read_from(data_dir: &Path, cursor: u64) -> io::Result<Vec<Attempt>> {
    let text = match durable::read(&path(data_dir), MAX_BYTES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let attempts = lines.filter_map(|line| serde_json::from_slice::<Attempt>(line).ok());
    Ok(attempts.filter(|a| a.seq >= cursor).collect())
}

fn path(data_dir: &Path) -> std::path::PathBuf {
    Paths { data_dir: data_dir.to_owned() }.attempts()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(n: i64) -> Attempt {
        Attempt {
            seq: 0,
            at: Timestamp::from_second(n).unwrap(),
            uid: Some(0),
            pid: None,
            hub: "https://hub".to_owned(),
            status: "error".to_owned(),
            reason: Some("TOKEN_USED".to_owned()),
            message: None,
            agent_id: None,
        }
    }

    #[test]
    fn a_reader_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_from(dir.path(), 0).unwrap().is_empty());
        for n in 1..=3 {
            record(dir.path(), attempt(n)).unwrap();
        }
        let new = read_from(dir.path(), 3).unwrap();
        assert_eq!(new.iter().map(|a| (a.seq, a.at.as_second())).collect::<Vec<_>>(), [(3, 3)]);
    }

    #[test]
    fn the_oldest_go_and_numbers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..210 {
            record(dir.path(), attempt(n)).unwrap();
        }
        let kept = read_from(dir.path(), 0).unwrap();
        assert_eq!((kept.len(), kept[0].seq, kept[199].seq), (200, 11, 210));
    }

    #[test]
    fn a_damaged_line_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        record(dir.path(), attempt(1)).unwrap();
        let mut text = durable::read(&path(dir.path()), MAX_BYTES).unwrap();
        text.extend_from_slice(b"{\"seq\":2,\n");
        durable::replace(&path(dir.path()), &text, 0o644).unwrap();
        record(dir.path(), attempt(3)).unwrap();
        assert_eq!(read_from(dir.path(), 0).unwrap().len(), 2);
    }
}
