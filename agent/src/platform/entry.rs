//! What a new process does to itself between fork and exec, in two steps: everything that takes
//! time or the rights of root comes first; then it waits for its word; then it becomes the job's
//! user, is closed in, and executes or does its errand.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, FdFlags},
    process::{
        DumpableBehavior, Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit,
    },
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{
    account::{Account, with_rights_of},
    paths::{enter, reach},
    process::{self, Errand, Hidden, Launch, LaunchError},
    sandbox::{Room, Ticket, own_folder},
};
use crate::runtime::durable;

/// The first byte that a new process tells: it waits for its word.
pub(super) const READY: u8 = b'+';
/// Or it ends, and says why; a byte for what it failed at comes before the text.
const CWD: u8 = b'c';
const START: u8 = b's';

/// Why a new process does not execute.
struct Failed {
    at: u8,
    why: io::Error,
}

impl From<io::Error> for Failed {
    fn from(why: io::Error) -> Self {
        Self { at: START, why }
    }
}

impl From<nix::Error> for Failed {
    fn from(error: nix::Error) -> Self {
        io::Error::from(error).into()
    }
}

impl From<Errno> for Failed {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// What such a process has said, to whoever started it.
pub(super) fn read_failure(launch: (&str, &str), said: &[u8]) -> LaunchError {
    let (program, cwd) = launch;
    let (kind, text) = said.split_first().unwrap_or((&START, b"it ended"));
    let source = io::Error::other(String::from_utf8_lossy(text).into_owned());
    match *kind {
        CWD => LaunchError::Cwd { path: cwd.to_owned(), source },
        _ => LaunchError::Start { program: program.to_owned(), source },
    }
}

/// The new process.
pub(super) struct Entry<'a> {
    launch: &'a Launch,
    image: Image,
    secrets: Vec<Place>,
}

/// Where a secret is found.
enum Place {
    Descriptor,
    File(PathBuf),
}

impl<'a> Entry<'a> {
    pub(super) fn new(launch: &'a Launch) -> io::Result<Self> {
        let folder = own_folder(&launch.plan);
        let place = |secret: &Hidden| match (&secret.file, folder) {
            (Some(name), Some(folder)) => Place::File(folder.join(name)),
            // Where nothing is the job's alone, its descriptor has a name all the same.
            (Some(_) | None, _) => Place::Descriptor,
        };
        let secrets: Vec<_> = launch.secrets.iter().map(place).collect();
        let told = launch.secrets.iter().zip(&secrets).map(|(secret, place)| {
            let number = secret.content.as_raw_fd();
            let value = match (place, &secret.file) {
                (Place::File(path), _) => path.display().to_string(),
                (Place::Descriptor, Some(_)) => format!("/proc/self/fd/{number}"),
                (Place::Descriptor, None) => number.to_string(),
            };
            (secret.variable.clone(), value)
        });
        Ok(Self { launch, image: Image::new(launch, told)?, secrets })
    }

    /// What the child does to its end. Nothing that it owns is given up: it may be closed already.
    pub(super) fn as_child(&self, wait: &OwnedFd, tell: OwnedFd, streams: &[OwnedFd; 2]) -> ! {
        match self.enter(wait, &tell, streams) {
            Ok((errand, file, deadline)) => {
                // That it is closed tells that the errand has begun.
                drop(tell);
                // What executing a program would have closed.
                process::close_all_but(&[vec![file.as_fd()], errand.open()].concat());
                if deadline.lift().is_ok() {
                    errand.run(&file);
                }
            }
            Err(failed) => {
                let mut said = vec![failed.at];
                said.extend(failed.why.to_string().as_bytes());
                let _nobody_else_to_tell = rustix::io::write(&tell, &said);
            }
        }
        process::end()
    }

    /// Returns only if there is an errand to be done, or nothing was executed.
    fn enter(
        &self,
        wait: &OwnedFd,
        tell: &OwnedFd,
        [stdout, stderr]: &[OwnedFd; 2],
    ) -> Result<(&dyn Errand, File, Deadline), Failed> {
        dup2_stdout(stdout)?;
        dup2_stderr(stderr)?;
        let Launch { plan, account, argv0, group, errand, .. } = self.launch;
        group.join()?;
        let room = Room::enter(plan, errand.is_none().then_some(argv0))?;
        // That of the job's view: by another it could change the machine's.
        dup2_stdin(File::open("/dev/null")?)?;
        // Only now: an older descriptor leads out of the view that the job shall have.
        let program = match &self.launch.copy {
            Some(copy) => copy.try_clone()?,
            None => reach(argv0, &self.launch.program, OFlags::PATH)?,
        };
        let cwd = with_rights_of(account, || enter(&self.launch.cwd))
            .and_then(|opened| opened)
            .map_err(|why| Failed { at: CWD, why })?;
        self.write_secrets()?;
        rustix::io::write(tell, &[READY])?;
        let mut word = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(wait, &mut word))? {
            // Whoever would look after it is gone.
            0 => Err(Errno::CANCELED.into()),
            _ => self.execute(room, program, &cwd),
        }
    }

    /// Copies secrets to files that only the job's user reads, in a place where nothing can be
    /// executed; memory that a descriptor stands for could be.
    fn write_secrets(&self) -> io::Result<()> {
        let account = &self.launch.account;
        let Some(folder) = own_folder(&self.launch.plan) else { return Ok(()) };
        for (secret, place) in self.launch.secrets.iter().zip(&self.secrets) {
            let path = &match place {
                Place::File(path) => path.clone(),
                Place::Descriptor => folder.join(&secret.variable),
            };
            let mut file = durable::create(path, 0o400)?;
            nix::unistd::fchown(
                &file,
                Some(Uid::from_raw(account.uid)),
                Some(Gid::from_raw(account.gid)),
            )?;
            io::copy(&mut &secret.content, &mut file)?;
            if matches!(place, Place::Descriptor) {
                take_place_of(&secret.content, &File::open(path)?)?;
                durable::remove(path)?;
            }
        }
        Ok(())
    }

    fn execute(
        &self,
        room: Room,
        program: File,
        cwd: &OwnedFd,
    ) -> Result<(&dyn Errand, File, Deadline), Failed> {
        let Launch { account, file_bytes, keep, ends_with_parent, .. } = self.launch;
        rustix::process::setsid()?;
        if account.is_other() {
            // Or it could not open `/dev/stdout`.
            let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
            nix::unistd::fchown(io::stdout(), Some(uid), Some(gid))?;
            nix::unistd::fchown(io::stderr(), Some(uid), Some(gid))?;
        }
        default_signals()?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
        if file_bytes.is_some() {
            setrlimit(Resource::Fsize, Rlimit { current: *file_bytes, maximum: *file_bytes })?;
        }
        close_all_on_exec();
        let told = self.launch.secrets.iter().zip(&self.secrets);
        let told = told.filter(|(_, place)| matches!(place, Place::Descriptor));
        for file in keep.iter().chain(told.map(|(secret, _)| &secret.content)) {
            rustix::io::fcntl_setfd(file, FdFlags::empty())?;
        }
        let is_root = account.uid == 0;
        room.bound(is_root)?;
        let deadline = Deadline::set()?;
        if account.is_other() {
            become_user(account)?;
        }
        if !is_root {
            rustix::thread::set_no_new_privs(true)?;
        }
        if *ends_with_parent {
            set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        rustix::process::fchdir(cwd)?;
        let ticket = room.close()?;
        let Some(errand) = &self.launch.errand else {
            return Err(self.image.execute(program.as_fd(), ticket).into());
        };
        // It has memory of whoever keeps the job.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        Ok((&**errand, program, deadline))
    }
}

/// Has the number of a descriptor mean another file from now on.
#[expect(unsafe_code, reason = "the number is what counts, and its owner keeps it")]
fn take_place_of(owner: &File, other: &File) -> io::Result<()> {
    // SAFETY: the number stays open and stays its owner's; what it means is changed at once.
    let answer = unsafe { libc::dup3(other.as_raw_fd(), owner.as_raw_fd(), libc::O_CLOEXEC) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn become_user(account: &Account) -> io::Result<()> {
    let groups: Vec<_> = account.groups.iter().copied().map(Gid::from_raw).collect();
    let (gid, uid) = (Gid::from_raw(account.gid), Uid::from_raw(account.uid));
    setgroups(&groups)?;
    setresgid(gid, gid, gid)?;
    Ok(setresuid(uid, uid, uid)?)
}

/// What is executed and what it is told, in the form the kernel wants. The library's own call
/// would hand what is no program to a shell.
struct Image {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// What the pointers point into.
    _texts: Vec<CString>,
}

impl Image {
    fn new(launch: &Launch, told: impl Iterator<Item = (String, String)>) -> io::Result<Self> {
        let args = std::iter::once(&launch.argv0).chain(&launch.args);
        let mut texts: Vec<_> = args.map(|a| CString::new(a.as_str())).collect::<Result<_, _>>()?;
        let split = texts.len();
        for (name, value) in launch.env.clone().into_iter().chain(told) {
            texts.push(CString::new(format!("{name}={value}"))?);
        }
        let (args, env) = texts.split_at(split);
        let pointers = |texts: &[CString]| {
            texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, envp) = (pointers(args), pointers(env));
        Ok(Self { argv, envp, _texts: texts })
    }

    /// Returns only if it could not.
    #[expect(unsafe_code, reason = "there is no safe call for executing a descriptor")]
    fn execute(&self, program: BorrowedFd<'_>, Ticket(ticket): Ticket) -> io::Error {
        let (argv, envp) = (self.argv.as_ptr(), self.envp.as_ptr());
        // SAFETY: both arrays end in a null pointer and hold strings that live as long as `self`. The
        // call takes five arguments; a filter sees the sixth.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                c"".as_ptr(),
                argv,
                envp,
                libc::AT_EMPTY_PATH,
                ticket,
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
            process::AFTER_STREAMS,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}

/// How long a new process may take to begin to execute. Whoever waits for that waits so long.
const BEGIN_SECONDS: libc::time_t = 5;

/// Ends this process unless it executes something soon, or lifts this: from the moment it has a
/// job's user, other processes of that user may stop it, and a stopped process does nothing by
/// itself. The timer is the kernel's, its signal reaches what is stopped, and exec removes it.
pub(super) struct Deadline(libc::c_int);

impl Deadline {
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    pub(super) fn set() -> io::Result<Self> {
        // SAFETY: the structures are plain numbers for which zero is a value, and they outlive the
        // calls, which keep nothing of them.
        let (mut event, mut when): (libc::sigevent, libc::itimerspec) =
            unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        when.it_value.tv_sec = BEGIN_SECONDS;
        let mut timer: libc::c_int = 0;
        // SAFETY: as above; the kernel writes the timer's number into `timer`. The library's call
        // would allocate.
        let made = unsafe {
            libc::syscall(
                libc::SYS_timer_create,
                libc::CLOCK_MONOTONIC,
                &raw mut event,
                &raw mut timer,
            )
        };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        let none = std::ptr::null_mut::<libc::itimerspec>();
        // SAFETY: as above.
        let set =
            unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const when, none) };
        if set == 0 { Ok(Self(timer)) } else { Err(io::Error::last_os_error()) }
    }

    #[expect(unsafe_code, reason = "there is no safe call for it")]
    fn lift(self) -> io::Result<()> {
        // SAFETY: the call takes the timer's number and touches no memory.
        let lifted = unsafe { libc::syscall(libc::SYS_timer_delete, self.0) };
        if lifted == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
