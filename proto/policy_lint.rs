//! What an agent would refuse in a policy, or its author regret, found before it is signed: one
//! list for everybody who writes, checks and publishes policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::{
    identity::is_id,
    json::{self, JsonError},
    policy::{ArgPattern, ArgSlot, ArgsRule, Children, Effect, Mode, Policy, RequireEnforcement},
    policy_env,
    policy_programs::is_interpreter,
    root::Root,
};

/// More rules than this in one document are refused.
pub const MAX_RULES: usize = 10_000;
/// The longest path of a rule, in bytes (`PATH_MAX` without its zero).
pub const MAX_PATH_BYTES: usize = 4095;
/// The deepest path of a rule.
pub const MAX_PATH_PARTS: usize = 128;
/// The longest name of a user.
const MAX_USER_BYTES: usize = 64;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// An agent refuses the document.
    Error,
    /// Its author may not mean it.
    Warning,
}

impl Level {
    /// The word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub level: Level,
    /// The rule it is about; the document as a whole when absent.
    pub rule: Option<String>,
    /// What it is.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rule) = &self.rule {
            write!(f, "rule {rule}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Reads a policy as its author writes it: what publishing fills in may be absent.
///
/// # Errors
/// The first fault, with its place.
pub fn draft(bytes: &[u8]) -> Result<Policy, JsonError> {
    let filled = [
        ("policy_id", Value::from("draft")),
        ("issued_at", Value::from("1970-01-01T00:00:00Z")),
        ("audience", serde_json::json!({"root_id": "draft"})),
    ];
    json::from_slice_filled(bytes, &filled)
}

/// Everything that is the matter with a policy; nothing when it is well.
#[must_use]
pub fn lint(policy: &Policy, now: Timestamp) -> Vec<Problem> {
    let mut check = Check { problems: Vec::new(), ids: BTreeMap::new() };
    check.document(policy, now);
    check.rules(policy);
    check.problems
}

struct Check {
    problems: Vec<Problem>,
    ids: BTreeMap<String, u32>,
}

impl Check {
    fn error(&mut self, rule: Option<&str>, message: impl Into<String>) {
        self.add(Level::Error, rule, message.into());
    }

    fn warn(&mut self, rule: Option<&str>, message: impl Into<String>) {
        self.add(Level::Warning, rule, message.into());
    }

    fn add(&mut self, level: Level, rule: Option<&str>, message: String) {
        let rule = rule.map(str::to_owned);
        self.problems.push(Problem { level, rule, message });
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
        let days = Root::DEFAULT_POLICY_DAYS;
        if policy.expires_at <= now {
            self.error(None, format!("it expired at {}", policy.expires_at));
        } else if policy.expires_at.as_second() - now.as_second() > i64::from(days) * 86_400 {
            let text = format!(
                "it expires more than {days} days ahead; agents refuse that unless their \
                 root allows more"
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
        if policy.exec.len() + policy.script.len() + policy.file.len() > MAX_RULES {
            self.error(None, format!("more than {MAX_RULES} rules"));
        }
        let none = policy.exec.is_empty() && policy.script.is_empty() && policy.file.is_empty();
        if none && policy.mode == Mode::Enforce {
            self.warn(None, "it has no rules, so it denies everything");
        }
    }

    /// Rules by which no job ever runs, since `full` is required and they leave something open.
    fn gaps(&mut self, policy: &Policy) {
        if policy.require_enforcement != RequireEnforcement::Full {
            return;
        }
        let refused = "so no job runs by it while require_enforcement is full";
        if policy.mode == Mode::Monitor {
            self.warn(None, format!("mode monitor lets violations pass, {refused}"));
        }
        let exec = policy.exec.iter().map(|r| (&r.id, r.effect, r.ipc, r.children));
        let script = policy.script.iter().map(|r| (&r.id, r.effect, r.ipc, r.children));
        for (id, effect, ipc, children) in exec.chain(script) {
            if effect == Effect::Allow && ipc {
                self.warn(Some(id), format!("ipc opens Unix sockets of the machine, {refused}"));
            }
            if effect == Effect::Allow && children == Children::Rules {
                self.warn(Some(id), format!("what \"children\": \"rules\" lets run, the system cannot hold whole, {refused}"));
            }
        }
    }

    fn rules(&mut self, policy: &Policy) {
        self.gaps(policy);
        for r in &policy.exec {
            self.id(&r.id);
            self.path(&r.id, "path", &r.path);
            self.args(&r.id, &r.args);
            self.env(&r.id, &r.env);
            self.run_as(&r.id, r.run_as.as_deref());
            if r.effect == Effect::Allow && is_interpreter(&r.path) {
                let fault = "runs whatever it is given, so this rule never lets a job run; write a \
                             script rule";
                self.warn(Some(&r.id), format!("{} {fault}", r.path));
            }
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
        let parts = || path.split('/').skip(1);
        let fault = if !path.starts_with('/') {
            "must be absolute"
        } else if parts().any(|part| part == "..") {
            "must not contain .."
        } else if parts().any(|part| part == ".") {
            "must not contain ."
        } else if path.contains("//") || (path.len() > 1 && path.ends_with('/')) {
            "must not contain // or end in /"
        } else if path.contains('\0') {
            "must not contain a NUL"
        } else if parts().any(|part| part != "**" && part.contains("**")) {
            "must have ** as a part of its own, such as /srv/**/conf"
        } else if path.len() > MAX_PATH_BYTES || parts().count() > MAX_PATH_PARTS {
            let fault = format!("has more than {MAX_PATH_BYTES} bytes or {MAX_PATH_PARTS} parts");
            return self.error(Some(id), format!("{field} {fault}"));
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
        for name in names.iter().filter(|name| !policy_env::may_be_set(name)) {
            let fault = "is no name, or steers a loader or interpreter; no job may set it";
            self.error(Some(id), format!("env {name:?} {fault}"));
        }
    }

    fn run_as(&mut self, id: &str, user: Option<&str>) {
        match user {
            Some("root") => {
                self.warn(
                    Some(id),
                    "it runs as root, which the system holds to a part of the policy only",
                );
            }
            Some(name) if name.is_empty() || name.len() > MAX_USER_BYTES => {
                self.error(Some(id), format!("run_as has 1 to {MAX_USER_BYTES} characters"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{ "version": 7, "expires_at": "2026-01-20T00:00:00Z",
        "exec": [{"id": "uptime", "effect": "allow", "path": "/usr/bin/uptime"}] }"#;

    fn problems(text: &str) -> Vec<Problem> {
        lint(&draft(text.as_bytes()).unwrap(), "2026-01-01T00:00:00Z".parse().unwrap())
    }

    fn first(text: &str) -> String {
        let found = problems(text);
        assert_eq!(found.first().map(|p| p.level), Some(Level::Error), "{found:?}");
        found.first().map(Problem::to_string).unwrap_or_default()
    }

    #[test]
    fn a_policy_as_its_author_writes_it_is_ok() {
        assert_eq!(problems(GOOD), []);
    }

    #[test]
    fn what_an_agent_refuses_is_an_error() {
        let path = |p: &str| GOOD.replace("/usr/bin/uptime", p);
        assert!(first(&path("uptime")).contains("absolute"));
        assert!(first(&path("/usr/../bin")).contains(".."));
        assert!(first(&path("/usr//bin")).contains("//"));
        assert!(first(&path("/usr/bin/")).contains("end in /"));
        assert!(first(&path("/usr/**x")).contains("part of its own"));
        assert!(first(&path(&"/a".repeat(129))).contains("128 parts"));
        assert!(first(&GOOD.replace("\"uptime\"", "\"up time\"")).contains("id must match"));
        assert!(first(&GOOD.replace("2026-01-20", "2025-01-20")).contains("expired"));
        assert!(first(&GOOD.replace("\"version\": 7", "\"version\": 0")).contains("at least 1"));
        let rule = r#"{"id": "uptime", "effect": "allow", "path": "/a", "env": ["LD_PRELOAD"]},"#;
        let found = problems(&GOOD.replace("\"exec\": [", &format!("\"exec\": [{rule}")));
        let said: Vec<_> = found.iter().map(Problem::to_string).collect();
        assert!(said.join("|").contains("rule uptime: env \"LD_PRELOAD\""), "{said:?}");
        assert!(said.join("|").contains("rule uptime: id stands twice"), "{said:?}");
        let args =
            |args: &str| GOOD.replace("/usr/bin/uptime\"", &format!("/a\", \"args\": {args}"));
        assert!(first(&args(r#"[{"match": "a)|(b"}]"#)).contains("pattern"));
        assert!(first(&args(r#"[{"match": "[a-"}]"#)).contains("pattern"));
        let script = r#""script": [{"id": "s", "effect": "allow", "interpreter": "/bin/sh"}],"#;
        let open = GOOD.replace("\"exec\"", &format!("{script} \"exec\""));
        assert!(first(&open).contains("sha256 or signer"));
        let user =
            |user: &str| GOOD.replace("/usr/bin/uptime\"", &format!("/a\", \"run_as\": {user}"));
        assert!(first(&user(r#""""#)).contains("run_as has 1 to 64"));
    }

    #[test]
    fn what_an_author_may_regret_is_a_warning() {
        let found = problems(&GOOD.replace("2026-01-20", "2026-06-20"));
        assert_eq!(found.first().map(|p| p.level), Some(Level::Warning), "{found:?}");
    }
}
