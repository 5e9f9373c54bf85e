//! The log's own state: where the chain stands, which day's file is open, and what is on disk.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    sync::Arc,
};

use jiff::{Timestamp, civil::Date};
use jtnt_proto::{
    audit::{self as format, Event, Line, MAX_LINE_BYTES, ZERO},
    bytes::Hash,
};
use serde_json::{Map, Value};

use super::{
    AuditError, Config, FILE_MODE, Head, Record,
    anew::{self, Superseded},
    files::{self, DayFile},
    recover::{self, End, fault},
    tree::Tree,
};
use crate::runtime::{
    clock::SharedClock, durable, entropy::Entropy, lock::Lock, signer::AuditSigner,
};

const DIR_MODE: u32 = 0o750;
/// Lines beyond this go with the next sync, so that a crash leaves no longer traces.
pub(super) const MAX_BATCH_BYTES: usize = 1 << 20;
/// Text of a record that is too long is cut to this many characters.
const CUT_CHARS: usize = 1024;

#[derive(Debug)]
pub(super) struct Log {
    pub(super) config: Config,
    pub(super) signer: Arc<dyn AuditSigner>,
    clock: SharedClock,
    /// By which a log that begins is named.
    seed: [u8; 16],
    /// How often it began anew, since it was put back.
    pub(super) begun_anew: u32,
    /// `None` after a failure, until the end was looked at anew.
    pub(super) open: Option<Open>,
    /// The file that was last synced, and its length then.
    synced: Option<(DayFile, u64)>,
    pub(super) last: Head,
    _lock: Lock,
}

/// A file that can be appended to, and the chain at its end.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) day: DayFile,
    file: File,
    /// Bytes in the file.
    length: u64,
    pub(super) log_id: String,
    pub(super) size: u64,
    pub(super) head: Hash,
    /// Lines that are sealed and not yet written, and their leaf hashes.
    pending: Vec<u8>,
    leaves: Vec<Hash>,
    /// Nothing where it cannot be had: then there are lines, and no checkpoints of them.
    pub(super) tree: Option<Tree>,
}

impl Open {
    fn at(day: DayFile, file: File, size: u64, log_id: String) -> Self {
        let (pending, leaves) = (Vec::new(), Vec::new());
        Self { day, file, length: 0, log_id, size, head: ZERO, pending, leaves, tree: None }
    }
}

impl Log {
    pub(super) fn open(
        config: Config,
        signer: Arc<dyn AuditSigner>,
        clock: SharedClock,
        entropy: &dyn Entropy,
    ) -> Result<Self, AuditError> {
        durable::create_dir(&config.dir, DIR_MODE)
            .and_then(|()| durable::sync_parent(&config.dir))
            .map_err(|e| fault(&config.dir, &e))?;
        let lock = Lock::take(&config.dir.join("lock"), "the audit log's writer")
            .map_err(|e| AuditError(e.to_string()))?;
        let last = Head {
            log_id: String::new(),
            size: 0,
            head: ZERO,
            witnessed: 0,
            held: 0,
            urgent: 0,
            provable: true,
            superseded: Vec::new(),
            error: None,
        };
        let mut seed = [0; 16];
        entropy.fill(&mut seed).map_err(|e| AuditError(format!("no random log id: {e}")))?;
        let (open, synced, begun_anew) = (None, None, 0);
        let mut log =
            Self { config, signer, clock, seed, begun_anew, open, synced, last, _lock: lock };
        let opened = log.enter();
        log.settle(opened)?;
        Ok(log)
    }

    /// See [`super::Audit::held`].
    pub(super) fn held(&mut self, log_id: &str, lines: u64) {
        if log_id == self.last.log_id {
            self.last.held = lines.min(self.last.size);
        }
    }

    /// Finds the end of the log, or begins one.
    pub(super) fn enter(&mut self) -> Result<(), AuditError> {
        let dir = self.config.dir.clone();
        self.end_rotation()?;
        let superseded = anew::set_aside(&dir, (&self.config.agent_id, &self.signer.keys()))?;
        match recover::find(&dir, (&self.config.agent_id, &self.signer.keys()))? {
            Some(end) if end.log_id.is_some() => self.resume(end),
            found => self.begin(found, superseded),
        }?;
        anew::begun(&dir)?;
        anew::remember(&dir, &self.opened()?.log_id.clone())?;
        self.last.superseded = anew::kept(&dir).map_err(|e| fault(&dir, &e))?;
        let log_id = self.opened()?.log_id.clone();
        if log_id != self.last.log_id {
            self.last.held = 0;
        }
        let checkpoints = self.checkpoints(&log_id);
        checkpoints.sync().map_err(|e| fault(&dir, &e))?;
        let seen = checkpoints.witnessed(&self.signer.keys(), self.opened()?.size);
        self.last.witnessed = seen.map_or(0, |seen| seen.size);
        Ok(())
    }

    pub(super) fn head(&self) -> Head {
        self.last.clone()
    }

    /// Writes all of `records` and syncs once; each gets its seq, or all the same error.
    pub(super) fn append(&mut self, records: Vec<Record>) -> Result<Vec<u64>, AuditError> {
        let outcome = self.try_append(records);
        self.settle(outcome)
    }

    /// After a failure the file's end is unknown, so nothing is kept of what was assumed of it.
    pub(super) fn settle<T>(&mut self, outcome: Result<T, AuditError>) -> Result<T, AuditError> {
        match &self.open {
            Some(open) if outcome.is_ok() => {
                let (log_id, size, head) = (open.log_id.clone(), open.size, open.head);
                let (error, provable) = (None, open.tree.is_some());
                self.last = Head { log_id, size, head, error, provable, ..self.last.clone() };
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
            let urgent = record.event.is_urgent();
            let seq = self.write(record)?;
            seqs.push(seq);
            if urgent {
                self.last.urgent = seq + 1;
            }
            if self.opened()?.pending.len() > MAX_BATCH_BYTES - MAX_LINE_BYTES {
                self.sync()?;
            }
        }
        self.sync()?;
        Ok(seqs)
    }

    /// Begins the log, also in a file that a crash left without a line.
    fn begin(
        &mut self,
        found: Option<End>,
        superseded: Option<Superseded>,
    ) -> Result<(), AuditError> {
        let before = match superseded {
            Some(superseded) => Some(superseded),
            None => anew::lost(&self.config.dir)?,
        };
        let before_id = before.as_ref().map_or("", |log| log.log_id.as_str());
        let log_id = anew::next_id(self.seed, before_id);
        let (day, file, recovered) = match found {
            Some(end) => (end.newest.clone(), append_to(&end.newest)?, end.recovered),
            None => {
                let day = DayFile::of(&self.config.dir, self.today());
                let file = create(&day)?;
                (day, file, Vec::new())
            }
        };
        let key = self.signer.public_key().to_string();
        let genesis =
            Record::of(Event::Genesis).detail("log_id", log_id.as_str()).detail("public_key", key);
        self.adopt(Open::at(day, file, 0, log_id))?;
        let first = match before {
            Some(before) => before.tell(genesis).to_vec(),
            None => vec![genesis],
        };
        for record in first.into_iter().chain(recovered) {
            self.write(record)?;
        }
        self.sync()?;
        self.last.urgent = self.opened()?.size;
        recover::told(&self.config.dir)
    }

    /// Looks at the files anew after a failure.
    pub(super) fn recover(&mut self) -> Result<(), AuditError> {
        self.end_rotation()?;
        let dir = &self.config.dir;
        if let Some((last, length)) = &self.synced {
            for day in files::list(dir).map_err(|e| fault(dir, &e))? {
                // A later file was made since, so nothing of it is known to be on disk.
                let from = if day == *last { *length } else { 0 };
                if day >= *last {
                    recover::rewrite(&day.path, from).map_err(|e| fault(&day.path, &e))?;
                }
            }
        }
        match recover::find(dir, (&self.config.agent_id, &self.signer.keys()))? {
            Some(end) if end.log_id.is_some() => self.resume(end),
            _ => Err(AuditError(format!(
                "{} has lost its lines; restore them, or restart the agent to begin a new log",
                dir.display()
            ))),
        }
    }

    /// Goes on behind the last line. What was torn off is recorded first.
    fn resume(&mut self, end: End) -> Result<(), AuditError> {
        let file = append_to(&end.newest)?;
        let mut open = Open::at(end.newest, file, end.size, end.log_id.unwrap_or_default());
        open.head = end.head;
        self.adopt(open)?;
        if end.unopened {
            self.open_day(end.previous.as_ref())?;
        }
        for record in end.recovered {
            self.write(record)?;
        }
        self.sync()?;
        recover::told(&self.config.dir)
    }

    fn adopt(&mut self, mut open: Open) -> Result<(), AuditError> {
        open.length = open.file.metadata().map_err(|e| fault(&open.day.path, &e))?.len();
        let keys = self.signer.keys();
        let own = self.checkpoints(&open.log_id).own(&keys);
        let sure = own.map(|(own, _)| (own.checkpoint.size, own.checkpoint.root));
        match Tree::open(&self.config.dir, &open.log_id, open.size, (sure, &keys)) {
            Ok(tree) => open.tree = Some(tree),
            Err(error) => tracing::error!(%error, "the audit log gets no checkpoints"),
        }
        self.open = Some(open);
        Ok(())
    }

    /// The civil day of the machine.
    pub(super) fn today(&self) -> Date {
        self.day_of(self.clock.now())
    }

    pub(super) fn day_of(&self, at: Timestamp) -> Date {
        self.config.zone.to_datetime(at).date()
    }

    /// Closes the day's file when a later day has come. A clock set back stays in the newest file.
    pub(super) fn turn_day(&mut self) -> Result<(), AuditError> {
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
        (open.day, open.file, open.length) = (next, file, 0);
        self.open_day(Some(&day))
    }

    /// The first line of a file names the log, so that the end of the chain is found without the
    /// files before it.
    fn open_day(&mut self, previous: Option<&DayFile>) -> Result<(), AuditError> {
        let mut record = Record::of(Event::DayOpen)
            .detail("log_id", self.opened()?.log_id.clone())
            .detail("public_key", self.signer.public_key().to_string());
        if let Some(previous) = previous {
            record = record.detail("previous", previous.name());
        }
        // All lines before this one are on disk: a day begins after a sync.
        if let Some(tree) = &self.opened()?.tree {
            record = record.detail("frontier", format::frontier_details(tree.frontier()));
        }
        self.write(record).map(drop)
    }

    /// Seals a line behind the chain; it is on disk after the next [`Self::sync`].
    pub(super) fn write(&mut self, record: Record) -> Result<u64, AuditError> {
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
        open.leaves.push(open.head);
        open.pending.extend_from_slice(&sealed);
        open.pending.push(b'\n');
        open.size += 1;
        Ok(open.size - 1)
    }

    pub(super) fn sync(&mut self) -> Result<(), AuditError> {
        let open = self.opened()?;
        if open.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut open.pending);
        let synced = open.file.write_all(&pending).and_then(|()| open.file.sync_data());
        synced.map_err(|e| fault(&open.day.path, &e))?;
        open.length += pending.len() as u64;
        let leaves = std::mem::take(&mut open.leaves);
        if let Some(Err(error)) = open.tree.as_mut().map(|tree| tree.extend(&leaves)) {
            // It is made anew from the lines when the log is opened again.
            tracing::error!(%error, "the audit log gets no more checkpoints");
            open.tree = None;
        }
        self.synced = Some((open.day.clone(), open.length));
        Ok(())
    }

    pub(super) fn opened(&mut self) -> Result<&mut Open, AuditError> {
        self.open.as_mut().ok_or_else(|| AuditError("it is closed after a failure".to_owned()))
    }
}

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

/// What a process left that was killed before its sync is made sure before anything is built on it.
fn append_to(day: &DayFile) -> Result<File, AuditError> {
    let opened = OpenOptions::new().append(true).open(&day.path);
    opened
        .and_then(|file| file.sync_all().map(|()| file))
        .and_then(|file| durable::sync_parent(&day.path).map(|()| file))
        .map_err(|e| fault(&day.path, &e))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixture, events, record};
    use super::*;
    use crate::runtime::{clock::FixedClock, entropy::SeededEntropy};

    fn open(fixture: &Fixture) -> Log {
        let clock = Arc::<FixedClock>::clone(&fixture.clock);
        let entropy = SeededEntropy::new(1);
        Log::open(fixture.config(), Fixture::signer(7), clock, entropy.as_ref()).unwrap()
    }

    fn append_one(log: &mut Log) -> Result<u64, AuditError> {
        log.append(vec![record(0)]).map(|seqs| seqs[0])
    }

    #[test]
    fn a_full_disk_is_told_and_the_log_goes_on_when_there_is_room() {
        let fixture = Fixture::new();
        let mut log = open(&fixture);
        append_one(&mut log).unwrap();
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        log.open.as_mut().unwrap().file = full;
        let refused = append_one(&mut log).unwrap_err().to_string();
        assert!(refused.contains("No space left on device"), "{refused}");
        assert_eq!(log.head().error, Some(refused));
        assert_eq!(log.head().size, 2, "what was lost does not count");
        assert_eq!(append_one(&mut log).unwrap(), 2);
        assert_eq!(log.head().error, None);
        assert_eq!(fixture.verify().lines, 3);
    }

    #[test]
    fn a_failed_sync_loses_the_batch_and_the_end_is_looked_at_anew() {
        let fixture = Fixture::new();
        let mut log = open(&fixture);
        // A pipe takes the bytes and cannot be synced.
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        log.open.as_mut().unwrap().file = writer.into();
        append_one(&mut log).unwrap_err();
        assert_eq!(append_one(&mut log).unwrap(), 1, "the lost line's seq was never in the file");
        assert_eq!(fixture.verify().lines, 2);
    }

    #[test]
    fn whole_lines_of_a_lost_batch_stay_and_half_ones_are_set_aside() {
        let fixture = Fixture::new();
        let mut log = open(&fixture);
        append_one(&mut log).unwrap();
        let acknowledged = log.synced.clone();
        append_one(&mut log).unwrap();
        // As if the sync after this second line had failed, and half a third had landed.
        log.synced = acknowledged;
        log.opened().unwrap().file.write_all(b"{\"timestamp\":").unwrap();
        log.open = None;
        assert_eq!(append_one(&mut log).unwrap(), 4);
        assert_eq!(
            events(&fixture.today()),
            ["genesis", "startup", "startup", "recovered", "startup"]
        );
        assert_eq!(fixture.verify().lines, 5);
    }

    #[test]
    fn a_log_that_vanished_is_not_begun_again_behind_the_callers_back() {
        let fixture = Fixture::new();
        let mut log = open(&fixture);
        let kept = fixture.dir().join("elsewhere");
        std::fs::rename(fixture.today(), &kept).unwrap();
        log.open = None;
        let refused = append_one(&mut log).unwrap_err().to_string();
        assert!(refused.contains("has lost its lines"), "{refused}");
        std::fs::rename(kept, fixture.dir().join("audit-2026-06-01.log")).unwrap();
        append_one(&mut log).unwrap();
        assert_eq!(fixture.verify().lines, 2);
    }
}
