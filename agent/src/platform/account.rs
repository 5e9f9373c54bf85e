//! Whom a job runs as, and the rights of that user for a moment on one thread.

use std::{ffi::CString, io, path::PathBuf};

use nix::unistd::{Gid, Uid, User, getgrouplist, getgroups, setfsgid, setfsuid};
use serde::{Deserialize, Serialize};

/// A user with everything a process of its needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The name; the number where the database has none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Main group.
    pub gid: u32,
    /// Every group, the main one too.
    pub groups: Vec<u32>,
    /// Home folder; `/` where there is none.
    pub home: PathBuf,
}

impl Account {
    /// The user this process acts as, with its present groups.
    #[must_use]
    pub fn own() -> Self {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        let known = User::from_uid(uid).ok().flatten();
        let groups = getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        let (name, home) = known.map_or_else(|| (uid.to_string(), root()), |u| (u.name, u.dir));
        Self { name, uid: uid.as_raw(), gid: gid.as_raw(), groups, home }
    }

    /// A user of the database, by name; `None` when there is none.
    ///
    /// # Errors
    /// When the database cannot tell, which is no "none".
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        let Some(user) = User::from_name(name)? else { return Ok(None) };
        let c_name = CString::new(name)?;
        let groups = getgrouplist(&c_name, user.gid)?.into_iter().map(Gid::as_raw).collect();
        Ok(Some(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups,
            home: user.dir,
        }))
    }

    /// A user that is nobody else: a number without groups, a name or a home.
    #[must_use]
    pub fn numbered(id: u32) -> Self {
        Self { name: id.to_string(), uid: id, gid: id, groups: Vec::new(), home: root() }
    }

    /// Whether a process of this one's rights must give rights up to be this user.
    #[must_use]
    pub fn is_other(&self) -> bool {
        self.uid != Uid::effective().as_raw()
    }
}

fn root() -> PathBuf {
    PathBuf::from("/")
}

/// Does `work` with the file rights of `account` on this thread, so that the kernel judges each
/// access as that user's. Must not be held over an await; `work` returns first.
///
/// # Errors
/// When the rights cannot be taken; nothing was done then.
pub fn with_rights_of<T>(account: &Account, work: impl FnOnce() -> T) -> io::Result<T> {
    if !account.is_other() {
        return Ok(work());
    }
    let borrowed = Borrowed::take(account)?;
    let done = work();
    drop(borrowed);
    Ok(done)
}

/// Rights of another user on this thread, given back at the end however it comes.
struct Borrowed {
    uid: Uid,
    gid: Gid,
    groups: Vec<u32>,
}

impl Borrowed {
    fn take(account: &Account) -> io::Result<Self> {
        let groups: Vec<u32> = getgroups()?.into_iter().map(Gid::as_raw).collect();
        let before = Self { uid: Uid::effective(), gid: Gid::effective(), groups };
        set_groups_of_thread(&account.groups)?;
        setfsgid(Gid::from_raw(account.gid));
        setfsuid(Uid::from_raw(account.uid));
        // Neither call reports an error: an impossible id only asks what the present one is.
        let taken = setfsuid(Uid::from_raw(u32::MAX)).as_raw() == account.uid
            && setfsgid(Gid::from_raw(u32::MAX)).as_raw() == account.gid;
        if taken {
            return Ok(before);
        }
        Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("cannot take the file rights of user {}", account.name),
        ))
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
        if let Err(error) = set_groups_of_thread(&self.groups) {
            tracing::error!(%error, "a thread lost its groups");
        }
    }
}

/// The library's call changes every thread of the process; the kernel's changes this one.
#[expect(unsafe_code, reason = "there is no safe call for one thread's groups")]
fn set_groups_of_thread(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads `groups.len()` ids from a live slice and keeps nothing of it.
    let answer = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_user_is_none_and_no_error() {
        assert_eq!(Account::named("no-such-user-here").unwrap(), None);
        assert_eq!(Account::named("root\0x").ok().flatten(), None);
    }

    #[test]
    fn root_has_a_home_and_groups() {
        let root = Account::named("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
    }

    #[test]
    fn rights_are_borrowed_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private");
        crate::runtime::durable::replace(&path, b"x", 0o600).unwrap();
        if Uid::effective().as_raw() != 0 {
            eprintln!("not root: borrowing another user's rights was not tried");
            return;
        }
        let stranger = Account::numbered(61_184);
        let refused = with_rights_of(&stranger, || std::fs::read(&path)).unwrap();
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
