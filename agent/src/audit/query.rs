//! Questions to the log: which lines match, and which are new. Both read files in pieces of a
//! bounded size, so a reader costs the same whatever the log's length; both block.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use jtnt_proto::audit::MAX_LINE_BYTES;
use serde::Deserialize;

use super::reader::{DayFile, Lines, first_line, list};

/// Lines that are handed out at once have at most this many bytes, or are a single line.
const BATCH_BYTES: usize = 256 * 1024;
/// So much is looked through before the caller has its turn again.
const SCAN_BYTES: usize = 8 << 20;
/// Old lines that a follower begins with have at most this many bytes.
const MAX_TAIL_BYTES: usize = 4 << 20;

/// Which lines are wanted; each part that is there must match.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Written then or later.
    pub since: Option<Timestamp>,
    /// Of this event.
    pub event: Option<String>,
    /// About this job.
    pub job_id: Option<String>,
    /// Containing this text.
    pub text: Option<String>,
}

/// What a filter looks at; everything else in a line is passed over.
#[derive(Deserialize)]
struct Head {
    timestamp: Timestamp,
    event: String,
    #[serde(default)]
    job_id: Option<String>,
}

impl Filter {
    fn accepts(&self, raw: &[u8]) -> bool {
        let contains = |text: &String| {
            text.is_empty() || raw.windows(text.len()).any(|part| part == text.as_bytes())
        };
        if !self.text.as_ref().is_none_or(contains) {
            return false;
        }
        if self.since.is_none() && self.event.is_none() && self.job_id.is_none() {
            return true;
        }
        // What is no audit line matches no question about its parts.
        let Ok(head) = serde_json::from_slice::<Head>(raw) else { return false };
        self.since.is_none_or(|since| head.timestamp >= since)
            && self.event.as_ref().is_none_or(|event| *event == head.event)
            && self.job_id.as_ref().is_none_or(|id| Some(id) == head.job_id.as_ref())
    }

    /// Whether a day's file may hold a line that is wanted. Days are the machine's, so the bound
    /// leaves room for every zone.
    fn reaches(&self, day: &DayFile) -> bool {
        let Some(since) = self.since else { return true };
        let first = since.to_zoned_datetime(TimeZone::UTC).date().saturating_sub(2.days());
        day.day >= first
    }
}

/// Goes through the whole log once, oldest first.
#[derive(Debug)]
pub struct Scan {
    files: VecDeque<DayFile>,
    lines: Option<Lines>,
    filter: Filter,
    /// Matches to pass over, where only the newest are wanted.
    skip: u64,
}

impl Scan {
    /// The lines in `dir` that match; with `limit`, only so many of the newest.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn new(dir: &Path, filter: Filter, limit: u64) -> io::Result<Self> {
        let mut scan = Self::over(dir, filter.clone())?;
        if limit > 0 {
            let mut counted = Self::over(dir, filter)?;
            let mut matches = 0_u64;
            while let Some(batch) = counted.next()? {
                matches += batch.len() as u64;
            }
            scan.skip = matches.saturating_sub(limit);
        }
        Ok(scan)
    }

    fn over(dir: &Path, filter: Filter) -> io::Result<Self> {
        let files = list(dir)?.into_iter().filter(|day| filter.reaches(day)).collect();
        Ok(Self { files, lines: None, filter, skip: 0 })
    }

    /// The next lines that match, perhaps none of them yet; `None` at the end.
    ///
    /// # Errors
    /// When a file cannot be read.
    #[expect(clippy::should_implement_trait, reason = "it fails, and hands out batches")]
    pub fn next(&mut self) -> io::Result<Option<Vec<Vec<u8>>>> {
        let (mut batch, mut bytes, mut seen) = (Vec::new(), 0, 0);
        while bytes < BATCH_BYTES && seen < SCAN_BYTES {
            let Some(lines) = &mut self.lines else {
                match self.files.pop_front() {
                    Some(day) => self.lines = open(&day.path)?,
                    None if batch.is_empty() => return Ok(None),
                    None => break,
                }
                continue;
            };
            let Some(line) = lines.next().transpose()? else {
                self.lines = None;
                continue;
            };
            seen += line.bytes.len();
            if line.whole && self.filter.accepts(&line.bytes) {
                if self.skip > 0 {
                    self.skip -= 1;
                } else {
                    bytes += line.bytes.len();
                    batch.push(line.bytes);
                }
            }
        }
        Ok(Some(batch))
    }
}

/// The line of this number, as it stands in its file; `None` where no file holds it.
///
/// # Errors
/// When a file cannot be read.
pub fn line_of(dir: &Path, seq: u64) -> io::Result<Option<Vec<u8>>> {
    for day in list(dir)?.into_iter().rev() {
        let first = first_line(&day.path)?.and_then(|raw| seq_of(&raw));
        // A file that does not begin with a line holds none that could be proven.
        if first.is_none_or(|first| first > seq) {
            continue;
        }
        for line in open(&day.path)?.into_iter().flatten() {
            let line = line?;
            if line.whole && seq_of(&line.bytes) == Some(seq) {
                return Ok(Some(line.bytes));
            }
        }
        return Ok(None);
    }
    Ok(None)
}

/// Where the line of this number begins in its file, or where the file ends.
fn offset_of(path: &Path, seq: u64) -> io::Result<u64> {
    let mut offset = 0;
    for line in open(path)?.into_iter().flatten() {
        let line = line?;
        if !line.whole || seq_of(&line.bytes).is_some_and(|this| this >= seq) {
            break;
        }
        offset += line.bytes.len() as u64 + 1;
    }
    Ok(offset)
}

/// The number that a line says it has.
#[must_use]
pub fn seq_of(raw: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_slice::<Numbered>(raw).ok().map(|line| line.seq)
}

/// `None` when retention has removed it meanwhile.
fn open(path: &Path) -> io::Result<Option<Lines>> {
    match Lines::of(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Reads what is appended, from day to day.
#[derive(Debug)]
pub struct Follow {
    dir: PathBuf,
    at: Option<(DayFile, File)>,
    offset: u64,
}

impl Follow {
    /// The last `wanted` lines of the log in `dir`, and a follower that goes on behind them.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn begin(dir: &Path, wanted: usize) -> io::Result<(Vec<Vec<u8>>, Self)> {
        let mut follow = Self { dir: dir.to_owned(), at: None, offset: 0 };
        let mut last = VecDeque::new();
        for (n, day) in list(dir)?.into_iter().rev().enumerate() {
            let older = end_of(&day.path, wanted - last.len(), &mut last)?;
            if n == 0 {
                follow.at = Some((day.clone(), File::open(&day.path)?));
                follow.offset = older;
            }
            if last.len() >= wanted {
                break;
            }
        }
        let mut bytes = last.iter().map(Vec::len).sum::<usize>();
        while bytes > MAX_TAIL_BYTES
            && let Some(dropped) = last.pop_front()
        {
            bytes -= dropped.len();
        }
        Ok((last.into(), follow))
    }

    /// A follower of the log in `dir` that begins with the line of this number, or the first after it
    /// that is there; and that one's number.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn from(dir: &Path, seq: u64) -> io::Result<(u64, Self)> {
        let mut follow = Self { dir: dir.to_owned(), at: None, offset: 0 };
        let mut first = seq;
        for day in list(dir)?.into_iter().rev() {
            let Some(begin) = first_line(&day.path)?.and_then(|raw| seq_of(&raw)) else { continue };
            follow.at = Some((day.clone(), File::open(&day.path)?));
            if begin <= seq {
                follow.offset = offset_of(&day.path, seq)?;
                return Ok((seq, follow));
            }
            first = begin;
        }
        Ok((first, follow))
    }

    /// Whole lines that were not read yet; none when there are none for now.
    ///
    /// # Errors
    /// When a file cannot be read.
    #[expect(clippy::should_implement_trait, reason = "it fails, and hands out batches")]
    pub fn next(&mut self) -> io::Result<Vec<Vec<u8>>> {
        loop {
            let lines = self.read()?;
            if !lines.is_empty() || !self.turn()? {
                return Ok(lines);
            }
        }
    }

    fn read(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let Some((_, file)) = &self.at else { return Ok(Vec::new()) };
        let mut piece = vec![0; BATCH_BYTES.max(MAX_LINE_BYTES + 1)];
        let read = file.read_at(&mut piece, self.offset)?;
        piece.truncate(read);
        let whole = piece.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.offset += whole as u64;
        let lines = piece.get(..whole).unwrap_or_default().split(|b| *b == b'\n');
        Ok(lines.filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// Goes on to the next day's file, if there is one.
    fn turn(&mut self) -> io::Result<bool> {
        let current = self.at.as_ref().map(|(day, _)| day.day);
        let next = list(&self.dir)?.into_iter().find(|day| current.is_none_or(|c| day.day > c));
        let Some(next) = next else { return Ok(false) };
        let file = File::open(&next.path)?;
        (self.at, self.offset) = (Some((next, file)), 0);
        Ok(true)
    }
}

/// Puts the last `wanted` whole lines of a file before `last`; returns where they end.
fn end_of(path: &Path, wanted: usize, last: &mut VecDeque<Vec<u8>>) -> io::Result<u64> {
    let (mut own, mut end) = (VecDeque::new(), 0);
    let Some(lines) = open(path)? else { return Ok(0) };
    for line in lines {
        let line = line?;
        if !line.whole {
            break;
        }
        end += line.bytes.len() as u64 + 1;
        own.push_back(line.bytes);
        if own.len() > wanted {
            own.pop_front();
        }
    }
    while let Some(line) = own.pop_back() {
        last.push_front(line);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn line(second: u32, event: &str, job: Option<&str>) -> String {
        let job = job.map_or_else(String::new, |j| format!(",\"job_id\":\"{j}\""));
        format!("{{\"timestamp\":\"2026-01-02T00:00:{second:02}Z\",\"event\":\"{event}\"{job}}}\n")
    }

    fn put(dir: &Path, day: &str, text: &str) {
        let path = dir.join(format!("audit-{day}.log"));
        let file = File::options().create(true).append(true).open(path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn all(dir: &Path, filter: Filter, limit: u64) -> Vec<String> {
        let mut scan = Scan::new(dir, filter, limit).unwrap();
        let mut out = Vec::new();
        while let Some(batch) = scan.next().unwrap() {
            out.extend(batch.into_iter().map(|l| String::from_utf8(l).unwrap() + "\n"));
        }
        out
    }

    #[test]
    fn lines_are_found_by_event_job_time_and_text() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "2026-01-01", &line(1, "startup", None));
        put(dir.path(), "2026-01-02", &(line(2, "job_started", Some("a")) + "{\"torn"));
        let with = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            all(dir.path(), filter, 0).len()
        };
        assert_eq!(with(|_| {}), 2, "a torn line is none");
        assert_eq!(with(|f| f.event = Some("startup".into())), 1);
        assert_eq!(with(|f| f.job_id = Some("a".into())), 1);
        assert_eq!(with(|f| f.since = Some("2026-01-02T00:00:02Z".parse().unwrap())), 1);
        assert_eq!(with(|f| f.text = Some("job_st".into())), 1);
        assert_eq!(with(|f| f.text = Some("nowhere".into())), 0);
    }

    #[test]
    fn a_limit_keeps_the_newest_that_match() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..9 {
            let event = if n % 2 == 0 { "even" } else { "odd" };
            put(dir.path(), "2026-01-02", &line(n, event, None));
        }
        let filter = Filter { event: Some("odd".into()), ..Filter::default() };
        assert_eq!(all(dir.path(), filter, 2), [line(5, "odd", None), line(7, "odd", None)]);
    }

    #[test]
    fn what_is_longer_than_a_batch_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let text: String = (0..20_000).map(|n| line(n % 60, "many", None)).collect();
        put(dir.path(), "2026-01-02", &text);
        assert_eq!(all(dir.path(), Filter::default(), 0).concat(), text);
    }

    #[test]
    fn a_follower_goes_on_over_midnight_and_waits_for_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "2026-01-01", &line(0, "old", None));
        put(dir.path(), "2026-01-02", &(line(1, "b", None) + &line(2, "c", None)));
        let (last, mut follow) = Follow::begin(dir.path(), 2).unwrap();
        assert_eq!(last.len(), 2);
        let (more, _) = Follow::begin(dir.path(), 9).unwrap();
        assert_eq!(more.len(), 3, "from the file before, too");
        assert!(follow.next().unwrap().is_empty());
        let new = line(3, "d", None);
        let (half, rest) = new.split_at(20);
        put(dir.path(), "2026-01-02", half);
        assert!(follow.next().unwrap().is_empty(), "half a line is none");
        put(dir.path(), "2026-01-02", rest);
        put(dir.path(), "2026-01-03", &line(4, "e", None));
        let mut seen = follow.next().unwrap();
        seen.extend(follow.next().unwrap());
        assert_eq!(seen.len(), 2);
        assert!(follow.next().unwrap().is_empty());
    }

    #[test]
    fn a_follower_begins_with_any_line_that_is_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let numbered = |seq: u64| format!("{{\"seq\":{seq}}}\n");
        put(dir.path(), "2026-01-02", &(3..6).map(numbered).collect::<String>());
        put(dir.path(), "2026-01-03", &(6..9).map(numbered).collect::<String>());
        for seq in 0..10 {
            let (first, mut follow) = Follow::from(dir.path(), seq).unwrap();
            let mut rest = follow.next().unwrap();
            rest.extend(follow.next().unwrap());
            let rest: Vec<_> = rest.iter().map(|raw| seq_of(raw).unwrap()).collect();
            assert_eq!(rest, (seq.max(3)..9).collect::<Vec<_>>());
            assert_eq!(first, seq.max(3));
        }
        let (first, mut follow) = Follow::from(&dir.path().join("."), 9).unwrap();
        put(dir.path(), "2026-01-03", &numbered(9));
        assert_eq!((first, follow.next().unwrap().len()), (9, 1));
    }

    #[test]
    fn a_follower_of_an_empty_folder_waits_for_its_first_file() {
        let dir = tempfile::tempdir().unwrap();
        let (last, mut follow) = Follow::begin(dir.path(), 5).unwrap();
        assert!(last.is_empty());
        put(dir.path(), "2026-01-02", &line(1, "a", None));
        assert_eq!(follow.next().unwrap().len(), 1);
    }
}
