//! One agent has as much happen to it as can be had in one run: every event leaves lines that say
//! who did what to what, when, from where and with which outcome. That each line says it is checked
//! wherever a test reads the log ([`Site::audit`]).

use std::{collections::BTreeSet, fs::OpenOptions, io::Write as _};

use jtnt_hub_mock::{Hub, operator::Role};
use jtnt_proto::envelope::PayloadType;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    site::{Site, exec},
    support::{eventually, put},
};

/// Lines of an event.
fn of(site: &Site, event: &str) -> Vec<Value> {
    site.audit().into_iter().filter(|line| line["event"] == event).collect()
}

/// Waits until there are so many lines of an event.
async fn lines_of(site: &Site, event: &str, count: usize) -> Vec<Value> {
    let all = eventually("the line is written", async || {
        let lines = of(site, event);
        if lines.len() >= count { Ok(lines) } else { Err(format!("{event}: {lines:?}")) }
    });
    all.await.unwrap()
}

/// Jobs: one that runs, one that is forbidden, and one that nobody signed.
async fn jobs(site: &Site) {
    assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok");
    assert_eq!(site.run(exec("/usr/bin/touch", &["/nowhere"])).await.state, "rejected");
    let operator = site.operator();
    let work = serde_json::from_value(exec("/usr/bin/true", &[])).unwrap();
    let job = operator.job(&site.id, work).unwrap();
    let forged =
        operator.sign(Role::Policy, PayloadType::Job, &serde_json::to_value(&job).unwrap());
    let id = site.hub.enqueue(&site.id, forged).await.unwrap();
    assert_eq!(site.end_of(&id).await.state, "rejected");
}

/// Reading the log is a line a call, however much is read.
async fn reads(site: &Site) {
    let before = of(site, "log_read").len();
    site.home.ctl(&["audit", "list"]).await.unwrap().exits(0).unwrap();
    site.home.ctl(&["audit", "verify"]).await.unwrap().exits(0).unwrap();
    let read = of(site, "log_read");
    let methods = read.iter().skip(before).map(|line| line["command"].as_str().unwrap());
    let service = "/jtnt.admin.v1.AuditService";
    let methods: Vec<_> = methods.map(|path| path.trim_start_matches(service)).collect();
    assert_eq!(methods, ["/ListLines", "/VerifyLog"]);
    assert!(read.iter().all(|line| line["caller"]["uid"].is_u64()), "{read:?}");
}

/// A change that is taken, and one that is not; each call with its outcome.
async fn calls(site: &Site, agent: &crate::support::Agent) {
    site.home.ctl(&["cert", "renew", "--force"]).await.unwrap().exits(0).unwrap();
    site.home.configure(&json!({"log_level": "debug"})).unwrap();
    site.home.asked(&["reload"]).await.unwrap();
    let good = std::fs::read(site.home.config()).unwrap();
    put(&site.home.config(), b"{\"log_level\": \"loud\"}").unwrap();
    site.home.ctl(&["reload"]).await.unwrap().exits(1).unwrap();
    agent.signal(Signal::HUP).unwrap();
    let refused = lines_of(site, "config_changed", 2).await;
    assert_eq!(
        (&refused[1]["status"], &refused[1]["details"]["by"]),
        (&json!("error"), &json!("SIGHUP"))
    );
    put(&site.home.config(), &good).unwrap();
    let calls = of(site, "admin_call");
    let ended = calls.iter().filter(|line| line["details"]["phase"] == "ended");
    let outcomes: Vec<_> = ended
        .map(|line| (line["command"].as_str().unwrap(), line["status"].as_str().unwrap()))
        .collect();
    let (renew, reload) =
        ("/jtnt.admin.v1.CertService/ForceRenewal", "/jtnt.admin.v1.AgentService/Reload");
    assert_eq!(outcomes, [(renew, "success"), (reload, "success"), (reload, "error")]);
    let begun = calls.iter().find(|line| line["details"]["phase"] == "begun").unwrap();
    assert_eq!(calls[1]["details"]["began"], begun["seq"]);
}

#[tokio::test]
async fn every_event_says_who_what_when_whence_and_how_it_ended() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    jobs(&site).await;
    calls(&site, &agent).await;
    reads(&site).await;
    let next = site.operator().next_root(&[Role::Script]).unwrap();
    site.hub.publish_root(next.envelope.clone()).await.unwrap();
    site.home.ctl(&["policy", "refresh"]).await.unwrap();
    lines_of(&site, "root_changed", 1).await;
    let status = site.home.asked(&["status"]).await.unwrap();
    if status["enforcement"] != "full" {
        let told = lines_of(&site, "degraded", 1).await;
        assert_eq!((&told[0]["object"], &told[0]["status"]), (&json!("sandbox"), &json!("error")));
    }
    agent.stop().await.unwrap();

    // Half a line, as a crash leaves it.
    let newest = site.logs().pop().unwrap();
    OpenOptions::new().append(true).open(newest).unwrap().write_all(b"{\"time").unwrap();
    site.home.start().await.unwrap().stop().await.unwrap();
    site.home.agent(&["clock", "reset"]).await.unwrap().exits(0).unwrap();
    site.home.agent(&["unenroll"]).await.unwrap().exits(0).unwrap();

    let lines = site.audit();
    let seen: BTreeSet<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    for event in [
        "genesis",
        "startup",
        "shutdown",
        "enrollment",
        "job_started",
        "job_executed",
        "job_rejected",
        "policy_changed",
        "policy_violation",
        "cert_rotated",
        "root_changed",
        "admin_call",
        "log_read",
        "config_changed",
        "recovered",
    ] {
        assert!(seen.contains(event), "no {event} in {seen:?}");
    }
    let enrolments = lines.iter().filter(|line| line["event"] == "enrollment");
    assert!(
        enrolments.clone().count() == 2 && enrolments.clone().all(|l| l["caller"]["uid"].is_u64())
    );
}
