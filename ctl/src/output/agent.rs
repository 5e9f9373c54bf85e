//! Health, versions, the way to the hub, and what a reload changed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jtnt_proto::admin::v1 as pb;
use serde::Serialize;

use super::{
    json::{seconds, text, time},
    table::{Table, Tone, toned, word},
    time as human,
};

/// The JSON of `health`, as the HTTP endpoint gives it.
#[derive(Debug, Serialize)]
pub(crate) struct Health<'a> {
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<Timestamp>,
    checks: BTreeMap<&'a str, Check<'a>>,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Check<'a> {
    status: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_days: Option<i64>,
}

impl<'a> From<&'a pb::GetHealthResponse> for Health<'a> {
    fn from(h: &'a pb::GetHealthResponse) -> Self {
        let check = |c: &'a pb::HealthCheck| Check {
            status: &c.status,
            message: &c.message,
            expires_in_days: c.expires_in_days,
        };
        Self {
            status: &h.status,
            timestamp: time(h.timestamp.as_ref()),
            checks: h.checks.iter().map(|(name, c)| (name.as_str(), check(c))).collect(),
            version: &h.version,
            agent_id: text(&h.agent_id),
        }
    }
}

/// pass, warn, fail; ok and not.
pub(crate) fn tone(status: &str) -> Tone {
    match status {
        "pass" | "healthy" => Tone::Good,
        "warn" => Tone::Warn,
        _ => Tone::Bad,
    }
}

/// A line a check, in the order of the guide.
pub(crate) fn health(h: &pb::GetHealthResponse, color: bool) -> String {
    const ORDER: [&str; 6] =
        ["enrolled", "certificates", "hub_connection", "policy", "disk_space", "last_job"];
    let rank = |name: &str| ORDER.iter().position(|o| *o == name).unwrap_or(ORDER.len());
    let mut checks: Vec<_> = h.checks.iter().collect();
    checks.sort_by_key(|(name, _)| (rank(name), name.as_str()));
    let mut table = Table::bare();
    for (name, check) in checks {
        let status = toned(&check.status, tone(&check.status));
        table.row([name.into(), status, check.message.as_str().into()]);
    }
    format!("{}\n{}", word(&h.status, tone(&h.status), color), table.render(color))
}

/// The JSON of `health --live` and `health --ready`.
#[derive(Debug, Serialize)]
pub(crate) struct Probe {
    pub(crate) ok: bool,
}

/// The JSON of `version`; without a daemon only the client.
#[derive(Debug, Serialize)]
pub(crate) struct Versions<'a> {
    pub(crate) client: Client,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) daemon: Option<Daemon<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Client {
    pub(crate) version: &'static str,
    pub(crate) api_version: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct Daemon<'a> {
    pub(crate) version: &'a str,
    pub(crate) api_version: &'a str,
}

pub(crate) fn versions(v: &Versions<'_>, color: bool) -> String {
    let mut table = Table::bare();
    let both = |version: &str, api: &str| format!("{version}  ({api})");
    table.pair("client", both(v.client.version, v.client.api_version));
    match &v.daemon {
        Some(d) => table.pair("daemon", both(d.version, d.api_version)),
        None => table.pair("daemon", toned("unknown", Tone::Bad)),
    }
    table.render(color)
}

/// The JSON of `test-connection`.
#[derive(Debug, Serialize)]
pub(crate) struct Connection<'a> {
    ok: bool,
    steps: Vec<Step<'a>>,
}

#[derive(Debug, Serialize)]
struct Step<'a> {
    name: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'a str>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    took: Option<f64>,
}

impl<'a> From<&'a pb::TestConnectionResponse> for Connection<'a> {
    fn from(c: &'a pb::TestConnectionResponse) -> Self {
        let step = |s: &'a pb::ConnectionStep| Step {
            name: &s.name,
            ok: s.ok,
            detail: text(&s.detail),
            reason: text(&s.reason),
            advice: text(&s.advice),
            took: seconds(s.took.as_ref()),
        };
        Self { ok: c.ok, steps: c.steps.iter().map(step).collect() }
    }
}

pub(crate) fn connection(c: &pb::TestConnectionResponse, color: bool) -> String {
    let mut table = Table::bare();
    for s in &c.steps {
        let state = toned(if s.ok { "ok" } else { "failed" }, Tone::of(s.ok));
        let took = seconds(s.took.as_ref()).map(human::duration).unwrap_or_default();
        let reason = if s.reason.is_empty() { String::new() } else { format!(" [{}]", s.reason) };
        let detail = format!("{}{reason}", s.detail);
        table.row([s.name.as_str().into(), state, took.into(), detail.into()]);
        if !s.advice.is_empty() {
            let advice = format!("next: {}", s.advice);
            table.row(["".into(), "".into(), "".into(), advice.into()]);
        }
    }
    table.render(color)
}

/// The JSON of `log level`.
#[derive(Debug, Serialize)]
pub(crate) struct LogLevel<'a> {
    pub(crate) level: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) previous: Option<&'a str>,
}

/// The JSON of `reload`.
#[derive(Debug, Serialize)]
pub(crate) struct Reload<'a> {
    changed: &'a [String],
    needs_restart: &'a [String],
}

impl<'a> From<&'a pb::ReloadResponse> for Reload<'a> {
    fn from(r: &'a pb::ReloadResponse) -> Self {
        Self { changed: &r.changed, needs_restart: &r.needs_restart }
    }
}

pub(crate) fn reload(r: &pb::ReloadResponse, color: bool) -> String {
    let mut table = Table::bare();
    match r.changed.as_slice() {
        [] => table.pair("changed", "nothing"),
        changed => table.pair("changed", changed.join(", ")),
    }
    if !r.needs_restart.is_empty() {
        table.pair("needs a restart", toned(r.needs_restart.join(", "), Tone::Warn));
    }
    table.render(color)
}

/// The JSON of `authz explain`.
#[derive(Debug, Serialize)]
pub(crate) struct Authz<'a> {
    allowed: bool,
    user_role: &'a str,
    needed_role: &'a str,
    why: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
}

impl<'a> From<&'a pb::ExplainAuthzResponse> for Authz<'a> {
    fn from(a: &'a pb::ExplainAuthzResponse) -> Self {
        Self {
            allowed: a.allowed,
            user_role: &a.user_role,
            needed_role: &a.needed_role,
            why: &a.why,
            method: text(&a.method),
        }
    }
}

pub(crate) fn authz(a: &pb::ExplainAuthzResponse, color: bool) -> String {
    let mut table = Table::bare();
    table.pair("answer", toned(if a.allowed { "allowed" } else { "denied" }, Tone::of(a.allowed)));
    table.pair_if("method", &a.method);
    table.pair("role of the user", a.user_role.as_str());
    table.pair("role needed", a.needed_role.as_str());
    table.pair_if("why", &a.why);
    table.render(color)
}
