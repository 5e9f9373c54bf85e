//! Several files at once, or none: they are written to `enrol.pending/`, made durable, and one
//! rename to `enrol.commit/` decides. From then on they are put in place however often the power
//! fails, since putting them in place twice is the same as once.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::runtime::durable;

const PENDING: &str = "enrol.pending";
const COMMIT: &str = "enrol.commit";
const DONE: &str = "enrol.done";
const MANIFEST: &str = "manifest.json";
const MAX_BYTES: u64 = 4 << 20;

/// A file to be.
#[derive(Debug)]
pub struct NewFile {
    /// Where it will stand.
    pub target: PathBuf,
    /// Its content.
    pub content: zeroize::Zeroizing<Vec<u8>>,
    /// Its permissions.
    pub mode: u32,
    /// Those of its folder, if that is not there yet.
    pub folder_mode: u32,
}

/// Told after every step; tests stop here.
pub type Step<'a> = &'a mut dyn FnMut(&'static str) -> io::Result<()>;

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    target: PathBuf,
    mode: u32,
    folder_mode: u32,
}

/// Commits `files` and puts them in place. The caller holds the enrolment's lock.
///
/// # Errors
/// Before the rename nothing has happened; after it [`finish`] goes on. [`is_pending`] tells which.
pub fn commit(data_dir: &Path, files: &[NewFile], step: Step<'_>) -> io::Result<()> {
    finish(data_dir, step)?;
    let pending = data_dir.join(PENDING);
    let staged = stage(&pending, files, step);
    if let Err(e) = staged {
        remove_folder(&pending)?;
        return Err(e);
    }
    fs::rename(&pending, data_dir.join(COMMIT))?;
    durable::sync_dir(data_dir)?;
    step("committed")?;
    finish(data_dir, step).map(drop)
}

/// Whether files were committed and are not all in place.
#[must_use]
pub fn is_pending(data_dir: &Path) -> bool {
    data_dir.join(COMMIT).join(MANIFEST).exists()
}

/// Files of a commit that is being made or put in place, wherever they are in it.
///
/// # Errors
/// As the system's.
pub fn staged(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in [PENDING, COMMIT].map(|name| data_dir.join(name)) {
        match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(entries) => {
                for entry in entries {
                    found.push(entry?.path());
                }
            }
        }
    }
    Ok(found)
}

/// Puts committed files in place, if there are any, and clears up what crashes left. The caller
/// holds the enrolment's lock. Tells whether there was anything to finish.
///
/// # Errors
/// As the system's; another call goes on.
pub fn finish(data_dir: &Path, step: Step<'_>) -> io::Result<bool> {
    let (commit, done) = (data_dir.join(COMMIT), data_dir.join(DONE));
    remove_folder(&data_dir.join(PENDING))?;
    remove_folder(&done)?;
    if !commit.exists() {
        return Ok(false);
    }
    let entries: Vec<Entry> =
        serde_json::from_slice(&durable::read(&commit.join(MANIFEST), MAX_BYTES)?)?;
    for (n, entry) in entries.iter().enumerate() {
        place(&commit.join(n.to_string()), entry)?;
        step("placed")?;
    }
    // Gone in one step: a folder that lost some of its files must not be taken for a commit.
    fs::rename(&commit, &done)?;
    durable::sync_dir(data_dir)?;
    step("done")?;
    remove_folder(&done)?;
    Ok(true)
}

/// Moves a staged file to its place, for which a full disk has room too. What is staged no more was
/// moved before.
fn place(staged: &Path, entry: &Entry) -> io::Result<()> {
    if !staged.exists() {
        return Ok(());
    }
    if let Some(folder) = entry.target.parent() {
        durable::create_dir(folder, entry.folder_mode)?;
    }
    set_mode(staged, entry.mode)?;
    match fs::rename(staged, &entry.target) {
        // A configuration may lie on another file system.
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let content = zeroize::Zeroizing::new(durable::read(staged, MAX_BYTES)?);
            durable::replace(&entry.target, &content, entry.mode)
        }
        moved => moved.and_then(|()| durable::sync_parent(&entry.target)),
    }
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let file = fs::File::open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}

fn stage(pending: &Path, files: &[NewFile], step: Step<'_>) -> io::Result<()> {
    durable::create_dir(pending, 0o700)?;
    step("pending")?;
    let mut entries = Vec::new();
    for (n, file) in files.iter().enumerate() {
        write(&pending.join(n.to_string()), &file.content)?;
        entries.push(Entry {
            target: std::path::absolute(&file.target)?,
            mode: file.mode,
            folder_mode: file.folder_mode,
        });
        step("staged")?;
    }
    write(&pending.join(MANIFEST), &serde_json::to_vec(&entries)?)?;
    durable::sync_dir(pending)?;
    step("durable")
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = durable::create(path, durable::PRIVATE)?;
    file.write_all(content)?;
    file.sync_all()
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(data: &Path) -> Vec<NewFile> {
        ["a/one", "b/two", "three"]
            .map(|name| NewFile {
                target: data.join(name),
                content: name.as_bytes().to_vec().into(),
                mode: 0o600,
                folder_mode: 0o700,
            })
            .into()
    }

    fn placed(data: &Path) -> usize {
        files(data).iter().filter(|f| fs::read(&f.target).is_ok_and(|c| c == *f.content)).count()
    }

    #[test]
    fn however_it_stops_all_files_or_none_are_there_after_the_next_start() {
        for stop_at in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let (mut steps, mut reached) = (0, Vec::new());
            let stopped = commit(dir.path(), &files(dir.path()), &mut |name| {
                reached.push(name);
                steps += 1;
                if steps > stop_at { Err(io::Error::other("power cut")) } else { Ok(()) }
            });
            if stopped.is_ok() {
                assert_eq!(placed(dir.path()), 3);
                assert_eq!(reached.len(), 10, "{reached:?}");
                return;
            }
            let committed = reached.contains(&"committed");
            finish(dir.path(), &mut |_| Ok(())).unwrap();
            assert_eq!(placed(dir.path()), if committed { 3 } else { 0 }, "after {reached:?}");
            assert!(!is_pending(dir.path()));
            let left = fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(left, if committed { 3 } else { 0 }, "nothing is left beside them");
        }
    }

    #[test]
    fn what_was_there_before_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        commit(dir.path(), &files(dir.path()), &mut |_| Ok(())).unwrap();
        let mut others = files(dir.path());
        others[0].content = b"new".to_vec().into();
        commit(dir.path(), &others, &mut |_| Ok(())).unwrap();
        assert_eq!(fs::read(dir.path().join("a/one")).unwrap(), b"new");
        assert_eq!(placed(dir.path()), 2);
    }
}
