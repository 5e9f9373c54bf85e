//! The user database: names, ids, home folders, groups.

use std::{ffi::CString, path::PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

/// The number the kernel shows for a user that a user namespace does not map.
pub const UNMAPPED_UID: u32 = 65_534;

/// The user this process acts as.
#[must_use]
pub fn own_uid() -> u32 {
    Uid::effective().as_raw()
}

/// Home folder by the database, not by `HOME`: whoever starts a daemon with sudo keeps `HOME`.
#[must_use]
pub fn home(uid: u32) -> Option<PathBuf> {
    Some(User::from_uid(Uid::from_raw(uid)).ok()??.dir)
}

/// The user's name.
#[must_use]
pub fn name_of(uid: u32) -> Option<String> {
    Some(User::from_uid(Uid::from_raw(uid)).ok()??.name)
}

/// The id of a user given by name or number.
#[must_use]
pub fn uid_of(user: &str) -> Option<u32> {
    match user.parse() {
        Ok(uid) => Some(uid),
        Err(_) => Some(User::from_name(user).ok()??.uid.as_raw()),
    }
}

/// The id of a group given by name or number.
#[must_use]
pub fn gid_of(group: &str) -> Option<u32> {
    match group.parse() {
        Ok(gid) => Some(gid),
        Err(_) => Some(Group::from_name(group).ok()??.gid.as_raw()),
    }
}

/// Every group of a user by the database; `None` when it cannot tell, which is no "none".
#[must_use]
pub fn groups_of(uid: u32) -> Option<Vec<u32>> {
    let user = User::from_uid(Uid::from_raw(uid)).ok()??;
    list(&user.name, user.gid)
}

#[cfg(target_os = "linux")]
fn list(name: &str, primary: Gid) -> Option<Vec<u32>> {
    let name = CString::new(name).ok()?;
    let groups = nix::unistd::getgrouplist(&name, primary).ok()?;
    Some(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(not(target_os = "linux"))]
fn list(_name: &str, primary: Gid) -> Option<Vec<u32>> {
    Some(vec![primary.as_raw()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_by_name_and_number() {
        assert_eq!(uid_of("root"), Some(0));
        assert_eq!(uid_of("0"), Some(0));
        assert_eq!(name_of(0).as_deref(), Some("root"));
        assert_eq!(home(0), Some("/root".into()));
        assert!(groups_of(0).unwrap().contains(&0));
        assert_eq!(gid_of("root"), Some(0));
    }

    #[test]
    fn strangers_are_nobody() {
        assert_eq!(uid_of("no-such-user-here"), None);
        assert_eq!(groups_of(4_000_000_000), None);
    }
}
