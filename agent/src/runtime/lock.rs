//! One holder at a time: an advisory lock on a file that also says who holds it.
//!
//! Whoever can open a file can lock it, reading is enough: so only the owner may open these.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::durable::PRIVATE;

/// Held until dropped, or until the process ends however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A process that lives and said who it is has it.
    #[error("{} is held by {holder}", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote of itself.
        holder: String,
    },
    /// Somebody has it, but whoever is named in the file is gone.
    #[error(
        "{0} is locked by a process that it does not name; find it with `sudo fuser -v {0}` and end \
         it",
        path.display()
    )]
    Unnamed {
        /// The lock file.
        path: PathBuf,
    },
    /// The file cannot be opened or locked.
    #[error("{}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock at `path` without waiting and writes into it that `who`, such as
    /// `jtnt-agent run`, has it in this process.
    ///
    /// # Errors
    /// When it is held, naming the holder if that lives, or when the file cannot be used.
    pub fn take(path: &Path, who: &str) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(PRIVATE);
        let mut file = options.open(path).map_err(io)?;
        // Earlier versions made it readable for everybody.
        if file.metadata().map_err(io)?.permissions().mode() & 0o7777 != PRIVATE {
            file.set_permissions(Permissions::from_mode(PRIVATE)).map_err(io)?;
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                file.take(256).read_to_string(&mut holder).map_err(io)?;
                let (path, holder) = (path.to_owned(), holder.trim().to_owned());
                return Err(if lives(&holder) {
                    LockError::Held { path, holder }
                } else {
                    LockError::Unnamed { path }
                });
            }
            Err(e) => return Err(io(e.into())),
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{who} (pid {})", process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

/// The process that holds the lock at `path`, as it said itself; `None` if nobody does.
///
/// # Errors
/// When the file cannot be looked at, or its holder has not said who it is.
pub fn holder(path: &Path) -> Result<Option<u32>, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io)?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => return Ok(None),
        Err(Errno::WOULDBLOCK) => {}
        Err(e) => return Err(io(e.into())),
    }
    let mut who = String::new();
    file.take(256).read_to_string(&mut who).map_err(io)?;
    match pid_in(who.trim()) {
        Some(pid) => Ok(Some(pid)),
        None => Err(LockError::Unnamed { path: path.to_owned() }),
    }
}

fn pid_in(holder: &str) -> Option<u32> {
    holder.rsplit_once("(pid ")?.1.strip_suffix(')')?.parse().ok()
}

/// Whether the process that wrote this of itself is still there.
fn lives(holder: &str) -> bool {
    let pid = pid_in(holder).and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    // One of another user may not be signalled, but it is there.
    pid.is_some_and(|pid| matches!(test_kill_process(pid), Ok(()) | Err(Errno::PERM)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::durable, *};

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path, "first").unwrap();
        let refused = Lock::take(&path, "second").unwrap_err().to_string();
        let named = format!("is held by first (pid {})", process::id());
        assert!(refused.ends_with(&named), "{refused}");
        drop(first);
        Lock::take(&path, "second").unwrap();
    }

    #[test]
    fn a_holder_that_is_gone_is_not_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut child = process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        for left in [format!("agent (pid {})", child.id()), String::new(), "(pid x)".to_owned()] {
            durable::replace(&path, left.as_bytes(), PRIVATE).unwrap();
            let stranger = File::open(&path).unwrap();
            flock(&stranger, FlockOperation::NonBlockingLockExclusive).unwrap();
            let refused = Lock::take(&path, "agent").unwrap_err().to_string();
            assert!(!refused.contains(" (pid "), "{refused}");
            assert!(refused.contains(&format!("sudo fuser -v {}", path.display())), "{refused}");
        }
    }

    #[test]
    fn nobody_else_can_open_the_file_and_so_lock_it() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let (fresh, old) = (dir.path().join("fresh"), dir.path().join("old"));
        durable::create(&old, 0o644).unwrap();
        for path in [fresh, old] {
            let _held = Lock::take(&path, "agent").unwrap();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}
