//! The six health checks of the operations guide: facts in, report out.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, Unit, tz::TimeZone};
use serde::Serialize;

const DAY: i64 = 24 * 60 * 60;
/// A certificate with this much left, or less, is worth a warning.
const CERT_WARN: i64 = 30 * DAY;
/// Certificates that live shorter warn when a third of their life is left.
pub const SHORT_LIFE: i64 = 45 * DAY;
/// A policy with this much left, or less, is worth a warning.
const POLICY_WARN: i64 = 7 * DAY;
/// Without a heartbeat for this long the hub counts as lost.
const HUB_LOST: Duration = Duration::from_secs(5 * 60);

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Mark {
    Pass,
    Warn,
    Fail,
}

impl Mark {
    /// The word in JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it came to.
    pub status: Mark,
    /// The same for people.
    pub message: String,
    /// Of certificates: whole days left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_days: Option<i64>,
}

/// The checks, always all of them, in the guide's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names are the guide's")]
pub struct Checks {
    pub enrolled: Check,
    pub certificates: Check,
    pub hub_connection: Check,
    pub policy: Check,
    pub disk_space: Check,
    pub last_job: Check,
}

impl Checks {
    /// With their names.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, &Check); 6] {
        [
            ("enrolled", &self.enrolled),
            ("certificates", &self.certificates),
            ("hub_connection", &self.hub_connection),
            ("policy", &self.policy),
            ("disk_space", &self.disk_space),
            ("last_job", &self.last_job),
        ]
    }
}

/// The body of `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `healthy` or `unhealthy`.
    pub status: &'static str,
    /// To the second.
    pub timestamp: Timestamp,
    /// All six.
    pub checks: Checks,
    /// Version of the agent.
    pub version: &'static str,
    /// UUID of the agent.
    pub agent_id: String,
}

impl Report {
    /// No check failed.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.checks.named().iter().all(|(_, check)| check.status != Mark::Fail)
    }
}

/// Whether the agent is enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enrolled {
    /// With a root from outside.
    Yes,
    /// With a root the hub itself gave.
    TrustedHub,
    /// Nothing is there.
    No,
    /// Something is there and cannot be used.
    Unusable(String),
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// All bytes.
    pub total: u64,
    /// Bytes in use.
    pub used: u64,
}

/// The last job that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastJob {
    /// Its id.
    pub job_id: String,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Its state as a word; `ok` is well.
    pub state: &'static str,
}

/// Everything the checks look at.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Now.
    pub now: Timestamp,
    /// For dates in messages.
    pub zone: TimeZone,
    /// Whether the agent is enrolled.
    pub enrolled: Enrolled,
    /// Validity of the client certificate: from, to.
    pub certificate: Option<(Timestamp, Timestamp)>,
    /// Another certificate is used than the one in place, which is broken.
    pub makeshift: bool,
    /// Why the hub refuses to talk to this agent at all: its reason for the last heartbeat.
    pub refused: Option<String>,
    /// Since the last heartbeat that the hub answered.
    pub heartbeat_age: Option<Duration>,
    /// Since the agent started.
    pub uptime: Duration,
    /// When the policy expires.
    pub policy_expires_at: Option<Timestamp>,
    /// The file system of `data_dir`.
    pub disk: Option<Disk>,
    /// Why the last record of journal or audit log was not written; no job starts then.
    pub unrecorded: Option<String>,
    /// The last job that ran; rejected ones did not.
    pub last_job: Option<LastJob>,
}

/// Judges the facts.
#[must_use]
pub fn report(facts: &Facts, version: &'static str, agent_id: String) -> Report {
    let checks = Checks {
        enrolled: enrolled(&facts.enrolled),
        certificates: certificate(facts),
        hub_connection: hub(facts),
        policy: policy(facts),
        disk_space: disk(facts),
        last_job: last_job(facts),
    };
    let timestamp = facts.now.round(Unit::Second).unwrap_or(facts.now);
    let mut report = Report { status: "healthy", timestamp, checks, version, agent_id };
    if !report.is_healthy() {
        report.status = "unhealthy";
    }
    report
}

fn check(status: Mark, message: impl Into<String>) -> Check {
    Check { status, message: message.into(), expires_in_days: None }
}

fn enrolled(state: &Enrolled) -> Check {
    match state {
        Enrolled::Yes => check(Mark::Pass, "agent enrolled"),
        Enrolled::TrustedHub => check(
            Mark::Warn,
            "agent enrolled, but its root of roles came from the hub itself (--trust-hub-root): \
             for trials only",
        ),
        Enrolled::No => check(Mark::Fail, "agent not enrolled; run: jtnt-agent enroll"),
        Enrolled::Unusable(why) => check(Mark::Fail, why.clone()),
    }
}

/// The certificate's check; also what `cert check` says.
#[must_use]
pub fn certificate(facts: &Facts) -> Check {
    let Some((from, to)) = facts.certificate else {
        return check(Mark::Fail, "no certificate");
    };
    let left = facts.now.duration_until(to);
    let days = left.as_secs().div_euclid(DAY);
    let date = |t: Timestamp| t.to_zoned_datetime(facts.zone.clone()).date();
    let life = from.duration_until(to).as_secs();
    let warn_at = if life < SHORT_LIFE { life / 3 } else { CERT_WARN };
    let (status, message) = if left < SignedDuration::ZERO {
        (Mark::Fail, format!("certificate expired on {}", date(to)))
    } else if facts.now < from {
        (Mark::Fail, format!("certificate not valid before {from}; is the clock right?"))
    } else if left <= SignedDuration::from_secs(warn_at) {
        (Mark::Warn, format!("certificate expires in {}", left_in_words(left)))
    } else {
        (Mark::Pass, format!("certificate valid until {}", date(to)))
    };
    let (status, message) = match facts.refused.as_deref().and_then(refused) {
        Some(message) => (Mark::Fail, message.to_owned()),
        None if facts.makeshift && status == Mark::Pass => {
            let message = "the certificate in place is broken, and another is used; type: \
                           jtnt-agent cert check";
            (Mark::Warn, message.to_owned())
        }
        None => (status, message),
    };
    Check { expires_in_days: Some(days), ..check(status, message) }
}

/// What a reason of the hub means for the certificate, whatever its dates say.
fn refused(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "CERTIFICATE_REVOKED" => {
            "REVOKED: the hub has revoked the certificate; type: jtnt-agent enroll --force --token-file FILE"
        }
        "CERTIFICATE_EXPIRED" => {
            "NEEDS_REENROLL: the certificate has expired, and the hub has not renewed it yet; if it \
             does not, type: jtnt-agent enroll --force --token-file FILE"
        }
        "CLIENT_CERT_REFUSED" => {
            "NEEDS_REENROLL: the hub refuses this certificate in TLS; type: jtnt-agent enroll --force --token-file FILE"
        }
        "CERTIFICATE_UNKNOWN" | "AGENT_UNKNOWN" => {
            "NEEDS_REENROLL: the hub does not know this certificate; type: jtnt-agent enroll --force --token-file FILE"
        }
        "CERTIFICATE_REPLACED" => {
            "NEEDS_REENROLL: the hub takes only a newer certificate; if that is the backup, type: \
             jtnt-agent cert rollback, else: jtnt-agent enroll --force --token-file FILE"
        }
        _ => return None,
    })
}

fn hub(facts: &Facts) -> Check {
    let age = facts.heartbeat_age.unwrap_or(facts.uptime);
    if age >= HUB_LOST {
        return check(Mark::Fail, format!("no heartbeat for {}s", age.as_secs()));
    }
    match facts.heartbeat_age {
        Some(age) => check(Mark::Pass, format!("last heartbeat {}s ago", age.as_secs())),
        None => check(Mark::Pass, format!("no heartbeat yet, started {}s ago", age.as_secs())),
    }
}

fn policy(facts: &Facts) -> Check {
    let Some(expires) = facts.policy_expires_at else {
        return check(Mark::Warn, "no policy yet: every job is denied");
    };
    let left = facts.now.duration_until(expires);
    let date = expires.to_zoned_datetime(facts.zone.clone()).date();
    if left <= SignedDuration::ZERO {
        check(Mark::Fail, format!("policy expired on {date}: every job is denied"))
    } else if left <= SignedDuration::from_secs(POLICY_WARN) {
        check(Mark::Warn, format!("policy expires in {}", left_in_words(left)))
    } else {
        check(Mark::Pass, format!("policy valid until {date}"))
    }
}

fn disk(facts: &Facts) -> Check {
    let space = space(facts.disk);
    match &facts.unrecorded {
        // The guide knows no failure of this check; `/readyz` fails.
        Some(why) => check(
            Mark::Warn,
            format!("{}, and no job starts, since none can be recorded: {why}", space.message),
        ),
        None => space,
    }
}

fn space(disk: Option<Disk>) -> Check {
    let Some(Disk { total, used }) = disk.filter(|d| d.total > 0) else {
        return check(Mark::Warn, "disk space cannot be read");
    };
    let (total, used) = (u128::from(total), u128::from(used));
    let status = if used * 10 >= total * 9 { Mark::Warn } else { Mark::Pass };
    // Rounded down: 89.96 % must not read "90.0%" and pass.
    let permille = used * 1000 / total;
    check(status, format!("disk space {}.{}% used", permille / 10, permille % 10))
}

fn last_job(facts: &Facts) -> Check {
    let Some(job) = &facts.last_job else { return check(Mark::Pass, "no jobs yet") };
    let ago = ago(job.finished_at.duration_until(facts.now));
    if job.state == "ok" {
        check(Mark::Pass, format!("last job completed {ago} ago"))
    } else {
        check(Mark::Warn, format!("last job {} {ago} ago: {}", job.state, job.job_id))
    }
}

fn left_in_words(left: SignedDuration) -> String {
    match (left.as_secs() / DAY, left.as_secs() / 3600) {
        (0, 0) => format!("{} minutes", left.as_secs() / 60),
        (0, 1) => "1 hour".to_owned(),
        (0, hours) => format!("{hours} hours"),
        (1, _) => "1 day".to_owned(),
        (days, _) => format!("{days} days"),
    }
}

fn ago(age: SignedDuration) -> String {
    match age.as_secs().max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..DAY => format!("{}h", s / 3600),
        s => format!("{}d", s / DAY),
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
