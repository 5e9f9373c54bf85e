//! The files by which a job is found again.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::order::{Exit, MAX_EXIT_BYTES, MAX_SEEN_BYTES};
use crate::{
    domain::seen::Seen,
    runtime::{
        durable::{self, PRIVATE},
        lock::{Lock, LockError, holder},
    },
};

/// One run of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    dir: PathBuf,
    number: u32,
}

/// What is left of a run that nobody keeps any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// It never began.
    Nothing,
    /// It began. Nobody wrote down how it ended.
    Started,
    /// It ended so.
    Exit(Box<Exit>),
}

impl Attempt {
    /// Run `number` of the job whose folder this is.
    #[must_use]
    pub const fn new(dir: PathBuf, number: u32) -> Self {
        Self { dir, number }
    }

    /// The job's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The job's name, which is the folder's.
    #[must_use]
    pub fn job_id(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn lock_file(&self) -> PathBuf {
        self.dir.join(format!("shim.{}", self.number))
    }

    fn marker(&self) -> PathBuf {
        self.dir.join(format!("started.{}", self.number))
    }

    fn exit_file(&self) -> PathBuf {
        self.dir.join(format!("exit.{}.json", self.number))
    }

    fn seen_file(&self) -> PathBuf {
        self.dir.join(format!("seen.{}.json", self.number))
    }

    /// Makes the folder if need be, and takes the lock.
    pub(super) fn lock(&self) -> Result<Lock, LockError> {
        let io = |source| LockError::Io { path: self.dir.clone(), source };
        durable::scratch_dir(&self.dir, 0o700).map_err(io)?;
        Lock::take(&self.lock_file(), "jtnt-agent shim")
    }

    /// Writes down that the program is about to begin, and how long it may run.
    ///
    /// # Errors
    /// Also when that was written before: nothing begins twice.
    pub(super) fn mark(&self, timeout: Duration) -> io::Result<()> {
        let mut marker = durable::create(&self.marker(), PRIVATE)?;
        marker.write_all(timeout.as_secs().to_string().as_bytes())
    }

    /// How long a program that has begun may run, from its beginning.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        let text = durable::read(&self.marker(), MAX_EXIT_BYTES).ok()?;
        let seconds = std::str::from_utf8(&text).ok()?.parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// Writes down how it ended; `synced` if the machine may go down before anybody reads it.
    pub(super) fn leave(&self, exit: &Exit, synced: bool) -> io::Result<()> {
        let body = serde_json::to_vec(exit)?;
        let write = if synced { durable::replace } else { durable::put };
        write(&self.exit_file(), &body, PRIVATE)
    }

    /// Writes down what was seen of it. Stays as long as output does.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn see(&self, seen: &Seen) -> io::Result<()> {
        durable::scratch_dir(&self.dir, 0o700)?;
        durable::put(&self.seen_file(), &serde_json::to_vec(seen)?, PRIVATE)
    }

    /// What was seen of it, if it was watched and that is still here.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn seen(&self) -> io::Result<Option<Seen>> {
        match durable::read(&self.seen_file(), MAX_SEEN_BYTES) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The process that keeps it.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub(super) fn keeper(&self) -> Result<Option<u32>, LockError> {
        holder(&self.lock_file())
    }

    /// What is left. Only of a run that nobody keeps does this say the last word.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn left(&self) -> io::Result<Left> {
        match durable::read(&self.exit_file(), MAX_EXIT_BYTES) {
            Ok(body) => return Ok(Left::Exit(Box::new(serde_json::from_slice(&body)?))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(if self.marker().try_exists()? { Left::Started } else { Left::Nothing })
    }

    /// Removes the files of this run, and the folder if neither output nor what was seen is in it.
    pub fn forget(&self) {
        for path in [self.exit_file(), self.marker(), self.lock_file()] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "a file of a job stays");
                }
                _ => {}
            }
        }
        // Output of the job keeps it, as it should, and what was seen of it.
        let _empty_or_not = std::fs::remove_dir(&self.dir);
    }
}
