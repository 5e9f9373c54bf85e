//! What another policy would change.

use jiff::Timestamp;
use jtnt_proto::admin::v1 as pb;
use serde::Serialize;

use super::{
    json::{text, time},
    policy::Decision,
    table::{Cell, Table, Tone, toned},
    time::{self as human, count},
};

/// The JSON of `policy diff`.
#[derive(Debug, Serialize)]
pub(crate) struct Diff<'a> {
    present_version: u64,
    document_version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    changes: Vec<Change<'a>>,
    more_changes: u64,
    unchanged_requests: u64,
    unchanged_jobs: u64,
    not_comparable_requests: u64,
    not_comparable_jobs: u64,
    unasked_requests: u64,
    unasked_jobs: u64,
}

#[derive(Debug, Serialize)]
struct Change<'a> {
    command: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as: Option<&'a str>,
    env: &'a [String],
    jobs: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_at: Option<Timestamp>,
    last_job: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Decision<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Decision<'a>>,
}

impl<'a> From<&'a pb::DiffPolicyResponse> for Diff<'a> {
    fn from(d: &'a pb::DiffPolicyResponse) -> Self {
        Self {
            present_version: d.present_version,
            document_version: d.document_version,
            since: time(d.since.as_ref()),
            changes: d.changes.iter().map(Change::from).collect(),
            more_changes: d.more_changes,
            unchanged_requests: d.unchanged_requests,
            unchanged_jobs: d.unchanged_jobs,
            not_comparable_requests: d.not_comparable_requests,
            not_comparable_jobs: d.not_comparable_jobs,
            unasked_requests: d.unasked_requests,
            unasked_jobs: d.unasked_jobs,
        }
    }
}

impl<'a> From<&'a pb::PolicyChange> for Change<'a> {
    fn from(c: &'a pb::PolicyChange) -> Self {
        Self {
            command: &c.command,
            kind: &c.r#type,
            run_as: text(&c.run_as),
            env: &c.env,
            jobs: c.jobs,
            last_at: time(c.last_at.as_ref()),
            last_job: &c.last_job,
            before: c.before.as_ref().map(Decision::from),
            after: c.after.as_ref().map(Decision::from),
        }
    }
}

pub(crate) fn diff(d: &pb::DiffPolicyResponse, now: Timestamp, color: bool) -> String {
    let mut head = Table::bare();
    match d.present_version {
        0 => head.pair("In force", toned("none yet, so no job may run", Tone::Warn)),
        version => head.pair("In force", format!("version {version}")),
    }
    head.pair("Document", format!("version {}", d.document_version));
    head.pair("Jobs since", human::when_or_dash(time(d.since.as_ref()), now));
    let mut out = format!("{}\n", head.render(color));
    if !d.changes.is_empty() {
        let mut table =
            Table::new(&["CHANGE", "BEFORE", "AFTER", "JOBS", "LAST", "TYPE", "COMMAND"]);
        for change in &d.changes {
            table.row([
                kind(change),
                answer(change.before.as_ref()).into(),
                answer(change.after.as_ref()).into(),
                change.jobs.to_string().into(),
                human::when_or_dash(time(change.last_at.as_ref()), now).into(),
                change.r#type.as_str().into(),
                asked(change).into(),
            ]);
        }
        out.push_str(&format!("{}\n", table.render(color)));
    }
    out.push_str(&counts(d));
    out
}

fn kind(change: &pb::PolicyChange) -> Cell {
    let allowed = |d: &Option<pb::Decision>| d.as_ref().is_some_and(|d| d.allowed);
    match (allowed(&change.before), allowed(&change.after)) {
        (true, false) => toned("DENIED", Tone::Bad),
        (false, true) => toned("ALLOWED", Tone::Good),
        (true, true) | (false, false) => toned("OTHERWISE", Tone::Warn),
    }
}

/// `allowed by uptime as root (full)`, `denied by no-rm (DENY_RULE)`, `denied (NO_RULE)`.
fn answer(decision: Option<&pb::Decision>) -> String {
    let Some(d) = decision else { return "-".to_owned() };
    let mut words = vec![match (d.allowed, d.monitored) {
        (true, true) => "monitored",
        (true, false) => "allowed",
        (false, _) => "denied",
    }];
    for (before, word) in [("by", &d.rule), ("as", &d.run_as)] {
        if !word.is_empty() {
            words.extend([before, word.as_str()]);
        }
    }
    // Of what runs by a rule it matters how it is held, of the rest why.
    let plain = d.allowed && !d.monitored;
    format!("{} ({})", words.join(" "), if plain { &d.enforcement } else { &d.reason })
}

/// The command, and what else was asked for.
fn asked(change: &pb::PolicyChange) -> String {
    let mut out = change.command.clone();
    if !change.run_as.is_empty() {
        out.push_str(&format!("  [as {}]", change.run_as));
    }
    if !change.env.is_empty() {
        out.push_str(&format!("  [with {}]", change.env.join(" ")));
    }
    out
}

fn counts(d: &pb::DiffPolicyResponse) -> String {
    let of = |requests, jobs| format!("{} of {}", count(requests, "request"), count(jobs, "job"));
    let mut out = String::new();
    if d.more_changes > 0 {
        out.push_str(&format!("{} would change\n", count(d.more_changes, "more request")));
    }
    match (d.changes.is_empty(), d.unasked_requests) {
        (false, _) => {}
        (true, 0) => out.push_str("nothing would change: "),
        (true, _) => out.push_str("nothing that was asked would change: "),
    }
    let unchanged = of(d.unchanged_requests, d.unchanged_jobs);
    out.push_str(&format!("{unchanged} would be answered as before\n"));
    if d.not_comparable_requests > 0 {
        let not = of(d.not_comparable_requests, d.not_comparable_jobs);
        let why = "nothing is there now, or it was too long to be remembered";
        out.push_str(&format!("{not} cannot be compared: {why}\n"));
    }
    if d.unasked_requests > 0 {
        let not = of(d.unasked_requests, d.unasked_jobs);
        out.push_str(&format!(
            "{not} were not asked: there was no time; the oldest are left out\n"
        ));
    }
    out
}
