//! The policy in force, and its answers.

use std::fmt::Write as _;

use jiff::Timestamp;
use jtnt_proto::{
    admin::v1 as pb,
    policy::{
        AnyArgs, ArgSlot, ArgsRule, Children, Effect, ExecRule, Limits, Mode, Network, Policy,
        ScriptRule,
    },
};
use serde::Serialize;
use serde_json::Value;

use super::{
    escape::{clean, clean_json},
    json::{text, time},
    table::{Cell, Table, Tone, toned},
    time as human,
};

/// The JSON of `policy show`.
#[derive(Debug, Serialize)]
pub(crate) struct Shown<'a> {
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    require_enforcement: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforcement: Option<&'a str>,
    /// The signed document as an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Value>,
    baseline: &'a [String],
    signed_by: &'a [String],
}

impl<'a> From<&'a pb::GetPolicyResponse> for Shown<'a> {
    fn from(p: &'a pb::GetPolicyResponse) -> Self {
        Self {
            version: p.version,
            policy_id: text(&p.policy_id),
            issued_at: time(p.issued_at.as_ref()),
            expires_at: time(p.expires_at.as_ref()),
            expired: p.expired,
            mode: text(&p.mode),
            require_enforcement: text(&p.require_enforcement),
            enforcement: text(&p.enforcement),
            document: serde_json::from_str(&p.document).ok(),
            baseline: &p.baseline,
            signed_by: &p.signed_by,
        }
    }
}

pub(crate) fn show(p: &pb::GetPolicyResponse, now: Timestamp, color: bool) -> String {
    let document = serde_json::from_str::<Policy>(&p.document);
    let mut out = summary(p, document.as_ref().ok(), now, color);
    if p.version == 0 {
        return out;
    }
    match &document {
        Ok(policy) => rules(policy, color, &mut out),
        Err(error) => {
            let error = error.to_string();
            out.push_str(&format!("\nthe document is of another version: {}\n", clean(&error)));
        }
    }
    if !p.baseline.is_empty() {
        out.push_str("\nEvery sandbox adds:\n");
        let mut table = Table::bare();
        p.baseline.iter().for_each(|line| table.pair(" ", line.as_str()));
        out.push_str(&table.render(color));
    }
    out
}

fn summary(
    p: &pb::GetPolicyResponse,
    document: Option<&Policy>,
    now: Timestamp,
    color: bool,
) -> String {
    let mut table = Table::bare();
    if p.version == 0 {
        table.pair("Policy", toned("none yet, so no job may run", Tone::Warn));
    } else {
        table.pair("Policy", format!("version {} ({})", p.version, p.policy_id));
        table.pair("Issued", human::when_or_dash(time(p.issued_at.as_ref()), now));
        let expires = human::when_or_dash(time(p.expires_at.as_ref()), now);
        table.pair("Expires", toned(expires, if p.expired { Tone::Bad } else { Tone::Plain }));
        table.pair("Signed by", p.signed_by.join(" "));
        let tone = if p.mode == "enforce" { Tone::Plain } else { Tone::Warn };
        table.pair("Mode", toned(&p.mode, tone));
    }
    table.pair_if("Required", &p.require_enforcement);
    table.pair_if("Enforced here", &p.enforcement);
    if let Some(policy) = document {
        let network = match policy.network {
            Network::Any => "the machine's",
            Network::None => "none",
        };
        table.pair("Network", network);
        table.pair_if("Limits", &limits(&policy.limits));
    }
    table.render(color)
}

fn rules(policy: &Policy, color: bool, out: &mut String) {
    let effect = |effect| match effect {
        Effect::Allow => toned("allow", Tone::Good),
        Effect::Deny => toned("deny", Tone::Bad),
    };
    let or_job = |run_as: &Option<String>| Cell::from(run_as.as_deref().unwrap_or("-"));
    let mut section = |title: &str, table: Table| {
        // Writing to a String cannot fail.
        write!(out, "\n{title}\n{}", table.render(color)).unwrap_or_default();
    };
    if !policy.exec.is_empty() {
        let mut table = Table::new(&["RULE", "EFFECT", "PROGRAM", "ARGUMENTS", "RUNS AS", "ALSO"]);
        for r in &policy.exec {
            let (id, path) = (r.id.as_str().into(), r.path.as_str().into());
            let (args, also) = (args(&r.args).into(), Also::of_exec(r).text().into());
            table.row([id, effect(r.effect), path, args, or_job(&r.run_as), also]);
        }
        section("Programs", table);
    }
    if !policy.script.is_empty() {
        let mut table = Table::new(&[
            "RULE",
            "EFFECT",
            "INTERPRETER",
            "SCRIPT",
            "ARGUMENTS",
            "RUNS AS",
            "ALSO",
        ]);
        for r in &policy.script {
            let which = match (r.sha256, r.signer) {
                (Some(hash), _) => format!("sha256 {hash}"),
                (None, Some(key)) => format!("signed by {key}"),
                (None, None) => "any".to_owned(),
            };
            table.row([
                r.id.as_str().into(),
                effect(r.effect),
                r.interpreter.as_str().into(),
                which.into(),
                args(&r.args).into(),
                or_job(&r.run_as),
                Also::of_script(r).text().into(),
            ]);
        }
        section("Scripts", table);
    }
    if !policy.file.is_empty() {
        let mut table = Table::new(&["RULE", "EFFECT", "ACCESS", "FILES", "RUNS AS", "ALSO"]);
        for r in &policy.file {
            let access: Vec<_> =
                r.access.iter().map(|a| format!("{a:?}").to_ascii_lowercase()).collect();
            let (id, path) = (r.id.as_str().into(), r.path.as_str().into());
            let (access, also) = (access.join(",").into(), mode(r.mode).unwrap_or("-").into());
            table.row([id, effect(r.effect), access, path, or_job(&r.run_as), also]);
        }
        section("Files", table);
    }
}

/// The ceilings that there are.
fn limits(limits: &Limits) -> String {
    let bytes = |what: &str, n: Option<u64>| n.map(|n| format!("{what} {}", human::bytes(n)));
    [
        limits.timeout_seconds.map(human::span),
        bytes("memory", limits.memory_bytes),
        limits.pids.map(|n| format!("{n} processes and threads")),
        limits.cpu_percent.map(|n| format!("{n} % of a processor")),
        limits.io_weight.map(|n| format!("weight {n} of I/O")),
        bytes("output", limits.output_bytes),
        bytes("a file", limits.file_bytes),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}

/// What a rule says beside its columns.
struct Also<'a> {
    pinned: Option<String>,
    env: Vec<&'a str>,
    children: Children,
    ipc: bool,
    mode: Option<Mode>,
}

impl<'a> Also<'a> {
    fn of_exec(r: &'a ExecRule) -> Self {
        let pinned = r.sha256.map(|hash| format!("sha256 {hash}"));
        let env = r.env.iter().map(String::as_str).collect();
        Self { pinned, env, children: r.children, ipc: r.ipc, mode: r.mode }
    }

    fn of_script(r: &'a ScriptRule) -> Self {
        let env = r.env.iter().map(String::as_str).collect();
        Self { pinned: None, env, children: r.children, ipc: r.ipc, mode: r.mode }
    }

    fn text(self) -> String {
        let children = match self.children {
            Children::System => None,
            Children::Rules => Some("children by rules".to_owned()),
            Children::None => Some("no children".to_owned()),
        };
        let said = [
            children,
            self.ipc.then(|| "Unix sockets".to_owned()),
            mode(self.mode).map(str::to_owned),
            (!self.env.is_empty()).then(|| format!("env {}", self.env.join(" "))),
            self.pinned,
        ];
        let said: Vec<_> = said.into_iter().flatten().collect();
        if said.is_empty() { "-".to_owned() } else { said.join(", ") }
    }
}

const fn mode(mode: Option<Mode>) -> Option<&'static str> {
    match mode {
        Some(Mode::Enforce) => Some("enforced"),
        Some(Mode::Monitor) => Some("monitored"),
        None => None,
    }
}

fn args(args: &ArgsRule) -> String {
    match args {
        ArgsRule::Any(AnyArgs::Any) => "any".to_owned(),
        ArgsRule::Slots(slots) if slots.is_empty() => "none".to_owned(),
        ArgsRule::Slots(slots) => {
            let slot = |slot: &ArgSlot| match slot {
                ArgSlot::Literal(text) => text.clone(),
                ArgSlot::Pattern(pattern) => format!("/{}/", pattern.pattern),
            };
            slots.iter().map(slot).collect::<Vec<_>>().join(" ")
        }
    }
}

/// The JSON of `policy refresh`.
#[derive(Debug, Serialize)]
pub(crate) struct Refreshed {
    pub(crate) version: u64,
    pub(crate) changed: bool,
}

/// The JSON of `policy check-*`.
#[derive(Debug, Serialize)]
pub(crate) struct Decision<'a> {
    allowed: bool,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canonical_path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<&'a str>,
    considered: Vec<Considered<'a>>,
    monitored: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforcement: Option<&'a str>,
    policy_version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Considered<'a> {
    rule: &'a str,
    why: &'a str,
}

impl<'a> From<&'a pb::Decision> for Decision<'a> {
    fn from(d: &'a pb::Decision) -> Self {
        let considered = |c: &'a pb::Considered| Considered { rule: &c.rule, why: &c.why };
        Self {
            allowed: d.allowed,
            reason: &d.reason,
            message: text(&d.message),
            rule: text(&d.rule),
            canonical_path: text(&d.canonical_path),
            sha256: text(&d.sha256),
            considered: d.considered.iter().map(considered).collect(),
            monitored: d.monitored,
            enforcement: text(&d.enforcement),
            policy_version: d.policy_version,
            run_as: text(&d.run_as),
        }
    }
}

pub(crate) fn decision(d: &pb::Decision, color: bool) -> String {
    let mut table = Table::bare();
    let answer = match (d.allowed, d.monitored) {
        (true, false) => toned("allowed", Tone::Good),
        (true, true) => toned("allowed; recorded as a violation (monitor mode)", Tone::Warn),
        (false, _) => toned("denied", Tone::Bad),
    };
    table.pair("Answer", answer);
    table.pair("Reason", d.reason.as_str());
    table.pair_if("Message", &d.message);
    table.pair_if("Rule", &d.rule);
    table.pair_if("Resolves to", &d.canonical_path);
    table.pair_if("SHA-256", &d.sha256);
    table.pair_if("Runs as", &d.run_as);
    table.pair_if("Enforcement", &d.enforcement);
    table.pair("Policy", format!("version {}", d.policy_version));
    for c in &d.considered {
        table.pair("Not decided by", format!("{}: {}", c.rule, c.why));
    }
    table.render(color)
}

/// The JSON of `policy learn`.
#[derive(Debug, Serialize)]
pub(crate) struct Learned<'a> {
    /// The rules as an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Value>,
    notes: &'a [String],
    complete: bool,
}

impl<'a> From<&'a pb::LearnPolicyResponse> for Learned<'a> {
    fn from(l: &'a pb::LearnPolicyResponse) -> Self {
        let document = serde_json::from_str(&l.document).ok();
        Self { document, notes: &l.notes, complete: l.complete }
    }
}

/// The rules as they go into a policy.
pub(crate) fn rules_alone(l: &pb::LearnPolicyResponse) -> String {
    format!("{}\n", clean_json(l.document.clone()))
}

/// What their reader should know.
pub(crate) fn notes(l: &pb::LearnPolicyResponse) -> String {
    let mut out: String = l.notes.iter().map(|note| format!("note: {}\n", clean(note))).collect();
    if !l.complete {
        out.push_str(
            "incomplete: not everything was seen, or these rules do not allow all of it\n",
        );
    }
    out
}
