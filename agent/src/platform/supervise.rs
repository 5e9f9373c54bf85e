//! What the keeper of a job waits for: signals and time as descriptors, so that one call waits for
//! everything.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, IntoRawFd as _},
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::OwnedFd,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, WaitOptions, WaitStatus, waitpid},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

/// Readable once a signal has asked this process to end what it keeps.
#[derive(Debug)]
pub struct Signals(OwnedFd);

/// The writing end, as the handler finds it. It stays open to the end of the process.
static TOLD: AtomicI32 = AtomicI32::new(-1);

#[expect(unsafe_code, reason = "a handler knows the descriptor by its number only")]
extern "C" fn told(_: libc::c_int) {
    // SAFETY: the descriptor is never closed. The call is one system call that leaves `errno`
    // alone, which is all that may happen in a handler.
    let pipe = unsafe { BorrowedFd::borrow_raw(TOLD.load(Ordering::Relaxed)) };
    let _full_is_told_too = rustix::io::write(pipe, &[1]);
}

impl Signals {
    /// From here on SIGTERM is told and does nothing else. Once in a process.
    ///
    /// # Errors
    /// As the system's.
    #[expect(unsafe_code, reason = "a handler could be anything")]
    pub fn new() -> io::Result<Self> {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        TOLD.store(write.into_raw_fd(), Ordering::Relaxed);
        let handler = SigHandler::Handler(told);
        let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does only what a handler may.
        unsafe { sigaction(Signal::SIGTERM, &action) }?;
        Ok(Self(read))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Readable once its time has come, by a clock that goes on while the machine sleeps.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// One that comes after `time`.
    ///
    /// # Errors
    /// As the system's.
    pub fn after(time: Duration) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
        let at = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            // All zero would be never.
            tv_nsec: i64::from(time.subsec_nanos()).max(1),
        };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: zero, it_value: at };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(Self(timer))
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of these can be read or was closed by the other side; which of them.
///
/// # Errors
/// As the system's.
pub fn any_of<const N: usize>(watched: [Option<BorrowedFd<'_>>; N]) -> io::Result<[bool; N]> {
    wait(watched, None)
}

/// The same, for no longer than `most`; none of them, if none was ready by then.
///
/// # Errors
/// As the system's.
pub fn any_of_within<const N: usize>(
    watched: [Option<BorrowedFd<'_>>; N],
    most: Duration,
) -> io::Result<[bool; N]> {
    wait(watched, Some(most))
}

fn wait<const N: usize>(
    watched: [Option<BorrowedFd<'_>>; N],
    most: Option<Duration>,
) -> io::Result<[bool; N]> {
    let most = most.map(|most| Timespec {
        tv_sec: i64::try_from(most.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(most.subsec_nanos()),
    });
    let mut places = Vec::with_capacity(N);
    let mut asked = Vec::with_capacity(N);
    for (place, fd) in watched.iter().enumerate() {
        if let Some(fd) = fd {
            places.push(place);
            asked.push(PollFd::from_borrowed_fd(*fd, PollFlags::IN));
        }
    }
    rustix::io::retry_on_intr(|| poll(&mut asked, most.as_ref()))?;
    let mut ready = [false; N];
    for (place, fd) in places.into_iter().zip(&asked) {
        if let Some(ready) = ready.get_mut(place) {
            *ready = !fd.revents().is_empty();
        }
    }
    Ok(ready)
}

/// Takes the end of a child that has ended or is about to; `end` can be read then. Somebody else's tracer can keep it from
/// its own parent, so this does not wait for ever.
///
/// # Errors
/// When it is not there to be taken within `patience`.
pub fn reap(child: Pid, end: BorrowedFd<'_>, patience: Duration) -> io::Result<WaitStatus> {
    const ROUND: Duration = Duration::from_millis(5);
    any_of_within([Some(end)], patience)?;
    let mut left = patience;
    loop {
        let taken = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::NOHANG))?;
        match taken {
            Some((_, status)) => return Ok(status),
            None if left.is_zero() => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "a process of the job does not end, or another process traces it",
                ));
            }
            None => any_of_within([None], ROUND).map(drop)?,
        }
        left = left.saturating_sub(ROUND);
    }
}

/// Whether this one can be read or was closed, without waiting.
#[must_use]
pub fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0)
}
