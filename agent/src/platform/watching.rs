//! What the processes of a job open, as the kernel tells it, without ever keeping them waiting
//! (fanotify). A job has a view of the files of its own, so marks on the mounts of that view tell
//! of this job and of nobody else.
//!
//! A path is told as the view has it. The kernel works it out when it is asked, from mounts that go
//! with the last process of the job, so these are held for as long as somebody asks.

use std::{
    ffi::CString,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::MetadataExt as _,
        },
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jtnt_proto::policy::Access;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    time::{ClockId, clock_gettime},
};

use super::paths::Inode;
use crate::{domain::policy::OWN, runtime::durable};

/// What is told. An open file that is closed is told with how it was open; that it was read, too,
/// since it may have been open for both.
const EVENTS: u64 = libc::FAN_OPEN_EXEC
    | libc::FAN_ACCESS
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_CLOSE_NOWRITE
    | libc::FAN_ONDIR;
/// What is told of reading, once is enough.
const READING: u64 = libc::FAN_ACCESS | libc::FAN_CLOSE_NOWRITE;
/// Each event is a descriptor, and a process may not have many.
const CHUNK_BYTES: usize = 2048;
/// Events in a row that cannot be told.
const MOST_FAULTS: usize = 1000;
const MAX_MOUNTS_BYTES: u64 = 16 << 20;
const ELF: [u8; 4] = *b"\x7fELF";
/// What the kernel writes behind the path of a file that has none any more.
const DELETED: &[u8] = b" (deleted)";

/// A view that is watched.
#[derive(Debug)]
pub struct Watching {
    group: OwnedFd,
    /// Its mounts are in place for as long as this is open.
    _mounts: File,
    /// When that began.
    since: SystemTime,
    /// Why a part of the view is not watched.
    unwatched: Option<String>,
    faults: usize,
}

/// A file that was used.
#[derive(Debug)]
pub struct Used {
    /// Its path in the view.
    pub path: PathBuf,
    file: File,
    meta: Metadata,
    events: u64,
    since: SystemTime,
}

impl Watching {
    /// Begins with the view of this process, all but its own places and what is `hidden`.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn begin(process: u32, hidden: &[PathBuf]) -> io::Result<Self> {
        let of = |name: &str| format!("/proc/{process}/{name}");
        let mounts = File::open(of("ns/mnt"))?;
        let root = openat2(
            CWD,
            of("root"),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::empty(),
        )?;
        // No file is made before this by the clock that files have.
        let now = clock_gettime(ClockId::RealtimeCoarse);
        let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
        let since =
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanos);
        let mut watching =
            Self { group: group()?, _mounts: mounts, since, unwatched: None, faults: 0 };
        let list = durable::read(of("mountinfo").as_ref(), MAX_MOUNTS_BYTES)?;
        for place in list.split(|byte| *byte == b'\n').filter_map(mount_point) {
            let own = OWN.iter().map(Path::new).chain(hidden.iter().map(PathBuf::as_path));
            if own.into_iter().any(|own| place.starts_with(own)) {
                continue;
            }
            if let Err(error) = watching.mark(&root, &place) {
                let why = format!("{}: {error}", place.display());
                watching.unwatched.get_or_insert(why);
            }
        }
        Ok(watching)
    }

    /// Why a part of the view is not watched, if one is not.
    #[must_use]
    pub fn unwatched(&self) -> Option<&str> {
        self.unwatched.as_deref()
    }

    /// Hands over what was told since; nothing for what came faster than it was asked for, or has a
    /// file that cannot be looked at. Whether there was anything.
    ///
    /// # Errors
    /// When the system tells nothing more.
    pub fn take(&mut self, mut each: impl FnMut(Option<Used>)) -> io::Result<bool> {
        let mut chunk = [0; CHUNK_BYTES];
        let length = match rustix::io::read(&self.group, &mut chunk) {
            Ok(length) => length,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            // The event is gone, and the next one can be asked for.
            Err(error) if self.faults < MOST_FAULTS => {
                tracing::debug!(%error, "an event has no file");
                self.faults += 1;
                each(None);
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        self.faults = 0;
        let mut rest = chunk.get(..length).unwrap_or_default();
        while let Some((event, more)) = Event::first(rest) {
            rest = more;
            match event.used(self.since) {
                Ok(used) => {
                    self.once(&used);
                    each(Some(used));
                }
                Err(_has_no_file) => each(None),
            }
        }
        Ok(true)
    }

    fn mark(&self, root: &OwnedFd, place: &Path) -> io::Result<()> {
        let below = Path::new(".").join(place.strip_prefix("/").unwrap_or(place));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(root, below, flags, Mode::empty(), resolve) {
            Ok(found) => mark(&self.group, libc::FAN_MARK_MOUNT, EVENTS, found.as_fd()),
            // What lies under another mount, the job cannot reach either.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A file that is read all the time shall not tell so all the time.
    fn once(&self, used: &Used) {
        if used.meta.is_file() && used.events & READING != 0 {
            let flags = libc::FAN_MARK_IGNORED_MASK | libc::FAN_MARK_IGNORED_SURV_MODIFY;
            // Without it, more is told than is needed.
            let _marked = mark(&self.group, flags, READING, used.file.as_fd());
        }
    }
}

impl AsFd for Watching {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

impl Used {
    /// How.
    pub fn access(&self) -> impl Iterator<Item = Access> + use<> {
        let events = self.events;
        [
            (READING, Access::Read),
            (libc::FAN_CLOSE_WRITE, Access::Write),
            (libc::FAN_OPEN_EXEC, Access::Execute),
        ]
        .into_iter()
        .filter_map(move |(these, access)| (events & these != 0).then_some(access))
    }

    /// Whether it is a folder.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        self.meta.is_dir()
    }

    /// Whether it was made since the view is watched, as far as its file system tells.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.meta.created().is_ok_and(|made| made >= self.since)
    }

    /// Whether it begins as a program or a library does.
    #[must_use]
    pub fn is_native(&self) -> bool {
        let mut head = [0; ELF.len()];
        self.meta.is_file() && (&self.file).read_exact(&mut head).is_ok() && head == ELF
    }
}

/// What the kernel writes, without its file.
struct Event {
    events: u64,
    file: Option<File>,
}

impl Event {
    /// The first of these, and the rest. What is cut off is none.
    #[expect(unsafe_code, reason = "the kernel hands over a descriptor by its number")]
    fn first(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (length, rest) = bytes.split_first_chunk()?;
        let (_version, rest) = rest.split_first_chunk::<4>()?;
        let (events, rest) = rest.split_first_chunk()?;
        let (number, _process) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok().filter(|n| *n > 0)?;
        let number = i32::from_ne_bytes(*number);
        // SAFETY: each event that is read brings a descriptor, which is nobody else's yet.
        let file = (number >= 0).then(|| unsafe { File::from_raw_fd(number) });
        Some((Self { events: u64::from_ne_bytes(*events), file }, bytes.get(length..)?))
    }

    fn used(self, since: SystemTime) -> io::Result<Used> {
        let file = self.file.ok_or(io::ErrorKind::NotFound)?;
        let meta = file.metadata()?;
        let named = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let path = match named.as_os_str().as_bytes().strip_suffix(DELETED) {
            Some(path) if meta.nlink() == 0 && !is_at(&named, &meta) => {
                PathBuf::from(std::ffi::OsString::from_vec(path.into()))
            }
            Some(_) | None => named,
        };
        Ok(Used { path, file, meta, events: self.events, since })
    }
}

fn is_at(path: &Path, meta: &Metadata) -> bool {
    fs::symlink_metadata(path).is_ok_and(|there| Inode::of(&there) == Inode::of(meta))
}

/// The fifth word of a line, where spaces and the like are written as octal numbers.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let word = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((byte, more)) = rest.split_first() {
        let octal = more.split_first_chunk::<3>().filter(|_| *byte == b'\\');
        let value = octal
            .and_then(|(digits, _)| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (value, octal) {
            (Some(value), Some((_, after))) => {
                path.push(value);
                rest = after;
            }
            _ => {
                path.push(*byte);
                rest = more;
            }
        }
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

#[expect(unsafe_code, reason = "there is no safe call for it")]
fn group() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    // A file is never waited for, and that somebody looks at it leaves no trace.
    let files =
        libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE | libc::O_NONBLOCK | libc::O_NOATIME;
    // SAFETY: the call takes numbers and makes a descriptor.
    let made = unsafe { libc::fanotify_init(flags, files.unsigned_abs()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

#[expect(unsafe_code, reason = "there is no safe call for it")]
fn mark(group: &OwnedFd, kind: libc::c_uint, events: u64, of: BorrowedFd<'_>) -> io::Result<()> {
    // The call takes no descriptor that only names a file, but the name of such a one.
    let path =
        CString::new(format!("/proc/self/fd/{}", of.as_raw_fd())).map_err(io::Error::other)?;
    let flags = libc::FAN_MARK_ADD | kind;
    // SAFETY: the kernel reads a path that outlives the call, and keeps nothing of it.
    let answer = unsafe {
        libc::fanotify_mark(group.as_raw_fd(), flags, events, libc::AT_FDCWD, path.as_ptr())
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are_written() {
        let line = br"29 1 8:1 / /a\040b\134\011c rw,noatime - ext4 /dev/x rw";
        assert_eq!(mount_point(line).unwrap(), Path::new("/a b\\\tc"));
        let odd = b"29 1 8:1 / /a\\04 rw";
        assert_eq!(mount_point(odd).unwrap(), Path::new("/a\\04"));
        assert_eq!(mount_point(b"29 1"), None);
    }

    #[test]
    fn an_event_that_is_cut_off_is_none() {
        let mut event = [0_u8; 24];
        event[0] = 24;
        event[8] = 0x10;
        event[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        let (first, rest) = Event::first(&event).unwrap();
        assert_eq!((first.events, first.file.is_none(), rest.len()), (0x10, true, 0));
        assert!(first.used(SystemTime::UNIX_EPOCH).is_err(), "an overflow has no file");
        for length in 0..24 {
            assert!(Event::first(&event[..length]).is_none(), "{length}");
        }
        event[0] = 0;
        assert!(Event::first(&event).is_none(), "or it would be read for ever");
    }
}
