//! The agent as a whole: status, health, the connection test.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, Unit};
use jtnt_proto::{
    admin::v1::{self as pb, BreakerState},
    policy::{Mode, RequireEnforcement},
};

use super::{duration, signed, time};
use crate::{
    domain::{
        breaker::State,
        health::{self, Mark, Report},
    },
    hub::ProbeStep,
    identity::{Identity, IdentityError},
    overview::{Overview, VERSION},
};

pub(in crate::admin) fn status(overview: &Overview) -> pb::Status {
    let s = overview.sources();
    let facts = overview.facts();
    let identity = s.identity.borrow().clone();
    let report = health::report(&facts, VERSION, s.agent_id.clone());
    let identity = identity.as_ref();
    pb::Status {
        agent_id: s.agent_id.clone(),
        version: VERSION.to_owned(),
        started_at: Some(time(overview.started_at())),
        enrolled: identity.is_ok(),
        hub_url: s.hub_url.borrow().clone().unwrap_or_default(),
        hub: Some(hub(overview)),
        certificate: identity.ok().map(|identity| pb::CertStatus {
            serial: identity.cert.serial.clone(),
            not_before: Some(time(identity.cert.not_before)),
            not_after: Some(time(identity.cert.not_after)),
            expires_in_days: report.checks.certificates.expires_in_days.unwrap_or_default(),
        }),
        policy: Some(policy(overview)),
        jobs: Some(jobs(overview)),
        audit: Some(audit(overview)),
        disk: facts
            .disk
            .map(|disk| pb::DiskStatus { total_bytes: disk.total, used_bytes: disk.used }),
        root: identity.ok().map(|identity| pb::RootStatus {
            version: identity.keyring.root().version,
            source: identity.root_source.word().to_owned(),
            expires_at: Some(time(identity.keyring.root().expires_at)),
        }),
        enforcement: s.gate.enforcement().to_string(),
        advice: advice(overview, &report, identity.err(), identity.ok()),
        labels: s.labels.borrow().clone().into_iter().collect(),
        now: Some(time(s.clock.now())),
    }
}

fn hub(overview: &Overview) -> pb::HubStatus {
    let s = overview.sources();
    let heartbeat = s.heartbeat.borrow().clone();
    let link = s.link.borrow();
    let client = link.as_ref();
    // A heartbeat that is due earlier is not sent: the breaker holds it back.
    let now = s.clock.now();
    let opens = client.and_then(|hub| hub.breaker_rest()).map(|rest| later(now, rest));
    let next_attempt_at = heartbeat.next_attempt_at.max(opens);
    let breaker = match client.map_or(State::Closed, |hub| hub.breaker()) {
        State::Closed => BreakerState::Closed,
        State::Open => BreakerState::Open,
        State::HalfOpen => BreakerState::HalfOpen,
    };
    pb::HubStatus {
        connected: overview.is_connected(),
        last_success_at: heartbeat.last_success.map(time),
        last_error: heartbeat.last_error.unwrap_or_default(),
        breaker: breaker.into(),
        next_attempt_at: next_attempt_at.map(time),
        clock_offset: client.and_then(|hub| hub.clock_offset()).map(signed),
        key_exchange: client.and_then(|hub| hub.key_exchange()).unwrap_or_default(),
    }
}

/// To the second: a watcher is not told of what differs by the time between two looks at a clock.
fn later(now: Timestamp, wait: Duration) -> Timestamp {
    let at = SignedDuration::try_from(wait).ok().and_then(|w| now.checked_add(w).ok());
    at.and_then(|at| at.round(Unit::Second).ok()).unwrap_or(now)
}

fn policy(overview: &Overview) -> pb::PolicyStatus {
    let s = overview.sources();
    let require_enforcement = require_word(s.gate.require_enforcement()).to_owned();
    let Some(in_force) = s.policy.borrow().clone() else {
        return pb::PolicyStatus { require_enforcement, ..pb::PolicyStatus::default() };
    };
    let policy = in_force.verified.get();
    pb::PolicyStatus {
        version: policy.version,
        policy_id: policy.policy_id.clone(),
        expires_at: Some(time(policy.expires_at)),
        expired: policy.expires_at <= s.time.now(),
        mode: mode_word(policy.mode).to_owned(),
        require_enforcement,
    }
}

/// The word in the policy document.
pub(in crate::admin) const fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Monitor => "monitor",
    }
}

/// The word in the policy document.
pub(in crate::admin) const fn require_word(require: RequireEnforcement) -> &'static str {
    match require {
        RequireEnforcement::None => "none",
        RequireEnforcement::Partial => "partial",
        RequireEnforcement::Full => "full",
    }
}

fn jobs(overview: &Overview) -> pb::JobStatus {
    let counts = overview.sources().journal.counts();
    pb::JobStatus {
        queued: counts.queued,
        running: counts.running,
        pending_results: counts.undelivered,
    }
}

fn audit(overview: &Overview) -> pb::AuditStatus {
    let head = overview.sources().audit.head();
    let refusal = overview.sources().heartbeat.borrow().audit_refusal;
    pb::AuditStatus {
        log_id: head.log_id,
        size: head.size,
        writable: head.error.is_none(),
        last_error: head.error.unwrap_or_default(),
        witnessed: head.witnessed,
        witness_refusal: refusal.map(|refusal| refusal.name().to_owned()).unwrap_or_default(),
        superseded: head.superseded,
        held: head.held,
    }
}

/// What is wrong with the audit log.
fn audit_advice(overview: &Overview, say: &mut impl FnMut(&str, String, &str)) {
    let s = overview.sources();
    let head = s.audit.head();
    if let Some(error) = head.error {
        say("AUDIT_NOT_WRITABLE", format!("{error}; no job starts"), "df -h");
    }
    if !head.provable {
        let message = "the audit log gets no checkpoints, so nobody can witness it: its tree cannot be \
                       had; the agent's own log says why";
        say("AUDIT_NOT_WITNESSED", message.to_owned(), "jtntctl audit verify");
    }
    for log_id in head.superseded {
        let dir = s.audit.dir().display();
        let message = format!(
            "ROLLED_BACK: the audit log {log_id} was put back to an earlier state, by a restored disk \
             or a clone of this machine; it is kept in {dir}/superseded-{log_id}, and another has \
             begun. Move the folder away once that is explained"
        );
        say("AUDIT_ROLLED_BACK", message, "jtntctl audit clean");
    }
    if let Some(refusal) = s.heartbeat.borrow().audit_refusal {
        let message = format!("the hub does not cosign the audit log: {}", refusal.words());
        say("AUDIT_NOT_WITNESSED", message, "jtntctl audit verify");
    }
}

/// What is wrong, the gravest first, each with what to type.
fn advice(
    overview: &Overview,
    report: &Report,
    fault: Option<&IdentityError>,
    identity: Option<&std::sync::Arc<Identity>>,
) -> Vec<pb::Advice> {
    let s = overview.sources();
    let mut out = Vec::new();
    let mut say = |reason: &str, message: String, command: &str| {
        let (reason, command) = (reason.to_owned(), command.to_owned());
        out.push(pb::Advice { reason, message, command });
    };
    audit_advice(overview, &mut say);
    if let Some(error) = s.journal.last_error() {
        say("JOURNAL_NOT_WRITABLE", format!("{error}; no job is taken"), "df -h");
    }
    match fault {
        Some(IdentityError::NotEnrolled) => say(
            "NOT_ENROLLED",
            "this agent has no hub yet".to_owned(),
            "sudo jtnt-agent enroll --hub URL --token-file FILE --root FILE",
        ),
        Some(IdentityError::Unusable(why)) => {
            let command = "sudo jtnt-agent enroll --force --token-file FILE";
            say("IDENTITY_UNUSABLE", why.clone(), command);
        }
        None => {}
    }
    let checks = &report.checks;
    if identity.is_some() {
        if checks.certificates.status != Mark::Pass {
            let message = checks.certificates.message.clone();
            say("CERTIFICATE", message, "jtntctl cert plan");
        }
        // A hub that is away is the reason for a policy that is not fresh.
        if let Some(error) = s.heartbeat.borrow().last_error.clone() {
            say("HUB_UNREACHABLE", error, "jtntctl test-connection");
        } else if let Some(error) = s.keeper.standing().last_error {
            say("POLICY_NOT_FRESH", error, "jtntctl policy refresh");
        }
        if checks.policy.status != Mark::Pass {
            say("POLICY", checks.policy.message.clone(), "jtntctl policy refresh");
        }
        if identity.is_some_and(|i| i.root_source == crate::identity::RootSource::TrustedHub) {
            say(
                "ROOT_FROM_HUB",
                checks.enrolled.message.clone(),
                "sudo jtnt-agent enroll --force --token-file FILE",
            );
        }
    }
    if checks.disk_space.status != Mark::Pass {
        say("DISK", checks.disk_space.message.clone(), "sudo jtntctl cache clean");
    }
    out
}

pub(in crate::admin) fn health(report: Report) -> pb::GetHealthResponse {
    let checks = report.checks.named().map(|(name, check)| {
        let check = pb::HealthCheck {
            status: check.status.word().to_owned(),
            message: check.message.clone(),
            expires_in_days: check.expires_in_days,
        };
        (name.to_owned(), check)
    });
    pb::GetHealthResponse {
        status: report.status.to_owned(),
        timestamp: Some(time(report.timestamp)),
        checks: checks.into(),
        version: report.version.to_owned(),
        agent_id: report.agent_id,
    }
}

pub(in crate::admin) fn probe_step(step: ProbeStep) -> pb::ConnectionStep {
    pb::ConnectionStep {
        name: step.name.to_owned(),
        ok: step.ok,
        detail: step.detail,
        reason: step.reason,
        advice: step.advice,
        took: Some(duration(step.took)),
    }
}
