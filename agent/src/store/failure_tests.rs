//! The journal when the disk, the file or the history are not as one would wish.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use jtnt_proto::hub::Outcome;
use redb::backends::FileBackend;

use super::{
    tests::{entry, hours, id, open},
    *,
};

/// A file whose disk takes no more from the moment it is told.
#[derive(Debug)]
struct Filling(FileBackend, Arc<AtomicBool>);

impl Filling {
    fn room(&self) -> std::io::Result<()> {
        let full = self.1.load(Ordering::SeqCst);
        if full { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl redb::StorageBackend for Filling {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.room()?;
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.room()?;
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.room()?;
        self.0.write(offset, data)
    }

    fn close(&self) -> std::io::Result<()> {
        self.0.close()
    }
}

#[tokio::test]
async fn a_failed_commit_is_told_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.redb");
    let journal = open(&path).unwrap();
    journal.admit(entry(1, State::Queued)).await.unwrap();
    {
        let mut slot = journal.inner.shared.db.write().unwrap();
        drop(slot.take());
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let full = Arc::new(AtomicBool::new(false));
        let disk = Filling(FileBackend::new(file).unwrap(), Arc::clone(&full));
        *slot = Some(redb::Builder::new().create_with_backend(disk).unwrap());
        full.store(true, Ordering::SeqCst);
    }
    let mut changes = journal.changes();
    let refused = journal.admit(entry(2, State::Queued)).await.unwrap_err().to_string();
    assert!(refused.contains("jobs.redb"), "{refused}");
    assert_eq!(journal.counts().queued, 1);
    assert!(changes.try_recv().is_err(), "no news of what did not happen");
    assert_eq!(journal.admit(entry(3, State::Queued)).await.unwrap(), Admission::New);
    let kept = [entry(1, State::Queued), entry(3, State::Queued)];
    assert_eq!(journal.unfinished().unwrap(), kept);
}

#[tokio::test]
async fn a_file_that_is_gone_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.redb");
    let journal = open(&path).unwrap();
    drop(journal.inner.shared.db.write().unwrap().take());
    fs::remove_file(&path).unwrap();
    let refused = journal.admit(entry(1, State::Queued)).await.unwrap_err().to_string();
    assert!(refused.contains("is gone"), "{refused}");
    assert!(!path.exists());
    assert!(journal.get(&id(1)).is_err());
}

#[tokio::test]
async fn damage_is_told_and_never_wiped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.redb");
    let journal = open(&path).unwrap();
    journal.admit(entry(1, State::Queued)).await.unwrap();
    drop(journal);
    let whole = fs::read(&path).unwrap();
    let mut overwritten = whole.clone();
    overwritten[4096..].fill(0xa5);
    for bytes in [overwritten, whole[..whole.len() / 2].to_vec()] {
        let copy = dir.path().join("damaged");
        durable::replace(&copy, &bytes, 0o600).unwrap();
        let refused = open(&copy).unwrap_err().to_string();
        assert!(refused.contains("jtnt-agent run puts it aside"), "{refused}");
        assert_eq!(fs::read(&copy).unwrap().len(), bytes.len());
    }
}

#[test]
fn other_databases_and_newer_journals_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.redb");
    let write = |table: redb::TableDefinition<'_, &str, &str>, key: &str, value: &str| {
        let db = redb::Database::create(&path).unwrap();
        let txn = db.begin_write().unwrap();
        txn.open_table(table).unwrap().insert(key, value).unwrap();
        txn.commit().unwrap();
    };
    write(redb::TableDefinition::new("recipes"), "soup", "leek");
    let refused = open(&path).unwrap_err().to_string();
    assert!(refused.contains("no journal"), "{refused}");
    write(redb::TableDefinition::new("meta"), "format", "2");
    let refused = open(&path).unwrap_err().to_string();
    assert!(refused.contains("newer agent (format 2, this one knows 1)"), "{refused}");
}

#[test]
fn the_file_is_private_even_if_somebody_opened_it_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.redb");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    drop(open(&path).unwrap());
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(&path).unwrap());
    assert_eq!(mode(), 0o600);
}

/// Jobs that have ended cost nothing at the next start, however many there are.
#[tokio::test]
async fn a_long_history_opens_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.redb");
    let journal = open(&path).unwrap();
    let done = entry(0, State::Finished(Outcome::Ok));
    for from in (0..20_000_u32).step_by(1000) {
        let named = |n: u32| JobId::try_from(format!("long-{n}")).unwrap();
        let work = (from..from + 1000).map(|n| {
            let delivered = n % 100 != 0;
            journal.admit(Entry { job_id: named(n), delivered, ..done.clone() })
        });
        futures_util::future::try_join_all(work).await.unwrap();
    }
    drop(journal);
    let begun = tokio::time::Instant::now();
    let journal = open(&path).unwrap();
    let took = begun.elapsed();
    assert!(took.as_millis() < 200, "{took:?}");
    assert_eq!(journal.counts().undelivered, 200);
    assert_eq!(journal.prune(hours(2), hours(2)).await.unwrap().len(), 19_800);
}
