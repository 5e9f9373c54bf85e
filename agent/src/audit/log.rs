//! The log's own state: where the chain stands, which day's file is open, and how both are found
//! again after a crash.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    sync::Arc,
};

use jiff::civil::Date;
use jtnt_proto::{
    audit::{self as format, Event, Line, MAX_LINE_BYTES, SealedLine, ZERO},
    bytes::Hash,
};
use serde_json::{Map, Value, json};

use super::{
    AuditError, Cleaned, Config, Head, Record,
    files::{self, DayFile},
    reader,
};
use crate::runtime::{
    clock::SharedClock, durable, entropy::Entropy, lock::Lock, signer::AuditSigner,
};

const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;
/// Text of a record that is too long is cut to this many characters.
const CUT_CHARS: usize = 1024;

#[derive(Debug)]
pub(super) struct Log {
    config: Config,
    signer: Arc<dyn AuditSigner>,
    clock: SharedClock,
    /// `None` after a failure, until the end was looked at anew.
    open: Option<Open>,
    last: Head,
    _lock: Lock,
}

/// A file that can be appended to, and the chain at its end.
#[derive(Debug)]
struct Open {
    day: DayFile,
    file: File,
    log_id: String,
    size: u64,
    head: Hash,
    /// Lines that are sealed and not yet written.
    pending: Vec<u8>,
}

/// Torn bytes that were set aside.
struct Torn {
    file: String,
    kept_as: String,
    bytes: usize,
}

impl Log {
    pub(super) fn open(
        config: Config,
        signer: Arc<dyn AuditSigner>,
        clock: SharedClock,
        entropy: &dyn Entropy,
    ) -> Result<Self, AuditError> {
        durable::create_dir(&config.dir, DIR_MODE).map_err(|e| fault(&config.dir, &e))?;
        let who = format!("process {}", std::process::id());
        let lock =
            Lock::take(&config.dir.join("lock"), &who).map_err(|e| AuditError(e.to_string()))?;
        let last = Head { log_id: String::new(), size: 0, head: ZERO, error: None };
        let mut log = Self { config, signer, clock, open: None, last, _lock: lock };
        if files::list(&log.config.dir).map_err(|e| fault(&log.config.dir, &e))?.is_empty() {
            log.begin(entropy)?;
        } else {
            log.recover()?;
        }
        Ok(log)
    }

    pub(super) fn head(&self) -> Head {
        self.last.clone()
    }

    /// Writes all of `records` and syncs once; each gets its seq, or all the same error.
    pub(super) fn append(&mut self, records: Vec<Record>) -> Result<Vec<u64>, AuditError> {
        let outcome = self.try_append(records);
        self.settle(outcome)
    }

    /// See [`super::Audit::clean`].
    pub(super) fn clean(&mut self) -> Result<Cleaned, AuditError> {
        let outcome = self.try_clean();
        self.settle(outcome)
    }

    /// After a failure the file's end is unknown, so nothing is kept of what was assumed of it.
    fn settle<T>(&mut self, outcome: Result<T, AuditError>) -> Result<T, AuditError> {
        match &self.open {
            Some(open) if outcome.is_ok() => {
                let (log_id, size, head) = (open.log_id.clone(), open.size, open.head);
                self.last = Head { log_id, size, head, error: None };
            }
            _ => {
                self.open = None;
                self.last.error = outcome.as_ref().err().map(ToString::to_string);
            }
        }
        outcome
    }

    fn try_append(&mut self, records: Vec<Record>) -> Result<Vec<u64>, AuditError> {
        if self.open.is_none() {
            self.recover()?;
        }
        let mut seqs = Vec::with_capacity(records.len());
        for record in records {
            self.turn_day()?;
            seqs.push(self.write(record)?);
        }
        self.sync()?;
        Ok(seqs)
    }

    fn begin(&mut self, entropy: &dyn Entropy) -> Result<(), AuditError> {
        let mut raw = [0; 16];
        entropy.fill(&mut raw).map_err(|e| AuditError(format!("no random log id: {e}")))?;
        let day = DayFile::of(&self.config.dir, self.today());
        let file = create(&day)?;
        let log_id = hex::encode(raw);
        let key = self.signer.public_key().to_string();
        let genesis =
            Record::of(Event::Genesis).detail("log_id", log_id.as_str()).detail("public_key", key);
        self.open = Some(Open { day, file, log_id, size: 0, head: ZERO, pending: Vec::new() });
        let written = self.write(genesis).and_then(|_seq| self.sync());
        self.settle(written)
    }

    /// Finds the end of the chain: the last whole line of the newest file that has one. Torn bytes
    /// behind it were never acknowledged; they are kept beside the file.
    fn recover(&mut self) -> Result<(), AuditError> {
        let dir = self.config.dir.clone();
        let days = files::list(&dir).map_err(|e| fault(&dir, &e))?;
        let newest = days.last().ok_or_else(|| {
            AuditError(format!("{} has lost its files; restore them", dir.display()))
        })?;
        let (mut torn, mut last) = (Vec::new(), None);
        for day in days.iter().rev() {
            let tail = files::tail(&day.path).map_err(|e| fault(&day.path, &e))?;
            if !tail.torn.is_empty() {
                torn.push(set_aside(day, &tail).map_err(|e| fault(&day.path, &e))?);
            }
            if let Some(line) = tail.last {
                last = Some((day, line));
                break;
            }
        }
        let (size, head, log_id) = match last {
            Some((day, line)) => self.end_of_chain(day, &line)?,
            None => {
                return Err(AuditError(format!(
                    "{} holds no whole line; move the files away to begin a new log",
                    dir.display()
                )));
            }
        };
        let file = append_to(&newest.path).map_err(|e| fault(&newest.path, &e))?;
        self.open =
            Some(Open { day: newest.clone(), file, log_id, size, head, pending: Vec::new() });
        for torn in torn {
            let record = Record::of(Event::Recovered)
                .detail("file", torn.file)
                .detail("kept_as", torn.kept_as)
                .detail("bytes", torn.bytes);
            self.write(record)?;
        }
        let synced = self.sync();
        self.settle(synced)
    }

    fn end_of_chain(&self, day: &DayFile, raw: &[u8]) -> Result<(u64, Hash, String), AuditError> {
        let refuse = |why: String| {
            AuditError(format!(
                "the last line of {} {why}; to keep it as evidence and begin a new log, type: \
                 mv {dir} {dir}.broken",
                day.path.display(),
                dir = self.config.dir.display()
            ))
        };
        let line = SealedLine::parse(raw).map_err(|e| refuse(format!("cannot be read: {e}")))?;
        if !line.is_signed_by(&self.signer.public_key()) {
            return Err(refuse("is not signed by this agent's audit key".to_owned()));
        }
        let log_id = reader::first_line(&day.path)
            .map_err(|e| fault(&day.path, &e))?
            .and_then(|first| Some(SealedLine::parse(&first).ok()?.line.details))
            .and_then(|details| details.get("log_id")?.as_str().map(str::to_owned))
            .ok_or_else(|| refuse("follows a first line without log_id".to_owned()))?;
        Ok((line.line.seq + 1, line.leaf_hash(), log_id))
    }

    /// The civil day of the machine.
    fn today(&self) -> Date {
        self.config.zone.to_datetime(self.clock.now()).date()
    }

    /// Closes the day's file when a later day has come. A clock set back stays in the newest file.
    fn turn_day(&mut self) -> Result<(), AuditError> {
        let today = self.today();
        let Some(day) = self.open.as_ref().map(|o| o.day.clone()).filter(|day| day.day < today)
        else {
            return Ok(());
        };
        self.sync()?;
        let (hash, bytes) = files::digest(&day.path).map_err(|e| fault(&day.path, &e))?;
        let close = Record::of(Event::DayClose)
            .detail("file", day.name())
            .detail("sha256", hash.to_string())
            .detail("bytes", bytes);
        self.write(close)?;
        self.sync()?;
        let next = DayFile::of(&self.config.dir, today);
        let file = create(&next)?;
        let open = self.opened()?;
        (open.day, open.file) = (next, file);
        let log_id = open.log_id.clone();
        let record =
            Record::of(Event::DayOpen).detail("log_id", log_id).detail("previous", day.name());
        self.write(record).map(drop)
    }

    fn try_clean(&mut self) -> Result<Cleaned, AuditError> {
        if self.open.is_none() {
            self.recover()?;
        }
        let days = i64::from(self.config.retention_days);
        let keep = self.today().saturating_sub(jiff::SignedDuration::from_hours(24 * days));
        let current = self.opened()?.day.clone();
        let dir = self.config.dir.clone();
        let listed = files::list(&dir).map_err(|e| fault(&dir, &e))?;
        let old: Vec<_> =
            listed.into_iter().filter(|d| d.day < keep && d.day < current.day).collect();
        let mut cleaned = Cleaned::default();
        let mut described = Vec::new();
        for day in &old {
            let (hash, bytes) = files::digest(&day.path).map_err(|e| fault(&day.path, &e))?;
            described.push(json!({"file": day.name(), "sha256": hash, "bytes": bytes}));
            cleaned.files.push(day.name());
            cleaned.bytes += bytes;
        }
        // A record holds so many files and no more; the rest go with the next cleaning.
        described.truncate(MAX_PRUNED);
        cleaned.files.truncate(MAX_PRUNED);
        if described.is_empty() {
            return Ok(cleaned);
        }
        self.turn_day()?;
        self.write(Record::of(Event::Prune).detail("files", described))?;
        self.sync()?;
        for day in old.iter().take(MAX_PRUNED) {
            durable::remove(&day.path).map_err(|e| fault(&day.path, &e))?;
        }
        Ok(cleaned)
    }

    /// Seals a line behind the chain; it is on disk after the next [`Self::sync`].
    fn write(&mut self, record: Record) -> Result<u64, AuditError> {
        let (timestamp, agent_id) = (self.clock.now(), self.config.agent_id.clone());
        let signer = Arc::clone(&self.signer);
        let open = self.opened()?;
        let line = Line {
            timestamp,
            kind: "audit".to_owned(),
            event: record.event.name(),
            agent_id,
            job_id: record.job_id,
            command: record.command,
            status: record.status.map(name),
            user: record.user,
            policy_version: record.policy_version,
            caller: record.caller,
            origin: record.origin.map(str::to_owned),
            object: record.object,
            details: record.details,
            seq: open.size,
            prev: format::prev_text(open.head),
        };
        let sealed = seal(line, signer.as_ref())?;
        open.head = format::leaf_hash(&sealed);
        open.pending.extend_from_slice(&sealed);
        open.pending.push(b'\n');
        open.size += 1;
        Ok(open.size - 1)
    }

    fn sync(&mut self) -> Result<(), AuditError> {
        let open = self.opened()?;
        if open.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut open.pending);
        let synced = open.file.write_all(&pending).and_then(|()| open.file.sync_data());
        synced.map_err(|e| fault(&open.day.path, &e))
    }

    fn opened(&mut self) -> Result<&mut Open, AuditError> {
        self.open.as_mut().ok_or_else(|| AuditError("it is closed after a failure".to_owned()))
    }
}

/// Files in one prune record: as many as fit a line.
const MAX_PRUNED: usize = 366;

/// Signs a line; one that is too long loses its details and the end of its texts first.
fn seal(mut line: Line, signer: &dyn AuditSigner) -> Result<Vec<u8>, AuditError> {
    let sign = |line: &Line| {
        format::seal(line, |message| signer.sign(message))
            .map_err(|e| AuditError(format!("a record cannot be written as JSON: {e}")))
    };
    let sealed = sign(&line)?;
    if sealed.len() <= MAX_LINE_BYTES {
        return Ok(sealed);
    }
    line.details = Map::from_iter([("cut_bytes".to_owned(), Value::from(sealed.len()))]);
    for text in [&mut line.command, &mut line.object, &mut line.user].into_iter().flatten() {
        *text = text.chars().take(CUT_CHARS).collect();
    }
    sign(&line)
}

fn name(status: format::Status) -> String {
    match status {
        format::Status::Success => "success",
        format::Status::Error => "error",
        format::Status::Timeout => "timeout",
        format::Status::Denied => "denied",
        format::Status::Cancelled => "cancelled",
    }
    .to_owned()
}

fn create(day: &DayFile) -> Result<File, AuditError> {
    durable::create(&day.path, FILE_MODE)
        .and_then(|file| durable::sync_parent(&day.path).map(|()| file))
        .map_err(|e| fault(&day.path, &e))
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// Keeps torn bytes in a file of their own, durably, then cuts them off.
fn set_aside(day: &DayFile, tail: &files::Tail) -> io::Result<Torn> {
    let kept_as = format!("{}.torn-{}", day.name(), tail.whole);
    durable::replace(&day.path.with_file_name(&kept_as), &tail.torn, FILE_MODE)?;
    let file = OpenOptions::new().write(true).open(&day.path)?;
    file.set_len(tail.whole)?;
    file.sync_all()?;
    Ok(Torn { file: day.name(), kept_as, bytes: tail.torn.len() })
}

fn fault(path: &Path, error: &io::Error) -> AuditError {
    AuditError(format!("{}: {error}", path.display()))
}
