//! Finding the end of the log again, after a clean stop, a crash, or a failed sync.
//!
//! What was acknowledged stands in whole lines. Behind them may be the traces of a batch that was
//! cut off: those bytes are kept beside the file, never dropped and never taken for the log.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use jtnt_proto::{
    audit::{Event, SealedLine, ZERO},
    bytes::Hash,
    identity::is_id,
    key::PublicKey,
};

use super::{
    AuditError, FILE_MODE, Record,
    files::{self, DayFile, Tail},
    reader, rotate,
};
use crate::runtime::durable;

/// The end of the chain, and what stands in its way.
#[derive(Debug)]
pub(super) struct End {
    /// The newest file, where the log goes on.
    pub(super) newest: DayFile,
    /// Whether the newest file has no line yet, so that the first one must open the day.
    pub(super) unopened: bool,
    /// Names the log; `None` when no file has a line, so that the log has yet to begin.
    pub(super) log_id: Option<String>,
    /// Lines so far.
    pub(super) size: u64,
    /// Leaf hash of the last line.
    pub(super) head: Hash,
    /// The file before the newest.
    pub(super) previous: Option<DayFile>,
    /// What is to be recorded of bytes that were set aside.
    pub(super) recovered: Vec<Record>,
}

/// Looks at the files in `dir`; `None` when there are none. Torn bytes are set aside, everything
/// else is only read.
pub(super) fn find(
    dir: &Path,
    (agent_id, keys): (&str, &[PublicKey]),
) -> Result<Option<End>, AuditError> {
    let mut days = files::list(dir).map_err(|e| fault(dir, &e))?;
    let Some(newest) = days.last().cloned() else { return Ok(None) };
    let mut last = None;
    while let Some(day) = days.pop() {
        let tail = files::tail(&day.path).map_err(|e| fault(&day.path, &e))?;
        let line =
            tail.last.as_deref().map(|raw| judge(dir, &day, raw, (agent_id, keys))).transpose()?;
        // Only what ends in a line of ours is ours to mend.
        if !tail.torn.is_empty() {
            set_aside(&day, &tail).map_err(|e| fault(&day.path, &e))?;
        }
        if let Some(line) = line {
            last = Some((day, line));
            break;
        }
    }
    let untold = untold(dir).map_err(|e| fault(dir, &e))?;
    let recovered = untold.iter().map(|path| describe(path).map_err(|e| fault(path, &e)));
    let recovered = recovered.collect::<Result<_, _>>()?;
    let unopened = last.as_ref().is_none_or(|(day, _)| *day != newest);
    let previous = if unopened { last.as_ref().map(|(day, _)| day.clone()) } else { days.pop() };
    let (size, head, log_id) = match last {
        Some((_, (size, head, log_id))) => (size, head, Some(log_id)),
        None => (0, ZERO, None),
    };
    Ok(Some(End { newest, unopened, log_id, size, head, previous, recovered }))
}

/// Takes the last line for the end of our chain, or refuses to go on behind it.
fn judge(
    dir: &Path,
    day: &DayFile,
    raw: &[u8],
    (agent_id, keys): (&str, &[PublicKey]),
) -> Result<(u64, Hash, String), AuditError> {
    let refuse = |why: String| {
        AuditError(format!(
            "{}: {why}. If audit/ or keys/ of this agent were restored from a copy, restore both from the \
             same one. To keep the log as evidence and begin a new one, type: mv {dir} {dir}.broken",
            day.path.display(),
            dir = dir.display()
        ))
    };
    let line =
        SealedLine::parse(raw).map_err(|e| refuse(format!("its last line cannot be read: {e}")))?;
    if !rotate::is_end(&line, keys) {
        return Err(refuse("its last line is not signed by this agent's audit key".to_owned()));
    }
    // Whoever changes the log's name there would have another log, without a history.
    let first = reader::first_line(&day.path).map_err(|e| fault(&day.path, &e))?;
    let log_id = first
        .as_deref()
        .and_then(|first| SealedLine::parse(first).ok())
        .filter(|first| first.line.agent_id == agent_id)
        .filter(|first| keys.iter().any(|key| first.is_signed_by(key)))
        .and_then(|first| first.line.details.get("log_id")?.as_str().map(str::to_owned))
        .filter(|log_id| is_id(log_id))
        .ok_or_else(|| refuse("its first line, which names the log, is not this agent's".into()))?;
    let size = line.line.seq.checked_add(1).ok_or_else(|| refuse("it is full".to_owned()))?;
    Ok((size, line.leaf_hash(), log_id))
}

/// Marks torn bytes that no line of the log tells of yet.
const UNTOLD: &str = ".untold";

/// Keeps torn bytes in a file of their own, durably, then cuts them off.
fn set_aside(day: &DayFile, tail: &Tail) -> io::Result<()> {
    let mut n = 1_u32;
    let kept_as = loop {
        let name = format!("{}.torn-{n}", day.name());
        let marked = day.path.with_file_name(format!("{name}{UNTOLD}"));
        if !day.path.with_file_name(&name).try_exists()? && !marked.try_exists()? {
            break marked;
        }
        n += 1;
    };
    durable::replace(&kept_as, &tail.torn, FILE_MODE)?;
    let file = OpenOptions::new().write(true).open(&day.path)?;
    file.set_len(tail.whole)?;
    file.sync_all()
}

/// What was set aside, by this process or by one that a crash ended before it could tell.
fn untold(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.contains(".log.torn-") && name.ends_with(UNTOLD) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The line that tells of it.
fn describe(path: &Path) -> io::Result<Record> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let kept_as = name.strip_suffix(UNTOLD).unwrap_or(&name);
    let day = kept_as.split_once(".torn-").map_or(kept_as, |(day, _)| day);
    let (sha256, bytes) = files::digest(path)?;
    let mut record = Record::of(Event::Recovered)
        .detail("file", day)
        .detail("kept_as", kept_as)
        .detail("sha256", sha256.to_string())
        .detail("bytes", bytes);
    record.object = Some(day.to_owned());
    Ok(record)
}

/// The lines that tell of what was set aside are durable.
pub(super) fn told(dir: &Path) -> Result<(), AuditError> {
    let settle = || {
        for path in untold(dir)? {
            fs::rename(&path, path.with_extension(""))?;
            durable::sync_dir(dir)?;
        }
        Ok(())
    };
    settle().map_err(|e| fault(dir, &e))
}

/// Writes the whole lines from `synced` on a second time, and syncs them.
///
/// After a failed sync the kernel may hold pages for clean that never reached the disk, and a
/// later sync would pass over them. Written again, they are sure to be taken along.
pub(super) fn rewrite(path: &Path, synced: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut at = synced;
    let mut piece = vec![0; 64 * 1024];
    loop {
        let read = file.read_at(&mut piece, at)?;
        if read == 0 {
            return file.sync_all();
        }
        file.write_all_at(piece.get(..read).unwrap_or_default(), at)?;
        at += read as u64;
    }
}

/// When a file's first line was written, and the number of its last, if these keys signed both. The line
/// that closes a day comes on a later one.
pub(super) fn span(path: &Path, keys: &[PublicKey]) -> io::Result<Option<(Timestamp, u64)>> {
    let ours = |raw: Option<Vec<u8>>| {
        let raw = raw?;
        let sealed = SealedLine::parse(&raw).ok()?;
        keys.iter().any(|key| sealed.is_signed_by(key)).then_some(sealed.line)
    };
    let (first, last) = (ours(reader::first_line(path)?), ours(files::tail(path)?.last));
    Ok(first.zip(last).map(|(first, last)| (first.timestamp, last.seq)))
}

/// Seq of the first and of the last line of a file, as far as they can be read.
pub(super) fn seqs(path: &Path) -> io::Result<(Option<u64>, Option<u64>)> {
    let seq = |raw: Option<Vec<u8>>| Some(SealedLine::parse(&raw?).ok()?.line.seq);
    Ok((seq(reader::first_line(path)?), seq(files::tail(path)?.last)))
}

pub(super) fn fault(path: &Path, error: &io::Error) -> AuditError {
    AuditError(format!("{}: {error}", path.display()))
}
