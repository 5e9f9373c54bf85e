//! The log's files: their names, their order, and the last whole line of each.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use jiff::civil::Date;
use jtnt_proto::audit::MAX_LINE_BYTES;
use sha2::{Digest as _, Sha256};

use jtnt_proto::bytes::Hash;

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
        let name = entry?.file_name();
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

/// The end of a file.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Bytes up to and with the last newline.
    pub(super) whole: u64,
    /// The last line that ends in a newline, without it.
    pub(super) last: Option<Vec<u8>>,
    /// What follows the last newline: the traces of a write that was cut off.
    pub(super) torn: Vec<u8>,
}

/// Reads the end of a file, never more than two lines may be long.
pub(super) fn tail(path: &Path) -> io::Result<Tail> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let window = length.min(2 * (MAX_LINE_BYTES as u64 + 1));
    let start = file.seek(SeekFrom::Start(length - window))?;
    let mut bytes = Vec::new();
    file.take(window).read_to_end(&mut bytes)?;
    let Some(end) = bytes.iter().rposition(|b| *b == b'\n') else {
        if start > 0 {
            let fault = format!("{} does not end in an audit line", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
        }
        return Ok(Tail { torn: bytes, ..Tail::default() });
    };
    let torn = bytes.split_off(end + 1);
    bytes.truncate(end);
    let begin = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let last = Some(bytes.split_off(begin));
    Ok(Tail { whole: length - torn.len() as u64, last, torn })
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
