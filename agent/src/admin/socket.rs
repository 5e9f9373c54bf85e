//! The socket in the file system: made whole under another name, then put in place, so that it is
//! never there with the wrong mode, and a dead agent's is replaced without a gap.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

use crate::{
    platform::{host, paths::Inode, users},
    runtime::durable,
};

/// Everybody may connect: who they are decides what they may do.
const MODE: u32 = 0o666;
const FOLDER_MODE: u32 = 0o755;

/// A bound socket; its name goes when this does, unless somebody else has taken it over.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: Option<Inode>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let own = fs::symlink_metadata(&self.path).ok().map(|m| Inode::of(&m));
        if own.is_some() && own == self.inode {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// Binds at `path`.
///
/// # Errors
/// What is wrong and what to do, for people.
pub(super) fn bind(path: &Path) -> Result<Socket, String> {
    let at = |e: &dyn std::fmt::Display| format!("admin socket {}: {e}", path.display());
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.ok_or_else(|| at(&"set admin_socket to an absolute path"))?;
    durable::create_dir(folder, FOLDER_MODE).map_err(|e| at(&e))?;
    host::owned(folder, users::own_uid()).map_err(|e| at(&e))?;
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(at(&e)),
        // Somebody who answers is another agent; who does not has left the socket behind.
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(at(&"another agent answers there; stop it, or set admin_socket elsewhere"));
        }
        Ok(_) => {}
    }
    let staged = path.with_extension("new");
    match fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&e)),
        _ => {}
    }
    let listener = UnixListener::bind(&staged).map_err(|e| {
        let long = e.kind() == io::ErrorKind::InvalidInput;
        if long { at(&"the path is too long for a socket (107 bytes)") } else { at(&e) }
    })?;
    let placed = fs::set_permissions(&staged, fs::Permissions::from_mode(MODE))
        .and_then(|()| fs::symlink_metadata(&staged))
        .and_then(|meta| fs::rename(&staged, path).map(|()| Inode::of(&meta)));
    let inode = placed.map_err(|e| {
        let _gone = fs::remove_file(&staged);
        at(&e)
    })?;
    Ok(Socket { listener, path: path.to_owned(), inode: Some(inode) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let first = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o666);
        let refused = bind(&path).unwrap_err();
        assert!(refused.contains("another agent answers there"), "{refused}");
        // A process that was killed leaves its socket.
        let left = path.with_extension("left");
        fs::rename(&path, &left).unwrap();
        drop(first);
        fs::rename(&left, &path).unwrap();
        let second = bind(&path).unwrap();
        drop(second);
        assert!(!path.exists(), "a clean end takes the name away");
    }

    #[tokio::test]
    async fn a_name_that_was_taken_over_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_folder_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = bind(&dir.path().join("admin.sock")).unwrap_err();
        assert!(refused.contains("chmod go-w"), "{refused}");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let refused = bind(&dir.path().join("x".repeat(120))).unwrap_err();
        assert!(refused.contains("too long"), "{refused}");
    }
}
