//! Checks an audit log: signatures, chain, sequence, torn tail. Bytes go in, findings come out.
//!
//! The check streams: whatever the size of the log, it keeps one line, the hashes of the last
//! [`REMEMBERED`] lines and a few words. It reads no file and knows no clock, so that agent,
//! command line and hub give the same verdict over the same bytes.
//!
//! What it cannot do is see what is not there: a log cut off after a whole line is a valid shorter
//! log. Only a checkpoint that somebody else kept tells them apart, and every [`Summary`] says so.

use std::{borrow::Cow, collections::BTreeMap, fmt, num::NonZeroUsize};

pub use crate::audit_verdict::{Finding, Flaw, Summary, Verdict};
use crate::{
    audit::{Event, Line, MAX_LINE_BYTES, ZERO, prev_text},
    audit_anchor::{Anchor, Broken},
    audit_examine::{Examined, Place},
    audit_keys::{accepted, key_in},
    bytes::Hash,
    checkpoint::Note,
    key::PublicKey,
    parallel::in_order,
};

/// How many hashes are kept to tell a copied line from a forked one.
pub const REMEMBERED: usize = 1024;
/// The most lines that are looked at before the first of them has its turn.
const MAX_AHEAD: usize = 16 * 1024;
/// The most sentences a [`Summary`] holds in `unknown`.
const MAX_UNKNOWN: usize = 32;

#[derive(Clone, Copy)]
struct Last {
    seq: u64,
    hash: Hash,
}

/// Reads a log from its first line to its last. Give the files oldest first.
pub struct Verifier {
    key: Option<PublicKey>,
    /// Keys that need no rotation to lead from them.
    trusted: Vec<PublicKey>,
    /// Keys that gave way to others.
    past: Vec<PublicKey>,
    /// The caller's key, while the log has only shown an older one.
    awaited: Option<PublicKey>,
    file: String,
    line_no: u64,
    torn: bool,
    partial: Vec<u8>,
    last: Option<Last>,
    recent: BTreeMap<u64, Hash>,
    log_id: Option<String>,
    pruned_at: Option<u64>,
    /// The last line that prune records say was removed.
    pruned_to: Option<u64>,
    anchor: Option<Anchor>,
    witnesses: Vec<(String, PublicKey)>,
    tampered: bool,
    incomplete: bool,
    summary: Summary,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("file", &self.file)
            .field("line", &self.line_no)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// Checks against `key`. Without one the key that the log's own first line names is taken,
    /// which shows that the log agrees with itself, not whose it is.
    #[must_use]
    pub fn new(key: Option<PublicKey>) -> Self {
        Self {
            key,
            trusted: Vec::new(),
            past: Vec::new(),
            awaited: None,
            file: String::new(),
            line_no: 0,
            torn: false,
            partial: Vec::new(),
            last: None,
            recent: BTreeMap::new(),
            log_id: None,
            pruned_at: None,
            pruned_to: None,
            anchor: None,
            witnesses: Vec::new(),
            tampered: false,
            incomplete: false,
            summary: Summary {
                verdict: Verdict::Ok,
                lines: 0,
                files: 0,
                first_seq: None,
                last_seq: None,
                unknown: Vec::new(),
            },
        }
    }

    /// Takes a log for whole that begins under one of these keys, which its owner has had before.
    #[must_use]
    pub fn trusting(self, trusted: Vec<PublicKey>) -> Self {
        Self { trusted, ..self }
    }

    /// Compares with a checkpoint that somebody else has kept. Where witnesses are named, with their
    /// keys, one of them must have cosigned it.
    #[must_use]
    pub fn with_anchor(self, note: Note, witnesses: Vec<(String, PublicKey)>) -> Self {
        Self { anchor: Some(Anchor::new(note)), witnesses, ..self }
    }

    /// The next file begins.
    pub fn begin_file(&mut self, name: &str) {
        // The writer sets torn bytes aside before it goes on, so they can only end the last file.
        self.tampered |= std::mem::take(&mut self.torn);
        name.clone_into(&mut self.file);
        self.line_no = 0;
        self.summary.files += 1;
    }

    /// The next bytes of the file, cut anywhere.
    pub fn feed(&mut self, mut chunk: &[u8]) -> Vec<Finding> {
        let mut found = Vec::new();
        while !chunk.is_empty() {
            let (taken, more) = self.feed_with(NonZeroUsize::MIN, chunk);
            found.extend(more);
            chunk = chunk.get(taken..).unwrap_or_default();
        }
        found
    }

    /// As [`feed`](Self::feed), with so many threads, which are gone when it returns. Says how many
    /// bytes it took: not all where there are very many lines in them. The verdict is the same
    /// whatever the number of threads; a MiB for each is enough to keep it busy.
    pub fn feed_with(&mut self, threads: NonZeroUsize, chunk: &[u8]) -> (usize, Vec<Finding>) {
        let (mut taken, mut lines) = (0, Vec::new());
        for part in chunk.split_inclusive(|byte| *byte == b'\n').take(MAX_AHEAD) {
            taken += part.len();
            let Some(line) = part.strip_suffix(b"\n") else {
                self.keep(part);
                break;
            };
            lines.push(if self.partial.is_empty() {
                Cow::Borrowed(line)
            } else {
                self.keep(line);
                Cow::Owned(std::mem::take(&mut self.partial))
            });
        }
        // The key that is known now is nearly always the one that signed all of them.
        let key = self.key;
        let mut found = Vec::new();
        in_order(
            threads,
            &lines,
            |line| Examined::of(line, key.as_ref()),
            |line| found.extend(self.take(&line)),
        );
        (taken, found)
    }

    /// The file ends; bytes after its last LF are a torn line.
    pub fn end_file(&mut self) -> Vec<Finding> {
        let line = std::mem::take(&mut self.partial);
        if line.is_empty() { Vec::new() } else { self.line(&line, false) }
    }

    /// One byte more than allowed is enough to know that a line is too long.
    fn keep(&mut self, bytes: &[u8]) {
        let room = (MAX_LINE_BYTES + 1).saturating_sub(self.partial.len());
        self.partial.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// One line, without its LF; `has_newline` says whether it had one.
    pub fn line(&mut self, raw: &[u8], has_newline: bool) -> Vec<Finding> {
        if has_newline {
            let key = self.key;
            return self.take(&Examined::of(raw, key.as_ref()));
        }
        self.line_no += 1;
        self.torn = true;
        self.incomplete = true;
        let message = format!(
            "{} bytes after the last whole line; a crash leaves such a tail, and so does who cuts the \
             log",
            raw.len()
        );
        vec![self.finding(Flaw::TornTail, None, message)]
    }

    /// The next line has its turn.
    fn take(&mut self, examined: &Examined<'_>) -> Vec<Finding> {
        self.line_no += 1;
        self.summary.lines += 1;
        let place = match &examined.place {
            Ok(place) => *place,
            Err(fault) => return vec![self.finding(Flaw::Malformed, None, fault.to_string())],
        };
        let mut found = Vec::new();
        let first = self.last.is_none();
        let line = if first || place.notable { examined.line() } else { None };
        if let Some(line) = line.as_ref().filter(|_| first) {
            self.greet(line, &mut found);
            if let Some(broken) = self.anchor.as_mut().and_then(|a| a.begin(line)) {
                found.extend(self.broken(broken, Some(place.seq)));
            }
        }
        let signed = self.key.is_none_or(|key| examined.is_signed_by(&key));
        if !signed {
            let message = "the key did not sign these bytes: the line was changed, or another key \
                           wrote it";
            found.push(self.finding(Flaw::BadSignature, Some(place.seq), message.into()));
        }
        self.place(place, line.as_ref(), signed, &mut found);
        if let Some(line) = line.filter(|_| signed) {
            self.heed(&line, &mut found);
        }
        found
    }

    /// What the first line tells about log and key.
    fn greet(&mut self, line: &Line, found: &mut Vec<Finding>) {
        self.summary.first_seq = Some(line.seq);
        // The first line of each day names the key, so that a log without its first days can be checked.
        let names = line.seq == 0 && is(line, Event::Genesis) || is(line, Event::DayOpen);
        let own = key_in(line).filter(|_| names);
        match (self.key, own) {
            (None, Some(own)) => {
                self.key = Some(own);
                self.note(
                    "whose log this is: the key was taken from the log itself; give --key to know"
                        .into(),
                );
            }
            (None, None) => {
                let message = "no key was given, and the line that names the log's key is not here";
                found.push(self.finding(Flaw::UnknownKey, Some(line.seq), message.into()));
                self.incomplete = true;
            }
            (Some(given), Some(own)) if given != own => {
                // The given key may be a later one; a rotation has to lead to it.
                self.awaited = Some(given).filter(|_| !self.trusted.contains(&own));
                self.key = Some(own);
            }
            (Some(_), _) => {}
        }
        if line.seq > 0 {
            self.note(format!(
                "what stood before seq {}: the log's beginning is not here, so these lines prove \
                 only themselves",
                line.seq
            ));
        }
    }

    /// Compares the line's number and `prev` with what came before.
    fn place(
        &mut self,
        Place { seq, prev, hash, .. }: Place,
        line: Option<&Line>,
        signed: bool,
        found: &mut Vec<Finding>,
    ) {
        let flaw = match self.last {
            None if seq == 0 && prev != Some(ZERO) => {
                Some((Flaw::Chain, "the first line does not begin a chain".to_owned()))
            }
            None => None,
            Some(_) if signed && line.is_some_and(|line| self.begins_another_log(line)) => {
                self.incomplete = true;
                self.note(format!(
                    "how the log before {}:{} ended: another log begins there",
                    self.file, self.line_no
                ));
                None
            }
            // Its number is a forger's word: what follows is measured by the last honest line.
            Some(last) if !signed && last.seq.checked_add(1) != Some(seq) => return,
            Some(last) if seq <= last.seq => {
                found.push(self.second(seq, hash, last));
                return;
            }
            Some(last) if seq - last.seq > 1 => Some((
                Flaw::SeqGap,
                match seq - last.seq - 1 {
                    1 => format!("the line with seq {} is missing before this one", last.seq + 1),
                    n => format!("{n} lines, from seq {}, are missing", last.seq + 1),
                },
            )),
            Some(last) if prev != Some(last.hash) => Some((
                Flaw::Chain,
                format!("it does not follow the line with seq {} as that stands here", last.seq),
            )),
            Some(_) => None,
        };
        if let Some((flaw, message)) = flaw {
            found.push(self.finding(flaw, Some(seq), message));
        }
        self.advance(seq, hash);
        if let Some(broken) = self.anchor.as_mut().and_then(|anchor| anchor.line(seq, hash)) {
            found.extend(self.broken(broken, Some(seq)));
        }
    }

    /// A checkpoint that nobody vouches for shows nothing of the log.
    fn broken(&mut self, broken: Broken, seq: Option<u64>) -> Option<Finding> {
        let note = self.anchor.as_ref()?.note();
        let mut keys = self.past.iter().chain(&self.key).chain(&self.awaited);
        if !keys.any(|key| note.is_signed_by(key)) && !self.cosigned(note) {
            self.incomplete = true;
            let what = "whether these are the lines of the checkpoint: neither the log's key nor a \
                        witness signed it (UNKNOWN_KEY)";
            self.note(what.into());
            return None;
        }
        let (flaw, message) = match broken {
            Broken::Forked(message) => (Flaw::Fork, message),
            Broken::Truncated(message) => (Flaw::Truncated, message),
        };
        Some(self.finding(flaw, seq, message))
    }

    fn cosigned(&self, note: &Note) -> bool {
        self.witnesses.iter().any(|(name, key)| note.cosigned_by(name, key).is_some())
    }

    /// A line whose number is not new. It never moves the check on.
    fn second(&mut self, seq: u64, hash: Hash, last: Last) -> Finding {
        let (flaw, message) = match self.recent.get(&seq) {
            Some(known) if *known == hash => {
                (Flaw::Duplicate, format!("the line with seq {seq} stands here a second time"))
            }
            Some(_) => (Flaw::Fork, format!("another signed line has seq {seq} too")),
            None => (Flaw::Duplicate, format!("seq {seq} comes after seq {}", last.seq)),
        };
        self.finding(flaw, Some(seq), message)
    }

    fn begins_another_log(&self, line: &Line) -> bool {
        line.seq == 0
            && is(line, Event::Genesis)
            && line.prev == prev_text(ZERO)
            && self.log_id.is_some()
            && text(line, "log_id") != self.log_id.as_deref()
    }

    fn advance(&mut self, seq: u64, hash: Hash) {
        self.last = Some(Last { seq, hash });
        self.summary.last_seq = Some(seq);
        if seq == 0 {
            self.recent.clear();
        }
        self.recent.insert(seq, hash);
        while self.recent.len() > REMEMBERED {
            self.recent.pop_first();
        }
    }

    /// Events that change how the rest is read.
    fn heed(&mut self, line: &Line, found: &mut Vec<Finding>) {
        if is(line, Event::Genesis) && line.seq == 0 {
            self.log_id = text(line, "log_id").map(str::to_owned);
        } else if is(line, Event::Prune) {
            self.pruned_at = Some(line.seq);
            let files = line.details.get("files").and_then(|files| files.as_array());
            let last = |file: &serde_json::Value| file.get("last_seq")?.as_u64();
            // A record that nobody has seen yet would excuse whatever its writer took away.
            let seen = self.anchor.as_ref().is_none_or(|anchor| line.seq < anchor.size());
            let told = files.into_iter().flatten().filter_map(last).filter(|_| seen);
            self.pruned_to = told.chain(self.pruned_to).max();
        } else if is(line, Event::KeyRotated) && self.key.is_some() {
            let new = accepted(line);
            if new.is_none() {
                let message = "the new key did not accept the log at this place";
                found.push(self.finding(Flaw::BadSignature, Some(line.seq), message.into()));
            }
            self.past.extend(self.key.filter(|_| new.is_some()));
            self.key = new.or(self.key);
            self.awaited = self.awaited.filter(|awaited| Some(*awaited) != new);
        }
    }

    fn finding(&mut self, verdict: Flaw, seq: Option<u64>, message: String) -> Finding {
        self.tampered |= verdict.is_tampering();
        Finding { verdict, file: self.file.clone(), line: self.line_no, seq, message }
    }

    fn note(&mut self, what: String) {
        if self.summary.unknown.len() < MAX_UNKNOWN {
            self.summary.unknown.push(what);
        }
    }

    /// All files were read: what is missing at their end.
    pub fn end(&mut self) -> Vec<Finding> {
        let last = self.last.map(|last| last.seq);
        let broken = last.and_then(|last| self.anchor.as_mut()?.end(last));
        broken.and_then(|broken| self.broken(broken, last)).into_iter().collect()
    }

    /// What the anchor itself is worth, and what it leaves open.
    fn weigh(&mut self, anchor: Anchor, last: u64) {
        let note = anchor.note();
        let signed = self.past.iter().chain(&self.key).any(|key| note.is_signed_by(key));
        let cosigned = self.cosigned(note);
        // Nothing was compared, or something was found, which counts more.
        self.incomplete |= !anchor.agrees();
        if anchor.agrees() && !signed {
            self.incomplete = true;
            self.note("whose checkpoint it is: the log's key did not sign it (UNKNOWN_KEY)".into());
        }
        let first = self.summary.first_seq.unwrap_or(0);
        if first > 0 && self.pruned_to.is_none_or(|to| to.saturating_add(1) < first) {
            self.incomplete = true;
            self.note(format!(
                "where the lines before seq {first} are: no record that the checkpoint covers says \
                 they were pruned"
            ));
        }
        if first >= anchor.size() {
            self.incomplete = true;
            self.note("any line that the checkpoint covers: none of them is here".into());
        }
        if self.witnesses.is_empty() {
            self.note("who kept the checkpoint: no --witness was given to check that by".into());
        } else if !cosigned {
            self.incomplete = true;
            self.note(
                "whether a witness has seen it: none that was named cosigned the checkpoint".into(),
            );
        }
        if let Some(unknown) = anchor.unknown(last) {
            self.note(unknown);
        }
    }

    /// The end.
    #[must_use]
    pub fn finish(mut self) -> Summary {
        match (self.last, self.anchor.take()) {
            (Some(last), Some(anchor)) => self.weigh(anchor, last.seq),
            (Some(last), None) => self.note(format!(
                "whether lines after seq {} were cut off: no checkpoint was compared (UNANCHORED)",
                last.seq
            )),
            (None, _) => {
                self.incomplete = true;
                self.note("anything: there is no line here".into());
            }
        }
        if self.awaited.is_some() {
            self.incomplete = true;
            self.note(
                "whose log this is: it names another key than the one given, and no rotation \
                 leads from one to the other (UNKNOWN_KEY)"
                    .into(),
            );
        }
        if let Some(seq) = self.pruned_at.filter(|_| self.summary.first_seq != Some(0)) {
            self.note(format!("the lines that were pruned, as seq {seq} records (PRUNED)"));
        }
        self.summary.verdict = match (self.tampered, self.incomplete) {
            (true, _) => Verdict::Tampered,
            (false, true) => Verdict::Incomplete,
            (false, false) => Verdict::Ok,
        };
        self.summary
    }
}

fn is(line: &Line, event: Event) -> bool {
    line.event == event.text()
}

fn text<'a>(line: &'a Line, key: &str) -> Option<&'a str> {
    line.details.get(key)?.as_str()
}

#[cfg(test)]
#[path = "audit_tamper_tests.rs"]
mod tamper_tests;
#[cfg(test)]
#[path = "audit_verify_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "audit_threads_tests.rs"]
mod threads_tests;
