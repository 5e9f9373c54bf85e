//! A job's output on disk: `stdout` and `stderr` with the first bytes, `*.tail` with the last, in
//! a folder only the agent reads; written while the job runs, read back for results and people.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use jtnt_proto::{
    bytes::Base64,
    hub::{MAX_INLINE_OUTPUT_BYTES, Output, OutputPart},
};

use super::{
    capture::{Capture, Seen},
    order::Kept,
};
use crate::runtime::durable;

const INLINE_TAIL_BYTES: usize = MAX_INLINE_OUTPUT_BYTES / 4;
const INLINE_HEAD_BYTES: usize = MAX_INLINE_OUTPUT_BYTES - INLINE_TAIL_BYTES;

/// One of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    const fn head_file(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    const fn tail_file(self) -> &'static str {
        match self {
            Self::Stdout => "stdout.tail",
            Self::Stderr => "stderr.tail",
        }
    }
}

/// Bytes of a stream as they were kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    /// Position of the first of them; beyond what was asked for where bytes were dropped.
    pub offset: u64,
    /// The bytes; none at the end of what there is for now.
    pub data: Vec<u8>,
}

/// Where one stream of a running job goes.
#[derive(Debug)]
pub(super) struct Sink {
    dir: PathBuf,
    stream: Stream,
    file: Option<File>,
    /// A full disk costs the output, never the job.
    broken: bool,
    capture: Capture,
}

impl Sink {
    pub(super) fn new(dir: &Path, stream: Stream, limit: u64) -> Self {
        let capture = Capture::of(limit);
        Self { dir: dir.to_owned(), stream, file: None, broken: false, capture }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        let head = self.capture.push(bytes);
        if head.is_empty() || self.broken {
            return;
        }
        self.broken = append(&mut self.file, &self.dir, self.stream, head).is_err();
    }

    /// Ends the stream: stores the tail and returns what all of it was; nothing of a stream nobody
    /// wrote to.
    pub(super) fn finish(mut self) -> Option<Kept> {
        let Seen { total, head, sha256, tail } = self.capture.end();
        if total == 0 {
            return None;
        }
        if self.broken || tail.is_empty() {
            // There is no more, or no room for it.
        } else if head + tail.len() as u64 == total {
            // Nothing was cut, so it is one file. How much of it is there is told by its length.
            let _full_disk = append(&mut self.file, &self.dir, self.stream, &tail);
        } else {
            let path = self.dir.join(self.stream.tail_file());
            let stored =
                durable::create(&path, durable::PRIVATE).and_then(|mut file| file.write_all(&tail));
            if stored.is_err() {
                // What is there is told by its length.
                let _half = std::fs::remove_file(&path);
            }
        }
        Some(Kept { total, sha256 })
    }
}

fn append(file: &mut Option<File>, dir: &Path, stream: Stream, bytes: &[u8]) -> io::Result<()> {
    if file.is_none() {
        durable::scratch_dir(dir, 0o700)?;
        let path = dir.join(stream.head_file());
        let options = &mut std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options, durable::PRIVATE);
        *file = Some(options.read(true).write(true).create(true).truncate(true).open(path)?);
    }
    file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
}

/// What a result carries of a stream: all of it when it fits, else the first and the last bytes.
#[must_use]
pub fn output(dir: &Path, stream: Stream, kept: Kept) -> Output {
    let file = |name| open(&dir.join(name)).ok().flatten();
    let (head, tail) = (file(stream.head_file()), file(stream.tail_file()));
    let length = |file: Option<&File>| file.and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
    let (first, last) = (length(head.as_ref()), length(tail.as_ref()));
    let whole = first + last == kept.total;
    let (total_bytes, sha256) = (kept.total, Some(kept.sha256));
    if whole && kept.total <= MAX_INLINE_OUTPUT_BYTES as u64 {
        let mut all = read_at(head.as_ref(), 0, MAX_INLINE_OUTPUT_BYTES);
        all.extend(read_at(tail.as_ref(), 0, MAX_INLINE_OUTPUT_BYTES));
        return Output { head: Base64(all), total_bytes, sha256, ..Output::default() };
    }
    let mut end = end_of(tail.as_ref(), last, INLINE_TAIL_BYTES);
    if whole {
        let mut before = end_of(head.as_ref(), first, INLINE_TAIL_BYTES - end.len());
        before.append(&mut end);
        end = before;
    }
    // Head and tail do not tell the same bytes twice.
    let before_tail = kept.total.saturating_sub(end.len() as u64);
    let most = INLINE_HEAD_BYTES.min(usize::try_from(before_tail).unwrap_or(usize::MAX));
    let head = Base64(read_at(head.as_ref(), 0, most));
    let tail = Some(Base64(end)).filter(|t| !t.0.is_empty());
    let part = |name: &str, offset, size| OutputPart { name: name.to_owned(), offset, size };
    let kept = [
        part(stream.head_file(), 0, first),
        part(stream.tail_file(), kept.total.saturating_sub(last), last),
    ];
    // Where the result has all that is kept, nothing follows it.
    let more = first + last > (head.0.len() + tail.as_ref().map_or(0, |t| t.0.len())) as u64;
    let parts = kept.into_iter().filter(|part| more && part.size > 0).collect();
    Output { head, tail, total_bytes, sha256, parts, dropped: None }
}

/// At most `most` bytes from the end of a file of this length.
fn end_of(file: Option<&File>, length: u64, most: usize) -> Vec<u8> {
    read_at(file, length.saturating_sub(most as u64), most)
}

fn read_at(file: Option<&File>, offset: u64, length: usize) -> Vec<u8> {
    let Some(file) = file else { return Vec::new() };
    let mut out = vec![0; length];
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(n) if n > 0 => done += n,
            _ => break,
        }
    }
    out.truncate(done);
    out
}

/// How many bytes of a stream are there.
#[must_use]
pub fn kept(dir: &Path, stream: Stream) -> u64 {
    let length = |file| std::fs::metadata(dir.join(file)).map_or(0, |meta| meta.len());
    length(stream.head_file()) + length(stream.tail_file())
}

/// Reads at most `max` bytes of a stream of which `total` bytes were written, where that is known.
///
/// # Errors
/// When they cannot be read; a stream that was never written to is empty.
pub fn read(
    dir: &Path,
    stream: Stream,
    offset: u64,
    max: usize,
    total: Option<u64>,
) -> io::Result<Part> {
    let head = open(&dir.join(stream.head_file()))?;
    let data = read_at(head.as_ref(), offset, max);
    if !data.is_empty() {
        return Ok(Part { offset, data });
    }
    let (Some(total), Some(tail)) = (total, open(&dir.join(stream.tail_file()))?) else {
        return Ok(Part { offset, data });
    };
    let start = total.saturating_sub(tail.metadata()?.len());
    let offset = offset.max(start);
    Ok(Part { offset, data: read_at(Some(&tail), offset - start, max) })
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink_of(dir: &Path, limit: u64, chunks: &[&[u8]]) -> Option<Output> {
        let dir = dir.join("job");
        let mut sink = Sink::new(&dir, Stream::Stdout, limit);
        for chunk in chunks {
            sink.take(chunk);
        }
        sink.finish().map(|kept| output(&dir, Stream::Stdout, kept))
    }

    #[test]
    fn a_short_output_stands_in_the_result_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let output = sink_of(dir.path(), 100, &[b"he", b"llo \xff\xfe"]).unwrap();
        assert_eq!((output.total_bytes, &output.head.0[..]), (8, &b"hello \xff\xfe"[..]));
        assert_eq!(output.tail, None);
        assert_eq!(output.sha256, Some(jtnt_proto::bytes::Hash::of(b"hello \xff\xfe")));
    }

    #[test]
    fn of_a_long_output_beginning_and_end_stay() {
        let dir = tempfile::tempdir().unwrap();
        let output = sink_of(dir.path(), 8, &[b"0123456789", b"abcdef"]).unwrap();
        assert_eq!((output.total_bytes, &output.head.0[..]), (16, &b"012345"[..]));
        assert_eq!(output.tail.unwrap().0, b"ef");
        assert_eq!(output.parts, [], "the result has all of it");
        let part = |offset| read(&dir.path().join("job"), Stream::Stdout, offset, 99, Some(16));
        assert_eq!(part(2).unwrap(), Part { offset: 2, data: b"2345".into() });
        assert_eq!(part(6).unwrap(), Part { offset: 14, data: b"ef".into() });
        assert_eq!(part(16).unwrap(), Part { offset: 16, data: Vec::new() });
    }

    #[test]
    fn a_result_holds_no_more_than_its_bound_and_no_byte_twice() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<u8> =
            (0..MAX_INLINE_OUTPUT_BYTES + 10).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let output = sink_of(dir.path(), 1 << 20, &[&all]).unwrap();
        assert_eq!(output.head.0, all[..INLINE_HEAD_BYTES]);
        assert_eq!(output.tail.unwrap().0, all[all.len() - INLINE_TAIL_BYTES..]);
        let (name, size) = ("stdout".to_owned(), all.len() as u64);
        assert_eq!(output.parts, [OutputPart { name, offset: 0, size }]);
    }

    #[test]
    fn what_a_result_has_no_room_for_follows_it() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 4 * MAX_INLINE_OUTPUT_BYTES as u64;
        let all = vec![7; 5 * MAX_INLINE_OUTPUT_BYTES];
        let output = sink_of(dir.path(), limit, &[&all]).unwrap();
        let tail = MAX_INLINE_OUTPUT_BYTES as u64;
        let parts = [("stdout", 0, limit - tail), ("stdout.tail", all.len() as u64 - tail, tail)];
        let parts =
            parts.map(|(name, offset, size)| OutputPart { name: name.to_owned(), offset, size });
        assert_eq!(output.parts, parts);
    }

    #[test]
    fn what_is_kept_whole_is_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let output = sink_of(dir.path(), 8, &[b"01234", b"567"]).unwrap();
        assert_eq!((&output.head.0[..], output.tail), (&b"01234567"[..], None));
        assert_eq!(std::fs::read(dir.path().join("job/stdout")).unwrap(), b"01234567");
        assert!(!dir.path().join("job/stdout.tail").exists());
    }

    #[test]
    fn silence_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(sink_of(dir.path(), 100, &[]), None);
        assert!(!dir.path().join("job").exists());
        assert_eq!(read(dir.path(), Stream::Stderr, 0, 9, None).unwrap(), Part::default());
    }
}
