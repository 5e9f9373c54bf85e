//! The log's checkpoints on disk: the newest of our own, by which the tree's file is believed, and
//! those that a witness cosigned, one a day for ever, so that what was removed can still be proven.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::civil::Date;
use jtnt_proto::{
    checkpoint::{MAX_BYTES, Note},
    key::PublicKey,
};

use super::FILE_MODE;
use crate::runtime::durable;

const DIR_MODE: u32 = 0o750;
const OWN: &str = "own.note";

/// The folder of one log's checkpoints.
#[derive(Debug, Clone)]
pub(super) struct Checkpoints {
    dir: PathBuf,
    origin: String,
}

/// A checkpoint that a witness cosigned, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Witnessed {
    /// Lines that it covers.
    pub(super) size: u64,
    /// The note with its signatures.
    pub(super) note: String,
}

impl Checkpoints {
    /// Those of the log of this id in the audit folder.
    pub(super) fn of(audit: &Path, log_id: &str, origin: String) -> Self {
        Self { dir: audit.join("checkpoints").join(log_id), origin }
    }

    /// Makes the folder sure that a process may have made which was killed before its sync.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.dir.is_dir() { durable::sync_parent(&self.dir) } else { Ok(()) }
    }

    /// The newest that one of these keys signed, and its text; nothing where there is none that can be
    /// believed.
    pub(super) fn own(&self, keys: &[PublicKey]) -> Option<(Note, String)> {
        let text = self.read(&self.dir.join(OWN))?;
        let note = Note::parse(&text).ok()?;
        let ours = keys.iter().any(|key| note.is_signed_by(key));
        (note.checkpoint.origin == self.origin && ours).then_some((note, text))
    }

    pub(super) fn keep_own(&self, note: &str) -> io::Result<()> {
        durable::create_dir(&self.dir, DIR_MODE)?;
        durable::replace(&self.dir.join(OWN), note.as_bytes(), FILE_MODE)
    }

    /// The newest that a witness cosigned, of those that one of these keys has signed over no more than
    /// `size` lines: whoever can write here could put any note.
    pub(super) fn witnessed(&self, keys: &[PublicKey], size: u64) -> Option<Witnessed> {
        self.list().ok()?.into_iter().rev().filter(|kept| kept.1 <= size).find_map(
            |(_, size, path)| {
                let note = self.read(&path)?;
                let parsed = Note::parse(&note).ok()?;
                let seen = &parsed.checkpoint;
                let ours = keys.iter().any(|key| parsed.is_signed_by(key));
                let fits = seen.size == size && seen.origin == self.origin && ours;
                fits.then_some(Witnessed { size, note })
            },
        )
    }

    /// All that a witness cosigned, each with the name of its file.
    pub(super) fn all(&self) -> io::Result<Vec<(String, String)>> {
        if !self.dir.try_exists()? {
            return Ok(Vec::new());
        }
        let named = |(_, _, path): (Date, u64, PathBuf)| {
            let name = path.file_name()?.to_str()?.to_owned();
            Some((name, self.read(&path)?))
        };
        Ok(self.list()?.into_iter().filter_map(named).collect())
    }

    /// Keeps one, in place of an earlier one of this day.
    pub(super) fn keep_witnessed(&self, day: Date, size: u64, note: &str) -> io::Result<()> {
        durable::create_dir(&self.dir, DIR_MODE)?;
        let path = self.dir.join(format!("{day}-{size:020}.note"));
        durable::replace(&path, note.as_bytes(), FILE_MODE)?;
        for (other, _, earlier) in self.list()? {
            if other == day && earlier < path {
                durable::remove(&earlier)?;
            }
        }
        Ok(())
    }

    /// By day and size.
    fn list(&self) -> io::Result<Vec<(Date, u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let parts = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".note")?.split_at_checked(10));
            if let Some((day, size)) = parts
                && let (Ok(day), Some(Ok(size))) =
                    (day.parse(), size.strip_prefix('-').map(str::parse))
            {
                found.push((day, size, path));
            }
        }
        // A clock that was set back makes an earlier day of a longer log.
        found.sort_by_key(|(_, size, _)| *size);
        Ok(found)
    }

    fn read(&self, path: &Path) -> Option<String> {
        String::from_utf8(durable::read(path, MAX_BYTES as u64).ok()?).ok()
    }
}
