//! The beat without a hub: what each outcome leads to.

use std::sync::{Arc, Mutex};

use jtnt_proto::hub::{Hints, JobCounts};

use super::*;
use crate::runtime::{clock::FixedClock, entropy::SeededEntropy};

type Facts = Box<dyn FnMut() -> Saying>;
type Answered = Box<dyn FnMut(HeartbeatResponse)>;
type Remember = Box<dyn FnMut(Option<Saved>)>;
type Memory = Arc<Mutex<Vec<Option<Saved>>>>;

struct Rig {
    heart: Heart<Facts, Answered, Remember>,
    memory: Memory,
    status: watch::Receiver<HeartbeatStatus>,
}

fn body() -> HeartbeatRequest {
    HeartbeatRequest {
        agent_id: "a".to_owned(),
        version: "1".to_owned(),
        state: "ok".to_owned(),
        boot_id: "b".to_owned(),
        uptime_seconds: 1,
        root_version: 1,
        root_source: "pinned".to_owned(),
        policy_version: 0,
        certificate_serial: "01".to_owned(),
        certificate_expires_at: Timestamp::UNIX_EPOCH,
        enforcement: "none".to_owned(),
        jobs: JobCounts::default(),
        audit: None,
        labels: std::collections::BTreeMap::new(),
    }
}

fn rig(saved: Option<Saved>) -> Rig {
    let memory = Memory::default();
    let kept = Arc::clone(&memory);
    let (sender, status) = watch::channel(HeartbeatStatus::default());
    let deps = Deps {
        interval: Duration::from_secs(30),
        backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(300)),
        saved,
        facts: Box::new(|| Box::pin(async { Some(body()) }) as Saying) as Facts,
        answered: Box::new(|_| {}) as Answered,
        remember: Box::new(move |saved| kept.lock().unwrap().push(saved)) as Remember,
        status: sender,
        clock: FixedClock::at("2026-01-01T00:00:00Z"),
        entropy: SeededEntropy::new(1),
        metrics: Metrics::new("test").unwrap(),
    };
    Rig { heart: Heart { deps, failures_told: 0, lost: None }, memory, status }
}

fn answer() -> HeartbeatResponse {
    HeartbeatResponse {
        certificate_serial: None,
        hub_time: "2026-01-01T00:00:00Z".parse().unwrap(),
        hints: Hints::default(),
        witness: None,
        witnessed_size: None,
        audit_refusal: None,
        rolled_back: None,
    }
}

fn refused(status: u16, retry_after: Option<u64>) -> HubError {
    HubError::Refused {
        status,
        reason: String::new(),
        detail: String::new(),
        retry_after: retry_after.map(Duration::from_secs),
    }
}

#[tokio::test]
async fn waits_stay_within_a_tenth_of_the_interval() {
    let mut rig = rig(None);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let wait = rig.heart.beat(|_| async { Ok(answer()) }).await;
        assert!((27.0..=33.0).contains(&wait.as_secs_f64()), "{wait:?}");
        seen.insert(wait);
    }
    assert!(seen.len() > 50, "they differ");
    assert!(rig.memory.lock().unwrap().is_empty(), "success alone is not worth a write");
}

#[tokio::test]
async fn failures_back_off_and_success_forgets_them() {
    let mut rig = rig(None);
    for n in 1..=12 {
        let wait = rig.heart.beat(|_| async { Err(refused(503, None)) }).await;
        assert!(wait <= Duration::from_secs(1 << (n - 1).min(9)).min(Duration::from_secs(300)));
        assert_eq!(rig.status.borrow().consecutive_failures, n);
    }
    assert!(rig.status.borrow().last_error.as_ref().is_some_and(|e| e.contains("503")));
    rig.heart.beat(|_| async { Ok(answer()) }).await;
    assert_eq!(rig.status.borrow().consecutive_failures, 0);
    assert_eq!(rig.memory.lock().unwrap().last(), Some(&None));
}

#[tokio::test]
async fn the_hub_may_ask_for_more_patience_and_a_refusal_is_not_repeated_at_once() {
    let mut rig = rig(None);
    let wait = rig.heart.beat(|_| async { Err(refused(429, Some(77))) }).await;
    assert_eq!(wait, Duration::from_secs(77));
    let wait = rig.heart.beat(|_| async { Err(refused(403, None)) }).await;
    assert_eq!(wait, Duration::from_secs(30));
    let open = HubError::BreakerOpen(Duration::from_secs(60));
    assert!(rig.heart.beat(|_| async { Err(open) }).await >= Duration::from_secs(60));
}

#[tokio::test]
async fn an_open_breaker_is_told_without_a_number_that_does_not_count_down() {
    let mut rig = rig(None);
    let open = || HubError::BreakerOpen(Duration::from_secs(60));
    rig.heart.beat(|_| async { Err(open()) }).await;
    assert_eq!(rig.status.borrow().last_error.as_deref(), Some(SPARED));
    rig.heart.beat(|_| async { Err(refused(503, None)) }).await;
    rig.heart.beat(|_| async { Err(open()) }).await;
    assert!(rig.status.borrow().last_error.as_ref().is_some_and(|e| e.contains("503")));
}

#[tokio::test]
async fn a_restart_goes_on_waiting_but_not_for_ever() {
    let at = |text: &str| Some(Saved { failures: 4, not_before: text.parse().unwrap() });
    assert_eq!(rig(None).heart.first_wait(), Duration::ZERO);
    assert_eq!(rig(at("2026-01-01T00:00:05Z")).heart.first_wait(), Duration::from_secs(5));
    assert_eq!(rig(at("2025-12-31T00:00:00Z")).heart.first_wait(), Duration::ZERO);
    // The clock was set back by a year meanwhile.
    assert_eq!(rig(at("2027-01-01T00:00:00Z")).heart.first_wait(), Duration::from_secs(8));
}

#[tokio::test(start_paused = true)]
async fn the_loop_waits_for_an_enrolment_and_ends_when_nobody_can_enrol() {
    let Rig { heart, status, .. } = rig(None);
    let (link, watched) = watch::channel(None);
    let stop = CancellationToken::new();
    let beating = run(heart.deps, watched, Arc::default(), stop.clone());
    let scenario = async {
        sleep(Duration::from_secs(3600)).await;
        assert_eq!(*status.borrow(), HeartbeatStatus::default());
        drop(link);
    };
    tokio::join!(beating, scenario);
    assert!(!stop.is_cancelled());
}
