//! Starting a job's process and ending its group. Done by the process that keeps the job: see
//! `shim`.
//!
//! What is executed is the descriptor that the policy was asked about, never a path. The process
//! waits between fork and exec until it may begin. It leads a session of its own; its end is seen
//! through a descriptor, and its group is killed *before* it is reaped, while its number cannot
//! belong to anybody else.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ffi::CString,
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, FdFlags},
    pipe::{PipeFlags, pipe_with},
    process::{
        Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, kill_process, kill_process_group,
        pidfd_open, set_parent_process_death_signal, setrlimit, waitpid,
    },
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{
    account::{Account, with_rights_of},
    paths::{enter, reach},
};

/// Names the job in the environment of each of its processes.
pub const JOB_VARIABLE: &str = "JTNT_JOB_ID";

/// A process to start.
#[derive(Debug)]
pub struct Launch {
    /// The file that the policy was asked about. Its user must reach it by its path.
    pub program: File,
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
    /// The one descriptor beyond the standard ones that stays open, under its own number.
    pub keep: Option<File>,
    /// The largest file it may write.
    pub file_bytes: Option<u64>,
    /// Whether it is killed when whoever started it dies.
    pub ends_with_parent: bool,
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
    // With the user's rights, too: a descriptor would take it past folders that are closed to it.
    let cwd = with_rights_of(account, || enter(&launch.cwd))
        .and_then(|opened| opened)
        .map_err(|source| LaunchError::Cwd { path: launch.cwd.clone(), source })?;
    Payload::fork(launch, cwd)
        .map_err(|source| LaunchError::Start { program: launch.argv0.clone(), source })
}

/// Forks this process, which has a single thread and nothing open that its copy may not have. The
/// copy does `work` and ends.
///
/// # Errors
/// As the system's.
#[expect(unsafe_code, reason = "a fork is unsafe by its nature")]
pub fn copy(work: impl FnOnce() -> bool) -> io::Result<()> {
    // SAFETY: with a single thread the copy is in no other state than its original.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = i32::from(!work());
            // SAFETY: nothing of the original's is to be run at the end of the copy.
            unsafe { libc::_exit(code) }
        }
        _ => Ok(()),
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
    program: String,
    /// Written to when it may begin.
    go: Option<OwnedFd>,
    /// Tells why it did not; closed by the kernel when it did.
    fault: OwnedFd,
    /// The reading ends of standard output and standard error.
    output: Option<[OwnedFd; 2]>,
    reaped: bool,
}

impl Payload {
    #[expect(unsafe_code, reason = "a fork is unsafe by its nature")]
    fn fork(launch: &Launch, cwd: OwnedFd) -> io::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
        let ((wait, go), (fault, complaint)) = (pipe()?, pipe()?);
        let stdin = File::open("/dev/null")?.into();
        let entry = Entry::new(launch, cwd)?;
        // SAFETY: the child makes system calls on values prepared before, and ends in an exec or
        // in `_exit`. It allocates nothing and takes no lock, so other threads do not matter.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // Or its own end would keep the pipe open on which it waits for the end of others.
                drop(go);
                let error = entry.as_child(&wait, &[stdin, stdout, stderr]);
                let number = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
                let _nobody_else_to_tell = rustix::io::write(&complaint, &number);
                // SAFETY: no memory is touched, and no code of this process runs after it.
                unsafe { libc::_exit(127) }
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
            program: launch.argv0.clone(),
            go: Some(go),
            fault,
            output: Some([out, err]),
            reaped: false,
        })
    }

    /// Lets it begin, and waits until it executes its program.
    ///
    /// # Errors
    /// When it does not.
    pub fn begin(&mut self) -> Result<(), LaunchError> {
        let mut begin = || -> io::Result<()> {
            if let Some(go) = self.go.take() {
                rustix::io::write(&go, &[1])?;
            }
            let mut number = [0; 4];
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.fault, &mut number))? {
                0 => Ok(()),
                _ => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number))),
            }
        };
        let program = self.program.clone();
        begin().map_err(|source| LaunchError::Start { program, source })
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

    /// Ends the whole group at once, then takes the process's own end; waits for it if need be.
    ///
    /// # Errors
    /// When the system cannot tell how it ended.
    pub fn reap(&mut self) -> io::Result<Exit> {
        self.signal(Signal::KILL);
        let waited = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()))?;
        self.reaped = true;
        let (_, status) = waited.ok_or_else(|| io::Error::other("no such child"))?;
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

/// What a new process does to itself between fork and exec.
struct Entry {
    image: Image,
    cwd: OwnedFd,
    keep: Option<i32>,
    file_bytes: Option<u64>,
    become_user: Option<(Vec<Gid>, Gid, Uid)>,
    is_root: bool,
    ends_with_parent: bool,
}

impl Entry {
    fn new(launch: &Launch, cwd: OwnedFd) -> io::Result<Self> {
        let account = &launch.account;
        let groups = || account.groups.iter().copied().map(Gid::from_raw).collect();
        Ok(Self {
            image: Image::new(launch)?,
            cwd,
            keep: launch.keep.as_ref().map(|file| file.as_raw_fd()),
            file_bytes: launch.file_bytes,
            become_user: account
                .is_other()
                .then(|| (groups(), Gid::from_raw(account.gid), Uid::from_raw(account.uid))),
            is_root: account.uid == 0,
            ends_with_parent: launch.ends_with_parent,
        })
    }

    /// What the child does; returns only if it executes nothing.
    fn as_child(&self, wait: &OwnedFd, streams: &[OwnedFd; 3]) -> io::Error {
        let entered = || -> io::Result<Infallible> {
            let [stdin, stdout, stderr] = streams;
            dup2_stdin(stdin)?;
            dup2_stdout(stdout)?;
            dup2_stderr(stderr)?;
            let mut word = [0];
            match rustix::io::retry_on_intr(|| rustix::io::read(wait, &mut word))? {
                // Whoever would look after it is gone.
                0 => Err(Errno::CANCELED.into()),
                _ => self.enter(),
            }
        };
        entered().map_or_else(|error| error, |never| match never {})
    }

    fn enter(&self) -> io::Result<Infallible> {
        rustix::process::setsid()?;
        default_signals()?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        if self.file_bytes.is_some() {
            let limit = Rlimit { current: self.file_bytes, maximum: self.file_bytes };
            setrlimit(Resource::Fsize, limit)?;
        }
        close_all_on_exec();
        if let Some(fd) = self.keep {
            keep_open(fd)?;
        }
        deadline()?;
        if let Some((groups, gid, uid)) = &self.become_user {
            setgroups(groups)?;
            setresgid(*gid, *gid, *gid)?;
            setresuid(*uid, *uid, *uid)?;
        }
        if !self.is_root {
            no_new_privileges()?;
        }
        if self.ends_with_parent {
            set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        rustix::process::fchdir(&self.cwd)?;
        Err(self.image.execute())
    }
}

/// What is executed and what it is told, in the form the kernel wants. The library's own call
/// would hand what is no program to a shell.
struct Image {
    program: i32,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// What the pointers point into.
    _texts: Vec<CString>,
}

#[expect(unsafe_code, reason = "pointers make it neither by default")]
// SAFETY: the pointers point into texts that the same value owns and nobody changes.
unsafe impl Send for Image {}
#[expect(unsafe_code, reason = "pointers make it neither by default")]
// SAFETY: as above; nothing is ever written through them.
unsafe impl Sync for Image {}

impl Image {
    fn new(launch: &Launch) -> io::Result<Self> {
        let args = std::iter::once(&launch.argv0).chain(&launch.args);
        let mut texts: Vec<_> = args.map(|a| CString::new(a.as_str())).collect::<Result<_, _>>()?;
        let split = texts.len();
        for (name, value) in &launch.env {
            texts.push(CString::new(format!("{name}={value}"))?);
        }
        let (args, env) = texts.split_at(split);
        let pointers = |texts: &[CString]| {
            texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, envp) = (pointers(args), pointers(env));
        let program = launch.copy.as_ref().unwrap_or(&launch.program).as_raw_fd();
        Ok(Self { program, argv, envp, _texts: texts })
    }

    /// Returns only if it could not.
    #[expect(unsafe_code, reason = "there is no safe call for executing a descriptor")]
    fn execute(&self) -> io::Error {
        let (argv, envp) = (self.argv.as_ptr(), self.envp.as_ptr());
        // SAFETY: both arrays end in a null pointer and hold strings that live as long as `self`.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program,
                c"".as_ptr(),
                argv,
                envp,
                libc::AT_EMPTY_PATH,
            )
        };
        io::Error::last_os_error()
    }
}

const LAST_SIGNAL: libc::c_int = 64;

/// No signal is blocked or ignored in a program because it was in whoever started it.
#[expect(unsafe_code, reason = "a handler could be anything")]
fn default_signals() -> io::Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the system's default is no code of this process. The library keeps a few numbers
        // for itself, and refuses those.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// The agent opens nothing without close-on-exec, but whoever started the agent may have. Kernels
/// before 5.11 do not know the call.
#[expect(unsafe_code, reason = "there is no safe call for it")]
fn close_all_on_exec() {
    // SAFETY: this marks descriptors and closes none; no memory is touched.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            AFTER_STREAMS,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}

/// The first descriptor that is no standard stream.
const AFTER_STREAMS: libc::c_uint = 3;

/// Closes everything but the standard streams, in a process that has opened nothing yet or will
/// use nothing of it any more.
#[expect(unsafe_code, reason = "whoever else had these descriptors has them no more")]
pub fn close_all() {
    // SAFETY: see above; no memory is touched.
    unsafe { libc::syscall(libc::SYS_close_range, AFTER_STREAMS, libc::c_uint::MAX, 0) };
}

/// How long a new process may take to begin to execute. Whoever waits for that waits so long.
const BEGIN_SECONDS: libc::time_t = 5;

/// Ends this process unless it executes something soon: from the moment it has a job's user, other
/// processes of that user may stop it, and a stopped process does nothing by itself. The timer is
/// the kernel's, its signal reaches what is stopped, and exec removes it.
#[expect(unsafe_code, reason = "there is no safe call for it")]
pub(super) fn deadline() -> io::Result<()> {
    // SAFETY: the structures are plain numbers for which zero is a value, and they outlive the
    // calls, which keep nothing of them.
    let (mut event, mut when): (libc::sigevent, libc::itimerspec) = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    when.it_value.tv_sec = BEGIN_SECONDS;
    let mut timer: libc::c_int = 0;
    // SAFETY: as above; the kernel writes the timer's number into `timer`. The library's call
    // would allocate.
    let made = unsafe {
        libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
    };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    let none = std::ptr::null_mut::<libc::itimerspec>();
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const when, none) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets a descriptor live through exec.
#[expect(unsafe_code, reason = "the descriptor is known by its number only")]
fn keep_open(fd: i32) -> io::Result<()> {
    // SAFETY: the file is owned by the `Launch` that outlives the fork; nothing closes it here.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?)
}

/// No program started from here on gains rights by its file's mode or capabilities.
#[expect(unsafe_code, reason = "there is no safe call for it")]
fn no_new_privileges() -> io::Result<()> {
    // SAFETY: this option takes plain numbers and touches no memory.
    let answer = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
