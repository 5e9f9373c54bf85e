//! Uploads: an open file goes to the hub from where the hub has it, while another thread takes its
//! hash. The hub judges the hash of what it received, so a file that changes on the way is caught.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jtnt_proto::{
    bytes::Hash,
    hub::Outcome,
    job::{Artifact, Upload},
};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::{
    download::{blocking, hub},
    retry::{Retry, wanted},
    runner::{Context, Ended, Flag},
};
use crate::{
    domain::ids::JobId,
    gate::Source,
    hub::{HubClient, HubError, UploadPart},
    platform::{
        account::with_rights_of,
        paths::{reach, reopen},
    },
};

const CHUNK_BYTES: usize = 256 * 1024;

/// A file as it was when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    size: u64,
    modified: (i64, i64),
}

impl Shape {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

/// Reads a file into an artifact.
pub(super) async fn run(context: &Arc<Context>, id: &JobId, asked: &Upload, from: Source) -> Ended {
    let began = context.core.deps.clock.uptime();
    let ended = match transfer(context, id, asked, from).await {
        Ok(artifact) => Ended { artifact: Some(artifact), ..Ended::of(Outcome::Ok) },
        Err(ended) => ended,
    };
    if ended.outcome == Outcome::Ok {
        let took = context.core.deps.clock.uptime().saturating_sub(began);
        context.core.deps.metrics.upload_duration.observe(took.as_secs_f64());
    }
    ended
}

async fn transfer(
    context: &Context,
    id: &JobId,
    asked: &Upload,
    from: Source,
) -> Result<Artifact, Ended> {
    let unreadable =
        |e: io::Error| Ended::failed("READ_FAILED", format!("{} cannot be read: {e}", asked.path));
    let identity = Arc::clone(&context.identity);
    // Opened with the job's own rights, for the kernel to judge.
    let open = move || {
        with_rights_of(&identity.account, || reach(&from.canonical, &from.file, OFlags::RDONLY))
    };
    let source = blocking(open).await?.and_then(|opened| opened).map_err(unreadable)?;
    let shape = Shape::of(&source).map_err(unreadable)?;
    if let Some(most) = context.limits.file_bytes.filter(|most| shape.size > *most) {
        let message = format!("{} bytes; limits.file_bytes is {most}", shape.size);
        return Err(Ended::failed("TOO_LARGE", message));
    }
    let stop = Flag::default();
    let (hashed, seen) = (source.try_clone().map_err(unreadable)?, stop.seen_by());
    let hash = tokio::task::spawn_blocking(move || hash_of(&hashed, shape.size, &seen));
    send(context, id, asked, (&source, shape), hash).await
}

/// Appends and ends, over as many connections as it takes.
async fn send(
    context: &Context,
    id: &JobId,
    asked: &Upload,
    (source, shape): (&File, Shape),
    hash: JoinHandle<io::Result<Hash>>,
) -> Result<Artifact, Ended> {
    let mut retry = Retry::default();
    let mut hash = Hashing::Under(hash);
    loop {
        let hub = hub(&context.core).await?;
        let pause = match append(&hub, id, &asked.name, source, shape.size).await {
            Ok(()) => {
                let sha256 = hash.done().await?;
                if Shape::of(source).ok() != Some(shape) {
                    return Err(changed(&asked.path));
                }
                let size = shape.size;
                match hub.upload(id, &asked.name, UploadPart::Finish { size, sha256 }).await {
                    Ok(state) if state.complete => return Ok(Artifact { sha256, size }),
                    Ok(_) => Duration::ZERO,
                    Err(error) => again(&error, &asked.path)?,
                }
            }
            Err(Stopped::Elsewhere) => Duration::ZERO,
            Err(Stopped::Hub(error)) => again(&error, &asked.path)?,
            Err(Stopped::Ended(ended)) => return Err(*ended),
        };
        tokio::time::sleep(retry.wait(pause, &*context.core.deps.entropy)).await;
    }
}

/// How long to wait before another try, where one makes sense.
#[expect(clippy::result_large_err, reason = "it is made once and returned at once")]
fn again(error: &HubError, path: &str) -> Result<Duration, Ended> {
    if error.is_transient() {
        return Ok(wanted(error));
    }
    // The hub's hash of what it received is another than ours of what we read.
    if matches!(error, HubError::Refused { status: 422, .. }) {
        return Err(changed(path));
    }
    Err(Ended::failed("UPLOAD_REFUSED", error.to_string()))
}

/// The hash, awaited once.
enum Hashing {
    Under(JoinHandle<io::Result<Hash>>),
    Done(Hash),
}

impl Hashing {
    async fn done(&mut self) -> Result<Hash, Ended> {
        let fault = |e: String| Ended::failed("READ_FAILED", format!("not hashed: {e}"));
        let found = match self {
            Self::Done(hash) => *hash,
            Self::Under(task) => {
                task.await.map_err(|e| fault(e.to_string()))?.map_err(|e| fault(e.to_string()))?
            }
        };
        *self = Self::Done(found);
        Ok(found)
    }
}

#[derive(Debug)]
pub(super) enum Stopped {
    /// The hub stands at another place than this side thought: worth asking again.
    Elsewhere,
    Hub(HubError),
    Ended(Box<Ended>),
}

impl From<HubError> for Stopped {
    fn from(error: HubError) -> Self {
        Self::Hub(error)
    }
}

/// Sends what the hub does not have of `size` bytes.
pub(super) async fn append(
    hub: &HubClient,
    id: &JobId,
    name: &str,
    source: &File,
    size: u64,
) -> Result<(), Stopped> {
    let state = hub.upload(id, name, UploadPart::Ask).await?;
    let ended = |ended| Stopped::Ended(Box::new(ended));
    if state.received > size {
        let message = format!("the hub has {} bytes of a file of {size}", state.received);
        return Err(ended(Ended::failed("FILE_CHANGED", message)));
    }
    if state.complete || state.received == size {
        return Ok(());
    }
    // Anew, so that positions are its own.
    let file = reopen(source)
        .map_err(|e| ended(Ended::failed("READ_FAILED", format!("not opened again: {e}"))))?;
    let file = tokio::fs::File::from_std(file);
    let part = UploadPart::Append { file, offset: state.received, length: size - state.received };
    let state = hub.upload(id, name, part).await?;
    if state.received == size { Ok(()) } else { Err(Stopped::Elsewhere) }
}

fn changed(path: &str) -> Ended {
    Ended::failed("FILE_CHANGED", format!("{path} changed while it was read; try again"))
}

pub(super) fn hash_of(file: &File, size: u64, stop: &AtomicBool) -> io::Result<Hash> {
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

    #[test]
    fn a_write_changes_the_shape() {
        let mut file = tempfile::tempfile().unwrap();
        let before = Shape::of(&file).unwrap();
        file.write_all(b"x").unwrap();
        assert_ne!(Shape::of(&file).unwrap(), before);
    }
}
