//! Starting, stopping and reloading, as a service manager and an operator do it.

use std::{net::TcpListener, time::Duration};

use jtnt_hub_mock::{Filter, Hub, Kind, Recorded, Route};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    site::{Site, exec},
    support::{Home, put},
};

#[tokio::test]
async fn a_folder_has_one_daemon_and_the_second_is_told_which() {
    let home = Home::new().unwrap();
    let agent = home.start().await.unwrap();
    let second = home.agent(&["run"]);
    let second = timeout(Duration::from_secs(5), second).await.unwrap().unwrap();
    assert!(second.code.is_some_and(|code| code != 0), "{second:?}");
    let holder = format!("pid {}", agent.pid());
    assert!(second.stderr.contains(&holder), "no {holder} in {}", second.stderr);
    assert_eq!(home.asked(&["status"]).await.unwrap()["enrolled"], false, "the first is well");
    agent.stop().await.unwrap();
    // A lock does not outlive its holder, however that ends.
    let mut killed = home.start().await.unwrap();
    killed.signal(Signal::KILL).unwrap();
    killed.ended().await.unwrap();
    home.start().await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_a_warning_that_names_its_holder_and_is_tried_again() {
    let home = Home::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    home.configure(&json!({"metrics_listen": address})).unwrap();
    let agent = home.start().await.unwrap();
    let line = agent.says(0, "cannot listen at").await.unwrap();
    let message = line["message"].as_str().unwrap();
    let holder = format!("port {} is held by", address.port());
    let own = format!("{}", std::process::id());
    for part in [holder.as_str(), own.as_str(), "metrics_listen"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    assert_eq!(agent.get("health_listen", "/livez").await.unwrap().status, 200);
    drop(taken);
    assert_eq!(agent.get("metrics_listen", "/metrics").await.unwrap().status, 200);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_stop_is_quick_and_no_end_of_a_running_job() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let id = site.order(exec("/usr/bin/sleep", &["300"]), |_| {}).await;
    site.running(&id).await;
    agent.stop().await.unwrap();
    assert_eq!(site.audit().last().unwrap()["event"], "shutdown");
    assert_eq!(site.audited(&id), ["job_started"]);
    let agent = site.home.start().await.unwrap();
    site.home.ctl(&["jobs", "cancel", &id]).await.unwrap().exits(0).unwrap();
    assert_eq!(site.end_of(&id).await.state, "cancelled");
    assert_eq!(site.audited(&id), ["job_started", "job_executed"]);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_hub_that_hangs_does_not_delay_a_stop() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    site.hub.set_fault(Route::Any, Kind::Hang, None).unwrap();
    let seen = site.hub.requests(&Filter::default()).last().unwrap().seq;
    site.hub.await_request(|r| r.seq > seen && r.route == Some(Route::Heartbeat)).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_reload_takes_what_is_right_and_leaves_what_is_wrong() {
    let home = Home::new().unwrap();
    let agent = home.start().await.unwrap();
    assert_eq!(home.asked(&["log", "level"]).await.unwrap()["level"], "info");

    home.configure(&json!({"log_level": "debug"})).unwrap();
    let mark = agent.mark();
    agent.signal(Signal::HUP).unwrap();
    agent.says(mark, "configuration read again").await.unwrap();
    assert_eq!(home.asked(&["log", "level"]).await.unwrap()["level"], "debug");

    let good = std::fs::read(home.config()).unwrap();
    put(&home.config(), b"{\"log_level\": \"loud\"}").unwrap();
    let mark = agent.mark();
    agent.signal(Signal::HUP).unwrap();
    let line = agent.says(mark, "config.json:1:15: log_level").await.unwrap();
    assert!(line["level"] == "ERROR" || line["level"] == "WARN", "{line}");
    assert_eq!(home.asked(&["log", "level"]).await.unwrap()["level"], "debug");
    let told = home.ctl(&["reload"]).await.unwrap();
    assert!(told.code.is_some_and(|code| code != 0), "{told:?}");
    assert!(told.stderr.contains("config.json:1:15: log_level"), "{}", told.stderr);

    put(&home.config(), &good).unwrap();
    home.configure(&json!({"log_level": "warn", "heartbeat_interval_seconds": 9})).unwrap();
    let told = home.asked(&["reload"]).await.unwrap();
    assert_eq!(told["changed"], json!(["heartbeat_interval_seconds", "log_level"]));
    assert_eq!(told["needs_restart"], json!(["heartbeat_interval_seconds"]));
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_label_that_is_changed_reaches_the_hub_without_a_restart() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    let labelled = async |value: &str| {
        let told = |r: &Recorded| {
            r.route == Some(Route::Heartbeat)
                && r.body.as_ref().is_some_and(|body| body["labels"]["site"] == value)
        };
        timeout(Duration::from_secs(30), site.hub.await_request(told)).await.unwrap();
    };
    labelled("b7").await;
    site.home.configure(&json!({"labels": {"site": "b8"}})).unwrap();
    let told = site.home.asked(&["reload"]).await.unwrap();
    assert_eq!((&told["changed"], &told["needs_restart"]), (&json!(["labels"]), &json!([])));
    labelled("b8").await;
    let lines = site.audit();
    let changed = lines.iter().find(|line| line["event"] == "config_changed").unwrap();
    assert_eq!(changed["details"]["changed"], json!(["labels"]));
    agent.stop().await.unwrap();
}
