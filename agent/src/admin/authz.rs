//! Who a caller is to the agent: the kernel's word about the peer, held against the names in the
//! configuration. Whatever cannot be known gives no role.

use std::collections::BTreeSet;

use super::methods::{Method, Role};
use crate::platform::{peer::Peer, users};

/// The names of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Users with every right.
    pub admin_users: Vec<String>,
    /// Groups with every right.
    pub admin_groups: Vec<String>,
    /// Groups that operate.
    pub operator_groups: Vec<String>,
    /// Groups that read.
    pub reader_groups: Vec<String>,
}

/// The same as numbers, as the kernel knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authz {
    own_uid: u32,
    admin_uids: BTreeSet<u32>,
    admin_gids: BTreeSet<u32>,
    operator_gids: BTreeSet<u32>,
    reader_gids: BTreeSet<u32>,
}

/// A role and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The role.
    pub role: Role,
    /// Why, for people.
    pub why: String,
}

impl Authz {
    /// Looks the names up. One that the user database does not know gives nobody anything, and is
    /// said.
    #[must_use]
    pub fn resolve(names: &Names, own_uid: u32) -> Self {
        let look = |setting: &str, names: &[String], id_of: fn(&str) -> Option<u32>| {
            let id = |name: &String| {
                let id = id_of(name);
                if id.is_none() {
                    tracing::warn!(setting, name, "not in the user database; it gives no rights");
                }
                id
            };
            names.iter().filter_map(id).collect::<BTreeSet<_>>()
        };
        Self {
            own_uid,
            admin_uids: look("admin_users", &names.admin_users, users::uid_of),
            admin_gids: look("admin_groups", &names.admin_groups, users::gid_of),
            operator_gids: look("operator_groups", &names.operator_groups, users::gid_of),
            reader_gids: look("reader_groups", &names.reader_groups, users::gid_of),
        }
    }

    /// What a peer may do.
    #[must_use]
    pub fn standing(&self, peer: &Peer) -> Standing {
        let because = |role, why: &str| Standing { role, why: why.to_owned() };
        if peer.uid == users::UNMAPPED_UID {
            return because(Role::None, "it stands for every user that is not mapped here");
        }
        if peer.uid == 0 {
            return because(Role::Admin, "it is root");
        }
        if peer.uid == self.own_uid {
            return because(Role::Admin, "the agent runs as the same user");
        }
        if self.admin_uids.contains(&peer.uid) {
            return because(Role::Admin, "it is one of admin_users");
        }
        let in_one_of = |gids: &BTreeSet<u32>| peer.groups.iter().any(|gid| gids.contains(gid));
        for (role, gids) in [
            (Role::Admin, &self.admin_gids),
            (Role::Operate, &self.operator_gids),
            (Role::Read, &self.reader_gids),
        ] {
            if in_one_of(gids) {
                return because(role, &format!("it is in one of {}", role.setting()));
            }
        }
        because(Role::None, "it is in none of reader_groups, operator_groups, admin_groups")
    }

    /// What a user may do, by name or number; `None` for a name that the database does not know, or
    /// when its groups cannot be known. A number may call without standing there.
    #[must_use]
    pub fn standing_of(&self, user: &str) -> Option<Standing> {
        let uid = users::uid_of(user)?;
        let by_number = user.parse::<u32>().is_ok();
        let (groups, unknown) = match users::groups_of(uid) {
            Some(groups) => (groups, false),
            None if by_number => (Vec::new(), true),
            None => return None,
        };
        let mut standing = self.standing(&Peer { uid, pid: None, groups });
        if unknown {
            standing.why.push_str("; the user database does not tell its groups");
        }
        Some(standing)
    }
}

impl Standing {
    /// Whether the role is enough for the method.
    #[must_use]
    pub fn may(&self, method: &Method) -> bool {
        self.role >= method.role
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authz() -> Authz {
        Authz {
            own_uid: 7,
            admin_uids: [8].into(),
            admin_gids: [80].into(),
            operator_gids: [81].into(),
            reader_gids: [82].into(),
        }
    }

    fn role(uid: u32, groups: &[u32]) -> Role {
        authz().standing(&Peer { uid, pid: None, groups: groups.to_vec() }).role
    }

    #[test]
    fn the_highest_role_counts_and_strangers_have_none() {
        assert_eq!(role(0, &[]), Role::Admin);
        assert_eq!(role(7, &[]), Role::Admin);
        assert_eq!(role(8, &[]), Role::Admin);
        assert_eq!(role(1000, &[82, 80, 81]), Role::Admin);
        assert_eq!(role(1000, &[82, 81]), Role::Operate);
        assert_eq!(role(1000, &[5, 82]), Role::Read);
        assert_eq!(role(1000, &[5]), Role::None);
    }

    #[test]
    fn a_user_that_is_not_mapped_has_no_role_whatever_its_groups() {
        assert_eq!(role(users::UNMAPPED_UID, &[80]), Role::None);
    }

    #[test]
    fn a_name_that_nobody_has_gives_nothing() {
        let names = Names {
            reader_groups: vec!["no-such-group-here".to_owned(), "0".to_owned()],
            ..Names::default()
        };
        let authz = Authz::resolve(&names, 7);
        assert_eq!(authz.reader_gids, [0].into());
        assert!(authz.standing_of("no-such-user-here").is_none());
        let number = authz.standing_of("4000000000").unwrap();
        assert_eq!(number.role, Role::None);
        assert!(number.why.contains("does not tell its groups"), "{}", number.why);
        assert_eq!(authz.standing_of("7").unwrap().role, Role::Admin);
        assert_eq!(authz.standing_of("root").unwrap().role, Role::Admin);
    }
}
