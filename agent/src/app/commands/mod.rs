//! The agent's own commands, one file each.

pub(super) mod clock;
pub(super) mod config;
pub(super) mod enroll;
pub(super) mod service;
pub(super) mod unenroll;

use std::io;

use jtnt_proto::audit::Caller;
use jtntctl::{Exit, Failure, Io};

use crate::platform::users;

/// Who runs this command, as the audit log has it.
pub(super) fn ourselves() -> Caller {
    let uid = users::own_uid();
    Caller { uid: Some(uid), pid: Some(std::process::id()), name: users::name_of(uid) }
}

/// Prints; whoever closed the pipe has seen enough.
pub(super) fn print(io: &mut Io, text: &str) -> Result<Exit, Failure> {
    match io.print(text.as_bytes()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(error) => Err(Failure::new(Exit::Io, "write the output", error.to_string())),
    }
}
