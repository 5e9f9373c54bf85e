//! What holds a job's processes to the policy once they run: a view of the machine of their own,
//! fewer capabilities, Landlock, and a filter of system calls. Compiled from the same document as
//! the decision: see `domain::policy::Confinement`.
//!
//! A process does it to itself between fork and exec, in two steps. The first needs the rights of
//! root and is done before the job may begin; the second is done last, as the job's user. Whatever
//! the machine is said to be able to do and then does not, ends the process: nothing runs with
//! less than was promised.

mod fence;
mod filter;
mod glob;
mod mounts;

use std::{io, path::PathBuf};

use jtnt_proto::policy::{Children, Limits};
use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, UnshareFlags, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, unshare_unsafe,
    },
};
use serde::{Deserialize, Serialize};

use super::cgroup;
use crate::{
    domain::{
        enforcement::Abilities,
        policy::{Area, Confinement},
    },
    runtime::entropy::{Entropy as _, SystemEntropy},
};

/// How one job is to be held.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// By the policy.
    pub confinement: Confinement,
    /// The agent's own files and folders: closed to every job, whatever a rule says.
    pub hidden: Vec<PathBuf>,
    /// Of all its processes together.
    pub limits: Limits,
    /// What this machine can do. Without any, nothing is done.
    pub abilities: Abilities,
}

/// Looks at this machine, and at the rights of this process; makes the folders for control groups.
#[must_use]
pub fn abilities() -> Abilities {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    Abilities {
        root: nix::unistd::Uid::effective().is_root(),
        namespaces: effective.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP)
            && ["mnt", "pid", "ipc", "net", "cgroup"]
                .iter()
                .all(|kind| std::path::Path::new("/proc/self/ns").join(kind).exists())
            && mounts::are_known(),
        landlock: fence::version(),
        seccomp: filter::is_known(),
        limits: cgroup::prepare(),
    }
}

/// A folder that only one job sees; `None` where it has no view of its own.
#[must_use]
pub fn own_folder(plan: &Plan) -> Option<&'static std::path::Path> {
    plan.abilities.namespaces.then(|| std::path::Path::new(mounts::SECRETS))
}

/// A process that sees what it is to see. It can still do anything there.
#[derive(Debug)]
pub struct Room {
    fence: Option<fence::Fence>,
    filters: filter::Filters,
    bounded: bool,
    ticket: Ticket,
}

/// What the one execution shows that a job which may start nothing has: a number that nobody else
/// knows, and that is gone from memory and registers once it is used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticket(pub u64);

impl Room {
    /// First step: everything that needs the rights of root. `program` is what will be executed; a
    /// process that executes nothing needs nothing of the system's either.
    ///
    /// # Errors
    /// Naming what this machine did not do.
    pub fn enter(plan: &Plan, program: Option<&str>) -> io::Result<Self> {
        let Plan { confinement, abilities, .. } = plan;
        // Patterns are for what is there before anything is hidden.
        let areas: Vec<Area> = confinement.open.iter().flat_map(glob::expand).collect();
        if abilities.namespaces {
            separate(confinement.network).map_err(at("namespaces"))?;
            mounts::arrange(plan, &areas, program)?;
        }
        let fence = (abilities.landlock > 0)
            .then(|| fence::Fence::new(confinement, &areas, program, abilities.namespaces))
            .transpose()?;
        let once = confinement.children == Children::None;
        let ticket = if once { Ticket::new()? } else { Ticket::default() };
        let filters = match abilities.seccomp {
            true => filter::Filters::new(confinement.ipc, once.then_some(ticket.0))
                .map_err(at("system call filter"))?,
            false => filter::Filters::default(),
        };
        Ok(Self { fence, filters, bounded: abilities.namespaces, ticket })
    }

    /// Gives up, for ever, capabilities that the job's user might get or has. Before that user is
    /// taken.
    ///
    /// # Errors
    /// As the system's.
    pub fn bound(&self, user_is_root: bool) -> io::Result<()> {
        if !self.bounded {
            return Ok(());
        }
        let keep = if user_is_root { KEPT_BY_ROOT } else { CapabilitySet::empty() };
        for capability in CapabilitySet::all().difference(keep).iter() {
            match remove_capability_from_bounding_set(capability) {
                // A kernel that does not know it cannot give it either.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(clear_ambient_capability_set()?)
    }

    /// Second step, as the job's user: from now on it is held. Returns what the execution shows.
    ///
    /// # Errors
    /// Naming what this machine did not do.
    pub fn close(self) -> io::Result<Ticket> {
        if let Some(fence) = self.fence {
            fence.close()?;
        }
        self.filters.apply().map_err(at("system call filter"))?;
        Ok(self.ticket)
    }
}

impl Ticket {
    fn new() -> io::Result<Self> {
        let mut raw = [0; 8];
        SystemEntropy.fill(&mut raw)?;
        Ok(Self(u64::from_ne_bytes(raw)))
    }
}

/// A job of root may own, read and signal what is root's; it may not change the kernel, its
/// clock, its devices or its mounts, nor look into other processes.
const KEPT_BY_ROOT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE);

#[expect(unsafe_code, reason = "a library may have relied on what is shared")]
fn separate(network: bool) -> io::Result<()> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP;
    if !network {
        flags |= UnshareFlags::NEWNET;
    }
    // SAFETY: this process has one thread and shares no descriptors or signals by this call.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// Says in which step it was.
fn at(step: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("sandbox: {step}: {error}"))
}
