//! The hub goes away and comes back: results wait for it, and the breaker spares it.

use jtnt_hub_mock::{Filter, Hub, Kind, Recorded, Route};
use serde_json::json;

use crate::{
    site::{Site, exec},
    support::eventually,
};

#[tokio::test]
async fn what_ends_while_the_hub_is_away_arrives_once_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("hub");
    let mut site = Site::ready(Hub::builder().dir(&dir)).await;
    // The breaker has tests of its own; here it would only make everybody wait for a minute.
    site.home.configure(&json!({"breaker_failures": 1000, "retry_max_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let id = site.order(exec("/usr/bin/sleep", &["1"]), |_| {}).await;
    site.running(&id).await;

    let again = Hub::builder().dir(&dir).listen(site.hub.addr()).control(site.hub.control_addr());
    let away = std::mem::replace(&mut site.hub, Hub::builder().start().await.unwrap());
    away.shutdown().await;
    eventually("the job ends without the hub", async || {
        let shown = site.home.asked(&["jobs", "show", &id]).await.map_err(|f| f.to_string())?;
        let ended = shown["state"] == "ok" && shown["delivered"] == false;
        if ended { Ok(()) } else { Err(shown.to_string()) }
    })
    .await
    .unwrap();
    let lost = agent.says(0, "the hub is lost").await.unwrap();
    assert_eq!(lost["cause"], "tcp", "{lost}");
    let status = site.home.asked(&["status"]).await.unwrap();
    assert_eq!(
        (&status["hub"]["connected"], &status["jobs"]["pending_results"]),
        (&json!(false), &json!(1))
    );
    // An outage is no reason to restart an agent.
    for path in ["/livez", "/readyz"] {
        assert_eq!(agent.get("health_listen", path).await.unwrap().status, 200, "{path}");
    }

    site.hub = again.start().await.unwrap();
    assert_eq!(site.end_of(&id).await.state, "ok");
    let about = |r: &Recorded| r.route == Some(Route::Result) && r.path.contains(&id);
    site.hub.await_request(|r| about(r)).await;
    let other = site.run(exec("/usr/bin/true", &[])).await;
    assert_eq!(other.state, "ok", "work goes on");
    let results = site.hub.requests(&Filter::route(Route::Result));
    assert_eq!(results.iter().filter(|r| about(r)).count(), 1, "{results:?}");
    assert_eq!(site.audited(&id), ["job_started", "job_executed"]);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn the_breaker_opens_is_shown_and_lets_through_who_asks() {
    let site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"breaker_failures": 3, "retry_max_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.hub.set_fault(Route::Heartbeat, Kind::InternalError, None).unwrap();
    site.hub.set_fault(Route::Jobs, Kind::InternalError, None).unwrap();
    site.hub.set_fault(Route::Policy, Kind::InternalError, None).unwrap();
    let open = "jtnt_agent_circuit_breaker_state{state=\"open\"} 1";
    eventually("the breaker opens", async || {
        // Each of these is a failure as well.
        let refused = site.home.ctl(&["policy", "refresh"]).await.map_err(|f| f.to_string())?;
        let page = agent.get("metrics_listen", "/metrics").await.map_err(|f| f.to_string())?;
        if page.body.lines().any(|line| line == open) { Ok(()) } else { Err(refused.stderr) }
    })
    .await
    .unwrap();
    let status = site.home.asked(&["status"]).await.unwrap();
    assert_eq!(
        (&status["hub"]["breaker"], &status["hub"]["connected"]),
        (&json!("open"), &json!(false))
    );
    // Nothing else is sent for a minute. Who asks has reason to, and it stays open if that fails.
    let refused = site.home.ctl(&["policy", "refresh"]).await.unwrap().exits(1).unwrap();
    for words in ["the hub answered 500", "HUB_UNAVAILABLE"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert_eq!(site.home.asked(&["status"]).await.unwrap()["hub"]["breaker"], "open");
    site.hub.clear_faults();
    site.home.ctl(&["policy", "refresh"]).await.unwrap().exits(0).unwrap();
    assert_eq!(site.home.asked(&["status"]).await.unwrap()["hub"]["breaker"], "closed");
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    agent.stop().await.unwrap();
}
