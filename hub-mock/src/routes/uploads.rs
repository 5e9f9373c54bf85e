//! Uploads that are under way. Each has one file that only grows and a running hash, so that the
//! end of an upload costs nothing; a new request for the same upload takes over from an older one
//! whose connection may be dead without anyone knowing.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use jtnt_proto::{bytes::Hash, job::Artifact};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{self, File, OpenOptions},
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::OwnedMutexGuard,
};
use tokio_util::sync::CancellationToken;

use crate::durable;

/// Bytes that are read or written at once.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// All uploads, by file.
#[derive(Debug, Default)]
pub(crate) struct Uploads(Mutex<BTreeMap<PathBuf, Entry>>);

#[derive(Debug, Clone)]
struct Entry {
    takeover: CancellationToken,
    progress: Arc<tokio::sync::Mutex<Progress>>,
}

/// How far an upload is.
#[derive(Debug, Default)]
struct Progress {
    hash: Option<Sha256>,
    received: u64,
}

/// An upload in the hands of one request.
#[derive(Debug)]
pub(crate) struct Upload {
    path: PathBuf,
    taken_over: CancellationToken,
    progress: OwnedMutexGuard<Progress>,
}

impl Uploads {
    /// Takes the upload into `path` from whoever has it.
    pub(crate) async fn take(&self, path: PathBuf) -> io::Result<Upload> {
        let taken_over = CancellationToken::new();
        let progress = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = all.entry(path.clone()).or_insert_with(|| Entry {
                takeover: CancellationToken::new(),
                progress: Arc::default(),
            });
            entry.takeover.cancel();
            entry.takeover = taken_over.clone();
            Arc::clone(&entry.progress)
        };
        let progress = progress.lock_owned().await;
        let mut upload = Upload { path, taken_over, progress };
        if upload.progress.hash.is_none() {
            upload.recover().await?;
        }
        Ok(upload)
    }

    /// Forgets an upload that has ended.
    pub(crate) fn forget(&self, path: &Path) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }
}

impl Upload {
    /// Bytes that are there.
    pub(crate) fn received(&self) -> u64 {
        self.progress.received
    }

    /// Appends what comes, at most `room` bytes, until it ends, breaks, or another request takes
    /// over. What arrived stays.
    pub(crate) async fn append<E: Into<axum::BoxError>>(
        &mut self,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        room: u64,
    ) -> io::Result<()> {
        let mut file = None;
        loop {
            let next = tokio::select! {
                next = body.next() => next,
                () = self.taken_over.cancelled() => {
                    return Err(io::Error::other("another request took the upload over"));
                }
            };
            let Some(chunk) = next else { break };
            let chunk = chunk.map_err(io::Error::other)?;
            let length = u64::try_from(chunk.len()).map_err(io::Error::other)?;
            if self.progress.received + length > room {
                return Err(io::Error::other("the artifact is larger than this hub takes"));
            }
            let file = match &mut file {
                Some(file) => file,
                none => none.insert(self.open().await?),
            };
            file.write_all(&chunk).await?;
            self.progress.received += length;
            if let Some(hash) = &mut self.progress.hash {
                hash.update(&chunk);
            }
        }
        match file {
            Some(mut file) => file.flush().await,
            None => Ok(()),
        }
    }

    /// The hash of everything that came.
    pub(crate) fn hash(&self) -> Hash {
        Hash(self.progress.hash.clone().unwrap_or_default().finalize().into())
    }

    /// Ends the upload: the file becomes the artifact of its hash.
    pub(crate) async fn keep(self, artifacts: &Path) -> io::Result<Artifact> {
        let artifact = Artifact { sha256: self.hash(), size: self.progress.received };
        let target = artifacts.join(artifact.sha256.to_string());
        fs::create_dir_all(artifacts).await?;
        // An upload of nothing has no file yet.
        self.open().await?.sync_all().await?;
        fs::rename(&self.path, &target).await?;
        tokio::task::spawn_blocking(move || durable::sync_parent(&target))
            .await
            .map_err(io::Error::other)??;
        Ok(artifact)
    }

    /// Throws away what came.
    pub(crate) async fn discard(&mut self) -> io::Result<()> {
        match fs::remove_file(&self.path).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        *self.progress = Progress { hash: Some(Sha256::new()), received: 0 };
        Ok(())
    }

    async fn open(&self) -> io::Result<File> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).await?;
        }
        let mut file = OpenOptions::new().append(true).create(true).open(&self.path).await?;
        file.set_max_buf_size(CHUNK_BYTES);
        Ok(file)
    }

    /// Reads what an earlier process, or a write that failed, has left.
    async fn recover(&mut self) -> io::Result<()> {
        let (mut hash, mut received) = (Sha256::new(), 0);
        let mut file = match File::open(&self.path).await {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                *self.progress = Progress { hash: Some(hash), received };
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let n = file.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            hash.update(buffer.get(..n).unwrap_or_default());
            received += u64::try_from(n).map_err(io::Error::other)?;
        }
        *self.progress = Progress { hash: Some(hash), received };
        Ok(())
    }
}
