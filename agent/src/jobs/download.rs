//! Downloads: an artifact goes into a temporary file in the destination's folder and takes its
//! name when size and hash are right. Memory stays flat, and a connection that breaks costs only
//! what was under way.
//!
//! The kernel judges every access as the job's user. What a user of the job's own has written is
//! given to the agent's user at the end: the next job with that number must not own it.

use std::{
    fs::{File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{PermissionsExt as _, fchown},
    sync::Arc,
    time::Duration,
};

use jtnt_proto::{
    bytes::Hash,
    job::{Artifact, Download},
};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{
    core::Core,
    retry::{Retry, wanted},
    runner::{Context, Ended},
    users::Identity,
};
use crate::{
    domain::ids::JobId,
    gate::Destination,
    hub::HubClient,
    platform::{
        account::with_rights_of,
        host,
        paths::{Inode, reach},
    },
};

const CHUNK_BYTES: usize = 256 * 1024;
/// What is handed to the disk at once.
const BEHIND_BYTES: u64 = 8 << 20;
/// Permissions of a file whose job names none.
const DEFAULT_MODE: u32 = 0o600;

/// Writes an artifact to its destination.
pub(super) async fn run(
    context: &Arc<Context>,
    id: &JobId,
    asked: &Download,
    to: Destination,
) -> Ended {
    if let Some(most) = context.limits.file_bytes.filter(|most| asked.artifact.size > *most) {
        let size = asked.artifact.size;
        return Ended::failed("TOO_LARGE", format!("{size} bytes; limits.file_bytes is {most}"));
    }
    let mode = asked.mode.unwrap_or(DEFAULT_MODE);
    match transfer(context, id, asked.artifact, to, mode).await {
        Ok(()) => {
            Ended { artifact: Some(asked.artifact), ..Ended::of(jtnt_proto::hub::Outcome::Ok) }
        }
        Err(ended) => ended,
    }
}

async fn transfer(
    context: &Arc<Context>,
    id: &JobId,
    artifact: Artifact,
    to: Destination,
    mode: u32,
) -> Result<(), Ended> {
    let (identity, name) = (Arc::clone(&context.identity), part_name(id));
    let begin = move || Part::begin(&identity, to, name);
    let (part, file) = blocking(begin).await?.map_err(|e| write_failed(&e))?;
    let whole = receive(context, artifact, Received::into_file(file)).await?;
    let identity = Arc::clone(&context.identity);
    let end = move || part.end(&identity, whole, mode);
    blocking(end).await?.map_err(|e| write_failed(&e))
}

/// Fetches a small artifact into memory.
pub(super) async fn fetch(context: &Arc<Context>, artifact: Artifact) -> Result<Vec<u8>, Ended> {
    Ok(receive(context, artifact, Received::into_memory()).await?.memory)
}

fn write_failed(error: &io::Error) -> Ended {
    Ended::failed("WRITE_FAILED", format!("the file cannot be written: {error}"))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Ended> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Ended::failed("AGENT_FAULT", format!("a thread failed: {error}")))
}

fn part_name(id: &JobId) -> String {
    format!(".jtnt-{id}.part")
}

/// Removes the temporary file of a job that did not come to its end. Blocks.
pub(super) fn remove_part(to: &Destination, id: &JobId) {
    let name = part_name(id);
    match unlinkat(&to.dir, name.as_str(), AtFlags::empty()) {
        Ok(()) => tracing::info!(job_id = %id, "removed what a half download had left"),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => tracing::warn!(%error, name, "a half download stays behind"),
    }
}

/// The temporary file; gone unless it came to its end.
#[derive(Debug)]
struct Part {
    to: Destination,
    name: Option<String>,
}

impl Part {
    fn begin(identity: &Identity, to: Destination, name: String) -> io::Result<(Self, File)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let private = Mode::from_raw_mode(0o600);
        let create = || openat(&to.dir, name.as_str(), flags | OFlags::CLOEXEC, private);
        let opened = with_rights_of(&identity.account, || {
            reach(folder(&to.canonical), &to.dir, OFlags::PATH)?;
            Ok::<_, io::Error>(match create() {
                // The name is this job's: an earlier run of the agent did not come to its end.
                Err(rustix::io::Errno::EXIST) => {
                    unlinkat(&to.dir, name.as_str(), AtFlags::empty()).and_then(|()| create())
                }
                other => other,
            }?)
        })??;
        Ok((Self { to, name: Some(name) }, File::from(opened)))
    }

    /// Gives the file its permissions, its name and its owner, durably.
    fn end(mut self, identity: &Identity, whole: Received, mode: u32) -> io::Result<()> {
        let Some(file) = whole.file else { return Err(io::Error::other("no file was written")) };
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        if let Some(name) = self.name.as_deref() {
            let (dir, final_name) = (&self.to.dir, self.to.name.as_str());
            with_rights_of(&identity.account, || renameat(dir, name, dir, final_name))??;
            self.name = None;
            // Whoever owns the folder may have put another file under the temporary name.
            let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let named = File::from(openat(dir, final_name, look, Mode::empty())?).metadata()?;
            if Inode::of(&named) != Inode::of(&file.metadata()?) {
                return Err(io::Error::other("another file was put in its place meanwhile"));
            }
        }
        if identity.lease.is_some() {
            let own = crate::platform::account::Account::own();
            fchown(&file, Some(own.uid), Some(own.gid))?;
        }
        sync_folder(&self.to.dir)
    }
}

/// The folder of a canonical path.
fn folder(canonical: &str) -> &str {
    canonical
        .rsplit_once('/')
        .map_or("/", |(folder, _)| if folder.is_empty() { "/" } else { folder })
}

impl Drop for Part {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        if let Err(error) = unlinkat(&self.to.dir, name.as_str(), AtFlags::empty()) {
            tracing::warn!(%error, name, "a half download stays behind");
        }
    }
}

/// A folder that may be written and not read cannot be synced by its writer.
fn sync_folder(dir: &File) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(dir, ".", flags, Mode::empty()) {
        Ok(opened) => File::from(opened).sync_all(),
        Err(rustix::io::Errno::ACCESS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What has come so far, with its hash.
#[derive(Debug)]
struct Received {
    file: Option<File>,
    memory: Vec<u8>,
    hash: Sha256,
    bytes: u64,
    /// How many of them were handed to the disk already.
    behind: u64,
}

impl Received {
    fn into_file(file: File) -> Self {
        Self { file: Some(file), memory: Vec::new(), hash: Sha256::new(), bytes: 0, behind: 0 }
    }

    fn into_memory() -> Self {
        Self { file: None, memory: Vec::new(), hash: Sha256::new(), bytes: 0, behind: 0 }
    }

    fn take(mut self, bytes: Vec<u8>) -> io::Result<(Self, Vec<u8>)> {
        match &mut self.file {
            Some(file) => file.write_all(&bytes)?,
            None => self.memory.extend_from_slice(&bytes),
        }
        self.hash.update(&bytes);
        self.bytes += bytes.len() as u64;
        self.write_behind();
        Ok((self, bytes))
    }

    /// Or the sync at the end would wait for the whole file, while the disk had nothing to do
    /// before.
    fn write_behind(&mut self) {
        let ready = self.bytes - self.behind;
        if let Some(file) = &self.file
            && ready >= BEHIND_BYTES
        {
            host::write_behind(file, self.behind, ready);
            self.behind = self.bytes;
        }
    }
}

/// Reads the whole artifact, over as many connections as it takes.
async fn receive(
    context: &Context,
    artifact: Artifact,
    mut received: Received,
) -> Result<Received, Ended> {
    let core = &context.core;
    let mut retry = Retry::default();
    while received.bytes < artifact.size {
        let hub = hub(core).await?;
        let before = received.bytes;
        let pause = match hub.artifact(artifact.sha256, artifact.size, before).await {
            Ok(body) => {
                let read;
                (received, read) = drain(body, received, artifact.size).await?;
                match read {
                    // An artifact that ended early, or all of it.
                    Ok(()) => Duration::ZERO,
                    // A body that is wrong will be wrong again.
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        return Err(Ended::failed("ARTIFACT_MISMATCH", error.to_string()));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a download broke off");
                        Duration::ZERO
                    }
                }
            }
            Err(error) if error.is_transient() => wanted(&error),
            Err(error) => return Err(Ended::failed("ARTIFACT_REFUSED", error.to_string())),
        };
        if received.bytes > before {
            retry.succeeded();
        }
        if received.bytes < artifact.size {
            tokio::time::sleep(retry.wait(pause, &*core.deps.entropy)).await;
        }
    }
    let found = Hash(received.hash.clone().finalize().into());
    if found != artifact.sha256 {
        let message = format!("the hub's artifact has hash {found}, not {}", artifact.sha256);
        return Err(Ended::failed("ARTIFACT_MISMATCH", message));
    }
    Ok(received)
}

/// The hub, as soon as there is one.
pub(super) async fn hub(core: &Core) -> Result<HubClient, Ended> {
    let mut link = core.deps.link.clone();
    let found = link.wait_for(Option::is_some).await;
    let hub = found.ok().and_then(|hub| hub.clone());
    hub.ok_or_else(|| Ended::failed("NO_HUB", "the agent has left its hub"))
}

/// Reads a body to its end; the next chunk is read while the last is hashed and written.
async fn drain(
    mut body: impl AsyncRead + Unpin,
    mut received: Received,
    size: u64,
) -> Result<(Received, io::Result<()>), Ended> {
    let mut spare = Vec::with_capacity(CHUNK_BYTES);
    let (mut chunk, mut read) = fill(&mut body, Vec::with_capacity(CHUNK_BYTES)).await;
    loop {
        if received.bytes + chunk.len() as u64 > size {
            let message = "the hub sent more than the artifact's size";
            return Err(Ended::failed("ARTIFACT_MISMATCH", message));
        }
        let last = chunk.len() < CHUNK_BYTES;
        let write = blocking(move || received.take(chunk));
        if last {
            (received, _) = write.await?.map_err(|e| write_failed(&e))?;
            return Ok((received, read));
        }
        let (written, (next, next_read)) = tokio::join!(write, fill(&mut body, spare));
        (received, spare) = written?.map_err(|e| write_failed(&e))?;
        (chunk, read) = (next, next_read);
    }
}

/// Fills a chunk; a short one is the last, and the result says why.
async fn fill(
    body: &mut (impl AsyncRead + Unpin),
    mut chunk: Vec<u8>,
) -> (Vec<u8>, io::Result<()>) {
    chunk.clear();
    while chunk.len() < CHUNK_BYTES {
        let room = (CHUNK_BYTES - chunk.len()) as u64;
        match (&mut *body).take(room).read_buf(&mut chunk).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return (chunk, Err(error)),
        }
    }
    (chunk, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_of_any_length_arrives_whole_and_hashed() {
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let (received, read) =
                drain(&bytes[..], Received::into_memory(), length as u64).await.unwrap();
            read.unwrap();
            assert_eq!(received.memory, bytes);
            assert_eq!(Hash(received.hash.finalize().into()), Hash::of(&bytes));
        }
    }

    #[test]
    fn a_large_file_is_written_behind_and_stays_whole() {
        use io::{Read as _, Seek as _};
        let mut file = tempfile::tempfile().unwrap();
        let mut received = Received::into_file(file.try_clone().unwrap());
        let chunk = vec![7; CHUNK_BYTES];
        while received.behind == 0 {
            (received, _) = received.take(chunk.clone()).unwrap();
        }
        assert_eq!(received.behind, BEHIND_BYTES);
        let mut whole = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut whole).unwrap();
        assert!(whole.len() as u64 == BEHIND_BYTES && whole.iter().all(|b| *b == 7));
    }

    #[tokio::test]
    async fn more_than_was_promised_is_refused_before_it_is_written() {
        let ended = drain(&[0; 11][..], Received::into_memory(), 10).await.unwrap_err();
        assert_eq!(ended.reason, Some("ARTIFACT_MISMATCH"));
    }

    #[test]
    fn a_file_that_was_put_in_its_place_is_no_success() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity { account: crate::platform::account::Account::own(), lease: None };
        let to = Destination {
            dir: File::open(dir.path()).unwrap(),
            name: "app.conf".into(),
            canonical: dir.path().join("app.conf").to_str().unwrap().into(),
        };
        let (part, file) = Part::begin(&identity, to, ".jtnt-j.part".into()).unwrap();
        let (whole, _) = Received::into_file(file).take(b"content".into()).unwrap();
        File::create(dir.path().join("other")).unwrap();
        std::fs::rename(dir.path().join("other"), dir.path().join(".jtnt-j.part")).unwrap();
        let error = part.end(&identity, whole, 0o640).unwrap_err();
        assert!(error.to_string().contains("another file"), "{error}");
    }

    #[test]
    fn a_folder_that_the_user_cannot_enter_is_out_of_reach() {
        let own = crate::platform::account::Account::own();
        if own.uid != 0 {
            eprintln!("not root: another user's reach was not tried");
            return;
        }
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("open");
        std::fs::create_dir(&inner).unwrap();
        std::fs::set_permissions(&inner, Permissions::from_mode(0o777)).unwrap();
        std::fs::set_permissions(outer.path(), Permissions::from_mode(0o700)).unwrap();
        let account = crate::platform::account::Account::numbered(65_514);
        let identity = Identity { account, lease: None };
        let to = Destination {
            dir: File::open(&inner).unwrap(),
            name: "x".into(),
            canonical: inner.join("x").to_str().unwrap().into(),
        };
        let error = Part::begin(&identity, to, ".jtnt-j.part".into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(std::fs::read_dir(&inner).unwrap().count(), 0);
    }

    #[test]
    fn a_half_download_leaves_nothing_and_a_whole_one_has_mode_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity { account: crate::platform::account::Account::own(), lease: None };
        let to = || Destination {
            dir: File::open(dir.path()).unwrap(),
            name: "app.conf".into(),
            canonical: dir.path().join("app.conf").to_str().unwrap().into(),
        };
        std::os::unix::fs::symlink("/nowhere", dir.path().join(".jtnt-j.part")).unwrap();
        let (part, _file) = Part::begin(&identity, to(), ".jtnt-j.part".into()).unwrap();
        drop(part);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let (part, file) = Part::begin(&identity, to(), ".jtnt-j.part".into()).unwrap();
        let (whole, _) = Received::into_file(file).take(b"content".into()).unwrap();
        part.end(&identity, whole, 0o640).unwrap();
        let path = dir.path().join("app.conf");
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
