//! Files that survive a power cut: temporary file with its mode set before its content, fsync,
//! rename, fsync of the folder. Nothing else in the agent writes state.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

#[cfg(unix)]
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};

/// Only the owner reads and writes.
pub const PRIVATE: u32 = 0o600;
/// Everybody reads, the owner writes.
pub const PUBLIC: u32 = 0o644;

/// Puts `content` at `path`, whole or not at all, with `mode` from the first byte on.
///
/// # Errors
/// Any failure leaves what was there before. A failed fsync is final for this call.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let staged = stage(path, content, mode)?;
    fs::rename(&staged, path).inspect_err(|_| {
        let _removed = fs::remove_file(&staged);
    })?;
    sync_parent(path)
}

/// Puts `content` at `path`, whole or not at all for whoever looks, but not across a power cut.
///
/// # Errors
/// Any failure leaves what was there before.
pub fn put(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let staged = beside(path, "new");
    match fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = create(&staged, mode).and_then(|mut file| file.write_all(content));
    written.and_then(|()| fs::rename(&staged, path)).inspect_err(|_| {
        let _removed = fs::remove_file(&staged);
    })
}

/// Writes and syncs the temporary file that [`replace`] renames; for commits of several files.
///
/// # Errors
/// As the system's; nothing stays behind.
pub fn stage(path: &Path, content: &[u8], mode: u32) -> io::Result<PathBuf> {
    let staged = beside(path, "new");
    match fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = create(&staged, mode).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.inspect_err(|_| {
        let _removed = fs::remove_file(&staged);
    })?;
    Ok(staged)
}

/// Permissions of the file at `path`, or [`PUBLIC`] where there is none: for whoever replaces a file
/// that others made.
#[must_use]
pub fn mode_of(path: &Path) -> u32 {
    #[cfg(unix)]
    if let Ok(meta) = fs::metadata(path) {
        return meta.permissions().mode() & 0o777;
    }
    PUBLIC
}

/// Refuses a file with a secret that others can read.
///
/// # Errors
/// When they can, or it is no plain file.
#[cfg(unix)]
pub fn private(path: &Path) -> Result<(), String> {
    let meta = fs::symlink_metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mode = meta.permissions().mode() & 0o7777;
    if meta.is_file() && mode & 0o077 == 0 {
        return Ok(());
    }
    if !meta.is_file() {
        return Err(format!("{} is no plain file", path.display()));
    }
    Err(format!(
        "{} can be read by others (mode {mode:04o}), so the secret may be known; \
         type: chmod 600 {}",
        path.display(),
        path.display()
    ))
}

#[cfg(not(unix))]
pub fn private(path: &Path) -> Result<(), String> {
    fs::symlink_metadata(path).map(drop).map_err(|e| format!("{}: {e}", path.display()))
}

/// Refuses a file that anybody but root and this process's user can change or replace: code and
/// secrets of others.
///
/// # Errors
/// When they can, or it cannot be looked at.
#[cfg(unix)]
pub fn untouched(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    let at = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let real = path.canonicalize().map_err(|e| at(path, &e))?;
    for part in path.ancestors().chain(real.ancestors()).filter(|p| p.is_absolute()) {
        let meta = fs::metadata(part).map_err(|e| at(part, &e))?;
        // In a folder such as /tmp nobody can replace what is not his.
        let sticky = meta.is_dir() && meta.mode() & 0o1000 != 0;
        let others = meta.mode() & 0o022 != 0 && !sticky;
        if others || ![0, own].contains(&meta.uid()) {
            return Err(at(part, &"others can change this, so it is not used"));
        }
    }
    Ok(())
}

/// Creates a file that was not there, with exactly `mode` whatever the umask is.
///
/// # Errors
/// Also when it exists.
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    options.mode(mode);
    let file = options.open(path)?;
    #[cfg(unix)]
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(file)
}

/// Creates a folder and its parents, each with `mode` if it was not there, and syncs them.
///
/// # Errors
/// As the system's.
pub fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dir(parent, mode.max(0o755))?;
    }
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    builder.mode(mode);
    match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    sync_parent(path)
}

/// Creates one folder, for files that a power cut may take.
///
/// # Errors
/// As the system's; that it is there already is none.
pub fn scratch_dir(path: &Path, mode: u32) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    builder.mode(mode);
    match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Removes a file if it is there, durably.
///
/// # Errors
/// As the system's; a missing file is none.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_parent(path),
    }
}

/// Makes a rename, creation or removal in the folder of `path` durable.
///
/// # Errors
/// As the system's.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => sync_dir(dir),
        _ => sync_dir(Path::new(".")),
    }
}

/// Makes the entries of `dir` durable.
///
/// # Errors
/// As the system's.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    // Only Unix lets a folder be opened; elsewhere the rename itself is what there is.
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// Also when it is longer.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut out = Vec::new();
    let mut options = OpenOptions::new();
    options.read(true);
    // A pipe would be waited for by whoever opens it.
    #[cfg(unix)]
    options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        let why = format!("{} is no plain file", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    file.take(limit.saturating_add(1)).read_to_end(&mut out)?;
    if out.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} is longer than {limit} bytes", path.display()),
        ));
    }
    Ok(out)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn content_and_mode_arrive_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        replace(&path, b"one", PRIVATE).unwrap();
        replace(&path, b"two", PRIVATE).unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"two");
        assert_eq!((mode(&path), mode_of(&path)), (0o600, 0o600));
        assert_eq!(mode_of(&dir.path().join("none")), PUBLIC);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x", PUBLIC).is_err(), "a folder stands in the way");
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_leftover_of_a_crash_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        create(&dir.path().join("state.new"), 0o666).unwrap();
        replace(&path, b"x", PRIVATE).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn reads_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        replace(&path, &[0; 11], PUBLIC).unwrap();
        assert_eq!(read(&path, 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn folders_come_with_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_dir(&path, 0o700).unwrap();
        assert_eq!(mode(&path), 0o700);
    }
}
