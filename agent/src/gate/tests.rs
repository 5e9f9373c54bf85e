//! The gate on real files: in which order it refuses, and what it opens.

use std::{io::Read as _, os::unix::fs::PermissionsExt as _};

use jtnt_proto::job::Artifact;
use serde_json::{Value, json};

use super::*;
use crate::{
    domain::{
        asked::{Action, Asked},
        enforcement::Controls,
    },
    platform::paths::{reopen, resolve},
    trust::fixture,
};

fn now() -> Timestamp {
    "2026-06-02T00:00:00Z".parse().unwrap()
}

fn in_force(document: &Value) -> Arc<InForce> {
    let keyring = fixture::Installation::new().keyring();
    let verified = keyring.policy(&fixture::policy(2, document)).unwrap();
    let engine = Engine::compile(verified.get().clone(), &mut resolve).unwrap();
    Arc::new(InForce { engine: Arc::new(engine), verified })
}

fn gate_with(document: &Value, config: Config) -> Gate {
    Gate::new(watch::channel(Some(in_force(document))).1, config)
}

fn gate(document: &Value) -> Gate {
    gate_with(document, Config::default())
}

fn exec(path: &str) -> Exec {
    let path = path.to_owned();
    Exec { path, args: Vec::new(), env: [].into(), cwd: None, run_as: None }
}

fn download(dest: &str) -> Download {
    let artifact = Artifact { sha256: Hash([0; 32]), size: 0 };
    Download { artifact, dest: dest.to_owned(), mode: None, run_as: None }
}

fn upload(path: &str) -> Upload {
    Upload { path: path.to_owned(), name: "a".into(), run_as: None }
}

fn script(interpreter: &str, sha256: Hash) -> Script {
    Script {
        interpreter: interpreter.to_owned(),
        content: Artifact { sha256, size: 0 },
        args: Vec::new(),
        env: [].into(),
        cwd: None,
        run_as: None,
        endorsement: None,
    }
}

fn allow(path: &str) -> Value {
    json!({"exec": [{"id": "r", "effect": "allow", "path": path}]})
}

fn anything() -> Value {
    json!({
        "exec": [{"id": "x", "effect": "allow", "path": "/**", "args": "any"}],
        "file": [{"id": "f", "effect": "allow", "path": "/**", "access": ["read", "write"]}],
    })
}

/// A folder that is everybody's, and a program in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(folder.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::copy("/usr/bin/true", folder.path("tool")).unwrap();
        folder
    }

    fn path(&self, name: &str) -> String {
        self.0.path().canonicalize().unwrap().join(name).to_str().unwrap().to_owned()
    }

    fn hash(&self, name: &str) -> Hash {
        Hash::of(&fs::read(self.path(name)).unwrap())
    }
}

#[test]
fn a_program_of_the_system_is_opened_when_a_rule_allows_it() {
    let ruling = gate(&allow("/usr/bin/true")).exec(&exec("/usr/bin/true"), now());
    assert!(ruling.allowed && ruling.opened.is_some(), "{}", ruling.message);
    assert_eq!((ruling.rule.as_deref(), ruling.policy_version), (Some("r"), 1));
    let denied = gate(&allow("/usr/bin/true")).exec(&exec("/usr/bin/false"), now());
    assert_eq!((denied.reason, denied.opened.is_some()), ("NO_RULE", false));
}

#[test]
fn a_rule_through_a_link_is_about_what_it_leads_to() {
    let folder = Folder::new();
    fs::set_permissions(folder.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("/usr/bin/true", folder.path("link")).unwrap();
    let through = gate(&allow(&folder.path("link"))).exec(&exec("/usr/bin/true"), now());
    assert!(through.allowed, "{}", through.message);
    let asked = gate(&allow("/usr/bin/true")).exec(&exec(&folder.path("link")), now());
    assert_eq!(asked.canonical, through.canonical);
    assert!(asked.allowed, "{}", asked.message);
}

#[test]
fn the_path_is_judged_before_there_is_a_policy() {
    let none = Gate::new(watch::channel(None).1, Config::default());
    assert_eq!(none.exec(&exec("bin/true"), now()).reason, "PATH_RELATIVE");
    assert_eq!(none.exec(&exec("/usr/bin/true"), now()).reason, "NO_POLICY");
    assert_eq!(none.upload(&upload("/etc/passwd"), now()).reason, "NO_POLICY");
    assert_eq!(none.exec(&exec("/usr/bin/true"), now()).policy_version, 0);
}

#[test]
fn what_others_can_change_is_pinned_by_hash_and_runs_from_a_copy() {
    let folder = Folder::new();
    let tool = folder.path("tool");
    assert_eq!(gate(&allow(&tool)).exec(&exec(&tool), now()).reason, "UNGUARDED");
    let pinned = json!({"exec": [
        {"id": "r", "effect": "allow", "path": tool, "sha256": folder.hash("tool")}]});
    let ruling = gate(&pinned).exec(&exec(&tool), now());
    assert!(ruling.allowed, "{}", ruling.message);
    assert_eq!(ruling.sha256, Some(folder.hash("tool")));
    let copy = ruling.opened.unwrap().copy.unwrap();
    assert_ne!(Inode::of(&copy.metadata().unwrap()), Inode::of(&fs::metadata(&tool).unwrap()));
    fs::copy("/usr/bin/false", &tool).unwrap();
    assert_eq!(gate(&pinned).exec(&exec(&tool), now()).reason, "CONTENT");
}

#[test]
fn scripts_and_interpreters_are_no_programs() {
    let folder = Folder::new();
    crate::runtime::durable::replace(folder.path("s").as_ref(), b"#!/bin/sh\n", 0o755).unwrap();
    assert_eq!(gate(&anything()).exec(&exec(&folder.path("s")), now()).reason, "NOT_NATIVE");
    assert_eq!(gate(&anything()).exec(&exec("/bin/sh"), now()).reason, "INTERPRETER");
}

#[test]
fn a_script_is_admitted_by_its_hash_for_its_interpreter() {
    let (good, other) = (Hash::of(b"good"), Hash::of(b"other"));
    let gate = gate(&json!({"script": [
        {"id": "s", "effect": "allow", "interpreter": "/bin/sh", "sha256": good}]}));
    let ruling = gate.script(&script("/bin/sh", good), &[], now());
    assert!(ruling.allowed && ruling.opened.is_some(), "{}", ruling.message);
    assert_eq!(gate.script(&script("/bin/sh", other), &[], now()).reason, "CONTENT");
}

#[test]
fn set_id_needs_a_rule_that_says_root() {
    let folder = Folder::new();
    let tool = folder.path("tool");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o4755)).unwrap();
    let rule = |extra: Value| {
        let mut rule =
            json!({"id": "r", "effect": "allow", "path": tool, "sha256": folder.hash("tool")});
        rule.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        gate(&json!({"exec": [rule]})).exec(&exec(&tool), now())
    };
    assert_eq!(rule(json!({})).reason, "SET_ID");
    assert!(rule(json!({"run_as": "root"})).allowed);
}

#[test]
fn transfers_open_what_a_rule_allows() {
    let folder = Folder::new();
    crate::runtime::durable::replace(folder.path("log").as_ref(), b"text", 0o644).unwrap();
    let below = folder.path("**");
    let gate = gate(&json!({"file": [
        {"id": "f", "effect": "allow", "path": below, "access": ["read", "write"]}]}));
    let mut text = String::new();
    let read = gate.upload(&upload(&folder.path("log")), now());
    let source = read.opened.unwrap();
    reopen(&source.file).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
    let to = gate.download(&download(&folder.path("new")), now()).opened.unwrap();
    assert_eq!((to.name.as_str(), to.canonical), ("new", folder.path("new")));
    assert_eq!(gate.upload(&upload("/etc/passwd"), now()).reason, "NO_RULE");
    assert_eq!(gate.download(&download("/tmp"), now()).reason, "PATH_NOT_A_FILE");
}

#[test]
fn what_is_protected_is_so_under_every_name() {
    let folder = Folder::new();
    let data = folder.path("data");
    fs::create_dir(&data).unwrap();
    fs::copy("/usr/bin/true", folder.path("data/key")).unwrap();
    let config =
        Config { protected: vec![data.into(), folder.path("soon").into()], ..Config::default() };
    let gate = gate_with(&anything(), config);
    for path in ["data/key", "soon"] {
        let ruling = gate.check_file(Access::Write, &folder.path(path), None, now());
        assert_eq!(ruling.reason, "PROTECTED", "{path}");
    }
    assert_eq!(gate.upload(&upload(&folder.path("data/key")), now()).reason, "PROTECTED");
    assert_eq!(gate.exec(&exec(&folder.path("data/key")), now()).reason, "PROTECTED");
    std::os::unix::fs::symlink(folder.path("data"), folder.path("alias")).unwrap();
    assert_eq!(gate.upload(&upload(&folder.path("alias/key")), now()).reason, "PROTECTED");
    fs::hard_link(folder.path("data/key"), folder.path("other")).unwrap();
    assert_eq!(gate.upload(&upload(&folder.path("other")), now()).reason, "HARD_LINK");
    assert!(gate.check_file(Access::Write, &folder.path("data2"), None, now()).allowed);
}

#[test]
fn monitor_mode_opens_no_unsafe_path_and_no_protected_one() {
    let folder = Folder::new();
    let config = Config { protected: vec![folder.path("tool").into()], ..Config::default() };
    let gate = gate_with(&json!({"mode": "monitor"}), config);
    let passed = gate.upload(&upload("/etc/passwd"), now());
    assert!(passed.allowed && passed.monitored && passed.opened.is_some());
    assert_eq!(passed.reason, "NO_RULE");
    assert_eq!(gate.upload(&upload(&folder.path("tool")), now()).reason, "PROTECTED");
    assert_eq!(gate.upload(&upload("/etc/../etc/passwd"), now()).reason, "PATH_NOT_NORMAL");
    assert!(!gate.exec(&exec("/bin/sh"), now()).allowed);
}

/// A machine that can do everything.
fn able() -> Config {
    let limits = Controls { memory: true, pids: true, cpu: true, io: true };
    let abilities = Abilities { root: true, namespaces: true, landlock: 7, seccomp: true, limits };
    Config { abilities, ..Config::default() }
}

#[test]
fn what_cannot_be_enforced_is_refused_last() {
    let mut document = allow("/usr/bin/true");
    document["require_enforcement"] = "full".into();
    let ruling = gate(&document).exec(&exec("/usr/bin/true"), now());
    assert_eq!((ruling.reason, ruling.rule.as_deref()), ("ENFORCEMENT", Some("r")));
    assert!(ruling.message.contains(r#""require_enforcement": "none""#));
    assert_eq!(gate(&document).exec(&exec("/usr/bin/false"), now()).reason, "NO_RULE");
    let ruling = gate_with(&document, able()).exec(&exec("/usr/bin/true"), now());
    assert_eq!((ruling.allowed, ruling.enforcement), (true, Enforcement::Full));

    let require_enforcement = Some(RequireEnforcement::Partial);
    let strict = Config { require_enforcement, ..Config::default() };
    let local = gate_with(&allow("/usr/bin/true"), strict);
    assert_eq!(local.exec(&exec("/usr/bin/true"), now()).reason, "ENFORCEMENT");
    assert_eq!(local.require_enforcement(), RequireEnforcement::Partial);
}

#[test]
fn each_gap_of_a_rule_is_told_and_is_less_than_full() {
    for (change, gaps) in [
        (json!({"ipc": true}), "ipc"),
        (json!({"run_as": "root"}), "root"),
        (json!({"children": "rules"}), "children"),
    ] {
        let mut document = allow("/usr/bin/true");
        let rule = document["exec"][0].as_object_mut().unwrap();
        rule.extend(change.as_object().unwrap().clone());
        let ruling = gate_with(&document, able()).exec(&exec("/usr/bin/true"), now());
        assert_eq!(ruling.enforcement.to_string(), format!("partial[{gaps}]"));
        document["require_enforcement"] = "full".into();
        let ruling = gate_with(&document, able()).exec(&exec("/usr/bin/true"), now());
        assert_eq!(ruling.reason, "ENFORCEMENT");
        assert!(ruling.message.contains(gaps), "{}", ruling.message);
    }
}

#[test]
fn a_transfer_is_held_by_its_users_rights() {
    let folder = Folder::new();
    let document = json!({"file": [{"id": "f", "effect": "allow", "access": ["read"],
        "path": folder.path("tool")}]});
    let ruling = gate_with(&document, able()).upload(&upload(&folder.path("tool")), now());
    assert_eq!(ruling.enforcement.to_string(), "full");
}

#[test]
fn an_expired_policy_denies() {
    let late = "2026-06-30T00:00:00Z".parse().unwrap();
    let ruling = gate(&allow("/usr/bin/true")).exec(&exec("/usr/bin/true"), late);
    assert_eq!((ruling.reason, ruling.policy_version), ("POLICY_EXPIRED", 1));
}

#[test]
fn a_rehearsal_asks_its_own_rules_whatever_comes_into_force() {
    let (policy, watch) = watch::channel(Some(in_force(&allow("/usr/bin/true"))));
    let gate = Gate::new(watch, Config::default());
    let (present, engine) = (gate.present(), in_force(&allow("/usr/bin/false")));
    let candidate =
        gate.candidate(Engine::compile(engine.engine.policy().clone(), &mut resolve).unwrap());
    policy.send_replace(None);
    let answers = |path: &str| {
        let action = Action::Exec { path: path.to_owned(), args: Vec::new() };
        let asked = Asked { action, run_as: None, env: Vec::new(), limits: Limits::default() };
        [&present, &candidate].map(|rehearsal| rehearsal.ask(&asked, now()).reason)
    };
    assert_eq!(answers("/usr/bin/true"), ["ALLOWED", "NO_RULE"]);
    assert_eq!(answers("/usr/bin/false"), ["NO_RULE", "ALLOWED"]);
    assert_eq!(gate.exec(&exec("/usr/bin/true"), now()).reason, "NO_POLICY");
}

#[test]
fn no_race_of_links_leads_to_what_is_closed() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    const ROUNDS: usize = 10_000;
    let folder = Folder::new();
    for place in ["way", "closed"] {
        fs::create_dir(folder.path(place)).unwrap();
        fs::copy("/usr/bin/true", folder.path(&format!("{place}/tool"))).unwrap();
    }
    std::os::unix::fs::symlink(folder.path("closed"), folder.path("link")).unwrap();
    let (way, link) = (folder.path("way"), folder.path("link"));
    let all = format!("{way}/*");
    let gate = gate(&json!({
        "exec": [{"id": "x", "effect": "allow", "path": all, "sha256": folder.hash("way/tool")}],
        "file": [{"id": "f", "effect": "allow", "path": all, "access": ["read", "write"]}],
    }));
    let inode = |file: &File| Inode::of(&file.metadata().unwrap());
    let closed =
        ["closed", "closed/tool"].map(|name| inode(&File::open(folder.path(name)).unwrap()));
    let (tool, new) = (format!("{way}/tool"), format!("{way}/new"));
    let ask = || {
        let opened = [
            gate.exec(&exec(&tool), now()).opened.map(|program| inode(&program.file)),
            gate.upload(&upload(&tool), now()).opened.map(|source| inode(&source.file)),
            gate.download(&download(&new), now()).opened.map(|to| inode(&to.dir)),
        ];
        let led_astray = opened.iter().flatten().any(|opened| closed.contains(opened));
        (led_astray, opened.iter().all(Option::is_some))
    };
    let stop = AtomicBool::new(false);
    let swap = || renameat_with(CWD, &way, CWD, &link, RenameFlags::EXCHANGE).unwrap();
    let astray = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                swap();
                swap();
            }
        });
        let astray = (0..ROUNDS).filter(|_| ask().0).count();
        stop.store(true, Ordering::Relaxed);
        astray
    });
    assert_eq!(astray, 0);
    assert_eq!(ask(), (false, true), "where it leads to what is open, all is allowed");
}
