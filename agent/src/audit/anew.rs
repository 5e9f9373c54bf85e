//! A new log in the place of one that was put back: a restored snapshot, a cloned disk. Its numbers
//! were given to other lines already, and those were seen; so it ends here, is kept beside, and
//! another begins that tells of it.
//!
//! The note that shows it is written first. Whatever a crash interrupts is done from it at the next
//! opening.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jtnt_proto::{
    audit::{Event, SealedLine, Status},
    audit_export::ANCHOR,
    checkpoint::{self, MAX_BYTES, Note},
    key::PublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    AuditError, FILE_MODE, Record, files,
    log::Log,
    query, reader,
    recover::{self, fault},
    rotate, tree,
};
use crate::runtime::durable;

const DIR_MODE: u32 = 0o750;
/// The checkpoint that shows that the log was put back, until another has begun.
const NOTE: &str = "rolled-back.note";
/// New logs in one run: an agent that is put back again and again has another trouble.
const MOST: u32 = 3;
const MAX_ID_BYTES: u64 = 128;
/// What precedes a log's id in the name of its folder.
const PREFIX: &str = "superseded-";

/// A log that was put back.
#[derive(Debug)]
pub(super) struct Superseded {
    pub(super) log_id: String,
    /// Where it ended.
    end: Value,
    /// What shows that it was put back; nothing where it is gone.
    note: Option<String>,
}

impl Superseded {
    /// What the new log says of it: in its first line, and for all who watch.
    pub(super) fn tell(self, genesis: Record) -> [Record; 2] {
        let (reason, what) = match self.note {
            Some(_) => ("ROLLED_BACK", "AUDIT_ROLLED_BACK"),
            None => ("LOST", "AUDIT_LOST"),
        };
        let mut genesis = genesis.detail("reason", reason).detail("previous", self.end);
        if let Some(note) = self.note {
            genesis = genesis.detail("checkpoint", note);
        }
        let mut degraded = Record::of(Event::Degraded).detail("what", what);
        degraded.status = Some(Status::Error);
        degraded.origin = Some("agent");
        degraded.object = Some(self.log_id);
        [genesis, degraded]
    }
}

/// The id of the log after this one, by what was drawn when it was opened.
pub(super) fn next_id(seed: [u8; 16], log_id: &str) -> String {
    let hash = Sha256::new().chain_update(seed).chain_update(log_id).finalize();
    hex::encode(hash.split_at(16).0)
}

/// Ids of the logs that were put back and are kept in `dir`.
pub(super) fn kept(dir: &Path) -> io::Result<Vec<String>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(|name| name.strip_prefix(PREFIX)).map(str::to_owned));
    }
    ids.sort();
    Ok(ids)
}

/// Moves what a log that was put back has left in `dir` out of the way, if there is one.
pub(super) fn set_aside(
    dir: &Path,
    (agent_id, keys): (&str, &[PublicKey]),
) -> Result<Option<Superseded>, AuditError> {
    let path = dir.join(NOTE);
    if !path.try_exists().map_err(|e| fault(&path, &e))? {
        return Ok(None);
    }
    let read = durable::read(&path, MAX_BYTES as u64).unwrap_or_default();
    let note = String::from_utf8_lossy(&read).into_owned();
    let parsed = Note::parse(&note).ok().filter(|parsed| {
        let log_id = parsed.checkpoint.log_id();
        let ours = keys.iter().any(|key| parsed.is_signed_by(key));
        ours && parsed.checkpoint.origin == checkpoint::origin(agent_id, log_id)
    });
    let Some(parsed) = parsed else {
        // We write none but our own.
        tracing::error!(note = %path.display(), "a note that this agent did not sign ends no log");
        durable::remove(&path).map_err(|e| fault(&path, &e))?;
        return Ok(None);
    };
    let log_id = parsed.checkpoint.log_id().to_owned();
    let folder = dir.join(format!("{PREFIX}{log_id}"));
    let moved = move_all(dir, &folder, &log_id).map_err(|e| fault(&folder, &e))?;
    // What shows that it is not the whole log, beside it.
    durable::replace(&folder.join(ANCHOR), note.as_bytes(), FILE_MODE)
        .map_err(|e| fault(&folder, &e))?;
    let end = end(&folder, &log_id);
    Ok(Some(Superseded { end, log_id, note: Some(note) }).filter(|_| moved))
}

/// Moves its files; says whether none of another log are there yet.
fn move_all(dir: &Path, folder: &Path, log_id: &str) -> io::Result<bool> {
    durable::create_dir(folder, DIR_MODE)?;
    let mut is_last = true;
    let mut files: Vec<PathBuf> = Vec::new();
    for day in files::list(dir)? {
        let first = reader::first_line(&day.path)?;
        let id = first.and_then(|raw| {
            let line = SealedLine::parse(&raw).ok()?.line;
            Some(line.details.get("log_id")?.as_str()?.to_owned())
        });
        match id {
            Some(other) if other != log_id => is_last = false,
            Some(_) => {
                files.extend(files::torn_of(dir, &day)?);
                files.push(day.path);
            }
            // What a crash left without a line is where the next log may begin.
            None => {}
        }
    }
    files.push(tree::path(dir, log_id));
    for path in files {
        match fs::rename(&path, free(folder, &path)?) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
    }
    durable::sync_dir(folder)?;
    durable::sync_dir(dir)?;
    Ok(is_last)
}

/// A name for this file in the folder. The same log can be put back more than once.
fn free(folder: &Path, path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (mut free, mut n) = (folder.join(&*name), 1_u32);
    while free.try_exists()? {
        free = folder.join(format!("{name}.{n}"));
        n += 1;
    }
    Ok(free)
}

/// Where a log ended, as far as its files tell.
fn end(folder: &Path, log_id: &str) -> Value {
    let newest = files::list(folder).ok().and_then(|days| days.into_iter().next_back());
    let last = newest.and_then(|day| recover::seqs(&day.path).ok()?.1);
    json!({"log_id": log_id, "last_seq": last})
}

/// Where the id of the log in force is remembered: beside its folder, in case that goes.
fn memory(dir: &Path) -> PathBuf {
    dir.with_extension("id")
}

/// The log in force.
pub(super) fn remember(dir: &Path, log_id: &str) -> Result<(), AuditError> {
    let path = memory(dir);
    if durable::read(&path, MAX_ID_BYTES).is_ok_and(|known| known == log_id.as_bytes()) {
        return Ok(());
    }
    durable::replace(&path, log_id.as_bytes(), FILE_MODE).map_err(|e| fault(&path, &e))
}

/// A log that this agent had, where none is found.
pub(super) fn lost(dir: &Path) -> Result<Option<Superseded>, AuditError> {
    let path = memory(dir);
    let read = match durable::read(&path, MAX_ID_BYTES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|e| fault(&path, &e))?,
    };
    let log_id = String::from_utf8_lossy(&read).into_owned();
    tracing::error!(log_id, "the audit log is gone; another begins, and says so");
    Ok(Some(Superseded { end: json!({"log_id": log_id}), log_id, note: None }))
}

/// The new log has begun.
pub(super) fn begun(dir: &Path) -> Result<(), AuditError> {
    let path = dir.join(NOTE);
    durable::remove(&path).map_err(|e| fault(&path, &e))
}

impl Log {
    /// See [`super::Audit::rolled_back`].
    pub(super) fn rolled_back(&mut self, text: &str) -> Result<bool, AuditError> {
        if self.open.is_none() {
            let recovered = self.recover();
            self.settle(recovered)?;
        }
        if !self.is_other(text)? {
            return Ok(false);
        }
        if self.begun_anew >= MOST {
            let why =
                format!("it was put back {MOST} times since the start; see to that, and restart");
            return Err(AuditError(why));
        }
        self.begun_anew += 1;
        let path = self.config.dir.join(NOTE);
        durable::replace(&path, text.as_bytes(), FILE_MODE).map_err(|e| fault(&path, &e))?;
        self.open = None;
        let begun = self.enter();
        self.settle(begun)?;
        Ok(true)
    }

    /// Whether it is by the key in force, or by one that was while the log had no more lines than that:
    /// whoever stole an old key signs what he likes.
    fn could_sign(&self, note: &Note) -> Result<bool, AuditError> {
        if note.is_signed_by(&self.signer.public_key()) {
            return Ok(true);
        }
        let dir = &self.config.dir;
        let told = rotate::rotations(dir).map_err(|e| fault(dir, &e))?;
        for (key, raw) in self.signer.keys().iter().zip(told) {
            let Some(seq) = query::seq_of(raw.as_bytes()).filter(|_| note.is_signed_by(key)) else {
                continue;
            };
            // The line may be one of a log before this one, whose numbers say nothing here.
            let here = query::line_of(dir, seq).map_err(|e| fault(dir, &e))?;
            let ended = here.is_some_and(|line| line == raw.as_bytes());
            return Ok(ended && note.checkpoint.size <= seq.saturating_add(1));
        }
        Ok(false)
    }

    /// Whether this is a checkpoint that our key has signed, of our log, and not of these lines.
    fn is_other(&mut self, text: &str) -> Result<bool, AuditError> {
        let Ok(note) = Note::parse(text) else { return Ok(false) };
        let log_id = self.opened()?.log_id.clone();
        let seen = &note.checkpoint;
        if seen.origin != self.origin(&log_id) || !self.could_sign(&note)? {
            return Ok(false);
        }
        let tree = self.open.as_ref().and_then(|open| open.tree.as_ref());
        let tree = tree.ok_or_else(|| AuditError("its tree cannot be had; see the log".into()))?;
        if seen.size > tree.frontier().size() {
            return Ok(true);
        }
        let root = tree.root_of(seen.size);
        root.map(|root| root != seen.root).map_err(|e| AuditError(format!("its tree: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{
        super::tests::{DAY, Fixture, events, record},
        *,
    };
    use crate::audit::{Audit, Offer};

    /// All files of the folder, by their names.
    fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let files = all.filter(|entry| entry.file_type().unwrap().is_file());
        files
            .map(|f| (f.file_name().into_string().unwrap(), fs::read(f.path()).unwrap()))
            .filter(|(name, _)| name != "lock")
            .collect()
    }

    /// Every line there.
    fn all(dir: &Path) -> String {
        let logs = content(dir).into_iter().filter(|(name, _)| name.contains(".log"));
        String::from_utf8(logs.flat_map(|(_, bytes)| bytes).collect()).unwrap()
    }

    fn put_back(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
        for (name, _) in content(dir) {
            fs::remove_file(dir.join(name)).unwrap();
        }
        for (name, bytes) in files {
            durable::put(&dir.join(name), bytes, FILE_MODE).unwrap();
        }
    }

    async fn grow(audit: &Audit, lines: u64) -> Offer {
        for n in 0..lines {
            audit.append(record(n)).await.unwrap();
        }
        let offer = audit.checkpoint(None).await.unwrap();
        audit.witnessed(offer.note.clone()).await.unwrap();
        offer
    }

    /// Two days, then put back to the first; and the checkpoint that the witness has.
    async fn rolled_back() -> (Fixture, Offer) {
        let fixture = Fixture::new();
        let audit = fixture.open();
        grow(&audit, 5).await;
        drop(audit);
        let before = content(&fixture.dir());
        let audit = fixture.open();
        fixture.clock.advance(DAY);
        let seen = grow(&audit, 5).await;
        drop(audit);
        put_back(&fixture.dir(), &before);
        (fixture, seen)
    }

    /// A new log has begun, tells of the old one, and that is kept to its last byte.
    fn is_begun_anew(fixture: &Fixture, audit: &Audit, old: &str, lines: &str) {
        let head = audit.head();
        assert_ne!(head.log_id, old);
        assert_eq!(head.superseded, [old]);
        assert_eq!(head.witnessed, 0);
        let first = reader::first_line(&fixture.today()).unwrap().unwrap();
        let first = SealedLine::parse(&first).unwrap().line;
        assert_eq!((first.seq, first.event.as_str()), (0, "genesis"));
        assert_eq!(first.details["reason"], "ROLLED_BACK");
        assert_eq!(first.details["previous"]["log_id"], old);
        assert_eq!(events(&fixture.today()).get(1).unwrap(), "degraded");
        assert_eq!(all(&fixture.dir().join(format!("superseded-{old}"))), lines);
        assert_eq!(fixture.verify().first_seq, Some(0));
    }

    #[tokio::test]
    async fn a_log_that_was_put_back_ends_and_another_begins() {
        let (fixture, seen) = rolled_back().await;
        let audit = fixture.open();
        audit.append(record(9)).await.unwrap();
        let lines = all(&fixture.dir());
        assert!(audit.rolled_back(seen.note.clone()).await.unwrap());
        is_begun_anew(&fixture, &audit, &seen.log_id, &lines);
        // It is told once: the new log is none that the note speaks of.
        assert!(!audit.rolled_back(seen.note.clone()).await.unwrap());
        let size = grow(&audit, 3).await.size;
        drop(audit);
        let audit = fixture.open();
        assert_eq!((audit.head().size, audit.head().superseded), (size, vec![seen.log_id.clone()]));
        // Whoever has looked at it moves it away.
        fs::remove_dir_all(fixture.dir().join(format!("superseded-{}", seen.log_id))).unwrap();
        audit.clean().await.unwrap();
        assert!(audit.head().superseded.is_empty());
        assert_eq!(events(&fixture.today()).last().unwrap(), "degraded", "that it is explained");
    }

    #[tokio::test]
    async fn a_log_that_went_on_differently_is_one_that_was_put_back() {
        let (fixture, seen) = rolled_back().await;
        let audit = fixture.open();
        for n in 0..seen.size {
            audit.append(record(100 + n)).await.unwrap();
        }
        let lines = all(&fixture.dir());
        assert!(audit.rolled_back(seen.note).await.unwrap());
        is_begun_anew(&fixture, &audit, &seen.log_id, &lines);
    }

    #[tokio::test]
    async fn what_shows_nothing_changes_nothing() {
        let fixture = Fixture::new();
        let audit = fixture.open();
        let old = grow(&audit, 5).await;
        let new = grow(&audit, 5).await;
        let before = content(&fixture.dir());
        let longer = new.note.replacen(&format!("\n{}\n", new.size), "\n99\n", 1);
        let elsewhere = new.note.replace(&new.log_id, "other");
        for note in [old.note, new.note, longer, elsewhere, String::new()] {
            assert!(!audit.rolled_back(note.clone()).await.unwrap(), "{note}");
        }
        assert_eq!(content(&fixture.dir()), before);
    }

    #[tokio::test]
    async fn wherever_a_crash_comes_the_new_log_begins_once_and_nothing_is_lost() {
        for step in 0..4 {
            let (fixture, seen) = rolled_back().await;
            let (dir, lines) = (fixture.dir(), all(&fixture.dir()));
            fs::create_dir(dir.join(format!("{PREFIX}{}", seen.log_id))).unwrap();
            durable::put(&dir.join(NOTE), seen.note.as_bytes(), FILE_MODE).unwrap();
            let moved = dir.join(format!("{PREFIX}{}/audit-2026-06-01.log", seen.log_id));
            if step > 0 {
                fs::rename(dir.join("audit-2026-06-01.log"), &moved).unwrap();
            }
            if step == 2 {
                // The new day's file is there, and no line of it.
                durable::put(&dir.join("audit-2026-06-02.log"), b"", FILE_MODE).unwrap();
            }
            if step == 3 {
                // It has begun; only the note was not removed.
                drop(fixture.open());
                durable::put(&dir.join(NOTE), seen.note.as_bytes(), FILE_MODE).unwrap();
            }
            let audit = fixture.open();
            is_begun_anew(&fixture, &audit, &seen.log_id, &lines);
            assert!(!dir.join(NOTE).exists());
            assert_eq!(fixture.files().len(), 1, "{step}");
        }
    }

    #[tokio::test]
    async fn a_log_that_is_put_back_twice_loses_nothing() {
        let (fixture, seen) = rolled_back().await;
        let before = content(&fixture.dir());
        let audit = fixture.open();
        assert!(audit.rolled_back(seen.note.clone()).await.unwrap());
        drop(audit);
        put_back(&fixture.dir(), &before);
        let audit = fixture.open();
        assert!(audit.rolled_back(seen.note).await.unwrap());
        let folder = fixture.dir().join(format!("{PREFIX}{}", seen.log_id));
        let logs = content(&folder).into_keys().filter(|name| name.contains(".log")).count();
        assert_eq!(logs, 2);
    }
}
