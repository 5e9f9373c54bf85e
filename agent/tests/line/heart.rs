//! The heartbeat's loop with a real hub at its end.

use std::{sync::Arc, time::Duration};

use jtnt_agent::{
    domain::backoff::Backoff,
    heartbeat::{Deps, HeartbeatStatus, Saying, run},
    runtime::{clock::SystemClock, entropy::SystemEntropy},
};
use jtnt_hub_mock::{Hub, Kind, Route};
use jtnt_proto::hub::{HeartbeatRequest, JobCounts};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::support::Line;

fn facts(line: &Line) -> HeartbeatRequest {
    HeartbeatRequest {
        agent_id: line.identity.agent_id.clone(),
        version: "0.0.0".to_owned(),
        state: "ok".to_owned(),
        boot_id: "boot".to_owned(),
        uptime_seconds: 1,
        root_version: 1,
        root_source: "pinned".to_owned(),
        policy_version: 0,
        certificate_serial: line.identity.cert.serial.clone(),
        certificate_expires_at: line.identity.cert.not_after,
        enforcement: "none".to_owned(),
        jobs: JobCounts::default(),
        audit: None,
        labels: std::collections::BTreeMap::new(),
    }
}

#[tokio::test]
async fn it_begins_when_the_agent_is_enrolled_survives_faults_and_ends_when_told() {
    let line = Line::to(Hub::builder()).await;
    let body = facts(&line);
    let (hints, mut hinted) = mpsc::unbounded_channel();
    let (remembered, mut memory) = mpsc::unbounded_channel();
    let (status, mut shown) = watch::channel(HeartbeatStatus::default());
    let deps = Deps {
        interval: Duration::from_secs(30),
        backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(1)),
        saved: None,
        facts: move || -> Saying {
            let body = body.clone();
            Box::pin(async move { Some(body) })
        },
        answered: move |answer: jtnt_proto::hub::HeartbeatResponse| {
            hints.send(answer.hints).unwrap();
        },
        remember: move |saved| remembered.send(saved).unwrap(),
        status,
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        metrics: line.metrics.clone(),
    };
    let (link, watched) = watch::channel(None);
    let stop = CancellationToken::new();
    line.hub.set_fault(Route::Heartbeat, Kind::InternalError, Some(2)).unwrap();
    line.hub.hint_renewal(&line.identity.agent_id, true);
    let scenario = async {
        link.send_replace(Some(line.client.clone()));
        assert!(hinted.recv().await.unwrap().renew);
        let well = shown.wait_for(|s| s.last_success.is_some()).await.unwrap().clone();
        assert_eq!((well.consecutive_failures, well.last_error), (0, None));
        let failures: Vec<_> = std::iter::from_fn(|| memory.try_recv().ok())
            .map(|saved: Option<jtnt_agent::domain::backoff::Saved>| saved.map(|s| s.failures))
            .collect();
        assert_eq!(failures, [Some(1), Some(2), None]);
        stop.cancel();
    };
    tokio::join!(run(deps, watched, Arc::default(), stop.clone()), scenario);
    let count = |status| line.metrics.heartbeat.with_label_values(&[status]).get();
    assert_eq!((count("success"), count("error")), (1, 2));
}
