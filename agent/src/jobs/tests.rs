//! Jobs from the hub's hands to the result on disk, with real processes, journal, log and policy.

use jtnt_proto::{
    envelope::{Envelope, PayloadType},
    hub::{JobsResponse, Outcome},
};
use serde_json::{Value, json};

use super::{
    CancelError, Stream,
    fixture::{Desk, NOW, exec, in_force, leased, signed_by},
    intake, recovery, work,
};
use crate::{
    domain::{
        ids::JobId,
        job::{Entry, Process, State},
    },
    platform::{account::Account, sweep},
    runtime::durable,
    shim::Shim,
    trust::fixture::secret,
};

fn rules() -> Value {
    let any = |path: &str| {
        json!({"id": path.rsplit('/').next(), "effect": "allow",
        "path": path, "args": "any"})
    };
    let lost = json!({"id": "lost", "effect": "allow", "path": "/usr/bin/uname",
        "run_as": "no-such-user-here"});
    let paths = ["true", "false", "echo", "sleep", "id", "head", "printf"];
    let mut exec: Vec<_> = paths.iter().map(|p| any(&format!("/usr/bin/{p}"))).collect();
    exec.push(lost);
    json!({"exec": exec})
}

fn id(text: &str) -> JobId {
    JobId::try_from(text).unwrap()
}

fn events(desk: &Desk, id: &str) -> Vec<String> {
    desk.audited(id).into_iter().map(|(event, _)| event).collect()
}

#[tokio::test]
async fn a_job_runs_and_leaves_a_result_a_record_and_two_lines_in_the_log() {
    let desk = Desk::with(&rules());
    let (entry, result) = desk.run("j", &exec("/usr/bin/echo", &["hello", "there"])).await;
    assert_eq!(entry.state, State::Finished(Outcome::Ok));
    assert_eq!((result.outcome, result.exit_code), (Outcome::Ok, Some(0)));
    let stdout = result.stdout.unwrap();
    assert_eq!((&stdout.head.0[..], stdout.total_bytes), (&b"hello there\n"[..], 12));
    assert_eq!(result.stderr, None);
    assert_eq!((result.rule.as_deref(), result.policy_version), (Some("echo"), 1));
    assert_eq!(result.enforcement, "none");
    assert_eq!(events(&desk, "j"), ["job_started", "job_executed"]);
    let line = &desk.audited("j")[1].1;
    assert_eq!(line["status"], "success");
    assert_eq!(line["command"], "/usr/bin/echo hello there");
    let stored = desk.result_bytes(&entry);
    assert_eq!(
        line["details"]["result_sha256"],
        json!(jtnt_proto::bytes::Hash::of(&stored).to_string())
    );
    let part = desk.jobs.read_output(&id("j"), Stream::Stdout, 6, 5).await.unwrap();
    assert_eq!((part.offset, &part.data[..]), (6, &b"there"[..]));
    assert!(desk.jobs.end_of(&id("j")).is_none(), "nothing is still to come");
}

#[tokio::test]
async fn a_job_that_comes_before_its_policy_waits_for_it() {
    let desk = Desk::with(&rules());
    desk.policy.send_replace(None);
    *desk.offered.lock().unwrap() = Some(in_force(&rules()));
    desk.run("first", &exec("/usr/bin/true", &[])).await;
    assert_eq!(desk.entry("first").state, State::Finished(Outcome::Ok));
    let newer = json!({"min_policy_version": 99});
    assert!(!desk.take(leased("never", &newer)).await, "the hub has none that is so new");
    assert_eq!(desk.entry("never").reason.as_deref(), Some("VERSION_TOO_OLD"));
}

#[tokio::test]
async fn a_failure_is_told_by_its_exit_code() {
    let desk = Desk::with(&rules());
    let (entry, result) = desk.run("j", &exec("/usr/bin/false", &[])).await;
    assert_eq!(entry.state, State::Finished(Outcome::Failed));
    assert_eq!((result.exit_code, result.reason.as_deref()), (Some(1), Some("EXIT_CODE")));
    let executed = desk.core.deps.metrics.jobs_executed.with_label_values(&["exec", "error"]);
    assert_eq!(executed.get(), 1);
}

#[tokio::test]
async fn bytes_that_are_no_text_arrive_as_they_were() {
    let desk = Desk::with(&rules());
    let (_, result) = desk.run("j", &exec("/usr/bin/printf", &["\\377\\000\\376"])).await;
    assert_eq!(result.stdout.unwrap().head.0, b"\xff\x00\xfe");
}

#[tokio::test]
async fn of_a_flood_of_output_beginning_and_end_are_kept() {
    let desk = Desk::with(&rules());
    let mut job = exec("/usr/bin/head", &["-c", "3000000", "/dev/zero"]);
    job["limits"] = json!({"output_bytes": 1000});
    let (entry, result) = desk.run("j", &job).await;
    let stdout = result.stdout.unwrap();
    assert_eq!((stdout.head.0.len(), stdout.tail.unwrap().0.len()), (750, 250));
    assert_eq!((stdout.total_bytes, entry.stdout_bytes), (3_000_000, 3_000_000));
    let zeros = vec![0; 3_000_000];
    assert_eq!(stdout.sha256, Some(jtnt_proto::bytes::Hash::of(&zeros)));
    let part = desk.jobs.read_output(&id("j"), Stream::Stdout, 750, 9999).await.unwrap();
    assert_eq!((part.offset, part.data.len()), (2_999_750, 250));
}

#[tokio::test]
async fn what_the_policy_does_not_allow_is_refused_for_good() {
    let desk = Desk::with(&rules());
    assert!(!desk.take(leased("j", &exec("/usr/bin/touch", &["/tmp/x"]))).await);
    let entry = desk.entry("j");
    assert_eq!(entry.state, State::Rejected);
    assert_eq!(entry.reason.as_deref(), Some("DENIED"));
    assert_eq!(events(&desk, "j"), ["policy_violation"]);
    assert_eq!(desk.audited("j")[0].1["details"]["reason"], "NO_RULE");
    let metrics = &desk.core.deps.metrics;
    assert_eq!(metrics.policy_violations.with_label_values(&["exec"]).get(), 1);
    assert_eq!(metrics.jobs_executed.with_label_values(&["exec", "denied"]).get(), 1);
    assert_eq!(metrics.jobs_rejected.with_label_values(&["DENIED"]).get(), 1);
    assert_eq!(desk.core.deps.journal.undelivered().unwrap().len(), 1, "the hub is told");

    // Where the path itself is at fault, that is the reason; the metric keeps its few names.
    assert!(!desk.take(leased("gone", &exec("/usr/bin/no-such", &[]))).await);
    assert_eq!(desk.entry("gone").reason.as_deref(), Some("PATH_MISSING"));
    assert_eq!(metrics.jobs_rejected.with_label_values(&["DENIED"]).get(), 2);
}

#[tokio::test]
async fn nobodys_signature_uses_up_no_id() {
    let desk = Desk::with(&rules());
    assert!(!desk.take(signed_by(2, "j", &json!({}))).await, "the policy role signs no jobs");
    assert_eq!(desk.core.deps.journal.get(&id("j")).unwrap(), None);
    assert_eq!(desk.audited("j")[0].1["details"]["reason"], "BAD_SIGNATURE");
    let (entry, _) = desk.run("j", &json!({})).await;
    assert_eq!(entry.state, State::Finished(Outcome::Ok));
}

#[tokio::test]
async fn a_hub_that_sends_the_jobs_of_a_fleet_does_not_fill_the_log() {
    let desk = Desk::with(&rules());
    let before = desk.core.deps.audit.head().size;
    for n in 0..100 {
        let other = leased(&format!("other-{n}"), &json!({"agent_id": "somebody-else"}));
        assert!(!desk.take(other).await);
        assert!(!desk.take(signed_by(2, &format!("forged-{n}"), &json!({}))).await);
    }
    // Of what nobody signed, ten; of what is signed, sixty.
    assert_eq!(desk.core.deps.audit.head().size - before, 10 + 60);
    let metric = |reason| desk.core.deps.metrics.jobs_rejected.with_label_values(&[reason]).get();
    assert_eq!((metric("NOT_FOR_ME"), metric("BAD_SIGNATURE")), (100, 100));
    desk.core.log_last_suppressed().await;
    let lines = desk.lines("job_rejected");
    let counts = lines.iter().filter(|line| line["details"]["suppressed"].is_u64());
    let counts: Vec<_> = counts.map(|line| &line["details"]["reasons"]).collect();
    assert_eq!(counts, [&json!({"BAD_SIGNATURE": 90}), &json!({"NOT_FOR_ME": 40})]);
    // All that was refused is in the journal, and the hub hears of it.
    assert_eq!(desk.core.deps.journal.undelivered().unwrap().len(), 100);
}

#[tokio::test]
async fn an_unknown_type_is_malformed_and_an_expired_job_is_expired() {
    let desk = Desk::with(&rules());
    assert!(!desk.take(leased("odd", &json!({"type": "dance"}))).await);
    assert_eq!(desk.audited("odd")[0].1["details"]["reason"], "MALFORMED");
    desk.clock.jump_to("2026-06-03T00:00:00Z");
    assert!(!desk.take(leased("late", &json!({}))).await);
    assert_eq!(desk.entry("late").reason.as_deref(), Some("EXPIRED"));
    desk.core.deps.time.save().await.unwrap();
    desk.clock.jump_to("2026-06-02T00:00:00Z");
    assert!(!desk.take(leased("later", &json!({}))).await, "a clock set back revives nothing");
}

#[tokio::test]
async fn a_lease_that_comes_again_runs_nothing_twice_and_another_job_is_a_replay() {
    let desk = Desk::with(&rules());
    let job = leased("j", &exec("/usr/bin/echo", &["once"]));
    assert!(desk.take(job.clone()).await);
    assert!(!desk.take(job.clone()).await, "it waits already");
    desk.until("j", |e| e.state.is_terminal()).await;
    assert!(!desk.take(job).await, "it ran already");
    assert!(!desk.take(leased("j", &exec("/usr/bin/echo", &["other"]))).await);
    let lines = desk.audited("j");
    assert_eq!(events(&desk, "j"), ["job_started", "job_executed", "job_rejected"]);
    assert_eq!(lines[2].1["details"]["reason"], "REPLAY");
    assert_eq!(desk.entry("j").state, State::Finished(Outcome::Ok));
}

#[tokio::test]
async fn a_timeout_ends_the_job() {
    let desk = Desk::with(&rules());
    let mut job = exec("/usr/bin/sleep", &["600"]);
    job["limits"] = json!({"timeout_seconds": 1});
    let (entry, result) = desk.run("j", &job).await;
    assert_eq!(entry.state, State::Finished(Outcome::Timeout), "{entry:?}");
    assert_eq!((result.signal, result.reason.as_deref()), (Some(15), Some("TIMEOUT")));
    assert_eq!(desk.audited("j")[1].1["status"], "timeout");
}

#[tokio::test]
async fn a_running_job_can_be_called_off_by_somebody_on_the_machine() {
    let desk = Desk::with(&rules());
    assert!(desk.take(leased("j", &exec("/usr/bin/sleep", &["600"]))).await);
    let running = desk.until("j", |e| e.state == State::Running).await;
    let process = running.process.unwrap();
    assert!(sweep::is_alive(&process));
    let caller = jtnt_proto::audit::Caller { uid: Some(7), pid: None, name: None };
    assert_eq!(desk.jobs.cancel(&id("j"), Some(caller)).await, Ok(State::Running));
    let entry = desk.until("j", |e| e.state.is_terminal()).await;
    assert_eq!(entry.state, State::Finished(Outcome::Cancelled));
    assert!(!sweep::is_alive(&process));
    let line = &desk.audited("j")[1].1;
    assert_eq!((&line["status"], &line["caller"]["uid"]), (&json!("cancelled"), &json!(7)));
}

#[tokio::test]
async fn a_waiting_job_can_be_called_off_and_what_ended_cannot() {
    let desk = Desk::with(&rules());
    assert!(desk.take(leased("j", &json!({}))).await);
    let cancelled = Ok(State::Finished(Outcome::Cancelled));
    assert_eq!(desk.jobs.cancel(&id("j"), None).await, cancelled);
    assert_eq!(events(&desk, "j"), ["job_executed"], "it never started");
    desk.run("k", &json!({})).await;
    let ended = Err(CancelError::Ended(id("k"), "ok"));
    assert_eq!(desk.jobs.cancel(&id("k"), None).await, ended);
    let unknown = Err(CancelError::Unknown(id("x")));
    assert_eq!(desk.jobs.cancel(&id("x"), None).await, unknown);
}

fn cancel(id: &str, key: u8) -> Envelope {
    let cancel = json!({
        "job_id": id, "agent_id": "agent", "root_id": "installation", "issued_at": NOW,
        "expires_at": "2026-06-03T00:00:00Z",
    });
    Envelope::sign(PayloadType::Cancel, serde_json::to_vec(&cancel).unwrap(), &[&secret(key)])
}

#[tokio::test]
async fn a_cancel_that_comes_before_its_job_is_remembered_and_a_forged_one_is_not() {
    let desk = Desk::with(&rules());
    let cancels = vec![cancel("first", 3), cancel("forged", 4)];
    let jobs = vec![leased("first", &json!({})), leased("forged", &json!({}))];
    intake::take(&desk.core, JobsResponse { jobs, cancels }).await;
    assert_eq!(desk.entry("first").reason.as_deref(), Some("CANCELLED"));
    assert_eq!(desk.entry("forged").state, State::Queued);
    let late = JobsResponse { jobs: Vec::new(), cancels: vec![cancel("forged", 3)] };
    intake::take(&desk.core, late).await;
    assert_eq!(desk.entry("forged").state, State::Finished(Outcome::Cancelled));
}

#[tokio::test]
async fn the_policy_of_the_start_decides_not_the_one_of_the_arrival() {
    let desk = Desk::with(&rules());
    assert!(desk.take(leased("j", &json!({}))).await);
    desk.policy.send_replace(Some(in_force(&json!({"exec": []}))));
    let entry = desk.until("j", |e| e.state.is_terminal()).await;
    assert_eq!((entry.state, entry.reason.as_deref()), (State::Rejected, Some("DENIED")));
    assert_eq!(events(&desk, "j"), ["policy_violation"]);
}

#[tokio::test]
async fn a_user_that_does_not_exist_is_nobody_else() {
    let desk = Desk::with(&rules());
    let (entry, result) = desk.run("j", &exec("/usr/bin/uname", &[])).await;
    assert_eq!(entry.state, State::Finished(Outcome::Failed));
    assert_eq!(result.reason.as_deref(), Some("USER_UNKNOWN"));
    assert_eq!((result.started_at, result.user), (None, None));
}

#[tokio::test]
async fn a_job_that_names_no_user_never_runs_as_root() {
    let desk = Desk::with(&rules());
    let (_, result) = desk.run("j", &exec("/usr/bin/id", &["-u"])).await;
    let uid: u32 =
        String::from_utf8(result.stdout.unwrap().head.0).unwrap().trim().parse().unwrap();
    if Account::own().uid == 0 {
        assert!(desk.core.config.uid_range.contains(&uid), "{uid}");
        assert_eq!(result.user, Some(uid.to_string()));
    } else {
        assert_eq!(uid, Account::own().uid);
    }
}

#[tokio::test]
async fn a_working_directory_that_is_gone_fails_the_job() {
    let desk = Desk::with(&rules());
    let job = json!({"command": {"path": "/usr/bin/true", "cwd": "/no/such/folder"}});
    let (_, result) = desk.run("j", &job).await;
    assert_eq!(result.reason.as_deref(), Some("CWD_UNAVAILABLE"));
    assert_eq!(events(&desk, "j"), ["job_started", "job_executed"]);
}

#[tokio::test]
async fn no_more_jobs_run_at_once_than_may() {
    let desk = Desk::with(&rules());
    for n in 0..6 {
        assert!(desk.take(leased(&format!("j{n}"), &exec("/usr/bin/sleep", &["600"]))).await);
    }
    desk.until("j3", |e| e.state == State::Running).await;
    assert_eq!(desk.core.board.counts(), (2, 4));
    desk.jobs.cancel(&id("j0"), None).await.unwrap();
    desk.until("j4", |e| e.state == State::Running).await;
    assert_eq!(desk.entry("j5").state, State::Queued);
    assert!(desk.tasks.drain(std::time::Duration::from_secs(20)).await.is_empty());
}

/// A job that was under way when the agent ended.
async fn under_way(desk: &Desk, id: &str, changes: &Value, process: Option<Process>) -> Entry {
    let item = intake::take_job(&desk.core, leased(id, changes)).await.unwrap().unwrap();
    let state =
        if process.as_ref().is_some_and(|p| p.pid > 0) { State::Running } else { State::Starting };
    let entry = Entry { state, process, ..item.entry };
    desk.core.deps.journal.update(entry.clone()).await.unwrap();
    entry
}

/// As its shim would have left it.
fn begun(desk: &Desk, name: &str) {
    let dir = desk.core.job_dir(&id(name));
    durable::create_dir(&dir, 0o700).unwrap();
    durable::create(&dir.join("started.1"), durable::PRIVATE).unwrap();
}

fn some_process(boot_id: String) -> Process {
    Process { pid: 0, start_time: 0, boot_id, cgroup: None }
}

#[tokio::test]
async fn after_a_crash_nothing_is_lost_and_nothing_runs_twice() {
    let desk = Desk::with(&rules());
    let here = || Some(some_process(sweep::boot_id().unwrap()));
    let before = Some(some_process("another boot".into()));
    assert!(desk.take(leased("waits", &json!({}))).await);
    under_way(&desk, "unknown", &json!({}), here()).await;
    under_way(&desk, "unbegun", &json!({}), here()).await;
    under_way(&desk, "down", &json!({}), before.clone()).await;
    under_way(&desk, "ended", &json!({}), before).await;
    begun(&desk, "ended");
    let exit = desk.core.job_dir(&id("ended")).join("exit.1.json");
    let ended = json!({"cause": "ended", "code": 6, "timeout": {"secs": 9, "nanos": 0},
        "finished_at": NOW, "duration": {"secs": 1, "nanos": 0}});
    durable::replace(&exit, ended.to_string().as_bytes(), durable::PRIVATE).unwrap();
    under_way(&desk, "harmless", &json!({"idempotent": true}), here()).await;
    begun(&desk, "unknown");
    begun(&desk, "harmless");
    under_way(&desk, "torn", &json!({}), here()).await;
    begun(&desk, "torn");
    let exit = desk.core.job_dir(&id("torn")).join("exit.1.json");
    durable::replace(&exit, b"{\"cause\": ", durable::PRIVATE).unwrap();
    let kept = under_way(&desk, "stored", &json!({}), here()).await;
    let result = json!({"job_id": "stored", "attempt": 1, "outcome": "failed", "exit_code": 3,
        "finished_at": NOW, "duration_ms": 5, "enforcement": "none", "policy_version": 1});
    let body = serde_json::to_vec(&result).unwrap();
    desk.core.store_result(&kept, body.clone()).await.unwrap();

    let desk = desk.again(&rules());
    recovery::recover(&desk.core).await.unwrap();
    let state = |id: &str| (desk.entry(id).state, desk.entry(id).reason);
    let because = |outcome, reason: &str| (State::Finished(outcome), Some(reason.to_owned()));
    assert_eq!(state("unknown"), because(Outcome::Indeterminate, "AGENT_ENDED"));
    assert_eq!(state("torn"), because(Outcome::Indeterminate, "AGENT_ENDED"));
    assert_eq!(state("down"), because(Outcome::Interrupted, "MACHINE_DOWN"));
    let ended = desk.entry("ended");
    assert_eq!((ended.state, ended.exit_code), (State::Finished(Outcome::Failed), Some(6)));
    assert!(!desk.core.job_dir(&id("torn")).exists() && !desk.core.job_dir(&id("ended")).exists());
    let stored = desk.entry("stored");
    assert_eq!((stored.state, stored.exit_code), (State::Finished(Outcome::Failed), Some(3)));
    assert_eq!(stored.result_sha256, Some(jtnt_proto::bytes::Hash::of(&body)));
    assert_eq!(desk.result_bytes(&stored), body, "the very bytes");
    assert_eq!(desk.entry("waits").state, State::Queued);
    let done = desk.until("waits", |e| e.state.is_terminal()).await;
    assert_eq!(done.state, State::Finished(Outcome::Ok));
    let unbegun = desk.until("unbegun", |e| e.state.is_terminal()).await;
    assert_eq!((unbegun.state, unbegun.attempt), (State::Finished(Outcome::Ok), 1));
    let again = desk.until("harmless", |e| e.state.is_terminal()).await;
    assert_eq!((again.state, again.attempt), (State::Finished(Outcome::Ok), 2));
    assert_eq!(desk.core.deps.journal.undelivered().unwrap().len(), 8);
}

#[tokio::test]
async fn an_end_that_a_crash_kept_out_of_the_log_is_logged_once_by_the_next_start() {
    let desk = Desk::with(&rules());
    let (logged, _) = desk.run("logged", &exec("/usr/bin/echo", &["small"])).await;
    assert!(logged.result.is_some(), "it is part of the journal's record");
    // As if the agent had ended between the record and the line.
    let entry = Entry { job_id: id("unlogged"), ..logged };
    desk.core.deps.journal.admit(entry).await.unwrap();
    let desk = desk.again(&rules());
    recovery::recover(&desk.core).await.unwrap();
    desk.core.mend().await.unwrap();
    assert_eq!(events(&desk, "logged"), ["job_started", "job_executed"]);
    let lines = desk.audited("unlogged");
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0].1["details"]["recovered"], true);
    assert_eq!(desk.jobs.cache_status().await.unwrap().pending_results, 2);
}

#[tokio::test]
async fn a_result_that_has_to_wait_becomes_a_file_with_the_same_bytes() {
    let desk = Desk::with(&rules());
    let (entry, _) = desk.run("j", &exec("/usr/bin/echo", &["small"])).await;
    let bytes = desk.result_bytes(&entry);
    desk.core.set_aside(entry.clone()).await.unwrap();
    assert_eq!(desk.entry("j").result, None);
    assert_eq!(desk.result_bytes(&entry), bytes);
    let status = desk.jobs.cache_status().await.unwrap();
    assert_eq!(status.pending_bytes, bytes.len() as u64);
    desk.core.delivered(desk.entry("j")).await.unwrap();
    assert!(!desk.core.result_file(&entry).exists());
    assert_eq!(desk.jobs.cache_status().await.unwrap().pending_bytes, 0);
}

#[tokio::test]
async fn a_job_goes_on_while_its_agent_does_not() {
    let desk = Desk::with(&rules());
    for name in ["goes-on", "called-off"] {
        assert!(desk.take(leased(name, &exec("/usr/bin/sleep", &["600"]))).await);
        desk.until(name, |e| e.state == State::Running).await;
    }
    let process = desk.entry("goes-on").process.unwrap();
    assert!(desk.tasks.drain(std::time::Duration::from_secs(20)).await.is_empty());
    assert_eq!(desk.entry("goes-on").state, State::Running);

    let desk = desk.again(&rules());
    recovery::recover(&desk.core).await.unwrap();
    assert_eq!(desk.core.board.counts(), (0, 2));
    assert_eq!(desk.entry("goes-on").process, Some(process.clone()));
    assert!(sweep::is_alive(&process));
    desk.jobs.cancel(&id("called-off"), None).await.unwrap();
    let off = desk.until("called-off", |e| e.state.is_terminal()).await;
    assert_eq!(off.state, State::Finished(Outcome::Cancelled));
    assert_eq!(desk.entry("goes-on").state, State::Running, "the other goes on");

    // Its end is not awaited by an agent this time.
    assert!(desk.tasks.drain(std::time::Duration::from_secs(20)).await.is_empty());
    let desk = desk.again(&rules());
    let shim = Shim::find(work::attempt_of(&desk.core, &desk.entry("goes-on"))).unwrap().unwrap();
    shim.terminate();
    shim.ended().await.unwrap();
    assert!(matches!(
        work::attempt_of(&desk.core, &desk.entry("goes-on")).left().unwrap(),
        crate::shim::Left::Exit(_)
    ));
    recovery::recover(&desk.core).await.unwrap();
    let end = desk.entry("goes-on");
    assert_eq!(end.state, State::Finished(Outcome::Interrupted), "nobody cancelled it");
    assert_eq!(end.reason.as_deref(), Some("TERMINATED"));
    assert_eq!(events(&desk, "goes-on"), ["job_started", "job_executed"]);
    assert!(!desk.core.job_dir(&id("goes-on")).exists(), "nothing of it is left but its record");
}

#[tokio::test]
async fn after_a_crash_what_hides_its_name_is_found_by_its_user() {
    if Account::own().uid != 0 {
        eprintln!("not root: a user of the job's own was not tried");
        return;
    }
    let desk = Desk::with(&rules());
    let here = Some(some_process(sweep::boot_id().unwrap()));
    let user = desk.core.config.uid_range.start().to_string();
    let entry = under_way(&desk, "hides", &json!({}), here).await;
    begun(&desk, "hides");
    desk.core.deps.journal.update(Entry { user: Some(user.clone()), ..entry }).await.unwrap();
    let mut nameless = tokio::process::Command::new("/usr/bin/sleep");
    let mut nameless = nameless.arg("600").env_clear().uid(user.parse().unwrap()).spawn().unwrap();
    recovery::recover(&desk.core).await.unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), nameless.wait()).await;
    assert!(!ended.unwrap().unwrap().success());
    assert_eq!(desk.entry("hides").state, State::Finished(Outcome::Indeterminate));
}

#[tokio::test]
async fn after_a_crash_half_a_download_is_removed_where_the_policy_still_lets_it_write() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let writes = |id: &str| {
        json!({"file": [{"id": "writes", "effect": "allow", "access": ["write"],
            "path": format!("{}/{id}/*", place.display())}]})
    };
    for id in ["open", "closed"] {
        std::fs::create_dir(place.join(id)).unwrap();
        durable::create(&place.join(format!("{id}/.jtnt-{id}.part")), 0o600).unwrap();
    }
    let desk = Desk::with(&writes("*"));
    for id in ["open", "closed"] {
        let here = Some(some_process(sweep::boot_id().unwrap()));
        let job = json!({"type": "download", "command": {
            "dest": format!("{}/{id}/file", place.display()),
            "artifact": {"sha256": "ab".repeat(32), "size": 9}}});
        under_way(&desk, id, &job, here).await;
        begun(&desk, id);
    }
    let desk = desk.again(&writes("open"));
    recovery::recover(&desk.core).await.unwrap();
    let left = |id: &str| place.join(format!("{id}/.jtnt-{id}.part")).exists();
    assert_eq!((left("open"), left("closed")), (false, true));
    assert_eq!(desk.entry("open").reason.as_deref(), Some("AGENT_ENDED"));
}

#[tokio::test]
async fn a_job_that_expired_while_the_agent_was_down_does_not_start() {
    let desk = Desk::with(&rules());
    assert!(desk.take(leased("j", &json!({}))).await);
    let desk = desk.again(&rules());
    desk.clock.jump_to("2026-06-04T00:00:00Z");
    recovery::recover(&desk.core).await.unwrap();
    let entry = desk.until("j", |e| e.state.is_terminal()).await;
    assert_eq!((entry.state, entry.reason.as_deref()), (State::Rejected, Some("EXPIRED")));
}

#[tokio::test]
async fn space_costs_output_and_never_the_end_of_a_job() {
    let desk = Desk::with(&rules());
    let (entry, result) = desk.run("j", &exec("/usr/bin/echo", &["bulky"])).await;
    assert!(!result.stdout.unwrap().head.0.is_empty());
    let kept = desk.jobs.cache_clean().await.unwrap();
    assert_eq!((kept.jobs, kept.kept_pending), (0, 1), "undelivered output stays");
    desk.clock.advance(std::time::Duration::from_secs(8 * 86_400));
    desk.core.upkeep().await.unwrap();
    let result = desk.result(&entry);
    let stdout = result.stdout.unwrap();
    assert_eq!((stdout.head.0.len(), stdout.total_bytes), (0, 6));
    assert_eq!((result.outcome, result.exit_code), (Outcome::Ok, Some(0)));
    assert_eq!(desk.core.deps.journal.undelivered().unwrap().len(), 1);
    let status = desk.jobs.cache_status().await.unwrap();
    let length = desk.result_bytes(&entry).len() as u64;
    assert_eq!((status.pending_results, status.pending_bytes), (1, length));
}

#[tokio::test]
async fn what_follows_results_goes_before_what_stands_in_them() {
    let desk = Desk::with_cache(&rules(), 500_000);
    let (small, _) = desk.run("small", &exec("/usr/bin/echo", &["bulky"])).await;
    let mut job = exec("/usr/bin/head", &["-c", "900000", "/dev/zero"]);
    job["limits"] = json!({"output_bytes": 1_000_000});
    let (large, result) = desk.run("large", &job).await;
    assert_eq!(result.stdout.unwrap().parts.len(), 1);
    assert_eq!(large.bytes_to_follow(), 900_000);
    assert!(desk.jobs.cache_status().await.unwrap().pending_bytes > 900_000);
    desk.core.upkeep().await.unwrap();
    let left = desk.entry("large");
    assert_eq!((left.dropped.as_deref(), left.parts.len()), (Some("SPOOL_FULL"), 0));
    let stdout = desk.result(&large).stdout.unwrap();
    assert_eq!((stdout.total_bytes, stdout.dropped.as_deref()), (900_000, Some("SPOOL_FULL")));
    assert!(stdout.sha256.is_some());
    assert_eq!(desk.entry("small").dropped, None);
    assert_eq!(desk.result(&small).stdout.unwrap().dropped, None);
    assert!(desk.jobs.cache_status().await.unwrap().pending_bytes < 4096);
    let events = events(&desk, "large");
    assert_eq!(events.iter().filter(|event| *event == "output_dropped").count(), 1, "{events:?}");
    let dropped = &desk.core.deps.metrics.output_dropped;
    assert_eq!(dropped.with_label_values(&["SPOOL_FULL"]).get(), 1);
}

#[tokio::test]
async fn no_job_starts_without_a_line_in_the_log() {
    let desk = Desk::with(&rules());
    let mut job = exec("/usr/bin/echo", &["unseen"]);
    job["expires_at"] = json!("2026-06-05T00:00:00Z");
    assert!(desk.take(leased("j", &job)).await);
    // The log begins a file each day, and cannot without its folder.
    std::fs::remove_dir_all(desk.dir.path().join("audit")).unwrap();
    desk.clock.jump_to("2026-06-03T12:00:00Z");
    let entry = desk.until("j", |e| e.state.is_terminal()).await;
    assert_eq!(entry.state, State::Finished(Outcome::Failed));
    assert_eq!(entry.reason.as_deref(), Some("CANNOT_RECORD"));
    assert_eq!((entry.exit_code, entry.stdout_bytes), (None, 0), "it never ran");
}
