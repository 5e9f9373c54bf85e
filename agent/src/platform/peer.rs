//! Who is at the other end of a Unix socket, as the kernel saw it when the peer connected.

#[cfg(target_os = "linux")]
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use tokio::net::UnixStream;

use super::users;

/// More groups than any user has; a longer list is refused, not cut.
#[cfg(target_os = "linux")]
const MAX_GROUPS: usize = 4096;

/// A peer with all of its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Effective user.
    pub uid: u32,
    /// Process, where the system tells.
    pub pid: Option<u32>,
    /// Effective and supplementary groups.
    pub groups: Vec<u32>,
}

/// The peer of `stream`; `None` when anything about it cannot be known: such a peer is to be
/// refused. One that this user namespace does not map has a number that says so, and no groups.
#[must_use]
pub fn of(stream: &UnixStream) -> Option<Peer> {
    let credential = stream.peer_cred().ok()?;
    let uid = credential.uid();
    let pid = credential.pid().and_then(|pid| u32::try_from(pid).ok());
    if !pid.is_some_and(is_among_us) {
        return None;
    }
    if uid == users::UNMAPPED_UID {
        return Some(Peer { uid, pid, groups: Vec::new() });
    }
    let mut groups = supplementary(stream).or_else(|| users::groups_of(uid))?;
    groups.push(credential.gid());
    Some(Peer { uid, pid, groups })
}

/// Whether a process lives where this one does: a job that may reach sockets has numbers of its
/// own, and nothing to say here, not even as root.
#[cfg(target_os = "linux")]
fn is_among_us(pid: u32) -> bool {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/pid"));
    match (of(&pid.to_string()), of("self")) {
        (Ok(theirs), Ok(own)) => theirs == own,
        // An agent that is not root may not look at others, and its jobs have no such place.
        (Err(error), Ok(_)) => error.kind() == std::io::ErrorKind::PermissionDenied,
        _ => false,
    }
}

#[cfg(not(target_os = "linux"))]
fn is_among_us(_pid: u32) -> bool {
    true
}

#[cfg(target_os = "linux")]
fn supplementary(stream: &UnixStream) -> Option<Vec<u32>> {
    peer_groups(stream.as_fd())
}

#[cfg(not(target_os = "linux"))]
fn supplementary(_stream: &UnixStream) -> Option<Vec<u32>> {
    None
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no safe crate of ours wraps SO_PEERGROUPS")]
fn peer_groups(socket: BorrowedFd<'_>) -> Option<Vec<u32>> {
    let mut groups = vec![0_u32; MAX_GROUPS];
    let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).ok()?;
    // SAFETY: the descriptor is borrowed for the call, `groups` is valid for writes of `bytes`
    // bytes, and the kernel writes at most that many and then their number to `bytes`.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if failed != 0 {
        return None;
    }
    groups.truncate(usize::try_from(bytes).ok()? / size_of::<u32>());
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn our_own_end_is_us_with_our_groups() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = of(&a).unwrap();
        assert_eq!(peer.uid, users::own_uid());
        assert_eq!(peer.pid, Some(std::process::id()));
        assert!(peer.groups.contains(&rustix::process::getegid().as_raw()));
    }
}
