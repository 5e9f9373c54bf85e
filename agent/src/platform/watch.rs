//! The end of a process, as something to wait for.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::sweep::{Stat, boot_id, pid_of};
use crate::domain::job::Process;

/// A process by its descriptor: what is done to it is done to no other, whoever gets its number.
#[derive(Debug)]
pub struct Watched(OwnedFd);

impl Watched {
    /// The process that has this number now.
    ///
    /// # Errors
    /// When there is none.
    pub fn process(pid: u32) -> io::Result<(Self, Process)> {
        let end = pidfd_open(pid_of(pid)?, PidfdFlags::empty())?;
        let start_time = Stat::of(pid)?.start_time;
        Ok((Self(end), Process { pid, start_time, boot_id: boot_id()?, cgroup: None }))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub async fn ended(&self) -> io::Result<()> {
        readable(self.0.as_fd()).await
    }

    /// Sends a signal, if it is still there.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.0, signal)
            && error != Errno::SRCH
        {
            tracing::warn!(%error, "a process got no signal");
        }
    }
}

/// Waits until there is something to read, or the other side is closed.
///
/// # Errors
/// When the system cannot tell.
pub async fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    watched(fd)?.readable().await.map(drop)
}

/// Registers a descriptor with the runtime for as long as it is borrowed.
#[expect(unsafe_code, reason = "the runtime cannot know that a descriptor stays what it is")]
fn watched(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a borrowed descriptor is open and the same for the whole life of the borrow, which
    // the registration cannot outlive.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
