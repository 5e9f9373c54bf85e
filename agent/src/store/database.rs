//! The file and what is shared around it: the open database, the counts, the news of changes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use jiff::Timestamp;
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase as _, StorageError};
use tokio::sync::broadcast;

use super::{Counts, OpenError, StoreError, tables};
use crate::{domain::job::Entry, runtime::durable};

/// Pages kept in memory. The journal is small and read rarely; the default would be a gigabyte.
const CACHE_BYTES: usize = 1 << 20;

/// Changes a slow watcher may lag behind.
const NEWS: usize = 256;

/// Everything that the handles and the writer share.
pub(super) struct Shared {
    path: PathBuf,
    /// `None` after an input/output error, until it could be opened again. Readers hold the lock
    /// while they read; only reopening takes it for writing.
    pub(super) db: RwLock<Option<Database>>,
    counts: Mutex<Counts>,
    pub(super) changes: broadcast::Sender<Entry>,
    /// Why the last commit failed, if it did.
    failed: Mutex<Option<StoreError>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Shared {
    /// Opens or creates the file; also returns when it was created.
    pub(super) fn open(path: &Path, now: Timestamp) -> Result<(Self, Timestamp), OpenError> {
        prepare(path).map_err(OpenError::Other)?;
        let opened = open(path, now)?;
        let shared = Self {
            path: path.to_owned(),
            db: RwLock::new(Some(opened.db)),
            counts: Mutex::new(opened.counts),
            changes: broadcast::channel(NEWS).0,
            failed: Mutex::default(),
        };
        Ok((shared, opened.created_at))
    }

    /// Opens the file anew. redb refuses all work after an input/output error, and what such a
    /// commit left on disk is known only to a fresh look.
    pub(super) fn reopen(&self) -> Result<(), StoreError> {
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        drop(slot.take());
        if !self.path.is_file() {
            // A new journal would forget every id that was ever used.
            return Err(StoreError(format!("{} is gone; restart the agent", self.path.display())));
        }
        // The file holds its own date, so the one given here is not used.
        let opened = open(&self.path, Timestamp::UNIX_EPOCH).map_err(StoreError::from)?;
        self.set_counts(opened.counts);
        *slot = Some(opened.db);
        Ok(())
    }

    /// Reads from the last commit.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let slot = self.slot();
        let db = slot.as_ref().ok_or_else(|| self.closed())?;
        let txn = db.begin_read().map_err(|e| self.fault(&e.into()))?;
        work(&txn).map_err(|e| self.fault(&e))
    }

    pub(super) fn slot(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_counts(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    pub(super) fn set_failed(&self, failed: Option<StoreError>) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }

    pub(super) fn failed(&self) -> Option<StoreError> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn fault(&self, error: &redb::Error) -> StoreError {
        StoreError(format!("{}: {error}", self.path.display()))
    }

    pub(super) fn closed(&self) -> StoreError {
        StoreError(format!(
            "{} is closed after an input/output error; it is opened again at the next change",
            self.path.display()
        ))
    }
}

/// Makes the file private before the first byte is in it, and keeps it so.
fn prepare(path: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError(format!("{}: {e}", path.display()));
    match fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o7777 != durable::PRIVATE => {
            fs::set_permissions(path, fs::Permissions::from_mode(durable::PRIVATE)).map_err(failed)
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                durable::create_dir(dir, 0o700).map_err(failed)?;
            }
            durable::create(path, durable::PRIVATE).map_err(failed)?;
            durable::sync_parent(path).map_err(failed)
        }
        Err(e) => Err(failed(e)),
    }
}

struct Opened {
    db: Database,
    counts: Counts,
    created_at: Timestamp,
}

fn open(path: &Path, now: Timestamp) -> Result<Opened, OpenError> {
    let work = || {
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|e| refusal(path, &e))?;
        let created_at = tables::begin(&db, now).map_err(|e| unreadable(path, &e))?;
        let counts = tables::count(&db).map_err(|e| damaged(path, &e.to_string()))?;
        Ok(Opened { db, counts, created_at })
    };
    // redb trusts pages of a file that was closed cleanly; damage done since can make it panic.
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(damaged(path, "its pages contradict each other")))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what redb adds is damage until known better")]
fn refusal(path: &Path, error: &DatabaseError) -> OpenError {
    let other = |why: String| OpenError::Other(StoreError(why));
    match error {
        DatabaseError::DatabaseAlreadyOpen => other(format!(
            "{} is in use by another process, probably a running agent; ask that one (jtntctl), \
             or stop it first (jtnt-agent service stop)",
            path.display()
        )),
        DatabaseError::UpgradeRequired(version) => other(format!(
            "{} has database format {version}, which this agent does not read; run the agent \
             that wrote it",
            path.display()
        )),
        DatabaseError::Storage(StorageError::Io(e))
            if e.kind() != std::io::ErrorKind::InvalidData =>
        {
            other(format!("{}: {e}", path.display()))
        }
        damage => damaged(path, &damage.to_string()),
    }
}

fn unreadable(path: &Path, error: &tables::BeginError) -> OpenError {
    match error {
        tables::BeginError::Newer(found) => OpenError::Other(StoreError(format!(
            "{} was written by a newer agent (format {found}, this one knows {}); run that \
             agent again, or move the file away and start with an empty journal",
            path.display(),
            tables::FORMAT
        ))),
        tables::BeginError::Foreign => damaged(path, "it is a database, but no journal"),
        tables::BeginError::Database(e) => damaged(path, &e.to_string()),
    }
}

fn damaged(path: &Path, what: &str) -> OpenError {
    let path = path.display();
    OpenError::Damaged(StoreError(format!(
        "{path} cannot be read: {what}. It was left as it is; jtnt-agent run puts it aside and \
         starts with an empty journal, which refuses jobs issued before that as replays"
    )))
}
