//! A transfer's process: it alone touches the file, as the job's user and inside of the sandbox. It
//! executes nothing. The agent, which alone speaks with the hub, is at the other end of a line.
//!
//! ```text
//! download   agent --- bytes of the artifact ---> process --- temporary file, then its name
//! upload     agent <------------- size ---------- process --- file
//!                  --- "from here", a pipe ---->           as often as the hub makes it necessary
//!                  <== bytes, over that pipe ===
//!                  --- "hash" ----------------->
//!                  <------------- hash ---------
//!                  --- "done" ----------------->
//! ```
//!
//! What became of it goes to the shim, which alone has the rights for the rest: the file's owner,
//! its folder on the disk, and the removal of what did not become whole.

use std::{
    fs::{File, Permissions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::{
            fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, fchown},
            net::UnixStream,
        },
    },
};

use jtnt_proto::{bytes::Hash, job::Artifact};
use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{
    launch::{receive, send},
    order::{Carried, MAX_EXIT_BYTES, Snag, Target, Transfer, Uncarried},
};
use crate::platform::{
    account::{Account, with_rights_of},
    host,
    paths::{Inode, reopen},
    process::Errand,
};

/// Read and written at once.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;
/// What is handed to the disk at once.
const BEHIND_BYTES: u64 = 8 << 20;
/// Words of the agent to an upload.
pub(super) const FROM: u8 = b'<';
pub(super) const HASH: u8 = b'#';
pub(super) const DONE: u8 = b'.';

/// What the process does.
#[derive(Debug)]
pub(super) struct Carrier {
    transfer: Transfer,
    /// To the agent.
    line: UnixStream,
    /// To the shim.
    report: UnixStream,
}

/// The shim's end: what the process reports is waited for nowhere, and read when it has ended.
#[derive(Debug)]
pub(super) struct Report(UnixStream);

impl Carrier {
    pub(super) fn new(transfer: Transfer, line: UnixStream) -> io::Result<(Self, Report)> {
        let (ours, report) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((Self { transfer, line, report }, Report(ours)))
    }
}

impl Errand for Carrier {
    fn open(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.line.as_fd(), self.report.as_fd()]
    }

    fn run(&self, file: &File) {
        let (carried, made) = match &self.transfer {
            Transfer::Download(target) => match download(&self.line, file, target) {
                Ok(made) => (Ok(target.artifact), Some(made)),
                Err(why) => (Err(why), None),
            },
            Transfer::Upload => (upload(&self.line, file), None),
        };
        let made: Vec<_> = made.iter().map(File::as_fd).collect();
        let told = serde_json::to_vec(&carried)
            .map_err(io::Error::other)
            .and_then(|text| send(&self.report, &text, &made));
        // Whoever kept it is gone, and nobody else is there to be told.
        drop(told);
    }
}

impl Report {
    /// What the process told, if it did, and what there is to be done after it.
    pub(super) fn settle(
        &self,
        transfer: &Transfer,
        folder: &File,
        account: &Account,
    ) -> Option<Carried> {
        let told = self.read().ok();
        let Transfer::Download(target) = transfer else { return told.map(|(carried, _)| carried) };
        match told {
            Some((Ok(artifact), made)) => {
                let done = disown(target, made).and_then(|()| sync_folder(folder));
                Some(done.map(|()| artifact).map_err(|e| unwritten(&e)))
            }
            other => {
                let removed =
                    with_rights_of(account, || remove(folder, &target.part)).and_then(|done| done);
                let carried = other?.0;
                Some(match (carried, removed) {
                    (Err(why), Err(error)) => {
                        let message = format!("{why}; {} stays behind: {error}", target.part);
                        Err(Uncarried::new(why.fault, message))
                    }
                    (carried, _) => carried,
                })
            }
        }
    }

    fn read(&self) -> io::Result<(Carried, Option<File>)> {
        let (first, fds) = receive(&self.0)?;
        let mut text = vec![first];
        // It has ended by now, so all that it said is here; the other end is open in this process.
        let _what_came_counts = (&self.0).take(MAX_EXIT_BYTES).read_to_end(&mut text);
        Ok((serde_json::from_slice(&text)?, fds.into_iter().next().map(File::from)))
    }
}

/// Of a user that has its number for this job only: the next job with that number must not own it.
fn disown(target: &Target, made: Option<File>) -> io::Result<()> {
    if !target.disown {
        return Ok(());
    }
    let made = made.ok_or_else(|| io::Error::other("it is nowhere"))?;
    let own = Account::own();
    fchown(&made, Some(own.uid), Some(own.gid))?;
    made.sync_all()
}

fn sync_folder(folder: &File) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    File::from(openat(folder, ".", flags, Mode::empty())?).sync_all()
}

fn remove(folder: &File, part: &str) -> io::Result<()> {
    match unlinkat(folder, part, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn unwritten(error: &io::Error) -> Uncarried {
    Uncarried::new(Snag::Write, format!("the file cannot be written: {error}"))
}

fn unread(error: &io::Error) -> Uncarried {
    Uncarried::new(Snag::Read, format!("the file cannot be read: {error}"))
}

fn cut() -> Uncarried {
    Uncarried::new(Snag::Cut, "the agent ended, or gave it up, before all was there")
}

/// Returns the file, which has its name.
fn download(line: &UnixStream, folder: &File, target: &Target) -> Result<File, Uncarried> {
    let file = begin(folder, &target.part).map_err(|e| unwritten(&e))?;
    let (file, sha256) = take_in(line, file, target.artifact.size)?;
    if sha256 != target.artifact.sha256 {
        let message =
            format!("the hub's artifact has hash {sha256}, not {}", target.artifact.sha256);
        return Err(Uncarried::new(Snag::Mismatch, message));
    }
    end(&file, folder, target).map_err(|e| unwritten(&e))?;
    Ok(file)
}

fn begin(folder: &File, part: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let create = || openat(folder, part, flags, Mode::from_raw_mode(0o600));
    Ok(File::from(match create() {
        // The name is this job's: an earlier run of it did not come to its end.
        Err(Errno::EXIST) => unlinkat(folder, part, AtFlags::empty()).and_then(|()| create()),
        other => other,
    }?))
}

/// Writes what comes, and takes its hash.
fn take_in(mut line: &UnixStream, mut file: File, size: u64) -> Result<(File, Hash), Uncarried> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut bytes, mut behind) = (0, 0);
    while bytes < size {
        let most = usize::try_from(size - bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let room = chunk.get_mut(..most).unwrap_or_default();
        let n = match line.read(room) {
            Ok(0) | Err(_) => return Err(cut()),
            Ok(n) => n,
        };
        let came = room.get(..n).unwrap_or_default();
        file.write_all(came).map_err(|e| unwritten(&e))?;
        hash.update(came);
        bytes += n as u64;
        // Or the sync at the end would wait for the whole file, while the disk had nothing to do
        // before.
        if bytes - behind >= BEHIND_BYTES {
            host::write_behind(&file, behind, bytes - behind);
            behind = bytes;
        }
    }
    Ok((file, Hash(hash.finalize().into())))
}

/// Gives the file its permissions and its name, durably.
fn end(file: &File, folder: &File, target: &Target) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(target.mode))?;
    file.sync_all()?;
    renameat(folder, target.part.as_str(), folder, target.name.as_str())?;
    // Whoever owns the folder may have put another file under the temporary name.
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let named = openat(folder, target.name.as_str(), look, Mode::empty())?;
    if Inode::of(&File::from(named).metadata()?) == Inode::of(&file.metadata()?) {
        return Ok(());
    }
    Err(io::Error::other("another file was put in its place meanwhile"))
}

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

/// A file and the hash of its beginning, which is taken as that is read.
struct Source {
    file: File,
    shape: Shape,
    hash: Sha256,
    hashed: u64,
    chunk: Vec<u8>,
}

fn upload(mut line: &UnixStream, file: &File) -> Carried {
    // Anew, as the job's user: what was handed over only says which file.
    let file = reopen(file).map_err(|e| unread(&e))?;
    let shape = Shape::of(&file).map_err(|e| unread(&e))?;
    let chunk = vec![0; CHUNK_BYTES];
    let mut source = Source { file, shape, hash: Sha256::new(), hashed: 0, chunk };
    let told = |_gone| cut();
    line.write_all(&shape.size.to_le_bytes()).map_err(told)?;
    let mut known = None;
    loop {
        let (word, fds) = receive(line).map_err(told)?;
        match (word, fds.into_iter().next(), known) {
            (FROM, Some(pipe), _) => {
                let mut offset = [0; 8];
                line.read_exact(&mut offset).map_err(told)?;
                source.send(&UnixStream::from(pipe), u64::from_le_bytes(offset))?;
            }
            (HASH, _, _) => {
                let sha256 = source.whole()?;
                line.write_all(&sha256.0).map_err(told)?;
                known = Some(Artifact { sha256, size: shape.size });
            }
            (DONE, _, Some(artifact)) => return Ok(artifact),
            _ => return Err(cut()),
        }
    }
}

impl Source {
    /// Writes what there is from `offset` on, until nobody wants more of it.
    fn send(&mut self, mut pipe: &UnixStream, offset: u64) -> Result<(), Uncarried> {
        let mut at = offset;
        while at < self.shape.size {
            let n = self.read(at)?;
            let wanted = pipe.write_all(self.chunk.get(..n).unwrap_or_default());
            if wanted.is_err() {
                break;
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Fills the chunk from `at` on, at least with something.
    fn read(&mut self, at: u64) -> Result<usize, Uncarried> {
        let left = usize::try_from(self.shape.size - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let room = self.chunk.get_mut(..left).unwrap_or_default();
        match self.file.read_at(room, at) {
            Ok(0) => Err(changed("it became shorter")),
            Ok(n) => {
                // Bytes that were sent before, or lie ahead, are hashed in their turn.
                if at == self.hashed {
                    self.hash.update(room.get(..n).unwrap_or_default());
                    self.hashed += n as u64;
                }
                Ok(n)
            }
            Err(error) => Err(unread(&error)),
        }
    }

    /// The hash of all of it, if it is what it was.
    fn whole(&mut self) -> Result<Hash, Uncarried> {
        while self.hashed < self.shape.size {
            self.read(self.hashed)?;
        }
        if Shape::of(&self.file).map_err(|e| unread(&e))? != self.shape {
            return Err(changed("it was written to"));
        }
        Ok(Hash(self.hash.clone().finalize().into()))
    }
}

fn changed(how: &str) -> Uncarried {
    Uncarried::new(Snag::Changed, format!("the file changed while it was read: {how}; try again"))
}

#[cfg(test)]
#[path = "carry_tests.rs"]
mod tests;
