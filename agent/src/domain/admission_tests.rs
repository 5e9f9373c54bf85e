//! Each reason at its boundary: the last that passes and the first that does not.

use jtnt_proto::{
    bytes::{Base64, Hash},
    job::{SealedSecret, SecretDelivery},
};
use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-06-02T00:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn facts() -> Facts<'static> {
    Facts {
        agent_id: "me",
        root_id: "root",
        root_version: 3,
        policy_version: 7,
        journal_created_at: at("2026-06-01T00:00:00Z"),
        now: at(NOW),
    }
}

fn job(changes: &Value) -> Job {
    let mut job = json!({
        "job_id": "j-1", "agent_id": "me", "root_id": "root", "issued_at": NOW,
        "not_before": NOW, "expires_at": "2026-06-02T01:00:00Z",
        "type": "exec", "command": {"path": "/bin/true"},
    });
    job.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    serde_json::from_value(job).unwrap()
}

fn verdict(changes: &Value) -> Result<(), Reject> {
    admit(&job(changes), &facts()).map_err(|refused| refused.reason)
}

#[test]
fn a_proper_job_is_taken() {
    assert_eq!(verdict(&json!({})), Ok(()));
}

#[test]
fn only_jobs_for_this_agent_under_this_root_are_taken() {
    assert_eq!(verdict(&json!({"agent_id": "you"})), Err(Reject::NotForMe));
    assert_eq!(verdict(&json!({"root_id": "other"})), Err(Reject::NotForMe));
}

#[test]
fn a_job_ends_at_its_expiry_and_not_before() {
    let ends = |end: &str| {
        verdict(&json!({
            "issued_at": "2026-06-01T12:00:00Z", "not_before": "2026-06-01T12:00:00Z",
            "expires_at": end,
        }))
    };
    assert_eq!(ends("2026-06-02T00:00:00.000001Z"), Ok(()));
    assert_eq!(ends(NOW), Err(Reject::Expired));
}

#[test]
fn a_clock_may_be_a_minute_behind() {
    let begins = |begin: &str| verdict(&json!({"not_before": begin}));
    assert_eq!(begins("2026-06-02T00:01:00Z"), Ok(()));
    assert_eq!(begins("2026-06-02T00:01:00.000001Z"), Err(Reject::NotYetValid));
}

#[test]
fn seven_days_are_the_longest_validity() {
    assert_eq!(verdict(&json!({"expires_at": "2026-06-09T00:00:00Z"})), Ok(()));
    let longer = json!({"expires_at": "2026-06-09T00:00:00.000001Z"});
    assert_eq!(verdict(&longer), Err(Reject::ValidTooLong));
}

#[test]
fn a_journal_takes_no_job_older_than_itself() {
    let issued = |when: &str| verdict(&json!({"issued_at": when}));
    assert_eq!(issued("2026-06-01T00:00:00Z"), Ok(()));
    assert_eq!(issued("2026-05-31T23:59:59.999999Z"), Err(Reject::BeforeJournal));
}

#[test]
fn the_times_of_a_job_follow_one_another() {
    let early = json!({"not_before": "2026-06-01T23:59:59Z"});
    assert_eq!(verdict(&early), Err(Reject::Malformed));
    assert_eq!(verdict(&json!({"expires_at": NOW})), Err(Reject::Malformed));
}

#[test]
fn a_job_may_ask_for_the_versions_there_are() {
    assert_eq!(verdict(&json!({"min_root_version": 3, "min_policy_version": 7})), Ok(()));
    assert_eq!(verdict(&json!({"min_root_version": 4})), Err(Reject::VersionTooOld));
    assert_eq!(verdict(&json!({"min_policy_version": 8})), Err(Reject::VersionTooOld));
}

#[test]
fn ids_are_short_and_plain() {
    assert_eq!(verdict(&json!({"job_id": "x".repeat(64)})), Ok(()));
    for bad in ["", "../x", "a b", &"x".repeat(65)] {
        assert_eq!(verdict(&json!({"job_id": bad})), Err(Reject::Malformed), "{bad}");
    }
}

#[test]
fn programs_and_folders_are_named_by_absolute_paths() {
    let long = format!("/{}", "x".repeat(4096));
    for bad in ["true", "./true", "", "/bin/\0true", &long] {
        let exec = json!({"command": {"path": bad}});
        assert_eq!(verdict(&exec), Err(Reject::Malformed), "{bad:?}");
        let cwd = json!({"command": {"path": "/bin/true", "cwd": bad}});
        assert_eq!(verdict(&cwd), Err(Reject::Malformed), "{bad:?}");
    }
}

#[test]
fn arguments_and_variables_are_bounded_and_proper() {
    let with = |command: Value| {
        let mut whole = json!({"path": "/bin/true"});
        whole.as_object_mut().unwrap().extend(command.as_object().unwrap().clone());
        verdict(&json!({"command": whole}))
    };
    assert_eq!(with(json!({"args": vec!["a"; 1024]})), Ok(()));
    assert_eq!(with(json!({"args": ["x".repeat(128 * 1024 - 1)]})), Ok(()));
    for bad in [
        json!({"args": vec!["a"; 1025]}),
        json!({"args": ["x".repeat(128 * 1024)]}),
        json!({"args": ["a\0b"]}),
        json!({"env": {"": "x"}}),
        json!({"env": {"A=B": "x"}}),
        json!({"env": {"A": "x\0"}}),
    ] {
        assert_eq!(with(bad), Err(Reject::Malformed));
    }
}

#[test]
fn scripts_and_transfers_have_their_bounds() {
    let artifact = |size: u64| json!({"sha256": Hash([0; 32]), "size": size});
    let script = |size| {
        let command = json!({"interpreter": "/bin/sh", "content": artifact(size)});
        verdict(&json!({"type": "script", "command": command}))
    };
    assert_eq!(script(MAX_SCRIPT_BYTES), Ok(()));
    assert_eq!(script(MAX_SCRIPT_BYTES + 1), Err(Reject::Malformed));
    let download = |mode: u32| {
        let command = json!({"artifact": artifact(1), "dest": "/tmp/x", "mode": mode});
        verdict(&json!({"type": "download", "command": command}))
    };
    assert_eq!(download(0o777), Ok(()));
    assert_eq!(download(0o1777), Err(Reject::Malformed));
    let upload = |name: &str| {
        let command = json!({"path": "/tmp/x", "name": name});
        verdict(&json!({"type": "upload", "command": command}))
    };
    assert_eq!(upload("report.txt"), Ok(()));
    for bad in ["", "..", "a/b", &"x".repeat(65)] {
        assert_eq!(upload(bad), Err(Reject::Malformed), "{bad}");
    }
}

#[test]
fn what_cannot_be_kept_is_not_promised() {
    let secret = |name: &str, bytes| SealedSecret {
        name: name.into(),
        delivery: SecretDelivery::Fd,
        sealed: Base64(vec![0; bytes]),
    };
    let with = |secrets: Vec<SealedSecret>| {
        let mut with_secrets = job(&json!({}));
        with_secrets.secrets = secrets;
        admit(&with_secrets, &facts()).map_err(|refused| refused.reason)
    };
    assert_eq!(with(vec![secret("token", 48), secret("other_2", 48)]), Ok(()));
    let many = (0..=MAX_SECRETS).map(|n| secret(&n.to_string(), 48)).collect();
    for bad in [
        vec![secret("to-ken", 48)],
        vec![secret("", 48)],
        vec![secret("token", MAX_SEALED_BYTES + 1)],
        vec![secret("token", 48), secret("TOKEN", 48)],
        many,
    ] {
        assert_eq!(with(bad), Err(Reject::Malformed));
    }
    let endless = json!({"limits": {"timeout_seconds": 0}});
    assert_eq!(verdict(&endless), Err(Reject::Malformed));
}

#[test]
fn time_and_versions_are_judged_again_before_the_start() {
    let queued = job(&json!({"min_root_version": 3}));
    let later = Facts { now: at("2026-06-02T01:00:00Z"), ..facts() };
    assert_eq!(still_valid(&queued, &later).unwrap_err().reason, Reject::Expired);
    let rotated = Facts { root_id: "other", ..facts() };
    assert_eq!(still_valid(&queued, &rotated).unwrap_err().reason, Reject::NotForMe);
    let wiped = Facts { journal_created_at: at(NOW), ..facts() };
    assert_eq!(still_valid(&queued, &wiped), Ok(()));
}

#[test]
fn cancels_are_for_this_agent_and_do_not_last() {
    let cancel = |agent: &str, end: &str| {
        let cancel = Cancel {
            job_id: "j-1".into(),
            agent_id: agent.into(),
            root_id: "root".into(),
            issued_at: at("2026-06-01T00:00:00Z"),
            expires_at: at(end),
            reason: None,
        };
        admit_cancel(&cancel, &facts()).map_err(|refused| refused.reason)
    };
    assert_eq!(cancel("me", "2026-06-08T00:00:00Z"), Ok(()));
    assert_eq!(cancel("me", "2026-06-08T00:00:01Z"), Err(Reject::ValidTooLong));
    assert_eq!(cancel("me", NOW), Err(Reject::Expired));
    assert_eq!(cancel("you", "2026-06-03T00:00:00Z"), Err(Reject::NotForMe));
}
