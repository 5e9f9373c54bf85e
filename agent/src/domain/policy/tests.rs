//! What the engine says to one request at a time, by reason.

use std::path::Path;

use jtnt_proto::{bytes::Hash, key::KeyId, policy::Access};
use serde_json::{Value, json};

use super::*;

pub(super) fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

/// A document with what `rules` adds to the least there can be.
pub(super) fn policy(rules: &str) -> Policy {
    let mut document = json!({
        "policy_id": "p", "version": 1, "audience": {"root_id": "r"},
        "issued_at": "2026-05-20T00:00:00Z", "expires_at": "2026-06-10T00:00:00Z",
    });
    let added: Value = serde_json::from_str(rules).unwrap();
    document.as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
    serde_json::from_value(document).unwrap()
}

fn engine(rules: &str) -> Engine {
    Engine::compile(policy(rules), &mut |p| p.display().to_string()).unwrap()
}

fn fault(rules: &str) -> String {
    Engine::compile(policy(rules), &mut |p| p.display().to_string()).unwrap_err().to_string()
}

pub(super) fn program(path: &str) -> Target {
    Target { canonical: path.into(), sha256: None, guarded: true, links: 1, native: true }
}

fn exec(engine: &Engine, target: &Target, args: &[&str]) -> Decision {
    let args: Vec<_> = args.iter().map(|a| (*a).to_owned()).collect();
    engine.exec(target, Surroundings { args: &args, ..Surroundings::default() }, now())
}

const LS: &str =
    r#"{"exec": [{"id": "ls", "effect": "allow", "path": "/usr/bin/ls", "args": "any"}]}"#;

#[test]
fn nothing_is_allowed_unless_a_rule_says_so() {
    assert_eq!(exec(&engine("{}"), &program("/usr/bin/ls"), &[]).reason, Reason::NoRule);
    let allowed = exec(&engine(LS), &program("/usr/bin/ls"), &["-l"]);
    assert!(allowed.allowed && !allowed.monitored);
    assert_eq!(allowed.rule.as_deref(), Some("ls"));
}

#[test]
fn a_deny_for_a_user_is_not_passed_by_leaving_the_user_to_the_allow() {
    let engine = engine(
        r#"{"exec": [
            {"id": "no-who", "effect": "deny", "path": "/usr/bin/who", "args": "any",
             "run_as": "web"},
            {"id": "all", "effect": "allow", "path": "/usr/bin/w*", "args": "any",
             "run_as": "web"}]}"#,
    );
    let denied = exec(&engine, &program("/usr/bin/who"), &[]);
    assert_eq!((denied.allowed, denied.reason), (false, Reason::DenyRule));
    assert_eq!(denied.rule.as_deref(), Some("no-who"));
    assert!(exec(&engine, &program("/usr/bin/w"), &[]).allowed);
}

#[test]
fn a_deny_wins_wherever_it_stands() {
    let engine = engine(
        r#"{"exec": [
            {"id": "all", "effect": "allow", "path": "/usr/bin/*", "args": "any"},
            {"id": "no-rm", "effect": "deny", "path": "/usr/bin/rm", "args": "any"}]}"#,
    );
    let denied = exec(&engine, &program("/usr/bin/rm"), &["-r"]);
    assert_eq!((denied.reason, denied.rule.as_deref()), (Reason::DenyRule, Some("no-rm")));
    assert!(exec(&engine, &program("/usr/bin/ls"), &[]).allowed);
}

#[test]
fn an_expired_policy_denies_from_that_very_instant() {
    let engine = engine(LS);
    let at = |time: &str| {
        engine.exec(&program("/usr/bin/ls"), Surroundings::default(), time.parse().unwrap())
    };
    assert!(at("2026-06-09T23:59:59.999999999Z").allowed);
    assert_eq!(at("2026-06-10T00:00:00Z").reason, Reason::PolicyExpired);
}

#[test]
fn interpreters_and_scripts_are_not_programs() {
    let engine =
        engine(r#"{"exec": [{"id": "all", "effect": "allow", "path": "/**", "args": "any"}]}"#);
    for path in [
        "/bin/sh",
        "/usr/bin/python3.11",
        "/usr/bin/perl5.36.0",
        "/usr/bin/env",
        "/usr/bin/find",
        "/usr/lib64/ld-linux-x86-64.so.2",
        "/usr/bin/busybox",
        "/usr/bin/systemd-run",
    ] {
        assert_eq!(exec(&engine, &program(path), &[]).reason, Reason::Interpreter, "{path}");
    }
    let script = Target { native: false, ..program("/usr/bin/ldd") };
    assert_eq!(exec(&engine, &script, &[]).reason, Reason::NotNative);
}

#[test]
fn a_path_alone_holds_only_for_what_nobody_else_can_change() {
    let engine = engine(LS);
    let open = Target { guarded: false, ..program("/usr/bin/ls") };
    assert_eq!(exec(&engine, &open, &[]).reason, Reason::Unguarded);
    let linked = Target { links: 2, ..program("/usr/bin/ls") };
    assert_eq!(exec(&engine, &linked, &[]).reason, Reason::HardLink);
}

#[test]
fn a_pin_holds_for_its_bytes_alone() {
    let hash = Hash::of(b"ls");
    let engine = engine(&format!(
        r#"{{"exec": [{{"id": "ls", "effect": "allow", "path": "/opt/ls", "sha256": "{hash}"}}]}}"#
    ));
    let pinned = Target { guarded: false, links: 2, sha256: Some(hash), ..program("/opt/ls") };
    assert!(exec(&engine, &pinned, &[]).allowed);
    for other in [None, Some(Hash::of(b"rm"))] {
        let other = Target { sha256: other, ..pinned.clone() };
        assert_eq!(exec(&engine, &other, &[]).reason, Reason::Content);
    }
}

#[test]
fn a_user_is_given_only_by_the_rule() {
    let engine = engine(
        r#"{"exec": [{"id": "w", "effect": "allow", "path": "/usr/bin/w", "run_as": "web"}]}"#,
    );
    let run = |run_as| {
        engine.exec(
            &program("/usr/bin/w"),
            Surroundings { run_as, ..Surroundings::default() },
            now(),
        )
    };
    assert!(run(Some("web")).allowed);
    assert_eq!(run(None).run_as.as_deref(), Some("web"), "the rule's user is the default");
    assert_eq!(run(Some("root")).reason, Reason::RunAs);
}

#[test]
fn variables_are_listed_or_refused() {
    let engine = engine(
        r#"{"exec": [{"id": "w", "effect": "allow", "path": "/usr/bin/w", "env": ["SITE"]}]}"#,
    );
    let run = |name: &str| {
        let env = [name.to_owned()];
        let around = Surroundings { env: &env, ..Surroundings::default() };
        engine.exec(&program("/usr/bin/w"), around, now()).reason
    };
    assert_eq!(run("SITE"), Reason::Allowed);
    assert_eq!(run("OTHER"), Reason::Environment);
    assert_eq!(run("LD_PRELOAD"), Reason::ForbiddenVariable);
}

#[test]
fn scripts_are_pinned_by_content_or_by_signer() {
    let (hash, key): (Hash, KeyId) = (Hash::of(b"script"), Hash::of(b"key"));
    let engine = engine(&format!(
        r#"{{"script": [
            {{"id": "pin", "effect": "allow", "interpreter": "/bin/sh", "sha256": "{hash}"}},
            {{"id": "ops", "effect": "allow", "interpreter": "/bin/sh", "signer": "{key}"}}]}}"#
    ));
    let run = |sha256, signers: &[KeyId]| {
        let facts = ScriptFacts { sha256, signers };
        engine.script(&program("/bin/sh"), facts, Surroundings::default(), now())
    };
    assert_eq!(run(hash, &[]).rule.as_deref(), Some("pin"));
    assert_eq!(run(Hash::of(b"other"), &[key]).rule.as_deref(), Some("ops"));
    assert_eq!(run(Hash::of(b"other"), &[Hash::of(b"stranger")]).reason, Reason::Content);
}

#[test]
fn files_are_allowed_by_access() {
    let engine = engine(
        r#"{"file": [
            {"id": "logs", "effect": "allow", "access": ["read"], "path": "/var/log/**"},
            {"id": "secret", "effect": "deny", "access": ["read", "write"], "path": "/var/log/secret"}]}"#,
    );
    let ask = |path: &str, access| engine.file(&program(path), access, None, now()).reason;
    assert_eq!(ask("/var/log/app/a", Access::Read), Reason::Allowed);
    assert_eq!(ask("/var/log/app/a", Access::Write), Reason::NoRule);
    assert_eq!(ask("/var/log/secret", Access::Read), Reason::DenyRule);
}

#[test]
fn monitor_mode_records_and_lets_pass_but_hands_out_no_user() {
    let engine = engine(r#"{"mode": "monitor"}"#);
    let passed = exec(&engine, &program("/usr/bin/ls"), &[]);
    assert!(passed.allowed && passed.monitored);
    assert_eq!(passed.reason, Reason::NoRule, "the record says what would have been");
    let around = Surroundings { run_as: Some("root"), ..Surroundings::default() };
    assert!(!engine.exec(&program("/usr/bin/ls"), around, now()).allowed);
    assert!(!exec(&engine, &program("/bin/sh"), &[]).allowed, "an interpreter stays one");
}

#[test]
fn the_nearest_rule_is_reported() {
    let engine = engine(
        r#"{"exec": [
            {"id": "a", "effect": "allow", "path": "/usr/bin/x", "args": ["one"]},
            {"id": "b", "effect": "allow", "path": "/usr/bin/x", "args": "any", "run_as": "web"}]}"#,
    );
    let around = Surroundings { run_as: Some("root"), ..Surroundings::default() };
    let refused = engine.exec(&program("/usr/bin/x"), around, now());
    assert_eq!(refused.reason, Reason::RunAs);
    let considered: Vec<_> = refused.considered.iter().map(|c| (c.rule.as_str(), c.why)).collect();
    assert_eq!(considered, [("a", Reason::Arguments), ("b", Reason::RunAs)]);
}

#[test]
fn rule_paths_are_resolved_as_requests_are() {
    let rules = r#"{"exec": [{"id": "w", "effect": "allow", "path": "/bin/w"},
                             {"id": "g", "effect": "allow", "path": "/bin/x/*"}]}"#;
    let mut resolve = |p: &Path| format!("/usr{}", p.display());
    let engine = Engine::compile(policy(rules), &mut resolve).unwrap();
    assert!(exec(&engine, &program("/usr/bin/w"), &[]).allowed);
    assert!(exec(&engine, &program("/usr/bin/x/y"), &[]).allowed);
    assert!(!exec(&engine, &program("/bin/w"), &[]).allowed);
}

#[test]
fn documents_that_make_no_sense_are_refused() {
    for (rules, why) in [
        (r#"{"exec": [{"id": "a b", "effect": "allow", "path": "/x"}]}"#, "an id is"),
        (r#"{"exec": [{"id": "a", "effect": "allow", "path": "x"}]}"#, "not absolute"),
        (
            r#"{"exec": [{"id": "a", "effect": "allow", "path": "/x"}],
                "file": [{"id": "a", "effect": "allow", "path": "/x", "access": ["read"]}]}"#,
            "another rule",
        ),
        (r#"{"script": [{"id": "a", "effect": "allow", "interpreter": "/x"}]}"#, "a sha256"),
        (r#"{"file": [{"id": "a", "effect": "allow", "path": "/x", "access": []}]}"#, "empty"),
        (r#"{"exec": [{"id": "a", "effect": "allow", "path": "/x", "env": ["PATH"]}]}"#, "PATH"),
        (
            r#"{"exec": [{"id": "a", "effect": "allow", "path": "/x", "args": [{"match": "("}]}]}"#,
            "pattern",
        ),
        (r#"{"limits": {"pids": 0}}"#, "limits.pids"),
    ] {
        let found = fault(rules);
        assert!(found.contains(why), "{found} instead of {why}");
    }
}
