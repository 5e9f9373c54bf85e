//! How full the machine's disks are, and who owns what.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::domain::health::Disk;

/// The file system that holds `path`.
///
/// # Errors
/// As the system's.
pub fn disk(path: &Path) -> io::Result<Disk> {
    let s = rustix::fs::statvfs(path)?;
    let used = s.f_blocks.saturating_sub(s.f_bfree).saturating_mul(s.f_frsize);
    // What only root may use is of no use to jobs: `df` divides by the rest as well.
    let available = s.f_bavail.saturating_mul(s.f_frsize);
    Ok(Disk { total: used.saturating_add(available), used })
}

/// CPU time, memory, descriptors and threads of this process, by the names Prometheus uses for
/// every process; `None` where the system is not asked.
#[must_use]
pub fn process_collector() -> Option<Box<dyn prometheus::core::Collector>> {
    #[cfg(target_os = "linux")]
    return Some(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
    #[cfg(not(target_os = "linux"))]
    None
}

/// Asks the system to write these bytes of a file to the disk now, behind us, and to keep no copy
/// in memory. Only a hint: what must be durable is still synced.
#[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "only Linux is asked"))]
pub fn write_behind(file: &fs::File, offset: u64, length: u64) {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Advice, fadvise};
        let length = std::num::NonZeroU64::new(length);
        if let Err(error) = fadvise(file, offset, length, Advice::DontNeed) {
            tracing::debug!(%error, "a file is not written behind");
        }
    }
}

/// Keeps this process's memory, keys included, from ever being written to a core file.
///
/// # Errors
/// As the system's.
pub fn no_core_dumps() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

/// Why a file or folder must not be trusted.
#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    /// Somebody else owns it or a folder above it.
    #[error(
        "{} belongs to uid {owner}, who could change what the agent believes; \
         type: chown {expected} {}", path.display(), path.display()
    )]
    Owner {
        /// What.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        expected: u32,
    },
    /// Others can write to it.
    #[error(
        "{} can be written by others (mode {mode:04o}); type: chmod go-w {}",
        path.display(), path.display()
    )]
    Writable {
        /// What.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It cannot be looked at.
    #[error("{}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Checks that `path` and every folder above it belong to `uid` or root, and that nobody else can
/// write there. A sticky folder such as /tmp is accepted above, as its entries are safe.
///
/// # Errors
/// The first that does not, with what to type.
pub fn owned(path: &Path, uid: u32) -> Result<(), OwnershipError> {
    let io = |path: &Path, source| OwnershipError::Io { path: path.to_owned(), source };
    let real = fs::canonicalize(path).map_err(|e| io(path, e))?;
    for (depth, part) in real.ancestors().enumerate() {
        let meta = fs::symlink_metadata(part).map_err(|e| io(part, e))?;
        let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
        if owner != uid && owner != 0 {
            return Err(OwnershipError::Owner { path: part.to_owned(), owner, expected: uid });
        }
        let sticky_above = depth > 0 && mode & 0o1000 != 0;
        if mode & 0o022 != 0 && !sticky_above {
            return Err(OwnershipError::Writable { path: part.to_owned(), mode });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_disk_is_never_fuller_than_full() {
        let Disk { total, used } = disk(Path::new("/")).unwrap();
        assert!(total > 0 && used <= total);
    }

    #[test]
    fn what_others_can_write_is_refused_with_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let uid = crate::platform::users::own_uid();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        owned(&own, uid).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o775)).unwrap();
        let error = owned(&own, uid).unwrap_err().to_string();
        assert!(error.contains("(mode 0775); type: chmod go-w /"), "{error}");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(owned(&own, uid).is_err(), "a folder above counts as well");
    }
}
