//! Starting a job's process and ending its group. Done by the process that keeps the job: see
//! `shim`.
//!
//! What is executed is the descriptor that the policy was asked about, never a path. The process
//! waits between fork and exec until it may begin. It leads a session of its own; its end is seen
//! through a descriptor, and its group is killed *before* it is reaped, while its number cannot
//! belong to anybody else.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    fs::OFlags,
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open, waitpid,
    },
};

use super::{
    account::{Account, with_rights_of},
    cgroup::Group,
    entry::{Entry, READY, read_failure},
    paths::reach,
    sandbox::Plan,
    supervise::reap,
};

/// What was killed ends in far less, unless a device holds it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that a new process may say about why it does not begin.
const MAX_FAULT_BYTES: u64 = 4096;
/// Names the job in the environment of each of its processes.
pub const JOB_VARIABLE: &str = "JTNT_JOB_ID";

/// What a new process does by itself, as the job's user and closed in, where it executes nothing.
pub trait Errand: std::fmt::Debug {
    /// What it needs open beside the standard streams; all else is closed.
    fn open(&self) -> Vec<BorrowedFd<'_>>;

    /// Does it, to its end. `file` is [`Launch::program`] in the view that the process has.
    fn run(&self, file: &File);
}

/// A process to start.
#[derive(Debug)]
pub struct Launch {
    /// The file that the policy was asked about. Its user must reach it by its path.
    pub program: File,
    /// Instead of executing that.
    pub errand: Option<Box<dyn Errand>>,
    /// A sealed copy of it, executed instead.
    pub copy: Option<File>,
    /// The file's path: the name it is told, and what commands show.
    pub argv0: String,
    /// Arguments after the name.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: String,
    /// Whom it runs as.
    pub account: Account,
    /// A descriptor beyond the standard ones that stays open, under its own number.
    pub keep: Option<File>,
    /// What it is told in no variable or argument.
    pub secrets: Vec<Hidden>,
    /// The largest file it may write.
    pub file_bytes: Option<u64>,
    /// What holds it once it runs.
    pub plan: Plan,
    /// What limits it.
    pub group: Group,
    /// Whether it is killed when whoever started it dies.
    pub ends_with_parent: bool,
}

/// A secret of a process.
#[derive(Debug)]
pub struct Hidden {
    /// The variable that tells where it is.
    pub variable: String,
    /// The name of a file of its own, where it is not to be an open descriptor.
    pub file: Option<String>,
    /// The secret.
    pub content: File,
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A folder on the way to the program is closed to the user, or the program is no more.
    #[error("user {user} does not reach {program}: {source}; open the folders above it")]
    Unreachable {
        /// What.
        program: String,
        /// Who.
        user: String,
        /// Why.
        source: io::Error,
    },
    /// The working directory cannot be opened.
    #[error("working directory {path}: {source}")]
    Cwd {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The system did not start it.
    #[error("{program} was not started: {source}")]
    Start {
        /// What.
        program: String,
        /// Why.
        source: io::Error,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, where it returned.
    pub code: Option<i32>,
    /// Signal, where one ended it.
    pub signal: Option<i32>,
}

/// Starts a process that waits for [`Payload::begin`]. Until then it executes nothing, and ends
/// when the caller does.
///
/// # Errors
/// When there is none; nothing of it is left then.
pub fn fork(launch: &Launch) -> Result<Payload, LaunchError> {
    let account = &launch.account;
    let unreachable = |source| LaunchError::Unreachable {
        program: launch.argv0.clone(),
        user: account.name.clone(),
        source,
    };
    let reached = with_rights_of(account, || reach(&launch.argv0, &launch.program, OFlags::PATH));
    reached.and_then(|reached| reached).map_err(unreachable)?;
    Payload::fork(launch)
}

/// Forks this process, which has a single thread and nothing open that its copy may not have. The
/// copy does `work` and ends. Its number is returned, by which it can be waited for.
///
/// # Errors
/// As the system's.
#[expect(unsafe_code, reason = "a fork is unsafe by its nature")]
pub fn copy(work: impl FnOnce() -> bool) -> io::Result<Pid> {
    // SAFETY: with a single thread the copy is in no other state than its original.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = i32::from(!work());
            // SAFETY: nothing of the original's is to be run at the end of the copy.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process id")),
    }
}

/// Whether the kernel forgets children of this process by itself.
///
/// # Errors
/// As the system's.
#[expect(unsafe_code, reason = "a handler could be anything")]
pub fn forget_children(forget: bool) -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    let handler = if forget { SigHandler::SigIgn } else { SigHandler::SigDfl };
    // SAFETY: neither is code of this process.
    unsafe { signal(Signal::SIGCHLD, handler) }?;
    Ok(())
}

/// A process that waits, runs or has ended, and is not yet forgotten. Dropped, it is killed.
#[derive(Debug)]
pub struct Payload {
    pid: Pid,
    end: OwnedFd,
    /// Program and working directory, for messages.
    names: (String, String),
    /// Written to when it may begin.
    go: Option<OwnedFd>,
    /// Tells that it waits, and why it did not begin; closed by the kernel when it did.
    told: File,
    /// The reading ends of standard output and standard error.
    output: Option<[OwnedFd; 2]>,
    reaped: bool,
}

impl Payload {
    #[expect(unsafe_code, reason = "a fork is unsafe by its nature")]
    fn fork(launch: &Launch) -> Result<Self, LaunchError> {
        let broken = |source| LaunchError::Start { program: launch.argv0.clone(), source };
        let forked = || -> io::Result<Self> {
            let pipe = || pipe_with(PipeFlags::CLOEXEC);
            let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
            let ((wait, go), (told, tell)) = (pipe()?, pipe()?);
            let entry = Entry::new(launch)?;
            // SAFETY: a process that keeps a job has one thread, so its copy is in no other state.
            // The copy ends in an exec or in `_exit`.
            let pid = match unsafe { libc::fork() } {
                -1 => return Err(io::Error::last_os_error()),
                0 => {
                    // Or its own end would keep the pipe open on which it waits for the end of
                    // others.
                    drop(go);
                    entry.as_child(&wait, tell, &[stdout, stderr])
                }
                pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process id"))?,
            };
            let opened = pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
                let _killed = kill_process(pid, Signal::KILL);
                let _reaped = waitpid(Some(pid), WaitOptions::empty());
            });
            Ok(Self {
                pid,
                end: opened?,
                names: (launch.argv0.clone(), launch.cwd.clone()),
                go: Some(go),
                told: told.into(),
                output: Some([out, err]),
                reaped: false,
            })
        };
        let mut payload = forked().map_err(broken)?;
        let mut word = [0];
        match payload.told.read(&mut word) {
            Ok(1) if word == [READY] => Ok(payload),
            Ok(n) => Err(payload.failure(word.get(..n).unwrap_or_default())),
            Err(error) => Err(broken(error)),
        }
    }

    /// Lets it begin, and waits until it executes its program or does its errand.
    ///
    /// # Errors
    /// When it does not.
    pub fn begin(&mut self) -> Result<(), LaunchError> {
        if let Some(go) = self.go.take()
            && let Err(error) = rustix::io::write(&go, &[1])
        {
            return Err(LaunchError::Start { program: self.names.0.clone(), source: error.into() });
        }
        let mut word = [0];
        match self.told.read(&mut word) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.failure(&word)),
            Err(source) => Err(LaunchError::Start { program: self.names.0.clone(), source }),
        }
    }

    /// What it has begun to say with `first`, to its end.
    fn failure(&mut self, first: &[u8]) -> LaunchError {
        let mut said = first.to_vec();
        let _what_came_counts = (&mut self.told).take(MAX_FAULT_BYTES).read_to_end(&mut said);
        read_failure((&self.names.0, &self.names.1), &said)
    }

    /// Its number, as this process has it.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable at its end.
    #[must_use]
    pub fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// The reading ends of standard output and standard error, once.
    pub const fn take_output(&mut self) -> Option<[OwnedFd; 2]> {
        self.output.take()
    }

    /// Asks the whole group to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the whole group at once, then takes the process's own end; waits a little for it if
    /// need be.
    ///
    /// # Errors
    /// When the system cannot tell how it ended, or not in time.
    pub fn reap(&mut self) -> io::Result<Exit> {
        self.signal(Signal::KILL);
        self.reaped = true;
        let status = reap(self.pid, self.end.as_fd(), PATIENCE)?;
        Ok(Exit { code: status.exit_status(), signal: status.terminating_signal() })
    }

    fn signal(&self, signal: Signal) {
        if self.reaped {
            return;
        }
        // Before it begins it leads no group yet.
        let group = kill_process_group(self.pid, signal);
        let sent = group.or_else(|_| kill_process(self.pid, signal));
        if let Err(error) = sent
            && error != Errno::SRCH
        {
            tracing::warn!(%error, "a job's processes got no signal");
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        if !self.reaped
            && let Err(error) = self.reap()
        {
            tracing::error!(%error, "a job's process was not reaped");
        }
    }
}

/// Ends this copy of a process that executed nothing.
#[expect(unsafe_code, reason = "the safe call would run what the original registered for its end")]
pub(super) fn end() -> ! {
    // SAFETY: no memory is touched, and no code of this process runs after it.
    unsafe { libc::_exit(127) }
}

/// The first descriptor that is no standard stream.
pub(super) const AFTER_STREAMS: libc::c_uint = 3;

/// Closes everything but the standard streams, in a process that has opened nothing yet or will
/// use nothing of it any more.
#[expect(unsafe_code, reason = "whoever else had these descriptors has them no more")]
pub fn close_all() {
    // SAFETY: see above; no memory is touched.
    unsafe { libc::syscall(libc::SYS_close_range, AFTER_STREAMS, libc::c_uint::MAX, 0) };
}

/// Closes everything but the standard streams and these, in a copy that will use nothing else of
/// its original's.
#[expect(unsafe_code, reason = "whoever else had these descriptors has them no more")]
pub fn close_all_but(keep: &[BorrowedFd<'_>]) {
    let close = |from: libc::c_uint, to: libc::c_uint| {
        if from <= to {
            // SAFETY: see above; no memory is touched.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    };
    let mut kept: Vec<_> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut from = AFTER_STREAMS;
    for number in kept.into_iter().filter(|number| *number >= AFTER_STREAMS) {
        close(from, number.saturating_sub(1));
        from = number + 1;
    }
    close(from, libc::c_uint::MAX);
}

/// A file in memory that holds `content` for ever, open for reading.
///
/// # Errors
/// When the system has no memory for it.
pub fn sealed(name: &str, content: &[u8]) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let created = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 have no word for "not to be executed".
        Err(Errno::INVAL) => memfd_create(name, flags),
        other => other,
    };
    let mut file = File::from(created?);
    file.write_all(content)?;
    fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
#[path = "process_tests.rs"]
pub(super) mod tests;
