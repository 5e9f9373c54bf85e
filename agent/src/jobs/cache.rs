//! What is kept of jobs on disk, and for how long. Space that runs short costs output, oldest
//! first; never the end of a job that the hub does not know.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::core::Core;
use crate::{
    domain::{
        ids::JobId,
        job::{Dropped, Entry, State},
    },
    store::StoreError,
};

/// Records of jobs that the hub has the result of. The audit log knows them for longer.
pub(super) const MAX_RECORDS: u64 = 10_000;
/// So many more, before all of them are looked after at once.
pub(super) const SLACK: u64 = 256;
const UPKEEP: Duration = Duration::from_secs(600);
/// Files of results that wait. The agent takes no more jobs before there are as many ends.
const MAX_PENDING_FILES: usize = 5_000;

/// What waits for the hub, and what could go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheStatus {
    /// Ends of jobs that the hub does not know.
    pub pending_results: u64,
    /// Bytes of their files.
    pub pending_bytes: u64,
    /// When the oldest of them ended.
    pub oldest_pending_at: Option<Timestamp>,
    /// The bound.
    pub max_bytes: u64,
    /// Delivered jobs whose output is still there.
    pub delivered_jobs: u64,
    /// Bytes of it.
    pub delivered_bytes: u64,
}

/// What a cleaning removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cleaned {
    /// Jobs whose output went.
    pub jobs: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Results that wait, and stay.
    pub kept_pending: u64,
}

/// The output of one job on disk.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    bytes: u64,
    at: SystemTime,
}

impl Core {
    /// Counts what is there. Blocks.
    pub(super) fn cache_status(&self) -> Result<CacheStatus, StoreError> {
        let undelivered = self.deps.journal.undelivered()?;
        let delivered = self.delivered_outputs()?;
        Ok(CacheStatus {
            pending_results: undelivered.len() as u64,
            pending_bytes: self.pending_bytes.load(Ordering::Relaxed),
            oldest_pending_at: undelivered.first().and_then(|e| e.finished_at),
            max_bytes: self.config.cache_max_bytes,
            delivered_jobs: delivered.len() as u64,
            delivered_bytes: delivered.iter().map(|kept| kept.bytes).sum(),
        })
    }

    /// Removes the output of delivered jobs; their records stay. Blocks.
    pub(super) fn cache_clean(&self) -> Result<Cleaned, StoreError> {
        let mut cleaned =
            Cleaned { kept_pending: self.deps.journal.counts().undelivered, ..Cleaned::default() };
        for kept in self.delivered_outputs()? {
            fs::remove_dir_all(&kept.path).map_err(|e| unreadable(&kept.path, &e))?;
            cleaned.jobs += 1;
            cleaned.bytes += kept.bytes;
        }
        Ok(cleaned)
    }

    /// Oldest first.
    fn delivered_outputs(&self) -> Result<Vec<Kept>, StoreError> {
        let mut found = Vec::new();
        let dir = self.deps.state_dir.join("jobs");
        for path in entries(&dir).map_err(|e| unreadable(&dir, &e))? {
            let Some(id) = path.file_name().and_then(|n| n.to_str()).map(JobId::try_from) else {
                continue;
            };
            let Ok(id) = id else { continue };
            let gone = self.deps.journal.get(&id)?.is_none_or(|entry| entry.delivered);
            if gone && !self.board.holds(&id) {
                found.push(kept(path));
            }
        }
        found.sort_by_key(|kept| kept.at);
        Ok(found)
    }

    /// Brings the cache back within its bounds.
    pub(super) async fn upkeep(self: &Arc<Self>) -> Result<(), StoreError> {
        let now = self.deps.time.now();
        let before = now.checked_sub(self.config.cache_max_age).unwrap_or(Timestamp::MIN);
        let pruned = self.deps.journal.prune(before, now).await?;
        let core = Arc::clone(self);
        let trim = tokio::task::spawn_blocking(move || core.trim(&pruned)).await;
        trim.map_err(|e| StoreError(e.to_string()))??;
        self.shed(before).await
    }

    /// Removes records of delivered jobs beyond the bound, and their output.
    async fn thin(self: &Arc<Self>) -> Result<(), StoreError> {
        let gone = self.deps.journal.thin(MAX_RECORDS).await?;
        let core = Arc::clone(self);
        let remove = move || gone.iter().for_each(|id| remove_dir(&core.job_dir(id)));
        tokio::task::spawn_blocking(remove).await.map_err(|e| StoreError(e.to_string()))
    }

    /// Removes the output of jobs whose records went, and the oldest of the others while there is
    /// too much. Blocks.
    fn trim(&self, pruned: &[JobId]) -> Result<(), StoreError> {
        for id in pruned {
            remove_dir(&self.job_dir(id));
        }
        let most = self.config.cache_max_bytes;
        let outputs = self.delivered_outputs()?;
        let mut bytes: u64 = outputs.iter().map(|kept| kept.bytes).sum();
        for kept in outputs {
            if bytes <= most {
                break;
            }
            bytes = bytes.saturating_sub(kept.bytes);
            remove_dir(&kept.path);
        }
        Ok(())
    }

    /// Drops output that waits for the hub: what is older than `before`, and while there are too
    /// many bytes or files, the oldest; first what follows results, then what stands in them. Ends of
    /// jobs stay, and the hub learns from them what was dropped.
    async fn shed(&self, before: Timestamp) -> Result<(), StoreError> {
        let waiting = self.deps.journal.undelivered()?;
        let pending = self.pending_dir();
        let count = move || fs::read_dir(pending).map_or(0, Iterator::count);
        let mut files = tokio::task::spawn_blocking(count).await.unwrap_or(0);
        let follows = |entry: &Entry| !entry.parts.is_empty();
        let stands = |entry: &Entry| entry.stdout_bytes + entry.stderr_bytes > 0;
        let (first, then): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .filter(|e| e.dropped.is_none() && (follows(e) || stands(e)))
            .filter(|e| matches!(e.state, State::Finished(_)))
            .partition(follows);
        for entry in first.into_iter().chain(then) {
            let bytes = self.pending_bytes.load(Ordering::Relaxed);
            let full = bytes > self.config.cache_max_bytes || files > MAX_PENDING_FILES;
            let why = match entry.finished_at {
                Some(at) if at < before => Dropped::Old,
                _ if full => Dropped::Full,
                _ => continue,
            };
            if let Err(error) = self.drop_output(entry, why).await {
                tracing::warn!(%error, "the output of a waiting result could not be dropped");
            }
            files = files.saturating_sub(1);
        }
        Ok(())
    }
}

fn unreadable(path: &Path, error: &io::Error) -> StoreError {
    StoreError(format!("{}: {error}", path.display()))
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found?.map(|entry| entry.map(|e| e.path())).collect(),
    }
}

fn kept(path: PathBuf) -> Kept {
    let metas = entries(&path).unwrap_or_default().into_iter().filter_map(|p| p.metadata().ok());
    let bytes = metas.map(|meta| meta.len()).sum();
    let at = path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    Kept { path, bytes, at }
}

fn remove_dir(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a job's output was not removed");
        }
        _ => {}
    }
}

/// Keeps the cache within its bounds, until the agent stops.
pub(super) async fn run(core: Arc<Core>, shutdown: CancellationToken) {
    let mut next = Instant::now();
    loop {
        let done = tokio::select! {
            () = tokio::time::sleep_until(next) => {
                next = Instant::now() + UPKEEP;
                core.upkeep().await
            }
            () = core.crowded.notified() => core.thin().await,
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = done {
            tracing::warn!(%error, "the cache was not looked after");
        }
    }
}
