//! `status`: the whole agent on one screen, what to do about it at the end.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jtnt_proto::admin::v1 as pb;
use serde::Serialize;

use super::{
    escape::clean,
    json::{seconds, text, time},
    table::{Table, Tone, toned},
    time as human,
};

/// The JSON of `status`.
#[derive(Debug, Serialize)]
pub(crate) struct Status<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<&'a str>,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    enrolled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hub_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hub: Option<Hub<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Policy<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<Jobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<Audit<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<Disk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<Root<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforcement: Option<&'a str>,
    advice: Vec<Advice<'a>>,
    labels: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct Hub<'a> {
    connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_success_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Timestamp>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_offset: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_exchange: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Certificate<'a> {
    serial: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<Timestamp>,
    expires_in_days: i64,
}

#[derive(Debug, Serialize)]
struct Policy<'a> {
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    require_enforcement: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Jobs {
    queued: u64,
    running: u64,
    pending_results: u64,
}

#[derive(Debug, Serialize)]
struct Audit<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    log_id: Option<&'a str>,
    size: u64,
    writable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<&'a str>,
    /// Lines that the hub has seen and cosigned.
    witnessed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    witness_refusal: Option<&'a str>,
    /// Lines that the hub holds.
    #[serde(skip_serializing_if = "super::audit::is_zero")]
    held: u64,
    /// Logs that were put back to an earlier state, by their ids.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    superseded: &'a [String],
}

#[derive(Debug, Serialize)]
struct Disk {
    total_bytes: u64,
    used_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Root<'a> {
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct Advice<'a> {
    reason: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
}

fn breaker(state: pb::BreakerState) -> Option<&'static str> {
    match state {
        pb::BreakerState::Unspecified => None,
        pb::BreakerState::Closed => Some("closed"),
        pb::BreakerState::Open => Some("open"),
        pb::BreakerState::HalfOpen => Some("half_open"),
    }
}

impl<'a> From<&'a pb::Status> for Status<'a> {
    fn from(s: &'a pb::Status) -> Self {
        Self {
            agent_id: text(&s.agent_id),
            version: &s.version,
            started_at: time(s.started_at.as_ref()),
            enrolled: s.enrolled,
            hub_url: text(&s.hub_url),
            hub: s.hub.as_ref().map(Hub::from),
            certificate: s.certificate.as_ref().map(Certificate::from),
            policy: s.policy.as_ref().map(Policy::from),
            jobs: s.jobs.map(|j| Jobs {
                queued: j.queued,
                running: j.running,
                pending_results: j.pending_results,
            }),
            audit: s.audit.as_ref().map(|a| Audit {
                log_id: text(&a.log_id),
                size: a.size,
                writable: a.writable,
                last_error: text(&a.last_error),
                witnessed: a.witnessed,
                witness_refusal: text(&a.witness_refusal),
                held: a.held,
                superseded: &a.superseded,
            }),
            disk: s.disk.map(|d| Disk { total_bytes: d.total_bytes, used_bytes: d.used_bytes }),
            root: s.root.as_ref().map(|r| Root {
                version: r.version,
                source: text(&r.source),
                expires_at: time(r.expires_at.as_ref()),
            }),
            enforcement: text(&s.enforcement),
            advice: s.advice.iter().map(Advice::from).collect(),
            labels: s.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            now: time(s.now.as_ref()),
        }
    }
}

impl<'a> From<&'a pb::HubStatus> for Hub<'a> {
    fn from(h: &'a pb::HubStatus) -> Self {
        Self {
            connected: h.connected,
            last_success_at: time(h.last_success_at.as_ref()),
            last_error: text(&h.last_error),
            breaker: breaker(h.breaker()),
            next_attempt_at: time(h.next_attempt_at.as_ref()),
            clock_offset: seconds(h.clock_offset.as_ref()),
            key_exchange: text(&h.key_exchange),
        }
    }
}

impl<'a> From<&'a pb::CertStatus> for Certificate<'a> {
    fn from(c: &'a pb::CertStatus) -> Self {
        Self {
            serial: &c.serial,
            not_before: time(c.not_before.as_ref()),
            not_after: time(c.not_after.as_ref()),
            expires_in_days: c.expires_in_days,
        }
    }
}

impl<'a> From<&'a pb::PolicyStatus> for Policy<'a> {
    fn from(p: &'a pb::PolicyStatus) -> Self {
        Self {
            version: p.version,
            policy_id: text(&p.policy_id),
            expires_at: time(p.expires_at.as_ref()),
            expired: p.expired,
            mode: text(&p.mode),
            require_enforcement: text(&p.require_enforcement),
        }
    }
}

impl<'a> From<&'a pb::Advice> for Advice<'a> {
    fn from(a: &'a pb::Advice) -> Self {
        Self { reason: &a.reason, message: &a.message, command: text(&a.command) }
    }
}

/// The screen.
pub(crate) fn screen(s: &pb::Status, now: Timestamp, color: bool) -> String {
    let view = Status::from(s);
    let mut table = Table::bare();
    let name = view.agent_id.unwrap_or("no identity yet");
    let up = view.started_at.map(|at| format!(", up {}", uptime(at, now)));
    table.pair("Agent", format!("{name}  version {}{}", view.version, up.unwrap_or_default()));
    hub_row(&view, now, &mut table);
    if let Some(c) = &view.certificate {
        let tone = match c.expires_in_days {
            ..=0 => Tone::Bad,
            1..=30 => Tone::Warn,
            _ => Tone::Good,
        };
        let text = format!("expires {}", human::when_or_dash(c.not_after, now));
        table.pair("Certificate", toned(text, tone));
        table.pair("", format!("serial {}", c.serial));
    }
    policy_row(&view, now, &mut table);
    if let Some(root) = &view.root {
        let source = root.source.unwrap_or("unknown source");
        let tone = if source == "pinned" { Tone::Plain } else { Tone::Warn };
        table.pair("Root of trust", toned(format!("version {}, {source}", root.version), tone));
    }
    table.pair_if("Enforcement", &enforcement(view.enforcement.unwrap_or_default()));
    if let Some(j) = &view.jobs {
        let (running, queued, pending) = (j.running, j.queued, j.pending_results);
        let text = format!("{running} running, {queued} queued, {pending} waiting for the hub");
        table.pair("Jobs", text);
    }
    if let Some(a) = &view.audit {
        if a.writable {
            let lines = human::count(a.size, "line");
            let (seen, tone) = match (a.witness_refusal, a.size.saturating_sub(a.witnessed)) {
                (Some(why), _) => (format!("REFUSED by the hub as a witness: {why}"), Tone::Bad),
                (None, 0) => ("all seen by the hub".to_owned(), Tone::Plain),
                (None, left) => (format!("{left} not seen by the hub yet"), Tone::Plain),
            };
            let held = match a.held {
                0 => String::new(),
                held => format!(", {held} held by it"),
            };
            table.pair("Audit log", toned(format!("{lines}, {seen}{held}"), tone));
            if !a.superseded.is_empty() {
                let text = format!("ROLLED BACK; kept aside: {}", a.superseded.join(", "));
                table.pair("", toned(text, Tone::Bad));
            }
        } else {
            let why = a.last_error.unwrap_or("no reason known");
            let text = format!("NOT WRITABLE, so no job starts: {why}");
            table.pair("Audit log", toned(text, Tone::Bad));
        }
    }
    if let Some(d) = view.disk.as_ref().filter(|d| d.total_bytes > 0) {
        let share = u128::from(d.used_bytes) * 100 / u128::from(d.total_bytes);
        let (used, total) = (human::bytes(d.used_bytes), human::bytes(d.total_bytes));
        let tone = if share >= 90 { Tone::Warn } else { Tone::Plain };
        table.pair("Disk", toned(format!("{share}% used ({used} of {total})"), tone));
    }
    let labels: Vec<_> = view.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    table.pair_if("Labels", &labels.join(" "));
    format!("{}{}", table.render(color), advice(&view.advice, color))
}

/// What changes of it, on a line.
pub(crate) fn line(s: &pb::Status) -> String {
    let view = Status::from(s);
    let hub = match &view.hub {
        _ if !view.enrolled => "not enrolled",
        Some(hub) if hub.connected => "connected",
        _ => "disconnected",
    };
    let mut parts = vec![format!("hub={hub}")];
    parts.push(match view.policy.as_ref().filter(|p| p.version > 0) {
        None => "policy=none".to_owned(),
        Some(p) if p.expired => format!("policy={} EXPIRED", p.version),
        Some(p) => format!("policy={}", p.version),
    });
    if let Some(j) = &view.jobs {
        let (running, queued, pending) = (j.running, j.queued, j.pending_results);
        parts.push(format!("running={running}  queued={queued}  waiting_for_hub={pending}"));
    }
    if view.audit.as_ref().is_some_and(|a| !a.writable) {
        parts.push("audit=NOT WRITABLE".to_owned());
    }
    let advice: Vec<_> = view.advice.iter().map(|a| a.reason).collect();
    if !advice.is_empty() {
        parts.push(format!("advice={}", advice.join(",")));
    }
    clean(&parts.join("  ")).into_owned()
}

/// What the system holds jobs to, with the meaning of the word that newcomers misread.
fn enforcement(word: &str) -> String {
    match word {
        "none" => "none: the policy decides what starts, nothing confines what it does".to_owned(),
        word => word.to_owned(),
    }
}

fn uptime(since: Timestamp, now: Timestamp) -> String {
    human::span(u64::try_from(now.as_second() - since.as_second()).unwrap_or(0))
}

fn hub_row(view: &Status<'_>, now: Timestamp, table: &mut Table) {
    if !view.enrolled {
        table.pair("Hub", toned("not enrolled", Tone::Bad));
        return;
    }
    let url = view.hub_url.unwrap_or("no address");
    let Some(hub) = &view.hub else {
        table.pair("Hub", url);
        return;
    };
    let state = if hub.connected { "connected" } else { "disconnected" };
    table.pair("Hub", toned(format!("{state}  {url}"), Tone::of(hub.connected)));
    let last = hub.last_success_at.map_or_else(|| "never".to_owned(), |at| human::when(at, now));
    table.pair("", format!("last heartbeat {last}"));
    if let Some(group) = hub.key_exchange {
        table.pair("", format!("TLS 1.3, keys agreed on by {group}"));
    }
    if let Some(error) = hub.last_error.filter(|_| !hub.connected) {
        table.pair("", toned(error, Tone::Bad));
    }
    if let Some(breaker) = hub.breaker.filter(|b| *b != "closed") {
        let next = hub.next_attempt_at.map(|at| format!(", next attempt {}", human::when(at, now)));
        let text = format!("circuit breaker {breaker}{}", next.unwrap_or_default());
        table.pair("", toned(text, Tone::Warn));
    }
}

fn policy_row(view: &Status<'_>, now: Timestamp, table: &mut Table) {
    match &view.policy {
        Some(p) if p.version > 0 => {
            let mode = p.mode.unwrap_or("enforce");
            let expires = human::when_or_dash(p.expires_at, now);
            let word = if p.expired { "EXPIRED, so it denies everything," } else { "expires" };
            let text = format!("version {}, {mode}, {word} {expires}", p.version);
            let tone = if p.expired { Tone::Bad } else { Tone::Plain };
            table.pair("Policy", toned(text, tone));
        }
        _ => table.pair("Policy", toned("none yet, so no job may run", Tone::Warn)),
    }
}

fn advice(advice: &[Advice<'_>], color: bool) -> String {
    if advice.is_empty() {
        return String::new();
    }
    let mut table = Table::bare();
    for a in advice {
        table.row([toned("!", Tone::Warn), a.message.into()]);
        if let Some(command) = a.command {
            table.row(["".into(), format!("$ {command}").into()]);
        }
    }
    format!("\n{}", table.render(color))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_enforcement_is_explained() {
        let status = pb::Status { enforcement: "none".to_owned(), ..pb::Status::default() };
        let screen = screen(&status, Timestamp::UNIX_EPOCH, false);
        let row = screen.lines().find(|line| line.starts_with("Enforcement")).unwrap();
        assert!(
            row.ends_with("none: the policy decides what starts, nothing confines what it does")
        );
    }

    #[test]
    fn a_line_tells_what_is_wrong_and_cannot_steer_a_terminal() {
        let status = pb::Status {
            audit: Some(pb::AuditStatus::default()),
            advice: vec![pb::Advice { reason: "X\x1b[2J\n".to_owned(), ..pb::Advice::default() }],
            ..pb::Status::default()
        };
        assert_eq!(
            line(&status),
            "hub=not enrolled  policy=none  audit=NOT WRITABLE  advice=X\\u{1b}[2J\\n"
        );
    }
}
