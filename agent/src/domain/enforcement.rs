//! How much of a policy the operating system holds for a job once it runs: all of it, all but
//! named gaps, or nothing. Who requires more than a job would get has it refused before it starts.

use std::{collections::BTreeSet, fmt};

use jtnt_proto::policy::{Limits, Network, RequireEnforcement};
use serde::{Deserialize, Serialize};

/// The oldest Landlock that tells apart everything the policy does: since it, truncating a file is
/// an access of its own. Linux 6.2.
const LANDLOCK_FOR_FILES: u32 = 3;

/// What this machine's system, and the agent's rights on it, can hold a job by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Abilities {
    /// The agent is root, so that a job can be another user.
    pub root: bool,
    /// It may make namespaces and mounts for a job.
    pub namespaces: bool,
    /// ABI of Landlock; 0 without it.
    pub landlock: u32,
    /// Filters of system calls.
    pub seccomp: bool,
    /// Limits that groups of processes can have here.
    pub limits: Controls,
}

/// Limits of groups of processes.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Controls {
    /// Memory of all its processes.
    pub memory: bool,
    /// How many they are.
    pub pids: bool,
    /// Share of processors.
    pub cpu: bool,
    /// Weight of input and output.
    pub io: bool,
}

impl Abilities {
    /// Whether there is anything to hold a job by.
    #[must_use]
    pub const fn any(&self) -> bool {
        self.namespaces || self.landlock > 0 || self.seccomp
    }

    /// What of `limits` nobody would hold here.
    pub fn unheld(&self, limits: &Limits) -> impl Iterator<Item = Gap> + use<> {
        let has = self.limits;
        [
            (limits.memory_bytes.is_some() && !has.memory, Gap::Memory),
            (limits.pids.is_some() && !has.pids, Gap::Pids),
            (limits.cpu_percent.is_some() && !has.cpu, Gap::Cpu),
            (limits.io_weight.is_some() && !has.io, Gap::Io),
        ]
        .into_iter()
        .filter_map(|(open, gap)| open.then_some(gap))
    }

    /// What is open here for every job, whatever its policy allows.
    fn missing(&self, network: Network) -> impl Iterator<Item = Gap> + use<> {
        let none = network == Network::None;
        [
            (!self.root, Gap::Uid),
            (!self.namespaces, Gap::Namespaces),
            (self.landlock < LANDLOCK_FOR_FILES, Gap::Landlock),
            (!self.seccomp, Gap::Seccomp),
            (none && !self.namespaces, Gap::Network),
        ]
        .into_iter()
        .filter_map(|(open, gap)| open.then_some(gap))
    }
}

/// Something that a policy says and nothing holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gap {
    /// What the program may start itself.
    Children,
    /// Share of processors.
    Cpu,
    /// The file rule of this id.
    File(String),
    /// Weight of input and output.
    Io,
    /// It reaches Unix sockets of the machine, as its rule says.
    Ipc,
    /// The kernel's Landlock is missing or too old.
    Landlock,
    /// Memory.
    Memory,
    /// Violations pass by the policy's own word.
    Monitor,
    /// No namespaces: other processes are seen, folders are shared.
    Namespaces,
    /// The network is open although the policy says none.
    Network,
    /// Number of processes.
    Pids,
    /// It runs as root, as its rule says.
    Root,
    /// The kernel has no filters of system calls.
    Seccomp,
    /// It runs as the agent's own user.
    Uid,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Children => "children",
            Self::Cpu => "cpu",
            Self::File(rule) => return write!(f, "file:{rule}"),
            Self::Io => "io",
            Self::Ipc => "ipc",
            Self::Landlock => "landlock",
            Self::Memory => "memory",
            Self::Monitor => "monitor",
            Self::Namespaces => "namespaces",
            Self::Network => "network",
            Self::Pids => "pids",
            Self::Root => "root",
            Self::Seccomp => "seccomp",
            Self::Uid => "uid",
        })
    }
}

/// `full`, `partial[GAP,...]` or `none`: the text of results, records and answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Enforcement {
    /// Everything the policy says.
    Full,
    /// Everything but these.
    Partial(BTreeSet<Gap>),
    /// The decision alone.
    #[default]
    None,
}

impl Enforcement {
    /// What a job gets whose policy leaves `gaps` by itself.
    #[must_use]
    pub fn of(gaps: BTreeSet<Gap>, abilities: &Abilities, network: Network) -> Self {
        if !abilities.any() {
            return Self::None;
        }
        let gaps: BTreeSet<_> = gaps.into_iter().chain(abilities.missing(network)).collect();
        if gaps.is_empty() { Self::Full } else { Self::Partial(gaps) }
    }

    /// What a transfer gets: no program of others' runs, and the one file is opened by descriptor,
    /// with the rights of the job's user, so that only that user can be a gap. What else the machine
    /// can hold it by comes on top.
    #[must_use]
    pub fn of_transfer(as_root: bool, abilities: &Abilities) -> Self {
        let gap = match abilities.root {
            false => Gap::Uid,
            true if as_root => Gap::Root,
            true => return Self::Full,
        };
        Self::Partial([gap].into())
    }

    /// The same with more gaps.
    #[must_use]
    pub fn without(self, gaps: BTreeSet<Gap>) -> Self {
        match self {
            Self::Full if gaps.is_empty() => Self::Full,
            Self::Full => Self::Partial(gaps),
            Self::Partial(known) => Self::Partial(known.into_iter().chain(gaps).collect()),
            Self::None => Self::None,
        }
    }

    /// Whether violations pass by the policy's own word.
    #[must_use]
    pub fn is_monitor(&self) -> bool {
        matches!(self, Self::Partial(gaps) if gaps.contains(&Gap::Monitor))
    }

    /// Whether it is what somebody requires.
    #[must_use]
    pub const fn meets(&self, required: RequireEnforcement) -> bool {
        match required {
            RequireEnforcement::None => true,
            RequireEnforcement::Partial => !matches!(self, Self::None),
            RequireEnforcement::Full => matches!(self, Self::Full),
        }
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::None => f.write_str("none"),
            Self::Partial(gaps) => {
                let gaps: Vec<_> = gaps.iter().map(ToString::to_string).collect();
                write!(f, "partial[{}]", gaps.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Abilities = Abilities {
        root: true,
        namespaces: true,
        landlock: 7,
        seccomp: true,
        limits: Controls { memory: true, pids: true, cpu: true, io: true },
    };

    fn told(gaps: &[Gap], abilities: &Abilities, network: Network) -> String {
        Enforcement::of(gaps.iter().cloned().collect(), abilities, network).to_string()
    }

    #[test]
    fn each_missing_ability_is_named() {
        assert_eq!(told(&[], &ALL, Network::None), "full");
        assert_eq!(told(&[], &Abilities::default(), Network::Any), "none");
        let user = Abilities { root: false, namespaces: false, ..ALL };
        assert_eq!(told(&[], &user, Network::Any), "partial[namespaces,uid]");
        assert_eq!(told(&[], &user, Network::None), "partial[namespaces,network,uid]");
        let old = Abilities { landlock: 2, seccomp: false, ..ALL };
        let gaps = [Gap::File("logs".into()), Gap::Ipc];
        assert_eq!(told(&gaps, &old, Network::Any), "partial[file:logs,ipc,landlock,seccomp]");
    }

    #[test]
    fn a_transfer_is_held_by_its_users_rights() {
        let told = |as_root, abilities| Enforcement::of_transfer(as_root, &abilities).to_string();
        assert_eq!(told(false, ALL), "full");
        assert_eq!(told(true, ALL), "partial[root]");
        assert_eq!(told(false, Abilities::default()), "partial[uid]");
    }

    #[test]
    fn a_limit_that_nobody_holds_is_a_gap() {
        let few = Abilities { limits: Controls { pids: true, ..Controls::default() }, ..ALL };
        let limits = Limits { memory_bytes: Some(1), pids: Some(1), ..Limits::default() };
        assert_eq!(few.unheld(&limits).collect::<Vec<_>>(), [Gap::Memory]);
        assert_eq!(ALL.unheld(&limits).count(), 0);
    }

    #[test]
    fn less_than_required_is_not_enough() {
        use RequireEnforcement as R;
        let partial = Enforcement::Partial([Gap::Root].into());
        for (has, enough) in [
            (Enforcement::Full, [true, true, true]),
            (partial, [true, true, false]),
            (Enforcement::None, [true, false, false]),
        ] {
            assert_eq!([R::None, R::Partial, R::Full].map(|r| has.meets(r)), enough, "{has}");
        }
    }
}
