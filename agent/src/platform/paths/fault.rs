//! Why a path is refused before any rule is asked. No rule and no mode changes these.

use std::io;

use rustix::io::Errno;

/// A path that is not used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It does not begin with `/`.
    #[error("{0:?} is not absolute; write the whole path")]
    Relative(String),
    /// It has an empty, `.` or `..` part, or a NUL.
    #[error("{0:?} is not in its plain form; write it without //, ., .. and a slash at its end")]
    NotNormal(String),
    /// The path, or a part of it, is longer than the system takes.
    #[error("a path of {0} bytes, or one of its parts, is too long")]
    TooLong(usize),
    /// Following links, it leads to a name that is not UTF-8, which no rule can speak of.
    #[error("{0:?} leads to a name that is not UTF-8; rename that file")]
    NotText(String),
    /// Nothing is there.
    #[error("{0:?} does not exist")]
    Missing(String),
    /// A link where none may be, a magic link of `/proc`, or too many links.
    #[error("{0:?} goes through a link that is not followed; name what it leads to")]
    Link(String),
    /// It lies in `/proc`, where a name means something else for every process.
    #[error("{0:?} lies in /proc; name the real file")]
    Proc(String),
    /// A folder, a device, a pipe, a socket.
    #[error("{path:?} is {kind}, not a regular file")]
    NotAFile {
        /// The path.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// Several names for one file: a rule for one of them would open the others.
    #[error("{0:?} has other names (hard links) too; remove them, or copy the file")]
    HardLink(String),
    /// It was moved or replaced while it was looked at.
    #[error("{0:?} was moved or replaced meanwhile; try again")]
    Moved(String),
    /// Somebody holds a lease on it, and could make whoever opens it wait.
    #[error("{0:?} is held by another process (a lease); try again when that has ended")]
    Busy(String),
    /// Too large to be copied before it is executed.
    #[error(
        "{path:?} can be changed by others and is larger than {limit} bytes; move it where \
             only root writes"
    )]
    TooLarge {
        /// The path.
        path: String,
        /// How large it may be.
        limit: u64,
    },
    /// The kernel cannot open paths safely.
    #[error("this system has no openat2, which safe paths need; use Linux 5.6 or later")]
    Unsupported,
    /// The system said no.
    #[error("{path:?}: {error}")]
    Io {
        /// The path.
        path: String,
        /// What it said.
        error: String,
    },
}

impl PathFault {
    /// The stable name.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Relative(_) => "PATH_RELATIVE",
            Self::NotNormal(_) => "PATH_NOT_NORMAL",
            Self::TooLong(_) => "PATH_TOO_LONG",
            Self::NotText(_) => "PATH_NOT_UTF8",
            Self::Missing(_) => "PATH_MISSING",
            Self::Link(_) => "PATH_LINK",
            Self::Proc(_) => "PATH_PROC",
            Self::NotAFile { .. } => "PATH_NOT_A_FILE",
            Self::HardLink(_) => "HARD_LINK",
            Self::Moved(_) => "PATH_MOVED",
            Self::Busy(_) => "PATH_BUSY",
            Self::TooLarge { .. } => "PATH_TOO_LARGE",
            Self::Unsupported => "PATH_UNSUPPORTED",
            Self::Io { .. } => "PATH_IO",
        }
    }

    pub(super) fn from_errno(path: &str, errno: Errno) -> Self {
        let named = path.to_owned();
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::Missing(named),
            Errno::LOOP => Self::Link(named),
            Errno::NAMETOOLONG => Self::TooLong(path.len()),
            Errno::NOSYS => Self::Unsupported,
            other => Self::from_io(path, &other.into()),
        }
    }

    pub(super) fn from_io(path: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::WouldBlock {
            return Self::Busy(path.to_owned());
        }
        Self::Io { path: path.to_owned(), error: error.to_string() }
    }
}
