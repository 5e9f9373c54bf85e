//! Retention: the files of old days go, after a record that says what they were.

use std::io;

use jtnt_proto::audit::{Event, Status};
use serde_json::{Value, json};

use super::{
    AuditError, Cleaned, Record, anew,
    files::{self, DayFile},
    log::Log,
    reader,
    recover::{self, fault},
};
use crate::runtime::durable;

/// Files in one prune record: as many as fit a line.
const MAX_PRUNED: usize = 256;

impl Log {
    /// See [`super::Audit::clean`].
    pub(super) fn clean(&mut self) -> Result<Cleaned, AuditError> {
        let outcome = self.try_clean();
        self.settle(outcome)
    }

    /// Somebody has looked at a log that was put back, and moved it away.
    fn settle_superseded(&mut self) -> Result<(), AuditError> {
        let dir = &self.config.dir;
        let kept = anew::kept(dir).map_err(|e| fault(dir, &e))?;
        let gone: Vec<_> =
            self.last.superseded.iter().filter(|id| !kept.contains(id)).cloned().collect();
        for log_id in gone {
            let mut record = Record::of(Event::Degraded).detail("what", "AUDIT_ROLLED_BACK");
            (record.status, record.object) = (Some(Status::Success), Some(log_id));
            self.turn_day()?;
            self.write(record)?;
            self.sync()?;
        }
        self.last.superseded = kept;
        Ok(())
    }

    fn try_clean(&mut self) -> Result<Cleaned, AuditError> {
        if self.open.is_none() {
            self.recover()?;
        }
        self.settle_superseded()?;
        let retention = self.config.retention;
        let keep = self.today().saturating_sub(retention.days());
        let sure = retention.sure(self.last.witnessed, self.last.held);
        let (current, keys) = (self.opened()?.day.clone(), self.signer.keys());
        let dir = self.config.dir.clone();
        let listed = files::list(&dir).map_err(|e| fault(&dir, &e))?;
        let mut cleaned = Cleaned::default();
        let mut old = Vec::new();
        for day in listed.into_iter().filter(|d| d.day < keep && d.day < current.day) {
            // Days go in their order, so that what is left is one log without a gap.
            let span = recover::span(&day.path, &keys).map_err(|e| fault(&day.path, &e))?;
            // What is no line was seen by nobody; a file without a byte says nothing. Its name is
            // anybody's word: the first line tells how old it is.
            let may_go = match span {
                Some((begun, last)) => last < sure && self.day_of(begun) < keep,
                None => reader::length(&day.path).map_err(|e| fault(&day.path, &e))? == 0,
            };
            if cleaned.kept.is_empty() && may_go {
                old.push(day);
            } else {
                cleaned.kept.push(day.name());
            }
        }
        // A record holds so many files and no more; the rest go with the next cleaning.
        let old: Vec<_> = old.into_iter().take(MAX_PRUNED).collect();
        if old.is_empty() {
            return Ok(cleaned);
        }
        let mut described = Vec::new();
        for day in &old {
            described.push(describe(day, &mut cleaned).map_err(|e| fault(&day.path, &e))?);
        }
        self.turn_day()?;
        self.write(Record::of(Event::Prune).detail("files", described))?;
        self.sync()?;
        // Without the lines only the tree's file can prove that the log grew from them.
        if self.opened()?.tree.is_some() {
            self.checkpoint(Some(0))?;
        }
        for day in &old {
            let torn = files::torn_of(&dir, day).map_err(|e| fault(&dir, &e))?;
            for path in torn.iter().chain([&day.path]) {
                durable::remove(path).map_err(|e| fault(path, &e))?;
            }
        }
        Ok(cleaned)
    }
}

/// A file as a prune record shows it.
fn describe(day: &DayFile, cleaned: &mut Cleaned) -> io::Result<Value> {
    let (sha256, bytes) = files::digest(&day.path)?;
    let (first_seq, last_seq) = recover::seqs(&day.path)?;
    cleaned.files.push(day.name());
    cleaned.bytes += bytes;
    let mut shown = json!({"file": day.name(), "sha256": sha256, "bytes": bytes});
    for (name, seq) in [("first_seq", first_seq), ("last_seq", last_seq)] {
        if let (Some(seq), Some(shown)) = (seq, shown.as_object_mut()) {
            shown.insert(name.to_owned(), seq.into());
        }
    }
    Ok(shown)
}
