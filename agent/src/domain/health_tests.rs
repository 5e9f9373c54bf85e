//! Every row of the guide's table, at its boundary.

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn well() -> Facts {
    Facts {
        now: at("2025-12-16T10:30:00.4Z"),
        zone: TimeZone::UTC,
        enrolled: Enrolled::Yes,
        certificate: Some((at("2025-12-16T00:00:00Z"), at("2026-12-16T10:30:00.4Z"))),
        makeshift: false,
        refused: None,
        heartbeat_age: Some(Duration::from_secs(30)),
        uptime: Duration::from_secs(3600),
        policy_expires_at: Some(at("2025-12-31T00:00:00Z")),
        disk: Some(Disk { total: 1000, used: 452 }),
        unrecorded: None,
        last_job: Some(LastJob {
            job_id: "j-1".into(),
            finished_at: at("2025-12-16T10:25:00Z"),
            state: "ok",
        }),
    }
}

fn judged(change: impl FnOnce(&mut Facts)) -> Report {
    let mut facts = well();
    change(&mut facts);
    report(&facts, "3.0.0", "agent-uuid".into())
}

fn seen(check: &Check) -> (&'static str, &str) {
    (check.status.word(), &check.message)
}

#[test]
fn the_healthy_report_is_the_guides() {
    let json = serde_json::to_string_pretty(&judged(|_| {})).unwrap();
    let guide = r#"{
  "status": "healthy",
  "timestamp": "2025-12-16T10:30:00Z",
  "checks": {
    "enrolled": {
      "status": "pass",
      "message": "agent enrolled"
    },
    "certificates": {
      "status": "pass",
      "message": "certificate valid until 2026-12-16",
      "expires_in_days": 365
    },
    "hub_connection": {
      "status": "pass",
      "message": "last heartbeat 30s ago"
    },
    "policy": {
      "status": "pass",
      "message": "policy valid until 2025-12-31"
    },
    "disk_space": {
      "status": "pass",
      "message": "disk space 45.2% used"
    },
    "last_job": {
      "status": "pass",
      "message": "last job completed 5m ago"
    }
  },
  "version": "3.0.0",
  "agent_id": "agent-uuid"
}"#;
    assert_eq!(json, guide);
}

#[test]
fn a_missing_enrolment_fails_and_a_trusted_hub_warns() {
    let no = judged(|f| f.enrolled = Enrolled::No);
    assert_eq!(no.status, "unhealthy");
    assert_eq!(no.checks.enrolled.status, Mark::Fail);
    let trial = judged(|f| f.enrolled = Enrolled::TrustedHub);
    assert_eq!((trial.status, trial.checks.enrolled.status), ("healthy", Mark::Warn));
    let broken = judged(|f| f.enrolled = Enrolled::Unusable("key is gone".into()));
    assert_eq!(seen(&broken.checks.enrolled), ("fail", "key is gone"));
}

fn cert_with(life_days: i64, left_secs: i64) -> Check {
    judged(|f| {
        let to = f.now + SignedDuration::from_secs(left_secs);
        f.certificate = Some((to - SignedDuration::from_secs(life_days * DAY), to));
    })
    .checks
    .certificates
}

#[test]
fn a_certificate_warns_at_exactly_thirty_days() {
    assert_eq!(cert_with(365, 30 * DAY + 1).status, Mark::Pass);
    assert_eq!(seen(&cert_with(365, 30 * DAY)), ("warn", "certificate expires in 30 days"));
    let fifteen = cert_with(365, 15 * DAY);
    assert_eq!(seen(&fifteen), ("warn", "certificate expires in 15 days"));
    assert_eq!(fifteen.expires_in_days, Some(15));
}

#[test]
fn a_certificate_fails_once_it_expired_or_when_it_is_not_valid_yet() {
    assert_eq!(cert_with(365, 0).status, Mark::Warn, "notAfter itself is valid");
    let gone = cert_with(365, -1);
    assert_eq!(seen(&gone), ("fail", "certificate expired on 2025-12-16"));
    assert_eq!(gone.expires_in_days, Some(-1));
    assert_eq!(cert_with(10, 11 * DAY).status, Mark::Fail);
    assert_eq!(judged(|f| f.certificate = None).checks.certificates.status, Mark::Fail);
}

#[test]
fn what_the_hub_says_of_the_certificate_counts_more_than_its_dates() {
    let said = |reason: &str| {
        let report = judged(|f| f.refused = Some(reason.to_owned()));
        let check = report.checks.certificates;
        (check.status.word(), check.message)
    };
    let (status, message) = said("CERTIFICATE_REVOKED");
    assert_eq!(status, "fail");
    assert!(message.starts_with("REVOKED") && message.contains("jtnt-agent enroll --force"));
    for reason in ["CERTIFICATE_EXPIRED", "CERTIFICATE_UNKNOWN", "CERTIFICATE_REPLACED"] {
        let (status, message) = said(reason);
        assert!(status == "fail" && message.starts_with("NEEDS_REENROLL"), "{message}");
    }
    assert_eq!(said("RATE").0, "pass", "what is not about the certificate says nothing of it");
}

#[test]
fn a_short_lived_certificate_warns_when_a_third_of_its_life_is_left() {
    assert_eq!(cert_with(44, 44 * DAY / 3 + 1).status, Mark::Pass);
    assert_eq!(cert_with(44, 44 * DAY / 3).status, Mark::Warn);
    assert_eq!(cert_with(45, 30 * DAY).status, Mark::Warn, "45 days is not short");
    assert_eq!(seen(&cert_with(3, 7200)), ("warn", "certificate expires in 2 hours"));
}

#[test]
fn the_hub_is_lost_at_exactly_five_minutes() {
    let hub = |age: u64| judged(|f| f.heartbeat_age = Some(Duration::from_secs(age)));
    assert_eq!(seen(&hub(299).checks.hub_connection), ("pass", "last heartbeat 299s ago"));
    assert_eq!(seen(&hub(300).checks.hub_connection), ("fail", "no heartbeat for 300s"));
    assert_eq!(seen(&hub(600).checks.hub_connection), ("fail", "no heartbeat for 600s"));
}

#[test]
fn before_the_first_heartbeat_its_age_counts_from_the_start() {
    let hub = |up: u64| {
        judged(|f| (f.heartbeat_age, f.uptime) = (None, Duration::from_secs(up)))
            .checks
            .hub_connection
            .status
    };
    assert_eq!((hub(299), hub(300)), (Mark::Pass, Mark::Fail));
}

#[test]
fn a_policy_warns_at_exactly_seven_days_and_fails_when_it_expires() {
    let policy = |left: i64| {
        judged(|f| f.policy_expires_at = Some(f.now + SignedDuration::from_secs(left)))
            .checks
            .policy
    };
    assert_eq!(policy(7 * DAY + 1).status, Mark::Pass);
    assert_eq!(seen(&policy(7 * DAY)), ("warn", "policy expires in 7 days"));
    assert_eq!(policy(1).status, Mark::Warn);
    assert_eq!(policy(0).status, Mark::Fail);
    assert_eq!(judged(|f| f.policy_expires_at = None).checks.policy.status, Mark::Warn);
}

#[test]
fn a_disk_warns_at_exactly_ninety_percent() {
    let disk = |used| judged(|f| f.disk = Some(Disk { total: 10_000, used })).checks.disk_space;
    assert_eq!(seen(&disk(8_999)), ("pass", "disk space 89.9% used"));
    assert_eq!(seen(&disk(9_000)), ("warn", "disk space 90.0% used"));
    assert_eq!(disk(10_000).status, Mark::Warn, "a full disk never fails the agent");
    assert_eq!(judged(|f| f.disk = None).checks.disk_space.status, Mark::Warn);
}

#[test]
fn the_last_job_warns_unless_it_succeeded() {
    let job = |state| judged(|f| f.last_job.as_mut().unwrap().state = state).checks.last_job;
    assert_eq!(job("ok").status, Mark::Pass);
    assert_eq!(seen(&job("failed")), ("warn", "last job failed 5m ago: j-1"));
    assert_eq!(job("timeout").status, Mark::Warn);
    assert_eq!(seen(&judged(|f| f.last_job = None).checks.last_job), ("pass", "no jobs yet"));
}

#[test]
fn what_cannot_be_recorded_is_said_with_the_disk() {
    let report = judged(|f| f.unrecorded = Some("audit log: no space left".into()));
    let said = "disk space 45.2% used, and no job starts, since none can be recorded: audit log: no \
                space left";
    assert_eq!(seen(&report.checks.disk_space), ("warn", said));
    assert!(report.is_healthy(), "as the guide says; readyz fails");
}
