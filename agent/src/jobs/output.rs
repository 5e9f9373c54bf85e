//! A job's output on disk: `stdout` and `stderr` with the first bytes, `*.tail` with the last, in
//! a folder only the agent reads; written while the job runs, read back for results and people.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use jtnt_proto::{
    bytes::Base64,
    hub::{MAX_INLINE_OUTPUT_BYTES, Output},
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, sync::watch};

use super::capture::{Capture, Seen};
use crate::runtime::durable;

const CHUNK_BYTES: usize = 64 * 1024;
/// Less than this is hashed and written at once; more goes to a thread that may block.
const SMALL_BYTES: usize = 4096;
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
    pub(super) fn new(dir: &Path, stream: Stream, limit: u64) -> Arc<Mutex<Self>> {
        let capture = Capture::of(limit);
        Arc::new(Mutex::new(Self {
            dir: dir.to_owned(),
            stream,
            file: None,
            broken: false,
            capture,
        }))
    }

    fn take(&mut self, bytes: &[u8]) {
        let head = self.capture.push(bytes);
        if head.is_empty() || self.broken {
            return;
        }
        if let Err(error) = append(&mut self.file, &self.dir, self.stream, head) {
            tracing::warn!(%error, dir = %self.dir.display(), "a job's output is not kept");
            self.broken = true;
        }
    }

    /// Ends the stream: stores the tail and returns what a result says of the whole; nothing of a
    /// stream nobody wrote to.
    pub(super) fn finish(sink: &Mutex<Self>) -> (u64, Option<Output>) {
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::mem::replace(&mut sink.capture, Capture::of(0)).end();
        if seen.total == 0 {
            return (0, None);
        }
        if !seen.tail.is_empty() && !sink.broken {
            let path = sink.dir.join(sink.stream.tail_file());
            let stored = durable::create(&path, durable::PRIVATE)
                .and_then(|mut file| file.write_all(&seen.tail));
            if let Err(error) = stored {
                tracing::warn!(%error, path = %path.display(), "the end of an output is not kept");
            }
        }
        let head = sink.file.take().filter(|_| !sink.broken);
        (seen.total, Some(inline(head.as_ref(), &seen)))
    }
}

fn append(file: &mut Option<File>, dir: &Path, stream: Stream, bytes: &[u8]) -> io::Result<()> {
    if file.is_none() {
        durable::create_dir(dir, 0o700)?;
        let path = dir.join(stream.head_file());
        let options = &mut std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options, durable::PRIVATE);
        *file = Some(options.read(true).write(true).create(true).truncate(true).open(path)?);
    }
    file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
}

/// Reads a pipe to its end.
pub(super) async fn pump(
    pipe: OwnedFd,
    sink: Arc<Mutex<Sink>>,
    grown: watch::Sender<u64>,
) -> io::Result<()> {
    let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
    let mut chunk = vec![0; SMALL_BYTES];
    loop {
        let n = pipe.read(&mut chunk).await?;
        if n == 0 {
            return Ok(());
        }
        if n <= SMALL_BYTES {
            let bytes = chunk.get(..n).unwrap_or_default();
            sink.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
        } else {
            let sink = Arc::clone(&sink);
            let taken = tokio::task::spawn_blocking(move || {
                let bytes = chunk.get(..n).unwrap_or_default();
                sink.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
                chunk
            });
            chunk = taken.await.map_err(io::Error::other)?;
        }
        // A stream that fills the small buffer is worth a large one.
        if n == chunk.len() && n < CHUNK_BYTES {
            chunk.resize(CHUNK_BYTES, 0);
        }
        grown.send_modify(|count| *count += 1);
    }
}

/// What a result carries: all of it when it fits, else the first and the last bytes.
fn inline(file: Option<&File>, seen: &Seen) -> Output {
    let kept = file.and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
    let whole = kept + seen.tail.len() as u64 == seen.total;
    let (total_bytes, sha256) = (seen.total, Some(seen.sha256));
    if whole && seen.total <= MAX_INLINE_OUTPUT_BYTES as u64 {
        let mut head = read_at(file, 0, MAX_INLINE_OUTPUT_BYTES);
        head.extend_from_slice(&seen.tail);
        return Output { head: Base64(head), tail: None, total_bytes, sha256 };
    }
    let mut tail = seen.tail.clone();
    if whole && tail.len() < INLINE_TAIL_BYTES {
        let missing = INLINE_TAIL_BYTES - tail.len();
        let mut before = read_at(file, kept.saturating_sub(missing as u64), missing);
        before.append(&mut tail);
        tail = before;
    }
    tail.drain(..tail.len().saturating_sub(INLINE_TAIL_BYTES));
    // Head and tail do not tell the same bytes twice.
    let before_tail = seen.total.saturating_sub(tail.len() as u64);
    let head = INLINE_HEAD_BYTES.min(usize::try_from(before_tail).unwrap_or(usize::MAX));
    let head = Base64(read_at(file, 0, head));
    Output { head, tail: Some(Base64(tail)).filter(|t| !t.0.is_empty()), total_bytes, sha256 }
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

/// Reads at most `max` bytes of a stream of which `total` bytes were written, where that is known.
///
/// # Errors
/// When they cannot be read; a stream that was never written to is empty.
pub(super) fn read(
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

    fn sink_of(dir: &Path, limit: u64, chunks: &[&[u8]]) -> (u64, Option<Output>) {
        let sink = Sink::new(&dir.join("job"), Stream::Stdout, limit);
        for chunk in chunks {
            sink.lock().unwrap().take(chunk);
        }
        Sink::finish(&sink)
    }

    #[test]
    fn a_short_output_stands_in_the_result_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (total, output) = sink_of(dir.path(), 100, &[b"he", b"llo \xff\xfe"]);
        let output = output.unwrap();
        assert_eq!((total, &output.head.0[..]), (8, &b"hello \xff\xfe"[..]));
        assert_eq!(output.tail, None);
        assert_eq!(output.sha256, Some(jtnt_proto::bytes::Hash::of(b"hello \xff\xfe")));
    }

    #[test]
    fn of_a_long_output_beginning_and_end_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (total, output) = sink_of(dir.path(), 8, &[b"0123456789", b"abcdef"]);
        let output = output.unwrap();
        assert_eq!((total, &output.head.0[..]), (16, &b"012345"[..]));
        assert_eq!(output.tail.unwrap().0, b"ef");
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
        let output = sink_of(dir.path(), 1 << 20, &[&all]).1.unwrap();
        assert_eq!(output.head.0, all[..INLINE_HEAD_BYTES]);
        assert_eq!(output.tail.unwrap().0, all[all.len() - INLINE_TAIL_BYTES..]);
    }

    #[test]
    fn silence_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(sink_of(dir.path(), 100, &[]), (0, None));
        assert!(!dir.path().join("job").exists());
        assert_eq!(read(dir.path(), Stream::Stderr, 0, 9, None).unwrap(), Part::default());
    }
}
