//! Every line of the audit log reaches the hub, whatever happens to either in between, in the same bytes.

use std::fs;

use jtnt_hub_mock::{Hub, Kind, Route};
use serde_json::json;

use crate::{
    site::{Site, exec},
    support::eventually,
    witness::witnessed,
};

/// Lines that the hub holds of the newest log.
fn held(site: &Site) -> Vec<u8> {
    let agent = site.hub.agents().pop().unwrap();
    let log_id = agent.logs.iter().max_by_key(|(_, log)| log.at).unwrap().0.clone();
    fs::read(site.hub.audit_file(&agent.agent_id, &log_id)).unwrap_or_default()
}

/// Waits until the hub holds all that is here, and compares.
async fn all_held(site: &Site) {
    let same = eventually("the hub holds every line", async || {
        let here: Vec<u8> = site.logs().iter().flat_map(|log| fs::read(log).unwrap()).collect();
        let there = held(site);
        if here == there {
            return Ok(());
        }
        assert!(here.starts_with(&there) || there.len() > here.len(), "other lines");
        Err(format!("{} of {} bytes", there.len(), here.len()))
    });
    same.await.unwrap();
}

#[tokio::test]
async fn the_hub_holds_every_line_over_faults_and_restarts() {
    let mut site = Site::ready(Hub::builder()).await;
    site.home.configure(&json!({"audit_profile": "pci"})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    all_held(&site).await;
    for kind in [Kind::InternalError, Kind::Cut, Kind::Garbage, Kind::Refuse] {
        site.hub.set_fault(Route::Audit, kind, Some(1)).unwrap();
        assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
        all_held(&site).await;
    }
    let status = site.home.asked(&["status"]).await.unwrap();
    assert!(status["audit"]["held"].as_u64().unwrap() > 0, "{status}");
    let metric = agent.get("metrics_listen", "/metrics").await.unwrap().body;
    assert!(metric.contains("jtnt_agent_audit_forwarded_lines{to=\"hub\"}"), "{metric}");
    agent.stop().await.unwrap();
    site.hub = site.hub.restart().await.unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    witnessed(&site).await;
    all_held(&site).await;
    agent.stop().await.unwrap();
}
