//! Reading the log back: raw lines, file by file, never more than one line in memory.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _},
    path::{Path, PathBuf},
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

/// How long a file is.
///
/// # Errors
/// When it cannot be looked at.
pub fn length(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

/// How long its whole lines are, at this moment.
///
/// # Errors
/// When it cannot be read.
pub fn whole(path: &Path) -> io::Result<u64> {
    let (file, end) = (File::open(path)?, length(path)?);
    let from = end.saturating_sub(MAX_LINE_BYTES as u64 + 1);
    let mut tail = Vec::new();
    (&file).seek(io::SeekFrom::Start(from))?;
    file.take(end - from).read_to_end(&mut tail)?;
    let last = tail.iter().rposition(|b| *b == b'\n');
    // No newline as far as a line can reach: that is no line, and must be seen.
    Ok(last.map_or(if from == 0 { 0 } else { end }, |at| from + at as u64 + 1))
}

/// Every day's file, oldest first, with the bytes of it that count at this moment. The agent may be
/// writing the next line, which is no torn one, unless a write of its own has `failed`.
///
/// # Errors
/// When they cannot be looked at.
pub fn snapshot(dir: &Path, failed: bool) -> io::Result<Vec<(DayFile, u64)>> {
    let mut days = list(dir)?;
    let newest = days.pop();
    let mut all = Vec::new();
    for day in days {
        let bytes = length(&day.path)?;
        all.push((day, bytes));
    }
    if let Some(day) = newest {
        let bytes = if failed { length(&day.path) } else { whole(&day.path) }?;
        all.push((day, bytes));
    }
    Ok(all)
}

/// The plain files of a folder that nobody writes to: name, place and length.
///
/// # Errors
/// When it cannot be read.
pub fn contents(dir: &Path) -> io::Result<Vec<(String, PathBuf, u64)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (name, facts) = (entry.file_name(), entry.metadata()?);
        if let Some(name) = name.to_str().filter(|_| facts.is_file()) {
            all.push((name.to_owned(), entry.path(), facts.len()));
        }
    }
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_line_that_is_being_written_does_not_count_yet() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut grown = |text: &[u8]| {
            file.write_all(text).unwrap();
            whole(file.path()).unwrap()
        };
        assert_eq!(grown(b""), 0);
        assert_eq!(grown(b"{\"a\":"), 0);
        assert_eq!(grown(b"1}\n"), 8);
        assert_eq!(grown(b"{\"b\""), 8);
        assert_eq!(grown(&vec![b'x'; MAX_LINE_BYTES + 2]), 12 + MAX_LINE_BYTES as u64 + 2);
    }
}
