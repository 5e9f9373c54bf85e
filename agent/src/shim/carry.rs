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
//! its folder on the disk, and the removal of what did not become whole. A download hands its file
//! over as soon as it has one, and says when that is whole, so the shim can tell how far it came
//! however it ends.

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
/// Words of a download to the shim, before its last: the file, and that it is whole.
const BEGUN: u8 = b'+';
const WHOLE: u8 = b'=';

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
        let carried = match &self.transfer {
            Transfer::Download(target) => self.download(file, target),
            Transfer::Upload => upload(&self.line, file),
        };
        let told = serde_json::to_vec(&carried)
            .map_err(io::Error::other)
            .and_then(|text| (&self.report).write_all(&text));
        // Whoever kept it is gone, and nobody else is there to be told.
        drop(told);
    }
}

impl Carrier {
    fn download(&self, folder: &File, target: &Target) -> Carried {
        let file = begin(folder, &target.part).map_err(|e| unwritten(&e))?;
        let told = |_nobody_keeps_this| cut();
        send(&self.report, &[BEGUN], &[file.as_fd()]).map_err(told)?;
        let (file, sha256) = take_in(&self.line, file, target.artifact.size)?;
        if sha256 != target.artifact.sha256 {
            let message =
                format!("the hub's artifact has hash {sha256}, not {}", target.artifact.sha256);
            return Err(Uncarried::new(Snag::Mismatch, message));
        }
        file.set_permissions(Permissions::from_mode(target.mode)).map_err(|e| unwritten(&e))?;
        file.sync_all().map_err(|e| unwritten(&e))?;
        (&self.report).write_all(&[WHOLE]).map_err(told)?;
        renameat(folder, target.part.as_str(), folder, target.name.as_str())
            .map_err(|e| unwritten(&e.into()))?;
        Ok(target.artifact)
    }
}

/// What a process told before it ended.
#[derive(Debug, Default)]
struct Told {
    made: Option<File>,
    whole: bool,
    last: Option<Carried>,
}

impl Report {
    /// What became of a transfer whose process has ended, and what is to be done then.
    pub(super) fn settle(
        &self,
        transfer: &Transfer,
        folder: &File,
        account: &Account,
    ) -> Option<Carried> {
        let Told { made, whole, last } = self.told().unwrap_or_default();
        let Transfer::Download(target) = transfer else { return last };
        let Some(made) = made else { return last };
        // Whoever owns the folder may have put another file under the temporary name.
        let in_place = is_named(folder, &target.name, &made).unwrap_or(false);
        if whole && in_place {
            return Some(disown(target, folder, &made).map(|()| target.artifact));
        }
        let removed =
            with_rights_of(account, || remove(folder, &target.part)).and_then(|done| done);
        let last = match last? {
            Ok(_) => Err(unwritten(&io::Error::other("another file was put in its place"))),
            Err(why) => Err(why),
        };
        Some(match (last, removed) {
            (Err(why), Err(error)) => {
                let message = format!("{why}; {} stays behind: {error}", target.part);
                Err(Uncarried::new(why.fault, message))
            }
            (last, _) => last,
        })
    }

    /// It has ended by now, so all that it said is here; the other end is open in this process.
    fn told(&self) -> io::Result<Told> {
        let (first, fds) = receive(&self.0)?;
        let mut told = Told::default();
        let mut text = vec![first];
        let _what_came_counts = (&self.0).take(MAX_EXIT_BYTES).read_to_end(&mut text);
        let mut text = &*text;
        if let Some(rest) = text.strip_prefix(&[BEGUN]) {
            told.made = fds.into_iter().next().map(File::from);
            text = rest;
        }
        if let Some(rest) = text.strip_prefix(&[WHOLE]) {
            told.whole = true;
            text = rest;
        }
        told.last = serde_json::from_slice(text).ok();
        Ok(told)
    }
}

fn is_named(folder: &File, name: &str, file: &File) -> io::Result<bool> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let named = File::from(openat(folder, name, look, Mode::empty())?);
    Ok(Inode::of(&named.metadata()?) == Inode::of(&file.metadata()?))
}

/// Of a file that is in place: it goes to the agent's user if its own has its number for this job
/// only, since the next job with that number must not own it. Then its name is made to last.
fn disown(target: &Target, folder: &File, made: &File) -> Result<(), Uncarried> {
    let broken = |what: &str, error: io::Error| {
        Uncarried::new(Snag::Write, format!("the file is in its place, but {what}: {error}"))
    };
    if target.disown {
        let own = Account::own();
        let given = fchown(made, Some(own.uid), Some(own.gid)).and_then(|()| made.sync_all());
        given.map_err(|e| broken("belongs to a user that jobs share", e))?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(folder, ".", flags, Mode::empty()).map_err(io::Error::from);
    let synced = opened.and_then(|folder| File::from(folder).sync_all());
    synced.map_err(|e| broken("a power cut may undo that", e))
}

/// What a download may have left whose shim was killed: a temporary file, and one in its place that
/// still belongs to a user of the job's own (`number`). Blocks.
///
/// # Errors
/// When something stays.
pub fn clear_up(folder: &File, part: &str, name: &str, number: Option<u32>) -> io::Result<()> {
    remove(folder, part)?;
    let Some(number) = number else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(_nothing_of_ours) => return Ok(()),
    };
    let meta = file.metadata()?;
    if meta.is_file() && meta.nlink() == 1 && meta.uid() == number {
        let own = Account::own();
        fchown(&file, Some(own.uid), Some(own.gid))?;
    }
    Ok(())
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
    Uncarried::new(
        Snag::Cut,
        "the agent ended, or gave it up, before all was there; nothing of it was done: order it again",
    )
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
