//! Opening, and what can be said of what was opened.

use std::{
    cell::OnceCell,
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, Stat, fgetxattr, fstat,
        fstatfs, major, openat, openat2, statat,
    },
    io::Errno,
};

use super::PathFault;

/// The longest path that the kernel takes, without its NUL.
const MAX_PATH_BYTES: usize = 4095;
const ELF: [u8; 4] = *b"\x7fELF";
const SET_ID: u32 = 0o6000;
/// Group and others. With an ACL the group's bits are its mask, so they cover named users too.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Of a folder: who owns something in it is the one who may change its name.
const STICKY: u32 = 0o1000;
/// The way up, as far as it is looked at by one name.
const UPS: &str = "../../../../../../../../../../../../../../../..";
const MOST_UPS: usize = 16;
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);
/// Links on a way, and folders, that are looked at.
const MAX_STEPS: usize = 4096;

/// A file, whatever its name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    const fn of_stat(stat: &Stat) -> Self {
        Self { device: stat.st_dev, number: stat.st_ino }
    }

    /// That of an open file.
    #[must_use]
    pub fn of(meta: &Metadata) -> Self {
        Self { device: meta.dev(), number: meta.ino() }
    }
}

/// A regular file that was opened by name.
#[derive(Debug)]
pub struct Opened {
    /// An `O_PATH` descriptor: it pins the file and touches nothing.
    file: File,
    /// The same to look into, once somebody did.
    reader: OnceCell<File>,
    meta: Metadata,
    walk: Walk,
}

/// A file to be, or to be replaced, in an open folder.
#[derive(Debug)]
pub struct Place {
    /// The folder, opened without following a link.
    pub dir: File,
    /// The file's name in it.
    pub name: String,
    walk: Walk,
    links: u64,
}

/// What the way from `/` to a file says of it.
#[derive(Debug)]
struct Walk {
    canonical: String,
    guarded: bool,
    inodes: Vec<Inode>,
}

impl Opened {
    /// Opens a file to execute. Links are followed, but for magic ones.
    ///
    /// # Errors
    /// As [`PathFault`].
    pub fn program(path: &str) -> Result<Self, PathFault> {
        Self::open(path, OFlags::empty())
    }

    /// Opens a file to read. It is no link itself, and it has one name only.
    ///
    /// # Errors
    /// As [`PathFault`].
    pub fn source(path: &str) -> Result<Self, PathFault> {
        let opened = Self::open(path, OFlags::NOFOLLOW)?;
        if opened.links() == 1 { Ok(opened) } else { Err(PathFault::HardLink(path.to_owned())) }
    }

    fn open(path: &str, extra: OFlags) -> Result<Self, PathFault> {
        plain(path)?;
        let (file, name) = pin(path, extra)?;
        let meta = regular(path, &file)?;
        let walk = Walk::to(path, name, &file, &meta)?;
        Ok(Self { file, reader: OnceCell::new(), meta, walk })
    }

    /// The path of the descriptor: absolute, normal, without links.
    #[must_use]
    pub fn canonical(&self) -> &str {
        &self.walk.canonical
    }

    /// Whether the file and every folder above it belong to root and nobody else writes them. A
    /// sticky bit is no help: it keeps others from removing a file, not from having put it there.
    #[must_use]
    pub const fn guarded(&self) -> bool {
        self.walk.guarded
    }

    /// The file and every folder above it.
    #[must_use]
    pub fn inodes(&self) -> &[Inode] {
        &self.walk.inodes
    }

    /// How many names the file has.
    #[must_use]
    pub fn links(&self) -> u64 {
        self.meta.nlink()
    }

    /// A descriptor to read from, of this very file.
    ///
    /// # Errors
    /// When it may not be read.
    pub fn reader(&self) -> Result<File, PathFault> {
        reopen(&self.file).map_err(|e| PathFault::from_io(self.canonical(), &e))
    }

    /// Whether it begins as a native executable does.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_native(&self) -> Result<bool, PathFault> {
        let mut head = [0; ELF.len()];
        let read = self.looked_into()?.read_at(&mut head, 0);
        let read = read.map_err(|e| PathFault::from_io(self.canonical(), &e))?;
        Ok(read == ELF.len() && head == ELF)
    }

    fn looked_into(&self) -> Result<&File, PathFault> {
        match self.reader.get() {
            Some(reader) => Ok(reader),
            None => {
                let reader = self.reader()?;
                Ok(self.reader.get_or_init(|| reader))
            }
        }
    }

    /// Whether executing it gives other rights than its caller has: set-user-id, set-group-id, or
    /// file capabilities.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn changes_rights(&self) -> Result<bool, PathFault> {
        if self.meta.mode() & SET_ID != 0 {
            return Ok(true);
        }
        let mut value = [0_u8; 64];
        match fgetxattr(self.looked_into()?, "security.capability", &mut value[..]) {
            Ok(_) | Err(Errno::RANGE) => Ok(true),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
            Err(e) => Err(PathFault::from_errno(self.canonical(), e)),
        }
    }

    /// The pinned file, to be executed by its descriptor.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

impl Place {
    /// Opens the folder of a file to write. No part of the path is a link, and what is there
    /// already is a regular file with one name.
    ///
    /// # Errors
    /// As [`PathFault`].
    pub fn open(path: &str) -> Result<Self, PathFault> {
        plain(path)?;
        let (folder, name) = match path.rsplit_once('/') {
            Some((_, "")) | None => return Err(not_a_file(path, "a folder")),
            Some(("", name)) => ("/", name),
            Some(split) => split,
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let dir = openat2(CWD, folder, flags, Mode::empty(), resolve)
            .map(File::from)
            .map_err(|e| PathFault::from_errno(folder, e))?;
        let meta = dir.metadata().map_err(|e| PathFault::from_io(folder, &e))?;
        refuse_proc(path, &dir, &meta)?;
        let mut walk = Walk::to(folder, Name::Own, &dir, &meta)?;
        let old =
            openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let links = match old.map(File::from) {
            Err(Errno::NOENT) => 1,
            Err(e) => return Err(PathFault::from_errno(path, e)),
            Ok(file) => {
                let meta = regular(path, &file)?;
                walk.step(meta.uid(), meta.mode(), Inode::of(&meta));
                meta.nlink()
            }
        };
        if links != 1 {
            return Err(PathFault::HardLink(path.to_owned()));
        }
        let slash = if walk.canonical.ends_with('/') { "" } else { "/" };
        walk.canonical = format!("{}{slash}{name}", walk.canonical);
        Ok(Self { dir, name: name.to_owned(), walk, links })
    }

    /// The file's path: absolute, normal, without links.
    #[must_use]
    pub fn canonical(&self) -> &str {
        &self.walk.canonical
    }

    /// As [`Opened::guarded`], for the folder and for the file if there is one.
    #[must_use]
    pub const fn guarded(&self) -> bool {
        self.walk.guarded
    }

    /// Every folder above the file, and the file if there is one.
    #[must_use]
    pub fn inodes(&self) -> &[Inode] {
        &self.walk.inodes
    }

    /// How many names the file has, or will have.
    #[must_use]
    pub const fn links(&self) -> u64 {
        self.links
    }
}

impl Walk {
    /// Goes up from the folder of `file`, by its canonical name reached link by no link, and makes
    /// sure that `file` is in it. Who may move one of these folders may write the one above, so no
    /// way up looks closed that was not.
    fn to(path: &str, name: Name, file: &File, meta: &Metadata) -> Result<Self, PathFault> {
        let canonical = match name {
            Name::Own => path.to_owned(),
            Name::Other => name_of(path, file)?,
        };
        let moved = |_gone| PathFault::Moved(path.to_owned());
        // A file that was removed, or lies outside the root, has a name that is no path.
        plain(&canonical).map_err(|_no_path| moved(Errno::NOENT))?;
        let mut walk = Self { canonical: canonical.clone(), guarded: true, inodes: Vec::new() };
        walk.step(meta.uid(), meta.mode(), Inode::of(meta));
        let (folder, name) = match canonical.rsplit_once('/') {
            Some((_, "")) | None => return Ok(walk),
            Some(("", name)) => ("/", name),
            Some(split) => split,
        };
        let mut at = openat2(CWD, folder, FOLDER, Mode::empty(), NO_LINKS).map_err(moved)?;
        let there = statat(&at, name, AtFlags::SYMLINK_NOFOLLOW).map_err(moved)?;
        if Inode::of_stat(&there) != Inode::of(meta) {
            return Err(moved(Errno::NOENT));
        }
        walk.look_at(&fstat(&at).map_err(moved)?);
        let mut ups = 0;
        for _ in folder.split('/').filter(|part| !part.is_empty()) {
            if ups == MOST_UPS {
                at = openat(&at, up(ups), FOLDER, Mode::empty()).map_err(moved)?;
                ups = 0;
            }
            ups += 1;
            walk.look_at(&statat(&at, up(ups), AtFlags::SYMLINK_NOFOLLOW).map_err(moved)?);
        }
        Ok(walk)
    }

    fn look_at(&mut self, stat: &Stat) {
        self.step(stat.st_uid, stat.st_mode, Inode::of_stat(stat));
    }

    fn step(&mut self, owner: u32, mode: u32, inode: Inode) {
        self.guarded &= owner == 0 && mode & WRITABLE_BY_OTHERS == 0;
        self.inodes.push(inode);
    }
}

/// The kernel's name for it.
fn name_of(path: &str, file: &File) -> Result<String, PathFault> {
    let named = fs::read_link(by_descriptor(file)).map_err(|e| PathFault::from_io(path, &e))?;
    let text = named.into_os_string().into_string();
    text.map_err(|_not_utf8| PathFault::NotText(path.to_owned()))
}

/// `levels` folders above.
fn up(levels: usize) -> &'static str {
    UPS.get(..levels * 3 - 1).unwrap_or(UPS)
}

/// Where a rule's path leads once its links are followed, as far as something is there. Rules
/// are resolved as requests are, so that one for `/bin/sh` is about what `/bin/sh` is. A link that
/// others than root could have made is not followed: nobody else says what a rule is about.
#[must_use]
pub fn resolve(path: &Path) -> String {
    let text = path.to_string_lossy().into_owned();
    if !links_are_own(path) {
        return text;
    }
    let led = pin(&text, OFlags::empty()).and_then(|(file, name)| {
        let meta = file.metadata().map_err(|e| PathFault::from_io(&text, &e))?;
        Walk::to(&text, name, &file, &meta)
    });
    let of_parent = || {
        let (parent, name) = (path.parent()?, path.file_name()?.to_str()?);
        let parent = resolve(parent);
        Some(format!("{}/{name}", parent.strip_suffix('/').unwrap_or(&parent)))
    };
    led.ok().map(|walk| walk.canonical).or_else(of_parent).unwrap_or(text)
}

/// Whether every link on the way was made by root, or this process's user, and can be changed by
/// nobody else.
fn links_are_own(path: &Path) -> bool {
    let own = |meta: &Metadata| [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
    // In a sticky folder nobody changes what another owns.
    let closed = |meta: &Metadata| {
        own(meta) && (meta.mode() & WRITABLE_BY_OTHERS == 0 || meta.mode() & STICKY != 0)
    };
    let parts = |path: &Path| {
        let parts = path.components().rev().map(|part| part.as_os_str().to_owned());
        parts.filter(|part| part != "/").collect::<Vec<_>>()
    };
    let (mut here, mut left, mut safe) = (PathBuf::from("/"), parts(path), true);
    for _ in 0..MAX_STEPS {
        let Some(part) = left.pop() else { return true };
        if part == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&part);
        let Ok(meta) = fs::symlink_metadata(&next) else { return true };
        if !meta.is_symlink() {
            safe &= closed(&meta);
            here = next;
            continue;
        }
        let (true, Ok(target)) = (safe && own(&meta), fs::read_link(&next)) else { return false };
        if target.is_absolute() {
            here = PathBuf::from("/");
        }
        left.extend(parts(&target));
    }
    false
}

/// Checks the shape of a path as text.
fn plain(path: &str) -> Result<(), PathFault> {
    if path.len() > MAX_PATH_BYTES {
        return Err(PathFault::TooLong(path.len()));
    }
    let Some(below) = path.strip_prefix('/') else {
        return Err(PathFault::Relative(path.to_owned()));
    };
    let odd = |part: &str| matches!(part, "" | "." | "..") || part.contains('\0');
    if !below.is_empty() && below.split('/').any(odd) {
        return Err(PathFault::NotNormal(path.to_owned()));
    }
    Ok(())
}

/// Whether a path is the canonical name of what it led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Own,
    Other,
}

/// Opens without reading, writing or waking anything: pipes and devices are only looked at.
fn pin(path: &str, extra: OFlags) -> Result<(File, Name), PathFault> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | extra;
    let open = |resolve| openat2(CWD, path, flags, Mode::empty(), resolve).map(File::from);
    match open(NO_LINKS) {
        Ok(file) => Ok((file, Name::Own)),
        Err(Errno::LOOP) => open(ResolveFlags::NO_MAGICLINKS)
            .map(|file| (file, Name::Other))
            .map_err(|e| PathFault::from_errno(path, e)),
        Err(e) => Err(PathFault::from_errno(path, e)),
    }
}

fn regular(path: &str, file: &File) -> Result<Metadata, PathFault> {
    let meta = file.metadata().map_err(|e| PathFault::from_io(path, &e))?;
    refuse_proc(path, file, &meta)?;
    let kind = meta.file_type();
    if kind.is_file() {
        Ok(meta)
    } else if kind.is_symlink() {
        Err(PathFault::Link(path.to_owned()))
    } else if kind.is_dir() {
        Err(not_a_file(path, "a folder"))
    } else if kind.is_fifo() {
        Err(not_a_file(path, "a pipe"))
    } else if kind.is_socket() {
        Err(not_a_file(path, "a socket"))
    } else {
        Err(not_a_file(path, "a device"))
    }
}

fn refuse_proc(path: &str, file: &File, meta: &Metadata) -> Result<(), PathFault> {
    // It has no device, so most files need not be asked.
    if major(meta.dev()) != 0 {
        return Ok(());
    }
    let system = fstatfs(file).map_err(|e| PathFault::from_errno(path, e))?;
    if system.f_type == PROC_SUPER_MAGIC {
        return Err(PathFault::Proc(path.to_owned()));
    }
    Ok(())
}

fn not_a_file(path: &str, kind: &'static str) -> PathFault {
    PathFault::NotAFile { path: path.to_owned(), kind }
}

/// The only way from an `O_PATH` descriptor to one that reads; it cannot lead elsewhere. Whoever
/// holds a lease on a file could make others wait for it, so nobody waits.
///
/// # Errors
/// When it may not be read, or is held by a lease.
pub fn reopen(file: &File) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let no_wait = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    File::options().read(true).custom_flags(no_wait).open(by_descriptor(file))
}

/// Opens a folder to work in, with the rights that this thread has now. Links are followed, but
/// for magic ones: these would mean the agent's own.
///
/// # Errors
/// When it is no folder in reach of these rights.
pub fn enter(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?)
}

/// Opens a canonical path once more with the rights that this thread has now: a descriptor of the
/// agent's says nothing of the folders that a job's user may not enter.
///
/// # Errors
/// When these rights do not reach `file` by that path, or it is held by a lease.
pub fn reach(path: &str, file: &File, flags: OFlags) -> io::Result<File> {
    // The kernel takes both only where one means something.
    let wait = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
    let flags = flags | wait | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let reached = File::from(openat2(CWD, path, flags, Mode::empty(), resolve)?);
    if Inode::of(&reached.metadata()?) == Inode::of(&file.metadata()?) {
        return Ok(reached);
    }
    Err(io::Error::other(PathFault::Moved(path.to_owned())))
}

fn by_descriptor(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
