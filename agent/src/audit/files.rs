//! The log's files: their names, their order, and the last whole line of each.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use jiff::civil::Date;
use jtnt_proto::{audit::MAX_LINE_BYTES, bytes::Hash};
use sha2::{Digest as _, Sha256};

use super::log::MAX_BATCH_BYTES;

/// A day's file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DayFile {
    /// The civil day in its name.
    pub day: Date,
    /// Where it is.
    pub path: PathBuf,
}

impl DayFile {
    /// The file of `day` in `dir`.
    #[must_use]
    pub fn of(dir: &Path, day: Date) -> Self {
        Self { day, path: dir.join(format!("audit-{day}.log")) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Every day's file in `dir`, oldest first. Other files are not the log's and are left alone.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(dir: &Path) -> io::Result<Vec<DayFile>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A pipe would never end, and a link may lead anywhere.
        if !entry.file_type()?.is_file() {
            continue;
        }
        let name = entry.file_name();
        let day = name
            .to_str()
            .and_then(|n| n.strip_prefix("audit-")?.strip_suffix(".log"))
            .and_then(|day| day.parse::<Date>().ok());
        if let Some(day) = day.filter(|day| DayFile::of(dir, *day).name().as_str() == name) {
            found.push(DayFile::of(dir, day));
        }
    }
    found.sort();
    Ok(found)
}

/// How much of a file's end is read at first, and how much when that shows no line: the traces of
/// a whole batch and the line before it.
const WINDOWS: [u64; 2] = [2 * (MAX_LINE_BYTES as u64 + 1), 2 * MAX_BATCH_BYTES as u64];

/// The end of a file.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Bytes up to and with the newline of the last whole line.
    pub(super) whole: u64,
    /// The last whole line, without its newline.
    pub(super) last: Option<Vec<u8>>,
    /// What follows it: the traces of a write that was cut off.
    pub(super) torn: Vec<u8>,
}

/// Reads the end of a file, however long it is.
pub(super) fn tail(path: &Path) -> io::Result<Tail> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    for window in WINDOWS {
        let start = file.seek(SeekFrom::Start(length.saturating_sub(window)))?;
        let mut bytes = Vec::new();
        file.by_ref().take(window).read_to_end(&mut bytes)?;
        if let Some(tail) = split(bytes, start) {
            return Ok(tail);
        }
    }
    let fault = format!("{} does not end in an audit line", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidData, fault))
}

/// Takes apart the bytes from `start` to the end; `None` when the last whole line is not in them.
fn split(mut bytes: Vec<u8>, start: u64) -> Option<Tail> {
    // A line holds no zero byte. Blocks that a power cut left unwritten read as zeros, and what
    // was written behind them belongs to the same batch.
    let written = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let newline = |bytes: &[u8]| bytes.iter().rposition(|b| *b == b'\n');
    let Some(end) = newline(bytes.get(..written)?) else {
        return (start == 0).then(|| Tail { torn: bytes, ..Tail::default() });
    };
    let torn = bytes.split_off(end + 1);
    bytes.truncate(end);
    let begin = match newline(&bytes) {
        Some(at) => at + 1,
        None if start == 0 => 0,
        None => return None,
    };
    Some(Tail { whole: start + end as u64 + 1, last: Some(bytes.split_off(begin)), torn })
}

/// What was set aside from the file of `day`.
pub(super) fn torn_of(dir: &Path, day: &DayFile) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("{}.torn-", day.name());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// SHA-256 and length of a file, read in pieces.
pub(super) fn digest(path: &Path) -> io::Result<(Hash, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut piece = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok((Hash(hash.finalize().into()), length));
        }
        hash.update(piece.get(..read).unwrap_or_default());
        length += read as u64;
    }
}
