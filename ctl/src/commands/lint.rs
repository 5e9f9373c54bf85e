//! `policy lint`: what an agent would refuse, or an author regret, found before it is signed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use jiff::Timestamp;
use jtnt_proto::{
    identity::is_id,
    json::{self, JsonError},
    policy::{ArgPattern, ArgSlot, ArgsRule, Effect, Policy, RequireEnforcement},
};
use serde::Serialize;
use serde_json::Value;

use super::{policy::read, show};
use crate::{
    Exit,
    output::table::{Table, Tone, toned, word},
    run::{Outcome, Session},
};

/// A policy is a page or two; the agent's own bound is lower.
const MAX_POLICY_BYTES: u64 = 4 * 1024 * 1024;
const DAYS_AHEAD: i64 = 30;

/// The JSON of `policy lint`.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Report {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    rules: usize,
    problems: Vec<Problem>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Problem {
    /// error or warning.
    level: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    message: String,
}

pub(super) fn run(session: &mut Session<'_>, file: &Path) -> Outcome {
    let bytes = read(file, MAX_POLICY_BYTES)?;
    let report = lint(&bytes, (session.io.now)());
    show(session, &report, |color| text(&report, color))?;
    Ok(Exit::of(report.ok))
}

fn text(report: &Report, color: bool) -> String {
    let mut table = Table::bare();
    for p in &report.problems {
        let tone = if p.level == "error" { Tone::Bad } else { Tone::Warn };
        let place = match (&p.rule, p.line, p.column) {
            (Some(rule), _, _) => format!("rule {rule}"),
            (None, Some(line), Some(column)) => format!("line {line}, column {column}"),
            (None, _, _) => "document".to_owned(),
        };
        table.row([toned(p.level, tone), place.into(), p.message.as_str().into()]);
    }
    let problems = table.render(color);
    let verdict = if report.ok { "ok" } else { "not acceptable" };
    let verdict = word(verdict, Tone::of(report.ok), color);
    let version = report.version.map(|v| format!("version {v}, ")).unwrap_or_default();
    format!("{problems}{verdict}: {version}{} rules\n", report.rules)
}

fn lint(bytes: &[u8], now: Timestamp) -> Report {
    let policy = match parse(bytes) {
        Ok(policy) => policy,
        Err(error) => {
            let place = |n: usize| (n > 0).then_some(n);
            let problem = Problem {
                level: "error",
                rule: None,
                line: place(error.line()),
                column: place(error.column()),
                message: error.message(),
            };
            return Report { problems: vec![problem], ..Report::default() };
        }
    };
    let mut check = Check { problems: Vec::new(), ids: BTreeMap::new() };
    check.document(&policy, now);
    check.rules(&policy);
    let problems = check.problems;
    Report {
        ok: problems.iter().all(|p| p.level != "error"),
        version: Some(policy.version),
        rules: policy.exec.len() + policy.script.len() + policy.file.len(),
        problems,
    }
}

/// Reads a policy as its author writes it: what publishing fills in may be absent.
fn parse(bytes: &[u8]) -> Result<Policy, JsonError> {
    let filled = [
        ("policy_id", Value::from("draft")),
        ("issued_at", Value::from("1970-01-01T00:00:00Z")),
        ("audience", serde_json::json!({"root_id": "draft"})),
    ];
    json::from_slice_filled(bytes, &filled)
}

struct Check {
    problems: Vec<Problem>,
    ids: BTreeMap<String, u32>,
}

impl Check {
    fn error(&mut self, rule: Option<&str>, message: impl Into<String>) {
        self.add("error", rule, message.into());
    }

    fn warn(&mut self, rule: Option<&str>, message: impl Into<String>) {
        self.add("warning", rule, message.into());
    }

    fn add(&mut self, level: &'static str, rule: Option<&str>, message: String) {
        let rule = rule.map(str::to_owned);
        self.problems.push(Problem { level, rule, line: None, column: None, message });
    }

    fn document(&mut self, policy: &Policy, now: Timestamp) {
        if !is_id(&policy.policy_id) {
            self.error(None, "policy_id must match [A-Za-z0-9_-]{1,64}");
        }
        if policy.version == 0 {
            self.error(None, "version must be at least 1");
        }
        if let Err(fault) = policy.limits.check() {
            self.error(None, fault);
        }
        if policy.expires_at <= now {
            self.error(None, format!("it expired at {}", policy.expires_at));
        } else if policy.expires_at.as_second() - now.as_second() > DAYS_AHEAD * 86_400 {
            let text = format!(
                "it expires more than {DAYS_AHEAD} days ahead; agents refuse that \
                                unless their root allows more"
            );
            self.warn(None, text);
        }
        match policy.require_enforcement {
            RequireEnforcement::Full => {}
            RequireEnforcement::Partial | RequireEnforcement::None => self.warn(
                None,
                "require_enforcement is not full: jobs may run where the system cannot hold them",
            ),
        }
        if policy.exec.is_empty() && policy.script.is_empty() && policy.file.is_empty() {
            self.warn(None, "it has no rules, so it denies everything");
        }
    }

    fn rules(&mut self, policy: &Policy) {
        for r in &policy.exec {
            self.id(&r.id);
            self.path(&r.id, "path", &r.path);
            self.args(&r.id, &r.args);
            self.env(&r.id, &r.env);
            self.run_as(&r.id, r.run_as.as_deref());
        }
        for r in &policy.script {
            self.id(&r.id);
            self.path(&r.id, "interpreter", &r.interpreter);
            self.args(&r.id, &r.args);
            self.env(&r.id, &r.env);
            self.run_as(&r.id, r.run_as.as_deref());
            if r.effect == Effect::Allow && r.sha256.is_none() && r.signer.is_none() {
                self.error(Some(&r.id), "an allow must name the script by sha256 or signer");
            }
        }
        for r in &policy.file {
            self.id(&r.id);
            self.path(&r.id, "path", &r.path);
            self.run_as(&r.id, r.run_as.as_deref());
            if r.access.is_empty() {
                self.error(Some(&r.id), "access is empty, so the rule says nothing");
            }
        }
    }

    fn id(&mut self, id: &str) {
        if !is_id(id) {
            self.error(Some(id), "id must match [A-Za-z0-9_-]{1,64}");
        }
        let count = self.ids.entry(id.to_owned()).or_default();
        *count += 1;
        if *count == 2 {
            self.error(Some(id), "id stands twice; every rule needs its own");
        }
    }

    fn path(&mut self, id: &str, field: &str, path: &str) {
        let fault = if !path.starts_with('/') {
            "must be absolute"
        } else if path.split('/').any(|part| part == "..") {
            "must not contain .."
        } else if path.split('/').any(|part| part == ".") {
            "must not contain ."
        } else if path.contains("//") {
            "must not contain //"
        } else if path.contains('\0') {
            "must not contain a NUL"
        } else {
            return;
        };
        self.error(Some(id), format!("{field} {path:?} {fault}"));
    }

    fn args(&mut self, id: &str, args: &ArgsRule) {
        if let Err(fault) = args.check() {
            self.error(Some(id), fault);
        }
        let ArgsRule::Slots(slots) = args else { return };
        for slot in slots {
            match slot {
                ArgSlot::Literal(text) if text.contains('\0') => {
                    self.error(Some(id), "an argument must not contain a NUL");
                }
                ArgSlot::Pattern(ArgPattern { pattern }) if pattern.is_empty() => {
                    self.warn(Some(id), "an empty pattern only matches the empty argument");
                }
                ArgSlot::Literal(_) | ArgSlot::Pattern(_) => {}
            }
        }
    }

    fn env(&mut self, id: &str, names: &BTreeSet<String>) {
        for name in names {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.is_empty() || !name.bytes().all(plain) {
                self.error(Some(id), format!("{name:?} is no name of an environment variable"));
            } else if ["LD_", "DYLD_", "PYTHON"].iter().any(|p| name.starts_with(p))
                || name == "BASH_ENV"
            {
                self.error(
                    Some(id),
                    format!("{name} steers a loader or interpreter; no job may set it"),
                );
            }
        }
    }

    fn run_as(&mut self, id: &str, user: Option<&str>) {
        match user {
            Some("root") => self.warn(Some(id), "as root the system can enforce only a part"),
            Some("") => self.error(Some(id), "run_as is empty"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{ "version": 7, "expires_at": "2026-01-20T00:00:00Z",
        "exec": [{"id": "uptime", "effect": "allow", "path": "/usr/bin/uptime"}] }"#;

    fn check(text: &str) -> Report {
        lint(text.as_bytes(), "2026-01-01T00:00:00Z".parse().unwrap())
    }

    fn first(text: &str) -> String {
        let report = check(text);
        assert!(!report.ok, "{report:?}");
        report.problems[0].message.clone()
    }

    #[test]
    fn a_policy_as_its_author_writes_it_is_ok() {
        assert_eq!(check(GOOD).problems, []);
        assert!(check(GOOD).ok);
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let report = check(&GOOD.replace("\"effect\"", "\"efect\""));
        assert_eq!(report.problems[0].line, Some(2));
        assert!(report.problems[0].message.contains("unknown field `efect`"), "{report:?}");
        assert!(first("{").contains("EOF"));
        assert!(first(&GOOD.replace("\"version\": 7,", "")).contains("version"));
        assert!(first(r#"{"version":1,"version":2}"#).contains("stands twice"));
    }

    #[test]
    fn what_an_agent_refuses_is_an_error() {
        let path = |p: &str| GOOD.replace("/usr/bin/uptime", p);
        assert!(first(&path("uptime")).contains("absolute"));
        assert!(first(&path("/usr/../bin")).contains(".."));
        assert!(first(&path("/usr//bin")).contains("//"));
        assert!(first(&GOOD.replace("\"uptime\"", "\"up time\"")).contains("id must match"));
        assert!(first(&GOOD.replace("2026-01-20", "2025-01-20")).contains("expired"));
        assert!(first(&GOOD.replace("\"version\": 7", "\"version\": 0")).contains("at least 1"));
        let rule = r#"{"id": "uptime", "effect": "allow", "path": "/a", "env": ["LD_PRELOAD"]},"#;
        let twice = GOOD.replace("\"exec\": [", &format!("\"exec\": [{rule}"));
        let report = check(&twice);
        assert!(report.problems[0].message.contains("LD_PRELOAD"));
        assert!(report.problems[1].message.contains("id stands twice"));
        let args =
            |args: &str| GOOD.replace("/usr/bin/uptime\"", &format!("/a\", \"args\": {args}"));
        assert!(first(&args(r#"[{"match": "a)|(b"}]"#)).contains("pattern"));
        assert!(first(&args(r#"[{"match": "[a-"}]"#)).contains("pattern"));
        let script = r#""script": [{"id": "s", "effect": "allow", "interpreter": "/bin/sh"}],"#;
        let open = GOOD.replace("\"exec\"", &format!("{script} \"exec\""));
        assert!(first(&open).contains("sha256 or signer"));
    }

    #[test]
    fn what_an_author_may_regret_is_a_warning() {
        let report = check(&GOOD.replace("2026-01-20", "2026-06-20"));
        assert!(report.ok);
        assert_eq!(report.problems[0].level, "warning");
    }
}
