//! Processes that are known by a number or a name only: whether one is still what it was, and the
//! end of everything that a job left behind.

use std::{
    collections::BTreeSet,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::Command,
    sync::{Mutex, PoisonError},
};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, getpriority_user, kill_process_group, pidfd_open,
        pidfd_send_signal,
    },
};

use super::{entry::Deadline, process::JOB_VARIABLE};
use crate::domain::job::Process;

/// How often what will not end is asked to. Each round waits for what it ended.
const ROUNDS: usize = 20;
/// How long one round waits for one process: it may be deep in a system call.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The number as the kernel's calls want it.
pub(super) fn pid_of(id: u32) -> io::Result<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no process id"))
}

/// The present boot of the machine.
///
/// # Errors
/// When the kernel does not tell.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What the kernel says of a process.
pub(super) struct Stat {
    pub(super) zombie: bool,
    pub(super) parent: u32,
    pub(super) start_time: u64,
}

impl Stat {
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let text = std::fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&String::from_utf8_lossy(&text))
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
    }

    /// The name stands in parentheses and may hold anything, even more of them.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let zombie = matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        let start_time = fields.nth(17)?.parse().ok()?;
        Some(Self { zombie, parent, start_time })
    }
}

/// Whether this very process still runs.
#[must_use]
pub fn is_alive(process: &Process) -> bool {
    boot_id().is_ok_and(|now| now == process.boot_id)
        && Stat::of(process.pid).is_ok_and(|s| s.start_time == process.start_time && !s.zombie)
}

/// Ends what an earlier run of the agent left of a job: its group, if the leader is the one that
/// was recorded, and every process that carries the job's name. Returns how many were ended.
#[must_use]
pub fn kill_leftovers(process: Option<&Process>, job_id: &str) -> usize {
    if let Some(process) = process.filter(|p| is_alive(p))
        && let Ok(pid) = pid_of(process.pid)
        && let Err(error) = kill_process_group(pid, Signal::KILL)
    {
        tracing::warn!(%error, job_id, "processes of an earlier run were not ended");
    }
    let wanted = format!("{JOB_VARIABLE}={job_id}");
    kill_where(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|entry| entry == wanted.as_bytes())
    })
}

/// What became of the processes of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// How many were ended.
    pub ended: usize,
    /// Whether none is left.
    pub clean: bool,
}

/// Whether anything runs as this user. One call, so it may be asked for every job.
#[must_use]
pub fn runs_anything(uid: u32) -> bool {
    getpriority_user(rustix::process::Uid::from_raw(uid)) != Err(Errno::SRCH)
}

/// Ends every process of a user that was a job's alone, however fast they fork. `nobody` is a user
/// that nothing else ever runs as.
#[must_use]
pub fn end_all_of(uid: u32, nobody: u32) -> Swept {
    let mut ended = BTreeSet::new();
    for _ in 0..ROUNDS {
        // Nearly always there is none, and the kernel tells so in one call.
        if !runs_anything(uid) {
            return Swept { ended: ended.len(), clean: true };
        }
        let found: Vec<_> = processes().filter_map(|pid| alive_of(uid, pid)).collect();
        match kill_as(uid, nobody) {
            // Somebody who is dead and not yet reaped is counted by the kernel, and runs nothing.
            Ok(()) if found.is_empty() => return Swept { ended: ended.len(), clean: true },
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, uid, "a job's user was not swept; trying again"),
        }
        for (pid, end) in found {
            ended.insert(pid);
            let _in_time_or_next_round =
                poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&PATIENCE));
        }
    }
    Swept { ended: ended.len(), clean: false }
}

/// How the sweeper says that it is done: a process that never executes anything can only return an
/// error, and no call it makes returns this one.
const DONE: i32 = libc::ECANCELED;

/// Kills everything that the user may kill, by one call of a process with that user's rights. The
/// kernel goes through all processes under the lock that a fork needs, so none forks past it,
/// which no list of processes could promise.
///
/// Only the effective user is the job's. Who may signal a process is decided by its real and saved
/// user, so those whom this one comes to end can neither stop nor kill it.
#[expect(unsafe_code, reason = "a hook between fork and exec is unsafe by its nature")]
fn kill_as(uid: u32, nobody: u32) -> io::Result<()> {
    /// Sweepers share their real user, so each would kill the others.
    static ONE: Mutex<()> = Mutex::new(());
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (gid, uid, nobody) = (Gid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(nobody));
    let kill = move || {
        let _soon = Deadline::set()?;
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(nobody, uid, nobody)?;
        // -1: all but the caller and the first process.
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Err(io::Error::from_raw_os_error(DONE)),
            Err(error) => Err(error.into()),
        }
    };
    // The name is never executed: the hook ends the process in every case.
    let mut command = Command::new("/proc/self/exe");
    // SAFETY: the hook makes system calls on plain numbers. It allocates nothing and takes no lock.
    unsafe { command.pre_exec(kill) };
    match command.spawn() {
        Err(error) if error.raw_os_error() == Some(DONE) => Ok(()),
        Err(error) => Err(error),
        Ok(mut child) => child.wait().and(Err(io::Error::other("the sweeper was killed"))),
    }
}

/// A process of the user that still runs, and a descriptor that tells its end.
fn alive_of(uid: u32, pid: u32) -> Option<(u32, OwnedFd)> {
    let end = pidfd_open(pid_of(pid).ok()?, PidfdFlags::empty()).ok()?;
    let alive = user_of(pid) == Some(uid) && Stat::of(pid).is_ok_and(|stat| !stat.zombie);
    alive.then_some((pid, end))
}

/// The real user. The owner of the folder in `/proc` would not do: a process that forbids dumps of
/// itself shows root there.
fn user_of(pid: u32) -> Option<u32> {
    let status = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    let line = status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

/// A process that forks while it is looked for is found by the next look.
fn kill_where(is_wanted: impl Fn(u32) -> bool) -> usize {
    const LOOKS: usize = 16;
    let (mut ended, mut in_vain) = (0, 0);
    for _ in 0..LOOKS {
        let found = processes().filter(|pid| kill_one(*pid, &is_wanted)).count();
        ended += found;
        // In the middle of its exec a process has no environment: one look in vain says little.
        in_vain = if found == 0 { in_vain + 1 } else { 0 };
        if in_vain == 2 {
            break;
        }
    }
    ended
}

pub(super) fn processes() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The descriptor is opened before the question, so that the answer is about what is killed.
fn kill_one(pid: u32, is_wanted: &impl Fn(u32) -> bool) -> bool {
    let Ok(raw) = pid_of(pid) else { return false };
    if pid == std::process::id() || !is_wanted(pid) {
        return false;
    }
    let Ok(descriptor) = pidfd_open(raw, PidfdFlags::empty()) else { return false };
    is_wanted(pid)
        && Stat::of(pid).is_ok_and(|stat| !stat.zombie)
        && pidfd_send_signal(&descriptor, Signal::KILL).is_ok()
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
