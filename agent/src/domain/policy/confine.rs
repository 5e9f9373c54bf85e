//! From the policy to what a kernel can hold a running job by: which files and trees are open to
//! it and how, what is closed inside of them, and what of the policy has no such form.
//!
//! Nothing is open that no rule allows, so an allow that a kernel cannot express (a pattern, for
//! files that do not exist yet) only leaves a job with less. A deny is a gap where it lies inside
//! of an allow and cannot be left out of it: a pattern, a file with other names, a file of the
//! kernel's about processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use jtnt_proto::policy::{Access, Children, Effect, Mode, Network};
use serde::{Deserialize, Serialize};

use super::{Decision, Engine, compile, pattern::Pattern};
use crate::domain::enforcement::Gap;

/// What a job's processes may touch beside the system's own programs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confinement {
    /// Open to it.
    pub open: Vec<Area>,
    /// Closed, whatever is open around it.
    pub closed: Vec<Area>,
    /// What it may execute.
    pub children: Children,
    /// Whether it has the machine's network.
    pub network: bool,
    /// Whether it reaches the machine's Unix sockets.
    pub ipc: bool,
}

impl Confinement {
    /// This alone: to a process that starts no other, and reaches nothing of the machine's.
    #[must_use]
    pub fn to(area: Area) -> Self {
        Self { open: vec![area], children: Children::None, ..Self::default() }
    }
}

/// Open to every job: the system's programs with their loaders and libraries, and what those read.
/// The places differ a little from system to system; what is not there is not opened.
pub const SYSTEM: &[(&str, &[Access])] = &[
    ("/usr", PROGRAMS),
    ("/bin", PROGRAMS),
    ("/sbin", PROGRAMS),
    ("/lib", PROGRAMS),
    ("/lib32", PROGRAMS),
    ("/lib64", PROGRAMS),
    ("/libx32", PROGRAMS),
    ("/etc/alternatives", FILES),
    ("/etc/group", FILES),
    ("/etc/ld.so.cache", FILES),
    ("/etc/ld.so.conf", FILES),
    ("/etc/ld.so.conf.d", FILES),
    ("/etc/localtime", FILES),
    ("/etc/nsswitch.conf", FILES),
    ("/etc/passwd", FILES),
    ("/etc/ssl/certs", FILES),
    ("/etc/ssl/openssl.cnf", FILES),
];
/// The same for a job that has the machine's network: without these, no name is looked up.
pub const NETWORK: &[(&str, &[Access])] = &[
    ("/etc/gai.conf", FILES),
    ("/etc/host.conf", FILES),
    ("/etc/hosts", FILES),
    ("/etc/resolv.conf", FILES),
    ("/etc/services", FILES),
    ("/etc/protocols", FILES),
];
/// Places of a job's own. What a rule opens below them stands in them, and is as open as they are.
pub const OWN: &[&str] = &["/proc", "/tmp", "/var/tmp", "/dev"];
const PROGRAMS: &[Access] = &[Access::Read, Access::Execute];
const FILES: &[Access] = &[Access::Read];

/// Files, by a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// The path of a file or folder; for a pattern, the folder above all it describes.
    pub path: String,
    /// Which ones.
    pub shape: Shape,
    /// How they may be used, or not.
    pub access: BTreeSet<Access>,
}

/// Which files an area has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// The one of this path.
    One,
    /// All below it.
    Tree,
    /// Those that are there and match this pattern.
    Glob(String),
}

impl Area {
    /// One file.
    #[must_use]
    pub fn file(path: &str, access: Access) -> Self {
        Self { path: path.to_owned(), shape: Shape::One, access: [access].into() }
    }

    /// A folder, with everything in it: a kernel knows no folder alone.
    #[must_use]
    pub fn folder(path: &str, access: Access) -> Self {
        Self::tree(path, &[access])
    }

    /// Everything at and below a path.
    fn tree(path: &str, access: &[Access]) -> Self {
        let access = access.iter().copied().collect();
        Self { path: path.to_owned(), shape: Shape::Tree, access }
    }

    fn of(pattern: &Pattern, access: &BTreeSet<Access>) -> Self {
        let shape = match pattern {
            p if p.is_literal() => Shape::One,
            p if p.is_tree() => Shape::Tree,
            p => Shape::Glob(p.to_string()),
        };
        Self { path: pattern.anchor().to_owned(), shape, access: access.clone() }
    }

    /// Whether opening this could open what `closed` closes.
    fn opens(&self, closed: &Self) -> bool {
        let wide = |area: &Self| area.shape != Shape::One;
        self.access.iter().any(|access| closed.closes(*access))
            && (self.path == closed.path
                || (wide(self) && is_below(&closed.path, &self.path))
                || (wide(closed) && is_below(&self.path, &closed.path)))
    }

    /// Whether a closed area has to do with an access to what is around it: who may write there
    /// could give a file another name, and who may execute may read.
    #[must_use]
    pub fn closes(&self, access: Access) -> bool {
        match access {
            Access::Read => self.access.contains(&Access::Read),
            Access::Write => true,
            Access::Execute => {
                self.access.contains(&Access::Read) || self.access.contains(&Access::Execute)
            }
        }
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    let folder = if folder == "/" { "" } else { folder };
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// What is at a path at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or nothing that can be looked at.
    Nothing,
    /// A file or folder that has no other name.
    Sole,
    /// A file with other names, or one that is reached by a link.
    Linked,
}

/// What file rules say to jobs of one user, worked out once per policy.
#[derive(Debug, Default)]
pub(super) struct Areas {
    open: Vec<Area>,
    closed: Vec<Closed>,
    gaps: BTreeSet<Gap>,
}

/// A deny inside of an allow.
#[derive(Debug)]
struct Closed {
    rule: String,
    area: Area,
}

impl Areas {
    /// For every user that a rule names, and for a user of a job's own.
    pub(super) fn by_user(
        engine: &Engine,
        resolve: &mut dyn FnMut(&Path) -> String,
    ) -> BTreeMap<Option<String>, Self> {
        let places = SYSTEM.iter().chain(NETWORK).chain(&[("/proc", FILES)]);
        let system: Vec<_> =
            places.map(|(path, access)| Area::tree(&resolve(Path::new(path)), access)).collect();
        let policy = &engine.policy;
        let exec = policy.exec.iter().map(|r| &r.run_as);
        let script = policy.script.iter().map(|r| &r.run_as);
        let users: BTreeSet<_> = exec.chain(script).cloned().chain([None]).collect();
        users
            .into_iter()
            .map(|user| {
                let areas = Self::of(engine, user.as_deref(), &system);
                (user, areas)
            })
            .collect()
    }

    fn of(engine: &Engine, user: Option<&str>, system: &[Area]) -> Self {
        let mut areas = Self::default();
        let about = |effect| {
            engine.file.iter().filter(move |(_, rule)| {
                let named = rule.common.run_as.as_deref();
                rule.common.effect == effect
                    && match effect {
                        Effect::Allow => named == user,
                        Effect::Deny => named.is_none() || named == user,
                    }
            })
        };
        for (pattern, rule) in about(Effect::Allow) {
            if rule.common.mode == Some(Mode::Monitor) {
                // It is open, and nobody records its use.
                areas.gaps.insert(Gap::File(rule.common.id.clone()));
            }
            areas.open.push(Area::of(pattern, &rule.access));
        }
        let around: Vec<_> = areas.open.iter().chain(system).cloned().collect();
        for (pattern, rule) in about(Effect::Deny) {
            let area = Area::of(pattern, &rule.access);
            if !around.iter().any(|open| open.opens(&area)) {
                continue;
            }
            let whole = matches!(area.shape, Shape::One | Shape::Tree);
            let watched = rule.common.mode == Some(Mode::Monitor);
            let all = [Access::Read, Access::Write, Access::Execute];
            let own = OWN.iter().any(|place| Area::tree(place, &all).opens(&area));
            if !whole || watched || own {
                areas.gaps.insert(Gap::File(rule.common.id.clone()));
            }
            if whole && !watched {
                areas.closed.push(Closed { rule: rule.common.id.clone(), area });
            }
        }
        areas
    }
}

impl Engine {
    /// How a job is held that `decision` allowed; `look` tells what is at a path. What cannot be
    /// held comes beside it.
    #[must_use]
    pub fn confine(
        &self,
        decision: &Decision,
        look: &dyn Fn(&str) -> Found,
    ) -> (Confinement, BTreeSet<Gap>) {
        let (children, ipc) = self.of_rule(decision.rule.as_deref());
        let user = &decision.run_as;
        let mut gaps = BTreeSet::new();
        if ipc {
            gaps.insert(Gap::Ipc);
        }
        if user.as_deref() == Some("root") {
            gaps.insert(Gap::Root);
        }
        if children == Children::Rules {
            // A loader that may be executed loads what may be read.
            gaps.insert(Gap::Children);
        }
        let network = self.policy.network == Network::Any;
        let mut confinement = Confinement { children, network, ipc, ..Confinement::default() };
        if self.policy.mode == Mode::Monitor {
            gaps.insert(Gap::Monitor);
            confinement.children = Children::System;
            let all = [Access::Read, Access::Write, Access::Execute];
            confinement.open.push(Area::tree("/", &all));
            return (confinement, gaps);
        }
        if let Some(areas) = self.areas.get(user) {
            gaps.extend(areas.gaps.iter().cloned());
            confinement.open.clone_from(&areas.open);
            for Closed { rule, area } in &areas.closed {
                if look(&area.path) == Found::Linked {
                    gaps.insert(Gap::File(rule.clone()));
                }
                confinement.closed.push(area.clone());
            }
        }
        if children == Children::Rules {
            confinement.open.extend(self.executables(user.as_deref()));
        }
        (confinement, gaps)
    }

    /// Programs that rules let run with any arguments.
    fn executables(&self, user: Option<&str>) -> impl Iterator<Item = Area> {
        let access: BTreeSet<_> = [Access::Execute, Access::Read].into();
        self.exec
            .iter()
            .filter(move |(_, rule)| {
                rule.common.effect == Effect::Allow
                    && rule.common.run_as.as_deref() == user
                    && rule.args.takes_any()
            })
            .map(move |(pattern, _): (_, &compile::Exec)| Area::of(pattern, &access))
    }

    fn of_rule(&self, id: Option<&str>) -> (Children, bool) {
        let exec = self.policy.exec.iter().map(|r| (&r.id, r.children, r.ipc));
        let script = self.policy.script.iter().map(|r| (&r.id, r.children, r.ipc));
        exec.chain(script)
            .find(|(own, ..)| Some(own.as_str()) == id)
            .map_or((Children::System, false), |(_, children, ipc)| (children, ipc))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{now, policy, program},
        *,
    };
    use crate::domain::policy::Surroundings;

    const RUN: &str = r#"{"id": "x", "effect": "allow", "path": "/usr/bin/x"}"#;

    /// What a job of rule `x` is held by, under `files` and `more`.
    fn confined(files: &str, more: &str, found: Found) -> (Confinement, Vec<String>) {
        let rules = format!(r#"{{"exec": [{RUN}], "file": [{files}]{more}}}"#);
        let engine = Engine::compile(policy(&rules), &mut |p| p.display().to_string()).unwrap();
        let decision = engine.exec(&program("/usr/bin/x"), Surroundings::default(), now());
        assert!(decision.allowed);
        let (confinement, gaps) = engine.confine(&decision, &|_| found);
        (confinement, gaps.iter().map(ToString::to_string).collect())
    }

    fn rule(id: &str, effect: &str, access: &str, path: &str) -> String {
        format!(r#"{{"id": "{id}", "effect": "{effect}", "access": [{access}], "path": "{path}"}}"#)
    }

    #[test]
    fn an_allow_is_never_a_gap() {
        let rules = [
            rule("one", "allow", r#""read""#, "/etc/hostname"),
            rule("tree", "allow", r#""read", "write""#, "/srv/**"),
            rule("some", "allow", r#""read""#, "/etc/app/*.conf"),
        ];
        let (confinement, gaps) = confined(&rules.join(","), "", Found::Nothing);
        let shapes: Vec<_> = confinement.open.iter().map(|a| (&*a.path, a.shape.clone())).collect();
        let glob = Shape::Glob("/etc/app/*.conf".to_owned());
        let expected = [("/etc/hostname", Shape::One), ("/srv", Shape::Tree), ("/etc/app", glob)];
        assert_eq!(shapes, expected);
        assert!(gaps.is_empty() && confinement.closed.is_empty() && confinement.network);
    }

    #[test]
    fn a_deny_counts_only_inside_of_an_allow() {
        let open = [
            rule("srv", "allow", r#""read""#, "/srv/**"),
            // Who may write gives a file another name; who may execute reads.
            rule("opt", "allow", r#""write""#, "/opt/**"),
            rule("home", "allow", r#""execute""#, "/home/**"),
        ]
        .join(",");
        let deny = |access: &str, path: &str| rule("no", "deny", access, path);
        for (access, path, closed) in [
            (r#""read""#, "/srv/key", true),
            (r#""read""#, "/srv/keys/**", true),
            // Who denies a folder means what is in it.
            (r#""read""#, "/srv", true),
            (r#""write""#, "/srv/key", false),
            (r#""execute""#, "/srv/key", false),
            (r#""read""#, "/opt/key", true),
            (r#""read""#, "/home/key", true),
            (r#""read""#, "/etc/shadow", false),
            (r#""execute""#, "/usr/bin/rm", true),
            (r#""read""#, "/etc/passwd", true),
        ] {
            let rules = format!("{open},{}", deny(access, path));
            let (confinement, gaps) = confined(&rules, "", Found::Sole);
            assert_eq!(!confinement.closed.is_empty(), closed, "{access} {path}");
            assert!(gaps.is_empty(), "{path}: {gaps:?}");
        }
    }

    #[test]
    fn a_deny_that_cannot_be_covered_is_named() {
        let open = rule("srv", "allow", r#""read""#, "/srv/**");
        let open = format!("{open},{}", rule("tmp", "allow", r#""read""#, "/tmp/**"));
        let deny = |path: &str| format!("{open},{}", rule("no", "deny", r#""read""#, path));
        for (path, found) in [
            ("/srv/key", Found::Linked),
            ("/proc/cpuinfo", Found::Sole),
            ("/tmp/key", Found::Sole),
            ("/srv/*.key", Found::Sole),
            ("/**/key", Found::Sole),
        ] {
            assert_eq!(confined(&deny(path), "", found).1, ["file:no"], "{path}");
        }
        let watched = deny("/srv/key").replace(r#""deny""#, r#""deny", "mode": "monitor""#);
        let (confinement, gaps) = confined(&watched, "", Found::Sole);
        assert!(confinement.closed.is_empty());
        assert_eq!(gaps, ["file:no"]);
    }

    #[test]
    fn rules_for_another_user_open_nothing() {
        let other = rule("srv", "allow", r#""read""#, "/srv/**")
            .replace(r#""allow""#, r#""allow", "run_as": "web""#);
        assert!(confined(&other, "", Found::Sole).0.open.is_empty());
    }

    #[test]
    fn monitor_mode_closes_nothing_and_says_so() {
        let files = rule("no", "deny", r#""read""#, "/srv/**");
        let (confinement, gaps) = confined(&files, r#", "mode": "monitor""#, Found::Sole);
        assert_eq!((&*confinement.open[0].path, confinement.closed.len()), ("/", 0));
        assert_eq!(gaps, ["monitor"]);
    }

    #[test]
    fn the_rule_decides_on_children_sockets_and_user() {
        let rules = r#"{"network": "none", "exec": [
            {"id": "x", "effect": "allow", "path": "/usr/bin/x", "run_as": "root", "ipc": true,
             "children": "rules"},
            {"id": "y", "effect": "allow", "path": "/usr/bin/y", "run_as": "root", "args": "any"},
            {"id": "z", "effect": "allow", "path": "/usr/bin/z", "args": "any"}]}"#;
        let engine = Engine::compile(policy(rules), &mut |p| p.display().to_string()).unwrap();
        let decision = engine.exec(&program("/usr/bin/x"), Surroundings::default(), now());
        let (confinement, gaps) = engine.confine(&decision, &|_| Found::Sole);
        assert!(confinement.ipc && !confinement.network);
        let open: Vec<_> = confinement.open.iter().map(|area| &*area.path).collect();
        assert_eq!(open, ["/usr/bin/y"]);
        let gaps: Vec<_> = gaps.iter().map(ToString::to_string).collect();
        assert_eq!(gaps, ["children", "ipc", "root"]);
    }

    #[test]
    fn a_pattern_is_written_as_it_was_read() {
        for text in ["/", "/a/b", "/**", "/a/*", "/a/**/b*c/**", "/*.key"] {
            assert_eq!(Pattern::parse(text).unwrap().to_string(), text);
        }
    }
}
