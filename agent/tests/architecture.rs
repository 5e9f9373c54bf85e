//! The floors of the agent and its monopolies, checked on the source text.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its own sources has failed")]

use std::{collections::BTreeMap, fs, path::Path};

/// Lowest floor first; modules on one floor do not know each other.
const FLOORS: &[&[&str]] = &[
    &["runtime"],
    &["domain"],
    &["trust", "store", "audit", "platform", "telemetry"],
    &["gate", "identity"],
    &["shim"],
    &["hub"],
    &["enrol", "renewal", "heartbeat", "policy", "jobs", "forward", "timetable"],
    &["overview"],
    &["admin"],
    &["config"],
    &["app"],
    &["lib", "main"],
];

/// What may stand only below one folder or in one file.
const MONOPOLIES: &[(&str, &str)] = &[
    ("tokio::spawn", "runtime/tasks.rs"),
    ("thread::Builder", "runtime/tasks.rs"),
    ("Timestamp::now()", "runtime/clock.rs"),
    ("redb::", "store/"),
    ("service::Routes", "admin/"),
    ("unsafe ", "platform/"),
    ("cfg(target_os", "platform/"),
    ("env::var", "config/"),
];

/// What a pure decision does not know.
const IMPURE: &[&str] = &["tokio", "std::fs", "async ", "std::net", "std::time::Instant"];

const MAX_LINES: usize = 600;

struct Source {
    /// Path below `src`, such as `store/mod.rs`.
    name: String,
    /// First folder or file stem.
    module: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(source(&root, &path));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

fn source(root: &Path, path: &Path) -> Source {
    let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
    let module = name.split(['/', '.']).next().unwrap().to_owned();
    Source { name, module, text: fs::read_to_string(path).unwrap() }
}

fn hold(fault: impl Fn(&Source) -> Vec<String>) {
    let faults: Vec<_> = sources().iter().flat_map(fault).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn modules_depend_only_downwards() {
    let floor: BTreeMap<_, _> =
        FLOORS.iter().enumerate().flat_map(|(n, ms)| ms.iter().map(move |m| (*m, n))).collect();
    hold(|s| {
        let Some(own) = floor.get(s.module.as_str()) else {
            return vec![format!("{}: module `{}` has no floor", s.name, s.module)];
        };
        crate_paths(&s.text)
            .filter(|used| *used != s.module)
            .filter(|used| floor.get(used).is_none_or(|f| f >= own))
            .map(|used| format!("{}: `{}` may not use `{used}`", s.name, s.module))
            .collect()
    });
}

#[test]
fn monopolies_are_kept() {
    hold(|s| {
        let broken = MONOPOLIES
            .iter()
            .filter(|(what, home)| !s.name.starts_with(home) && code(&s.text).contains(what));
        broken.map(|(what, home)| format!("{}: `{what}` belongs to {home}", s.name)).collect()
    });
}

#[test]
fn decisions_are_pure() {
    hold(|s| {
        let impure = IMPURE.iter().filter(|w| s.module == "domain" && code(&s.text).contains(**w));
        impure.map(|what| format!("{}: a decision knows `{what}`", s.name)).collect()
    });
}

#[test]
fn files_are_short_and_say_why_they_exist() {
    hold(|s| {
        let mut faults = Vec::new();
        if s.text.lines().count() > MAX_LINES {
            faults.push(format!("{}: longer than {MAX_LINES} lines", s.name));
        }
        if !s.text.starts_with("//!") {
            faults.push(format!("{}: does not open with //!", s.name));
        }
        faults
    });
}

/// The text without comment lines.
fn code(text: &str) -> String {
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// First segments after `crate::`, including those of `crate::{a::b, c}`.
fn crate_paths(text: &str) -> impl Iterator<Item = &str> {
    text.split("crate::").skip(1).flat_map(|rest| {
        let (list, grouped) = match rest.strip_prefix('{') {
            Some(r) => (r.split_once("};").map_or(r, |(l, _)| l), true),
            None => (rest, false),
        };
        // Names inside a nested group belong to the path before it.
        let mut depth = 0_usize;
        let top = list.split(',').take(if grouped { usize::MAX } else { 1 }).filter(move |part| {
            let outer = depth == 0;
            depth = (depth + part.matches('{').count()).saturating_sub(part.matches('}').count());
            outer
        });
        top.map(|p| p.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(""))
            .filter(|p| !p.is_empty())
    })
}
