//! The main job in one go: enrol under a running agent, obey a policy, do one job of each type,
//! refuse one, and leave a log that proves it.

use std::{fs, os::unix::fs::PermissionsExt as _};

use jtnt_hub_mock::{Hub, Route};
use jtnt_proto::job::Artifact;
use serde_json::{Value, json};

use crate::{
    site::{SCRIPT, Site, exec, rules},
    support::{Agent, eventually, put},
};

/// The value of a series, written as the exposition has it.
async fn metric(agent: &Agent, series: &str) -> f64 {
    let page = agent.get("metrics_listen", "/metrics").await.unwrap();
    let line = page.body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in:\n{}", page.body)).parse().unwrap()
}

async fn unenrolled(site: &Site, agent: &Agent) {
    let health = agent.get("health_listen", "/health").await.unwrap();
    assert_eq!(health.status, 503, "{}", health.body);
    let health = health.json().unwrap();
    assert_eq!(
        (&health["status"], &health["checks"]["enrolled"]["status"]),
        (&json!("unhealthy"), &json!("fail"))
    );
    assert_eq!(agent.get("health_listen", "/livez").await.unwrap().status, 200);
    let status = site.home.asked(&["status"]).await.unwrap();
    assert_eq!(status["enrolled"], false);
    for series in [
        "jtnt_agent_heartbeat_total{status=\"success\"}",
        "jtnt_agent_jobs_executed_total{status=\"success\",type=\"exec\"}",
        "jtnt_agent_policy_expiration_timestamp",
    ] {
        assert!(metric(agent, series).await.abs() < f64::EPSILON, "{series}");
    }
}

async fn enrolment(site: &mut Site) {
    site.enrol().await;
    let config: Value = serde_json::from_slice(&fs::read(site.home.config()).unwrap()).unwrap();
    assert_eq!(
        (&config["hub_url"], &config["labels"]["site"]),
        (&json!(site.hub.url()), &json!("b7"))
    );
    for key in ["certs/client.key", "keys/audit.key"] {
        let mode = fs::metadata(site.home.data().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{key}");
    }
    let beat = site.hub.await_request(|r| r.route == Some(Route::Heartbeat) && r.status == 200);
    let beat = beat.await.body.unwrap();
    assert_eq!((&beat["agent_id"], &beat["labels"]["site"]), (&json!(site.id), &json!("b7")));
    assert_eq!(beat["root_source"], "pinned");
}

async fn jobs(site: &Site) {
    let said = site.run(exec("/usr/bin/echo", &["hello"])).await;
    assert_eq!(
        (said.state.as_str(), &said.result.unwrap().stdout.unwrap().head.0[..]),
        ("ok", &b"hello\n"[..])
    );

    let content = site.hub.put_artifact(SCRIPT).unwrap();
    let script = site.run(json!({"type": "script", "command": {"interpreter": "/bin/sh",
        "content": content, "args": ["hello"], "env": {"SITE": "b7"}}}));
    let result = script.await.result.unwrap();
    assert_eq!(
        (result.exit_code, &result.stdout.unwrap().head.0[..]),
        (Some(4), &b"hello b7\n"[..])
    );

    let (path, bytes) = (site.home.files().join("app.conf"), vec![7; 300_000]);
    let artifact = site.hub.put_artifact(&bytes).unwrap();
    let download = json!({"type": "download",
        "command": {"artifact": artifact, "dest": path, "mode": 0o640}});
    assert_eq!(site.run(download).await.state, "ok");
    assert!(fs::read(&path).unwrap() == bytes);

    put(&path, b"changed here").unwrap();
    let upload = json!({"type": "upload", "command": {"path": path, "name": "app.conf"}});
    let view = site.run(upload).await;
    let Artifact { sha256, size } = view.artifacts["app.conf"];
    assert_eq!((view.state.as_str(), size), ("ok", 12));
    assert_eq!(site.hub.artifact(sha256).unwrap(), b"changed here");

    let trace = site.home.files().join("trace");
    let denied = site.run(exec("/usr/bin/touch", &[trace.to_str().unwrap()])).await;
    let status = denied.status.unwrap();
    assert_eq!((denied.state.as_str(), status.reason.as_deref()), ("rejected", Some("DENIED")));
    assert!(status.message.unwrap().contains("/usr/bin/touch"));
    assert!(!trace.exists());

    let gone = site.run(exec("/usr/bin/no-such-program", &[])).await;
    assert_eq!(gone.status.unwrap().reason.as_deref(), Some("PATH_MISSING"));
}

async fn metrics(agent: &Agent) {
    for (series, wanted) in [
        ("jtnt_agent_jobs_executed_total{status=\"success\",type=\"exec\"}", 1.0),
        ("jtnt_agent_jobs_executed_total{status=\"error\",type=\"script\"}", 1.0),
        ("jtnt_agent_jobs_executed_total{status=\"success\",type=\"download\"}", 1.0),
        ("jtnt_agent_jobs_executed_total{status=\"success\",type=\"upload\"}", 1.0),
        ("jtnt_agent_policy_violations_total{type=\"exec\"}", 2.0),
        ("jtnt_agent_enrollment_attempts_total{status=\"success\"}", 1.0),
        ("jtnt_agent_hub_connection_status{status=\"connected\"}", 1.0),
        ("jtnt_agent_hub_connection_status{status=\"disconnected\"}", 0.0),
        ("jtnt_agent_job_execution_duration_seconds_count{type=\"exec\"}", 1.0),
        ("jtnt_agent_artifact_upload_duration_seconds_count", 1.0),
        ("jtnt_agent_circuit_breaker_state{state=\"closed\"}", 1.0),
    ] {
        let seen = metric(agent, series).await;
        assert!((seen - wanted).abs() < f64::EPSILON, "{series} is {seen}, not {wanted}");
    }
    for series in [
        "jtnt_agent_heartbeat_total{status=\"success\"}",
        "jtnt_agent_heartbeat_last_success_timestamp",
        "jtnt_agent_hub_connections_total{key_exchange=\"X25519MLKEM768\"}",
        "jtnt_agent_cert_expiration_timestamp",
        "jtnt_agent_policy_expiration_timestamp",
        "jtnt_agent_system_memory_used_bytes",
        "jtnt_agent_system_disk_used_bytes",
    ] {
        assert!(metric(agent, series).await > 0.0, "{series} did not move");
    }
}

async fn health(agent: &Agent) {
    let healthy = eventually("the agent is healthy", async || {
        let health = agent.get("health_listen", "/health").await.map_err(|f| f.to_string())?;
        if health.status == 200 { Ok(health) } else { Err(health.body) }
    });
    let health = healthy.await.unwrap().json().unwrap();
    assert_eq!(health["status"], "healthy");
    let checks = health["checks"].as_object().unwrap();
    let names: Vec<_> = checks.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["certificates", "disk_space", "enrolled", "hub_connection", "last_job", "policy"]
    );
    assert!(checks["certificates"]["expires_in_days"].as_i64().unwrap() >= 364);
    assert_eq!(agent.get("health_listen", "/readyz").await.unwrap().status, 200);
}

/// The log proves itself, and a changed byte shows.
async fn audit(site: &Site) {
    let key = site.home.data().join("audit/audit.pub");
    let logs = site.logs();
    let mut args = vec!["audit", "verify", "--key", key.to_str().unwrap()];
    args.extend(logs.iter().map(|p| p.to_str().unwrap()));
    let told = site.home.asked(&args).await.unwrap();
    assert_eq!(told["verdict"], "OK", "{told}");

    let last = logs.last().unwrap();
    let mut text = fs::read_to_string(last).unwrap();
    let at = text.find("/usr/bin/echo hello").unwrap();
    text.replace_range(at..at + 13, "/usr/bin/true");
    let forged = site.home.path().join(last.file_name().unwrap());
    put(&forged, text.as_bytes()).unwrap();
    let args = ["audit", "verify", forged.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let told = site.home.ctl(&args).await.unwrap().exits(1).unwrap();
    assert!(told.stdout.contains("BAD_SIGNATURE"), "{}", told.stdout);
}

#[tokio::test]
async fn an_agent_enrols_obeys_works_and_proves_it() {
    let mut site = Site::new(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    unenrolled(&site, &agent).await;
    enrolment(&mut site).await;
    // Nobody asks the agent: a hint in the answer to a heartbeat does.
    site.publish(1, &rules(&site.home)).await;
    site.in_force(1).await;
    jobs(&site).await;
    metrics(&agent).await;
    health(&agent).await;
    let told = site.home.asked(&["audit", "verify"]).await.unwrap();
    assert_eq!(told["verdict"], "OK", "{told}");
    agent.stop().await.unwrap();
    audit(&site).await;
    let lines = site.audit();
    let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    for event in ["startup", "enrollment", "policy_changed", "job_started", "job_executed"] {
        assert!(events.contains(&event), "no {event} in {events:?}");
    }
    assert_eq!(events.first(), Some(&"genesis"));
    assert_eq!(events.last(), Some(&"shutdown"));
    assert_eq!(events.iter().filter(|e| **e == "policy_violation").count(), 2);
}
