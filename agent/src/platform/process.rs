//! Starting a job's process and ending it with everything it started. The seam where a sandbox
//! goes: [`Launcher`].
//!
//! What is executed is the descriptor that the policy was asked about, never a path. The process
//! leads a session of its own; its end is seen through a descriptor, and its group is killed
//! *before* it is reaped, while its number cannot belong to anybody else.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ffi::CString,
    fmt,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, Stdio},
};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, FdFlags},
    process::{PidfdFlags, Resource, Rlimit, Signal, kill_process_group, pidfd_open, setrlimit},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    account::{Account, with_rights_of},
    paths::{enter, reach},
    sweep::{Stat, boot_id, pid_of},
};
use crate::domain::job::Process;

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

/// Starts processes under whatever the operating system can enforce.
pub trait Launcher: fmt::Debug + Send + Sync {
    /// Starts one. Blocks until it has begun to execute.
    ///
    /// # Errors
    /// When it did not begin; nothing of it is left then.
    fn launch(&self, launch: Launch) -> Result<Running, LaunchError>;
}

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    /// Which one.
    pub process: Process,
    /// The reading end of its standard output.
    pub stdout: OwnedFd,
    /// The reading end of its standard error.
    pub stderr: OwnedFd,
    /// Its end.
    pub leader: Leader,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, where it returned.
    pub code: Option<i32>,
    /// Signal, where one ended it.
    pub signal: Option<i32>,
}

/// Starts processes with a clean environment and another user's rights; enforces nothing beyond.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainLauncher;

impl Launcher for PlainLauncher {
    fn launch(&self, launch: Launch) -> Result<Running, LaunchError> {
        let program = launch.argv0.clone();
        let reached =
            with_rights_of(&launch.account, || reach(&program, &launch.program, OFlags::PATH));
        if let Err(source) = reached.and_then(|reached| reached) {
            let user = launch.account.name;
            return Err(LaunchError::Unreachable { program, user, source });
        }
        // With the user's rights, too: a descriptor would take it past folders that are closed to
        // it.
        let cwd = with_rights_of(&launch.account, || enter(&launch.cwd))
            .and_then(|opened| opened)
            .map_err(|source| LaunchError::Cwd { path: launch.cwd.clone(), source })?;
        start(&launch, cwd).map_err(|source| LaunchError::Start { program, source })
    }
}

fn start(launch: &Launch, cwd: OwnedFd) -> io::Result<Running> {
    // The name only serves messages: the hook executes the descriptor itself.
    let mut command = Command::new(&launch.argv0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let entry = Entry::new(launch, cwd)?;
    enter_with(&mut command, entry);
    let mut leader = Leader::of(command.spawn()?)?;
    let missing = || io::Error::other("a pipe of the new process is missing");
    let stdout = leader.child.stdout.take().ok_or_else(missing)?.into();
    let stderr = leader.child.stderr.take().ok_or_else(missing)?.into();
    let process = Process {
        pid: leader.child.id(),
        start_time: Stat::of(leader.child.id())?.start_time,
        boot_id: boot_id()?,
        cgroup: None,
    };
    Ok(Running { process, stdout, stderr, leader })
}

#[expect(unsafe_code, reason = "a hook between fork and exec is unsafe by its nature")]
fn enter_with(command: &mut Command, entry: Entry) {
    // SAFETY: the hook makes system calls on values prepared before the fork. It allocates
    // nothing and takes no lock, so the state of other threads at the fork does not matter.
    unsafe {
        command.pre_exec(move || Err(entry.enter().map_or_else(|e| e, |never| match never {})))
    };
}

/// What a new process does to itself between fork and exec.
struct Entry {
    image: Image,
    cwd: OwnedFd,
    keep: Option<i32>,
    file_bytes: Option<u64>,
    become_user: Option<(Vec<Gid>, Gid, Uid)>,
    is_root: bool,
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
        })
    }

    fn enter(&self) -> io::Result<Infallible> {
        rustix::process::setsid()?;
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

/// The agent opens nothing without close-on-exec, but whoever started the agent may have. Kernels
/// before 5.11 do not know the call.
#[expect(unsafe_code, reason = "there is no safe call for it")]
fn close_all_on_exec() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: this marks descriptors and closes none; no memory is touched.
    unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
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

/// Registers a descriptor with the runtime for as long as it is borrowed.
#[expect(unsafe_code, reason = "the runtime cannot know that a descriptor stays what it is")]
fn watched(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor is open and the same for the whole life of the borrow, which
    // the registration cannot outlive.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The first process of a job, and by it the whole session. Dropped alive, it is killed.
#[derive(Debug)]
pub struct Leader {
    child: Child,
    end: OwnedFd,
    reaped: bool,
}

impl Leader {
    fn of(mut child: Child) -> io::Result<Self> {
        let opened = pid_of(child.id()).and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match opened {
            Ok(end) => Ok(Self { child, end, reaped: false }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Waits until the process has ended. It is not reaped by that.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub async fn ended(&self) -> io::Result<()> {
        watched(self.end.as_fd())?.readable().await.map(drop)
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
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(Exit { code: status.code(), signal: status.signal() })
    }

    fn signal(&self, signal: Signal) {
        if self.reaped {
            return;
        }
        let sent = pid_of(self.child.id()).map(|pid| kill_process_group(pid, signal));
        if let Ok(Err(error)) = sent
            && error != Errno::SRCH
        {
            tracing::warn!(%error, pid = self.child.id(), "a job's processes got no signal");
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.reaped
            && let Err(error) = self.reap()
        {
            tracing::error!(%error, "a job's process was not reaped");
        }
    }
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
