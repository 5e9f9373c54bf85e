//! Processes of one job, apart from all others: they can be ended as a whole, however they fork,
//! and none of them lives longer than whoever keeps the job.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, set_child_subreaper,
        waitpid,
    },
    stdio::{dup2_stdin, stdin},
    thread::set_name,
};

use super::{
    process::{close_all, forget_children},
    supervise::reap,
    sweep::{Stat, pid_of, processes},
};

/// An empty namespace is gone at once. What a tracer outside holds may keep one.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often children are looked for that came after the last look.
const ROUNDS: usize = 50;

/// What holds a job's processes together.
#[derive(Debug)]
pub enum Space {
    /// A namespace of process ids: the kernel ends all in it with the first of them.
    Namespace(Init),
    /// Orphans become children of this process; what forks faster than it looks may escape.
    Orphans,
}

impl Space {
    /// Makes one. Everything this process forks from now on belongs to it, so it is asked for
    /// once, by a process that keeps a single job.
    ///
    /// # Errors
    /// When the system gives neither kind.
    pub fn enter() -> io::Result<Self> {
        match Init::start() {
            Ok(init) => Ok(Self::Namespace(init)),
            // No right to one, or a kernel without them.
            Err(error) => {
                tracing::debug!(%error, "no namespace for process ids");
                set_child_subreaper(Some(rustix::process::getpid()))?;
                Ok(Self::Orphans)
            }
        }
    }

    /// Whether nothing escapes.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self, Self::Namespace(_))
    }

    /// Kills everything that is in it, where the kernel does so at once, and does not wait. What
    /// one process of it holds by tracing another is let go by that.
    pub fn kill(&self) {
        if let Self::Namespace(init) = self {
            init.kill();
        }
    }

    /// Ends everything that is left. When it returns, all of it is gone.
    ///
    /// # Errors
    /// When something does not end.
    pub fn end(self) -> io::Result<()> {
        match self {
            Self::Namespace(init) => init.end(),
            Self::Orphans => end_children(),
        }
    }
}

/// The first process of a namespace. It does nothing but last as long as its maker.
#[derive(Debug)]
pub struct Init {
    pid: Pid,
    /// Readable when the namespace is gone.
    end: OwnedFd,
    /// Closed by the end of this process, however it comes.
    _life: OwnedFd,
}

impl Init {
    #[expect(unsafe_code, reason = "a fork is unsafe by its nature")]
    fn start() -> io::Result<Self> {
        // SAFETY: the call takes a number; what it changes is where later children are born.
        if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let (wait, life) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: the child makes system calls on plain numbers, and never returns.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // Or its own end would keep the pipe open on which it waits for the end of others.
                drop(life);
                last(&wait)
            }
            pid => {
                let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process id"))?;
                Ok(Self { pid, end: pidfd_open(pid, PidfdFlags::empty())?, _life: life })
            }
        }
    }

    fn kill(&self) {
        let _gone_or_killed = kill_process(self.pid, Signal::KILL);
    }

    fn end(self) -> io::Result<()> {
        self.kill();
        // The kernel lets it be waited for only when the namespace is empty.
        reap(self.pid, self.end.as_fd(), PATIENCE).map(drop)
    }
}

/// Waits for the end of the pipe, then ends, and with it the namespace. Signals are the system's
/// business: the first process of a namespace gets none that it did not ask for.
#[expect(unsafe_code, reason = "ends a process that has another's memory")]
fn last(wait: &OwnedFd) -> ! {
    let wait = || -> io::Result<()> {
        set_name(c"jtnt-init")?;
        forget_children(true)?;
        // Nothing of this process's maker may be held open here but the pipe.
        dup2_stdin(wait)?;
        close_all();
        rustix::io::retry_on_intr(|| rustix::io::read(stdin(), &mut [0]))?;
        Ok(())
    };
    let _it_ends_in_any_case = wait();
    // SAFETY: no memory is touched, and no code of this process runs after it.
    unsafe { libc::_exit(0) }
}

/// Ends every child, and those that become children by that.
fn end_children() -> io::Result<()> {
    let own = std::process::id();
    for _ in 0..ROUNDS {
        let children: BTreeSet<u32> =
            processes().filter(|pid| Stat::of(*pid).is_ok_and(|stat| stat.parent == own)).collect();
        for pid in &children {
            if let Ok(pid) = pid_of(*pid) {
                let _gone_or_killed = kill_process(pid, Signal::KILL);
            }
        }
        for pid in children {
            let Ok(pid) = pid_of(pid) else { continue };
            let _reaped = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
        }
        match waitpid(None, WaitOptions::NOHANG) {
            Err(Errno::CHILD) => return Ok(()),
            _ => continue,
        }
    }
    Err(io::Error::other("processes of the job fork faster than they can be ended"))
}
