//! Output that is too large for its result goes up after it, as artifacts of the job that can be
//! resumed. Ends of jobs come first: none of this is begun while one of them waits for the hub.

use std::{
    fs::File,
    io::{self, SeekFrom},
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jtnt_proto::{bytes::Hash, hub::OutputPart};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncSeekExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    core::Core,
    upload::{Stopped, append},
};
use crate::{
    domain::job::{Dropped, Entry},
    hub::{
        HubClient, HubError, UploadPart,
        retry::{Retry, is_final, wanted},
    },
    store::StoreError,
};

const CHUNK_BYTES: usize = 256 * 1024;
/// How often what waits is looked for, though nobody said that there is something.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Why a part of an output is not at the hub.
#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("its file: {0}")]
    File(#[from] io::Error),
    #[error("the hub has more of it than there is")]
    Other,
}

/// Sends what follows, one piece after another, until the agent stops.
pub(super) async fn run(core: Arc<Core>, shutdown: CancellationToken) {
    let mut retry = Retry::default();
    loop {
        let round = async {
            let pause = round(&core, &mut retry).await.unwrap_or_else(|error| {
                tracing::error!(%error, "what output waits for the hub cannot be read");
                LOOK_AGAIN
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = core.follow_up.notified() => {}
            }
        };
        tokio::select! {
            () = round => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Sends what waits; returns how long to wait before the next time.
async fn round(core: &Core, retry: &mut Retry) -> Result<Duration, StoreError> {
    let mut link = core.deps.link.clone();
    let Some(hub) = link.wait_for(Option::is_some).await.ok().and_then(|hub| hub.clone()) else {
        return Ok(LOOK_AGAIN);
    };
    loop {
        core.window.idle().await;
        let waiting = core.deps.journal.undelivered()?;
        let waiting: Vec<_> = waiting.into_iter().filter(|entry| entry.reported).collect();
        if waiting.is_empty() {
            return Ok(LOOK_AGAIN);
        }
        let mut failed: Option<Duration> = None;
        for entry in waiting {
            core.window.idle().await;
            match send_all(core, &hub, entry).await? {
                None => retry.succeeded(),
                Some(pause) => failed = Some(failed.unwrap_or_default().max(pause)),
            }
        }
        if let Some(pause) = failed {
            return Ok(retry.wait(pause, &*core.deps.entropy));
        }
    }
}

/// Sends all that follows one result; returns what to wait where that must be tried again.
async fn send_all(
    core: &Core,
    hub: &HubClient,
    mut entry: Entry,
) -> Result<Option<Duration>, StoreError> {
    while let Some(part) = entry.parts.first() {
        let why = match send(core, hub, &entry, part).await {
            Ok(()) => {
                core.fewer_pending(part.size);
                entry.parts.remove(0);
                core.deps.journal.note(entry.clone()).await?;
                continue;
            }
            Err(Unsent::Hub(error)) if !is_final(&error) => {
                tracing::debug!(%error, job_id = %entry.job_id, "output of a job waits");
                return Ok(Some(wanted(&error)));
            }
            Err(Unsent::Hub(error)) => {
                tracing::warn!(%error, job_id = %entry.job_id, "the hub takes no more output of a job");
                Dropped::Refused
            }
            Err(unsent) => {
                tracing::warn!(%unsent, job_id = %entry.job_id, "output of a job cannot be sent");
                Dropped::Lost
            }
        };
        return core.drop_output(entry, why).await.map(|()| None);
    }
    core.delivered(entry).await?;
    core.show();
    Ok(None)
}

async fn send(
    core: &Core,
    hub: &HubClient,
    entry: &Entry,
    part: &OutputPart,
) -> Result<(), Unsent> {
    let (path, size) = (core.job_dir(&entry.job_id).join(&part.name), part.size);
    let stop = Flag::default();
    let seen = stop.seen_by();
    let open = move || {
        let file = File::open(path)?;
        let sha256 = hash_of(&file, size, &seen)?;
        Ok::<_, io::Error>((file, sha256))
    };
    let (file, sha256) = tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??;
    let open = async move |offset| {
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(CHUNK_BYTES);
        file.seek(SeekFrom::Start(offset)).await?;
        Ok(file)
    };
    match append(hub, (&entry.job_id, &part.name), size, open).await {
        Ok(()) => {}
        // Where it stands will be asked the next time.
        Err(Stopped::Elsewhere) => {
            return Err(HubError::BadAnswer("it is at another place".to_owned()).into());
        }
        Err(Stopped::Hub(error)) => return Err(error.into()),
        Err(Stopped::Unread(error)) => return Err(error.into()),
        Err(Stopped::TooMuch(_)) => return Err(Unsent::Other),
    }
    let state = hub.upload(&entry.job_id, &part.name, UploadPart::Finish { size, sha256 }).await?;
    if state.complete {
        return Ok(());
    }
    Err(HubError::BadAnswer("an upload that ended is not complete".to_owned()).into())
}

fn hash_of(file: &File, size: u64, stop: &AtomicBool) -> io::Result<Hash> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < size {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = file.read_at(&mut chunk, at)?;
        let wanted = usize::try_from(size - at).unwrap_or(usize::MAX).min(n);
        if wanted == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        hasher.update(chunk.get(..wanted).unwrap_or_default());
        at += wanted as u64;
    }
    Ok(Hash(hasher.finalize().into()))
}

/// Tells a thread that may block to end early.
#[derive(Debug, Default)]
struct Flag(Arc<AtomicBool>);

impl Flag {
    fn seen_by(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_hash_is_of_the_first_size_bytes_and_a_shorter_file_is_noticed() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        let go = AtomicBool::new(false);
        assert_eq!(hash_of(&file, 4, &go).unwrap(), Hash::of(b"cont"));
        assert_eq!(hash_of(&file, 0, &go).unwrap(), Hash::of(b""));
        let short = hash_of(&file, 8, &go).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        let stopped = hash_of(&file, 4, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    }
}
