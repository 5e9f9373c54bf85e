//! Landlock: nothing may be opened, changed or executed but what is listed, by inode, however a
//! process gets at it; no signal and no abstract socket leaves the job.

use std::{collections::BTreeSet, fs, io, os::fd::OwnedFd, path::Path};

use jtnt_proto::policy::{Access, Children};
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, RestrictionStatus, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use super::{
    at,
    mounts::{DEVICES, SECRETS, exact},
};
use crate::domain::policy::{Area, Confinement, NETWORK, SYSTEM, Shape};

/// The newest that this was tried with; of older ones the best there is.
const BEST: ABI = ABI::V7;

/// Of a folder that has something closed in it, no more are opened around that.
const MOST_AROUND: usize = 20_000;

/// Rules of one job, not yet in force.
#[derive(Debug)]
pub(super) struct Fence(RulesetCreated);

impl Fence {
    pub(super) fn new(
        confinement: &Confinement,
        areas: &[Area],
        program: Option<&str>,
        own_places: bool,
    ) -> io::Result<Self> {
        let broken = |e: landlock::RulesetError| at("Landlock")(io::Error::other(e));
        let mut scopes = BitFlags::from(Scope::Signal);
        if !confinement.ipc {
            scopes |= Scope::AbstractUnixSocket;
        }
        let rules = Ruleset::default()
            .handle_access(AccessFs::from_all(BEST))
            .and_then(|rules| rules.scope(scopes))
            .and_then(Ruleset::create)
            .map_err(broken)?;
        let (mut fence, closed) = (Self(rules), &confinement.closed);
        if let Some(program) = program {
            fence.open_system(confinement, program)?;
        }
        for area in areas {
            fence.open_but(&area.path, area.shape == Shape::Tree, &area.access, closed)?;
        }
        let (read, both) = ([Access::Read].into(), [Access::Read, Access::Write].into());
        fence.open("/proc", true, &read)?;
        for device in DEVICES {
            fence.open(&format!("/dev/{device}"), false, &both)?;
        }
        fence.open(SECRETS, true, &read)?;
        for own in ["/tmp", "/var/tmp", "/dev/shm"].iter().filter(|_| own_places) {
            fence.open(own, true, &both)?;
        }
        Ok(fence)
    }

    /// The program, and what every program needs.
    fn open_system(&mut self, confinement: &Confinement, program: &str) -> io::Result<()> {
        let system = SYSTEM.iter().chain(if confinement.network { NETWORK } else { &[] });
        for (path, access) in system {
            let mut access: BTreeSet<_> = access.iter().copied().collect();
            if confinement.children != Children::System {
                access.remove(&Access::Execute);
            }
            self.open_but(&linked(path), true, &access, &confinement.closed)?;
        }
        let run = [Access::Read, Access::Execute].into();
        self.open(program, false, &run)?;
        if confinement.children != Children::System {
            for loader in loaders() {
                self.open(&loader, false, &run)?;
            }
        }
        Ok(())
    }

    /// Opens a place but for what is closed. The kernel knows no deny inside of an allow, so what is
    /// around it is opened piece by piece, and the folders on the way are not: nothing can be
    /// made, moved or replaced there by which it would come to be open.
    fn open_but(
        &mut self,
        path: &str,
        tree: bool,
        access: &BTreeSet<Access>,
        closed: &[Area],
    ) -> io::Result<()> {
        let covers = |area: &Area, one| {
            // Its own content may be written to, where that alone is not denied.
            let closed = one != Access::Write || area.access.contains(&Access::Write);
            closed && Path::new(path).starts_with(&area.path)
        };
        let inside = |area: &&Area| tree && Path::new(&area.path).starts_with(path);
        let mut whole = BTreeSet::new();
        for one in access {
            let these = closed.iter().filter(|area| area.closes(*one));
            if these.clone().any(|area| covers(area, *one)) {
                continue;
            }
            let these: Vec<Area> = these.filter(inside).cloned().collect();
            if these.is_empty() {
                whole.insert(*one);
                continue;
            }
            for child in fs::read_dir(path).into_iter().flatten().take(MOST_AROUND).flatten() {
                if let Some(child) = child.path().to_str() {
                    self.open_but(child, true, &[*one].into(), &these)?;
                }
            }
        }
        if whole.is_empty() { Ok(()) } else { self.open(path, tree, &whole) }
    }

    /// Opens what is at `path` now; nothing, if nothing is there. A folder by its own name alone
    /// is not opened: the kernel would open all below it.
    fn open(&mut self, path: &str, tree: bool, access: &BTreeSet<Access>) -> io::Result<()> {
        let Ok((parent, is_dir)) = exact(path) else { return Ok(()) };
        if is_dir && !tree {
            return Ok(());
        }
        let mut rights = access.iter().fold(BitFlags::EMPTY, |all, one| all | right(*one));
        if !is_dir {
            rights &= AccessFs::from_file(BEST);
        }
        let rule: PathBeneath<OwnedFd> = PathBeneath::new(parent, rights);
        (&mut self.0)
            .add_rule(rule)
            .map(drop)
            .map_err(|e| at("Landlock")(io::Error::other(format!("{path}: {e}"))))
    }

    /// From now on, for this process and all that it starts.
    pub(super) fn close(self) -> io::Result<()> {
        let status: RestrictionStatus =
            self.0.restrict_self().map_err(|e| at("Landlock")(io::Error::other(e)))?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err(at("Landlock")(io::Error::other("not in force"))),
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        }
    }
}

fn right(access: Access) -> BitFlags<AccessFs> {
    match access {
        Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Access::Execute => AccessFs::Execute | AccessFs::ReadFile,
        Access::Write => {
            AccessFs::WriteFile
                | AccessFs::Truncate
                | AccessFs::MakeReg
                | AccessFs::MakeDir
                | AccessFs::MakeSym
                | AccessFs::MakeFifo
                | AccessFs::MakeSock
                | AccessFs::RemoveFile
                | AccessFs::RemoveDir
                | AccessFs::Refer
        }
    }
}

/// Where a place of the system is, once its links are followed: those are root's own.
pub(super) fn linked(path: &str) -> String {
    let led = fs::canonicalize(path).ok();
    led.and_then(|led| led.to_str().map(str::to_owned)).unwrap_or_else(|| path.to_owned())
}

/// Loaders of programs: the kernel executes them beside each.
fn loaders() -> impl Iterator<Item = String> {
    ["/lib64", "/lib", "/lib32"].into_iter().flat_map(|folder| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|n| n.starts_with("ld-linux")))
            .filter_map(|entry| entry.path().to_str().map(linked))
    })
}

/// The kernel's version of the interface; 0 without it.
#[expect(unsafe_code, reason = "the library tells it to nobody")]
pub(super) fn version() -> u32 {
    const VERSION: libc::c_uint = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: asked like this, the call takes no structure and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    u32::try_from(version).unwrap_or(0)
}
