//! The client certificate and its renewal.

use jiff::Timestamp;
use jtnt_proto::admin::v1 as pb;
use serde::Serialize;

use super::{
    agent::tone,
    escape::clean,
    json::{text, time},
    table::{Table, Tone, toned},
    time as human,
};

/// The JSON of `cert check`.
#[derive(Debug, Serialize)]
pub(crate) struct Certificate<'a> {
    serial: &'a str,
    subject: &'a str,
    issuer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<Timestamp>,
    expires_in_days: i64,
    status: &'a str,
    chain_ok: bool,
    key_matches: bool,
    /// Where the private key is.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_store: Option<&'a str>,
    problems: &'a [String],
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<Backup<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proof: Option<Proof<'a>>,
}

/// The one before.
#[derive(Debug, Serialize)]
struct Backup<'a> {
    serial: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_until: Option<Timestamp>,
}

/// What the hub says of it.
#[derive(Debug, Serialize)]
struct Proof<'a> {
    serial: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen_serial: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_exchange: Option<&'a str>,
}

/// Whether the hub saw what it was shown, as far as it tells.
pub(crate) fn is_same(proof: &pb::ProveCertificateResponse) -> bool {
    proof.seen_serial.is_empty() || proof.seen_serial == proof.serial
}

impl<'a> Certificate<'a> {
    pub(crate) fn of(
        c: &'a pb::GetCertificateResponse,
        proof: Option<&'a pb::ProveCertificateResponse>,
    ) -> Self {
        Self {
            proof: proof.map(|proof| Proof {
                serial: &proof.serial,
                seen_serial: text(&proof.seen_serial),
                key_exchange: text(&proof.key_exchange),
            }),
            serial: &c.serial,
            subject: &c.subject,
            issuer: &c.issuer,
            not_before: time(c.not_before.as_ref()),
            not_after: time(c.not_after.as_ref()),
            expires_in_days: c.expires_in_days,
            status: &c.status,
            chain_ok: c.chain_ok,
            key_matches: c.key_matches,
            key_store: text(&c.key_store),
            problems: &c.problems,
            path: &c.path,
            backup: c.backup.as_ref().map(|before| Backup {
                serial: &before.serial,
                not_after: time(before.not_after.as_ref()),
                kept_until: time(before.kept_until.as_ref()),
            }),
        }
    }
}

pub(crate) fn certificate(
    c: &pb::GetCertificateResponse,
    proof: Option<&pb::ProveCertificateResponse>,
    now: Timestamp,
    color: bool,
) -> String {
    let view = Certificate::of(c, proof);
    let mut table = Table::bare();
    table.pair("Status", toned(view.status, tone(view.status)));
    table.pair("Expires", human::when_or_dash(view.not_after, now));
    table.pair("Valid since", human::when_or_dash(view.not_before, now));
    table.pair("Serial", view.serial);
    table.pair("Subject", view.subject);
    table.pair("Issuer", view.issuer);
    let yes = |ok, yes: &str, no: &str| toned(if ok { yes } else { no }, Tone::of(ok));
    table.pair("Chain", yes(view.chain_ok, "leads to the hub's CA", "does not lead to the CA"));
    table.pair("Key", yes(view.key_matches, "matches", "does not match"));
    table.pair("Kept in", view.key_store.unwrap_or("-"));
    table.pair("File", view.path);
    if let Some(before) = &view.backup {
        let kept = before.kept_until.map(human::absolute).unwrap_or_default();
        table.pair("Backup", format!("{}, kept until {kept}", before.serial));
    }
    if let Some(proof) = proof {
        let seen = match &*proof.seen_serial {
            "" => "takes it; it does not tell which serial it saw".to_owned(),
            _ if is_same(proof) => format!("saw it ({})", proof.key_exchange),
            other => format!("saw another one: {other}"),
        };
        table.pair("Hub", toned(seen, Tone::of(is_same(proof))));
    }
    for problem in view.problems {
        table.pair("Problem", toned(problem, Tone::Bad));
    }
    table.render(color)
}

/// The JSON of `cert plan`.
#[derive(Debug, Serialize)]
pub(crate) struct Plan<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    renew_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<Timestamp>,
    /// Since the agent started.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure_message: Option<&'a str>,
    /// When the hub asked for a renewal that is held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    hub_asked_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_back_until: Option<Timestamp>,
}

/// The JSON of one step of `cert renew` and `cert rollback`.
#[derive(Debug, Serialize)]
pub(crate) struct Replacement<'a> {
    step: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_after: Option<Timestamp>,
}

impl<'a> From<&'a pb::Replacement> for Replacement<'a> {
    fn from(r: &'a pb::Replacement) -> Self {
        let step = match r.step() {
            pb::ReplacementStep::Unspecified => "unknown",
            pb::ReplacementStep::Asking => "asking",
            pb::ReplacementStep::Checking => "checking",
            pb::ReplacementStep::Trying => "trying",
            pb::ReplacementStep::Installing => "installing",
            pb::ReplacementStep::Done => "done",
        };
        Self {
            step,
            message: &r.message,
            before: text(&r.before),
            serial: text(&r.serial),
            not_after: time(r.not_after.as_ref()),
        }
    }
}

/// One step, for people.
pub(crate) fn replacement(r: &pb::Replacement) -> String {
    let view = Replacement::from(r);
    let mut text = clean(view.message).into_owned();
    if let Some(until) = view.not_after {
        text.push_str(&format!(", until {until}"));
    }
    text.push('\n');
    text
}

impl<'a> From<&'a pb::PlanRenewalResponse> for Plan<'a> {
    fn from(p: &'a pb::PlanRenewalResponse) -> Self {
        let rule = match p.rule() {
            pb::RenewalRule::Unspecified => None,
            pb::RenewalRule::Forced => Some("forced"),
            pb::RenewalRule::AuthorityDropped => Some("authority_dropped"),
            pb::RenewalRule::HubWindow => Some("hub_window"),
            pb::RenewalRule::ShortLived => Some("short_lived"),
            pb::RenewalRule::ThirtyDays => Some("thirty_days"),
        };
        Self {
            renew_at: time(p.renew_at.as_ref()),
            rule,
            why: text(&p.why),
            not_after: time(p.not_after.as_ref()),
            last_failure_at: time(p.last_failure_at.as_ref()),
            last_failure_reason: text(&p.last_failure_reason),
            last_failure_message: text(&p.last_failure_message),
            hub_asked_at: time(p.hub_asked_at.as_ref()),
            held_back_until: time(p.held_back_until.as_ref()),
        }
    }
}

pub(crate) fn plan(p: &pb::PlanRenewalResponse, now: Timestamp, color: bool) -> String {
    let view = Plan::from(p);
    let mut table = Table::bare();
    table.pair("Renews", human::when_or_dash(view.renew_at, now));
    table.pair_if("Rule", view.rule.unwrap_or_default());
    table.pair_if("Why", view.why.unwrap_or_default());
    table.pair("Expires", human::when_or_dash(view.not_after, now));
    if let Some(at) = view.hub_asked_at {
        let until = view.held_back_until.map(human::absolute).unwrap_or_default();
        let asked = human::when(at, now);
        let why = "a third of its life after the last renewal";
        table.pair("Hub asked", format!("{asked}; held back until {until}, {why}"));
    }
    if let Some(at) = view.last_failure_at {
        let why = view.last_failure_message.unwrap_or_default();
        table.pair("Last try", toned(format!("failed {}: {why}", human::when(at, now)), Tone::Bad));
    }
    table.render(color)
}
