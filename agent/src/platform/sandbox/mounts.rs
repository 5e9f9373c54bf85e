//! A job's own view of the file system. Everything is read-only and without programs, but what the
//! policy opens; temporary folders, devices, run-time files and the list of processes are its own;
//! the agent's files and what a rule denies are covered.
//!
//! What is to stay open is cloned before anything is hidden, and put back afterwards. It is
//! reached without following a link: a path of a rule means what it meant when it was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::symlink,
    },
    path::Path,
};

use jtnt_proto::policy::Access;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
        move_mount, open_tree,
    },
};

use super::{Plan, at, fence::linked};
use crate::domain::policy::{Area, NETWORK, SYSTEM, Shape};

/// Devices of every job.
pub(super) const DEVICES: &[&str] = &["full", "null", "random", "urandom", "zero"];
/// The folder of a job's own secrets, in memory.
pub(super) const SECRETS: &str = "/dev/secrets";
/// Places that a job has of its own.
const OWN: &[&str] = &["/tmp", "/var/tmp", "/dev", "/run"];
/// Of a job's temporary files, in shares of the machine's memory and in number.
const TEMPORARY: &str = "mode=1777,size=10%,nr_inodes=100k";
const SMALL: &str = "mode=755,size=2m,nr_inodes=4k";

const LOCKED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A piece of the file system to put back.
struct View {
    tree: OwnedFd,
    is_dir: bool,
    attributes: u64,
}

/// What is forbidden in a place that is open for `access`. Nothing is ever switched off: what the
/// machine itself has made read-only stays so.
fn attributes(access: &BTreeSet<Access>) -> u64 {
    let unless = |access: bool, attribute| if access { 0 } else { attribute };
    libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | unless(access.contains(&Access::Write), libc::MOUNT_ATTR_RDONLY)
        | unless(access.contains(&Access::Execute), libc::MOUNT_ATTR_NOEXEC)
}

/// Gives this process, alone in its mount namespace, the view that `plan` says.
pub(super) fn arrange(plan: &Plan, areas: &[Area], program: Option<&str>) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| at("private mounts")(e.into()))?;
    let places = places(plan, areas, program);
    let mut views = BTreeMap::new();
    for (path, access) in &places {
        if path != "/"
            && needs_view(path, access)
            && let Some(view) = view(path, access)?
        {
            views.insert(path.clone(), view);
        }
    }
    let devices = DEVICES.iter().filter_map(|name| device(name).transpose());
    let devices: Vec<_> = devices.collect::<io::Result<_>>()?;
    let root = attributes(places.get("/").unwrap_or(&BTreeSet::new()));
    forbid(CWD, "/", root).map_err(at("read-only root"))?;
    let cover = Cover::make()?;
    own_places(plan, &devices)?;
    // A map of paths has folders before what is in them.
    for (path, view) in &views {
        put_back(path, view).map_err(at(path))?;
    }
    if present("/sys")?.is_some() {
        forbid(CWD, "/sys", libc::MOUNT_ATTR_RDONLY).map_err(at("/sys"))?;
    }
    for area in &plan.confinement.closed {
        close(area, &cover).map_err(at(&area.path))?;
    }
    for path in plan.hidden.iter().filter_map(|path| path.to_str()) {
        cover.put_on(path).map_err(at(path))?;
    }
    Ok(())
}

/// Every open place with all that may be done there, by itself or by a tree that it is in.
fn places(
    plan: &Plan,
    areas: &[Area],
    program: Option<&str>,
) -> BTreeMap<String, BTreeSet<Access>> {
    let mut alone: BTreeMap<String, BTreeSet<Access>> = BTreeMap::new();
    let mut trees = alone.clone();
    if let Some(program) = program {
        for (path, access) in SYSTEM.iter().chain(network(plan)) {
            trees.entry(linked(path)).or_default().extend(*access);
        }
        alone.entry(program.to_owned()).or_default().extend([Access::Read, Access::Execute]);
    }
    for area in areas {
        let these = if area.shape == Shape::Tree { &mut trees } else { &mut alone };
        these.entry(area.path.clone()).or_default().extend(&area.access);
    }
    let all = |path: &str| {
        let above = Path::new(path).ancestors().filter_map(|folder| trees.get(folder.to_str()?));
        alone.get(path).into_iter().chain(above).flatten().copied().collect()
    };
    trees.keys().chain(alone.keys()).map(|path| (path.clone(), all(path))).collect()
}

/// What is open to a job that has the machine's network.
fn network(plan: &Plan) -> &'static [(&'static str, &'static [Access])] {
    if plan.confinement.network { NETWORK } else { &[] }
}

/// What is only read can be read where it is.
fn needs_view(path: &str, access: &BTreeSet<Access>) -> bool {
    is_own(path) || access.contains(&Access::Write) || access.contains(&Access::Execute)
}

/// Whether it lies where the job has a place of its own instead.
fn is_own(path: &str) -> bool {
    OWN.iter().any(|own| Path::new(path).starts_with(own))
}

fn view(path: &str, access: &BTreeSet<Access>) -> io::Result<Option<View>> {
    // The one tells of others' processes, the other switches the machine itself.
    if ["/proc", "/sys"].iter().any(|place| Path::new(path).starts_with(place)) {
        return Ok(None);
    }
    // Devices are opened by name; a job's own folder for them has more in it.
    if path == "/dev" {
        return Ok(None);
    }
    let Ok((place, is_dir)) = exact(path) else { return Ok(None) };
    let tree = match clone_of(&place) {
        // It went meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        cloned => cloned.map_err(at(path))?,
    };
    let mut attributes = attributes(access);
    if Path::new(path).starts_with("/dev") {
        attributes &= !libc::MOUNT_ATTR_NODEV;
    }
    Ok(Some(View { tree, is_dir, attributes }))
}

/// What is at a path, without following any link, and whether it is a folder.
pub(super) fn exact(path: &str) -> io::Result<(OwnedFd, bool)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(CWD, path, flags, Mode::empty(), resolve)?;
    let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
    if kind == FileType::Symlink {
        // The flags above let the last part be one.
        return Err(Errno::LOOP.into());
    }
    Ok((found, kind == FileType::Directory))
}

/// The same, or that nothing is there to be covered.
fn present(path: &str) -> io::Result<Option<(OwnedFd, bool)>> {
    match exact(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        // By a link there is nothing; what it leads to is not what was named.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

fn clone_of(place: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(place, "", flags)?)
}

fn device(name: &str) -> io::Result<Option<(String, OwnedFd)>> {
    let path = format!("/dev/{name}");
    let Some((place, _)) = present(&path).map_err(at(&path))? else { return Ok(None) };
    let tree = clone_of(place).map_err(at(&path))?;
    Ok(Some((path, tree)))
}

fn attach(tree: impl AsFd, path: &str) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn put_back(path: &str, view: &View) -> io::Result<()> {
    forbid(&view.tree, "", view.attributes)?;
    if exact(path).is_err() {
        if !is_own(path) {
            // It went meanwhile, and nothing is made outside of what is the job's own.
            return Ok(());
        }
        make_way(path, view.is_dir)?;
    }
    match attach(&view.tree, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        attached => attached,
    }
}

/// In a place that is the job's own and empty.
fn make_way(path: &str, is_dir: bool) -> io::Result<()> {
    let folder = if is_dir { Some(Path::new(path)) } else { Path::new(path).parent() };
    if let Some(folder) = folder {
        fs::create_dir_all(folder)?;
    }
    if !is_dir {
        File::options().create(true).append(true).open(path)?;
    }
    Ok(())
}

/// Empty places that are the job's own.
fn own_places(plan: &Plan, devices: &[(String, OwnedFd)]) -> io::Result<()> {
    let tmpfs = |path: &str, data: &str, flags: MountFlags| {
        let data = CString::new(data).map_err(io::Error::other)?;
        mount("tmpfs", path, "tmpfs", flags, &*data).map_err(|e| at(path)(e.into()))
    };
    tmpfs("/tmp", TEMPORARY, LOCKED)?;
    let is_folder = |path: &str| matches!(exact(path), Ok((_, true)));
    if is_folder("/var/tmp") {
        // One bound for both.
        let (own, _) = exact("/tmp")?;
        clone_of(own).and_then(|tree| attach(tree, "/var/tmp")).map_err(at("/var/tmp"))?;
    }
    if !plan.confinement.ipc && is_folder("/run") {
        tmpfs("/run", SMALL, LOCKED)?;
    }
    tmpfs("/dev", SMALL, MountFlags::NOSUID | MountFlags::NOEXEC)?;
    for (path, tree) in devices {
        let make = || {
            File::create_new(path)?;
            // It can be written to all the same; its owner and mode stay.
            forbid(tree, "", libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC)?;
            attach(tree, path)
        };
        make().map_err(at(path))?;
    }
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), format!("/dev/{name}")).map_err(at("/dev"))?;
    }
    fs::create_dir("/dev/shm").map_err(at("/dev/shm"))?;
    fs::create_dir(SECRETS).map_err(at(SECRETS))?;
    tmpfs("/dev/shm", TEMPORARY, LOCKED)?;
    let read_only = LOCKED | MountFlags::RDONLY;
    mount("proc", "/proc", "proc", read_only, None).map_err(|e| at("/proc")(e.into()))
}

/// Closes a place as far as a rule says: what may not be read is covered whole.
fn close(area: &Area, cover: &Cover) -> io::Result<()> {
    if area.access.contains(&Access::Read) {
        return cover.put_on(&area.path);
    }
    let Some((place, _)) = present(&area.path)? else { return Ok(()) };
    let forbidden = area.access.iter().fold(0, |all, access| {
        all | match access {
            Access::Write => libc::MOUNT_ATTR_RDONLY,
            Access::Execute => libc::MOUNT_ATTR_NOEXEC,
            Access::Read => 0,
        }
    });
    let tree = clone_of(place)?;
    forbid(&tree, "", forbidden)?;
    attach(tree, &area.path)
}

/// An empty file and an empty folder that nobody may use.
struct Cover {
    file: OwnedFd,
    folder: OwnedFd,
}

impl Cover {
    /// In a file system that is hidden itself right afterwards.
    fn make() -> io::Result<Self> {
        let made = || -> io::Result<Self> {
            let flags = LOCKED;
            mount("tmpfs", "/tmp", "tmpfs", flags, c"mode=0,size=4k,nr_inodes=8")?;
            let (top, _) = exact("/tmp")?;
            mkdirat(&top, "folder", Mode::empty())?;
            openat(&top, "file", OFlags::CREATE | OFlags::CLOEXEC, Mode::empty())?;
            Ok(Self { file: exact("/tmp/file")?.0, folder: exact("/tmp/folder")?.0 })
        };
        made().map_err(at("cover"))
    }

    fn put_on(&self, path: &str) -> io::Result<()> {
        let Some((_, is_dir)) = present(path)? else { return Ok(()) };
        let tree = clone_of(if is_dir { &self.folder } else { &self.file })?;
        forbid(&tree, "", libc::MOUNT_ATTR_RDONLY)?;
        attach(tree, path)
    }
}

/// Forbids something in a mount and in all below it.
#[expect(unsafe_code, reason = "there is no safe call for it")]
fn forbid(place: impl AsFd, path: &str, attributes: u64) -> io::Result<()> {
    let path = CString::new(path).map_err(io::Error::other)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let what = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the kernel reads a path and a structure that outlive the call, and keeps neither.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            place.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const what,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this kernel has the calls: Linux 5.12.
#[expect(unsafe_code, reason = "asked for a call, not for what it does")]
pub(super) fn are_known() -> bool {
    // SAFETY: a structure of no bytes is refused before anything is looked at.
    let answer = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, 0, 0) };
    answer != 0 && Errno::from_io_error(&io::Error::last_os_error()) != Some(Errno::NOSYS)
}
