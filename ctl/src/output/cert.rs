//! The client certificate and its renewal.

use jiff::Timestamp;
use jtnt_proto::admin::v1 as pb;
use serde::Serialize;

use super::{
    agent::tone,
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
    problems: &'a [String],
    path: &'a str,
}

impl<'a> From<&'a pb::GetCertificateResponse> for Certificate<'a> {
    fn from(c: &'a pb::GetCertificateResponse) -> Self {
        Self {
            serial: &c.serial,
            subject: &c.subject,
            issuer: &c.issuer,
            not_before: time(c.not_before.as_ref()),
            not_after: time(c.not_after.as_ref()),
            expires_in_days: c.expires_in_days,
            status: &c.status,
            chain_ok: c.chain_ok,
            key_matches: c.key_matches,
            problems: &c.problems,
            path: &c.path,
        }
    }
}

pub(crate) fn certificate(c: &pb::GetCertificateResponse, now: Timestamp, color: bool) -> String {
    let view = Certificate::from(c);
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
    table.pair("File", view.path);
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
}

impl<'a> From<&'a pb::PlanRenewalResponse> for Plan<'a> {
    fn from(p: &'a pb::PlanRenewalResponse) -> Self {
        let rule = match p.rule() {
            pb::RenewalRule::Unspecified => None,
            pb::RenewalRule::Forced => Some("forced"),
            pb::RenewalRule::HubWindow => Some("hub_window"),
            pb::RenewalRule::ShortLived => Some("short_lived"),
            pb::RenewalRule::ThirtyDays => Some("thirty_days"),
        };
        Self {
            renew_at: time(p.renew_at.as_ref()),
            rule,
            why: text(&p.why),
            not_after: time(p.not_after.as_ref()),
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
    table.render(color)
}
