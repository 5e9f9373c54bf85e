//! Where the state rests: a snapshot and a journal of the events since. One thread writes; all
//! events that arrive while it syncs share the next sync.
//!
//! `state.json` names the journal that follows it (`journal-N.jsonl`), so that no moment of a
//! start can pair a snapshot with events it already holds.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    durable::{self, Access},
    error::HubError,
    state::{Event, State},
};

/// Number of an event since the start.
pub(crate) type Seq = u64;

#[derive(Serialize, Deserialize)]
struct Snapshot {
    journal: u64,
    state: State,
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
    /// The newest event on disk; nothing once a write has failed.
    durable: watch::Receiver<Option<Seq>>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    last: Seq,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the state of `dir`, begins a new journal, and starts its writer.
pub(crate) fn open(dir: &Path) -> Result<(State, Journal), HubError> {
    let at = dir.join("state.json");
    let mut snapshot = match fs::read(&at) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|e| HubError::damaged("state.json", e))?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Snapshot { journal: 0, state: State::default() }
        }
        Err(e) => return Err(HubError::file(&at)(e)),
    };
    let before = journal_path(dir, snapshot.journal);
    replay(&before, &mut snapshot.state)?;
    snapshot.journal += 1;
    let bytes = serde_json::to_vec(&snapshot).map_err(|e| HubError::damaged("state", e))?;
    let path = journal_path(dir, snapshot.journal);
    // A file of that name can only be one that no snapshot ever named.
    if path.exists() {
        fs::remove_file(&path).map_err(HubError::file(&path))?;
    }
    let file = durable::appending(&path).map_err(HubError::file(&path))?;
    durable::replace(&at, &bytes, Access::Private).map_err(HubError::file(&at))?;
    if before.exists() {
        fs::remove_file(&before).map_err(HubError::file(&before))?;
    }
    Ok((snapshot.state, Journal::start(file)?))
}

fn journal_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("journal-{number}.jsonl"))
}

/// Applies every whole line. A last line without LF was never acknowledged.
fn replay(path: &Path, state: &mut State) -> Result<(), HubError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(HubError::file(path)(e)),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(HubError::file(path))?;
        if line.last() != Some(&b'\n') {
            return Ok(());
        }
        let event = serde_json::from_slice(&line)
            .map_err(|e| HubError::damaged(path.display().to_string(), e))?;
        state.apply(event);
    }
}

impl Journal {
    fn start(file: File) -> Result<Self, HubError> {
        let shared = Arc::new(Shared::default());
        let (tell, durable) = watch::channel(Some(0));
        let theirs = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("hub-journal".to_owned())
            .spawn(move || write_all(&theirs, file, &tell))
            .map_err(|e| HubError::damaged("journal thread", e))?;
        Ok(Self { shared, durable, writer: Some(writer) })
    }

    /// Hands over an event; [`Self::durable`] tells when it is safe. Events are bounded by the
    /// connections that wait for them.
    pub(crate) fn append(&self, event: &Event) -> Seq {
        let mut pending = self.shared.lock();
        // Writing to a vector cannot fail, and none of our types refuses to be JSON.
        if serde_json::to_writer(&mut pending.bytes, event).is_ok() {
            pending.bytes.push(b'\n');
        }
        pending.last += 1;
        let seq = pending.last;
        drop(pending);
        self.shared.wake.notify_one();
        seq
    }

    /// The newest event that was handed over.
    pub(crate) fn last(&self) -> Seq {
        self.shared.lock().last
    }

    /// Waits until event `seq` would survive a power cut.
    pub(crate) async fn durable(&self, seq: Seq) -> Result<(), HubError> {
        let mut durable = self.durable.clone();
        let reached = |at: &Option<Seq>| at.is_none_or(|at| at >= seq);
        let verdict = durable.wait_for(reached).await.map(|at| at.is_some());
        if verdict.unwrap_or(false) { Ok(()) } else { Err(HubError::Journal) }
    }
}

impl Drop for Journal {
    /// Writes what is left.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the journal's writer panicked");
        }
    }
}

fn write_all(shared: &Shared, mut file: File, tell: &watch::Sender<Option<Seq>>) {
    loop {
        let guard = shared.lock();
        let wait = |p: &mut Pending| p.bytes.is_empty() && !p.closed;
        let mut pending =
            shared.wake.wait_while(guard, wait).unwrap_or_else(PoisonError::into_inner);
        let (bytes, last) = (std::mem::take(&mut pending.bytes), pending.last);
        drop(pending);
        if bytes.is_empty() {
            return;
        }
        // A failed sync is never tried again: what the disk then holds is unknown.
        if let Err(e) = file.write_all(&bytes).and_then(|()| file.sync_data()) {
            tracing::error!("the journal cannot be written: {e}");
            tell.send_replace(None);
            return;
        }
        tell.send_replace(Some(last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jtnt_proto::bytes::Hash;

    fn token(n: u8) -> Event {
        Event::TokenMade { hash: Hash([n; 32]), expires_at: jiff::Timestamp::UNIX_EPOCH }
    }

    fn append(dir: &Path, n: u8) {
        let (mut state, journal) = open(dir).unwrap();
        journal.append(&token(n));
        state.apply(token(n));
    }

    #[test]
    fn events_survive_and_the_journal_is_folded_into_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), 1);
        append(dir.path(), 2);
        let (state, _journal) = open(dir.path()).unwrap();
        assert_eq!(state.tokens.len(), 2);
        assert!(!journal_path(dir.path(), 1).exists());
        assert_eq!(fs::read(journal_path(dir.path(), 3)).unwrap(), b"");
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_a_damaged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        append(dir.path(), 1);
        let mut file = durable::appending(&journal_path(dir.path(), 1)).unwrap();
        file.write_all(br#"{"event":"token_m"#).unwrap();
        let (state, journal) = open(dir.path()).unwrap();
        assert_eq!(state.tokens.len(), 1);
        drop(journal);
        let mut file = durable::appending(&journal_path(dir.path(), 2)).unwrap();
        file.write_all(b"nonsense\n").unwrap();
        let said = open(dir.path()).unwrap_err().to_string();
        assert!(said.contains("journal-2.jsonl is damaged"), "{said}");
    }

    #[tokio::test]
    async fn an_event_is_durable_once_it_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (_, journal) = open(dir.path()).unwrap();
        let seq = journal.append(&token(1));
        journal.durable(seq).await.unwrap();
        let written = fs::read_to_string(journal_path(dir.path(), 1)).unwrap();
        assert!(written.ends_with("}\n"), "{written}");
    }
}
