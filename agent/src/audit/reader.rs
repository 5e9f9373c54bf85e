//! Reading the log back: raw lines, file by file, never more than one line in memory.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
};

use jtnt_proto::audit::MAX_LINE_BYTES;

pub use super::files::{DayFile, list};

/// A raw line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawLine {
    /// The bytes without their newline.
    pub bytes: Vec<u8>,
    /// Whether a newline followed; not so for a line that is being written, or was torn.
    pub whole: bool,
}

/// The lines of one file in order. A line longer than any may be comes in pieces, each of which
/// fails to be one.
#[derive(Debug)]
pub struct Lines(BufReader<File>);

impl Lines {
    /// The lines of the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self(BufReader::with_capacity(64 * 1024, File::open(path)?)))
    }
}

impl Iterator for Lines {
    type Item = io::Result<RawLine>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        // One byte more than a line and its newline, so that too long a line shows as such.
        let bound = MAX_LINE_BYTES as u64 + 2;
        match self.0.by_ref().take(bound).read_until(b'\n', &mut bytes) {
            Err(e) => Some(Err(e)),
            Ok(0) => None,
            Ok(_) => {
                let whole = bytes.pop_if(|b| *b == b'\n').is_some();
                Some(Ok(RawLine { bytes, whole }))
            }
        }
    }
}

/// The first whole line of a file, if there is one.
///
/// # Errors
/// When it cannot be read.
pub fn first_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let first = Lines::of(path)?.next().transpose()?;
    Ok(first.filter(|line| line.whole).map(|line| line.bytes))
}
