//! Users for the jobs of one agent. An agent that is root ends whatever is left of a user of its
//! range, so agents that run side by side must not share one.

use std::{
    io,
    os::unix::net::{SocketAddr, UnixListener},
};

use super::fault::{Fault, Res};

/// The agent's own default range; every container that runs jobs as root has it.
const FIRST: u32 = 61_184;
const LAST: u32 = 65_519;
const EACH: u32 = 32;

/// A range that nobody else has, in any process, until this is dropped.
#[derive(Debug)]
pub(crate) struct Uids {
    pub(crate) range: String,
    _held: UnixListener,
}

impl Uids {
    pub(crate) fn take() -> Res<Self> {
        for slot in 0..(LAST - FIRST) / EACH {
            let Ok(held) = hold(slot) else { continue };
            // From the top, as other tests begin at the bottom.
            let last = LAST - slot * EACH;
            return Ok(Self { range: format!("{}-{last}", last - EACH + 1), _held: held });
        }
        Err(Fault::new("every range of user ids for jobs is taken"))
    }
}

/// A name that the system gives to one process at a time, and takes back when it ends.
fn hold(slot: u32) -> io::Result<UnixListener> {
    #[cfg(target_os = "linux")]
    let name = {
        use std::os::linux::net::SocketAddrExt as _;
        SocketAddr::from_abstract_name(format!("jtnt-test-uids-{slot}"))?
    };
    #[cfg(not(target_os = "linux"))]
    let name = {
        let file = std::env::temp_dir().join(format!("jtnt-uids-{}-{slot}", std::process::id()));
        SocketAddr::from_pathname(file)?
    };
    UnixListener::bind_addr(&name)
}
