//! Exit codes: the part of the answer that scripts read.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Yes, or done.
    Done = 0,
    /// The answer is no: denied, unhealthy, tampered, no such job.
    No = 1,
    /// The request makes no sense as typed.
    Usage = 2,
    /// No agent answers.
    Unreachable = 3,
    /// The caller may not.
    Denied = 4,
    /// Something needed for an answer is missing.
    Incomplete = 5,
    /// A file, a stream or the agent itself failed.
    Io = 6,
}

impl Exit {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// `Done` for yes, `No` otherwise.
    #[must_use]
    pub fn of(yes: bool) -> Self {
        if yes { Self::Done } else { Self::No }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
