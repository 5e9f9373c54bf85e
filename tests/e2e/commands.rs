//! Every command of the operator against a running agent, under both names, with its exit code;
//! and what is left of them when no agent runs.

use std::{fs::File, process::Stdio};

use jtnt_hub_mock::Hub;
use serde_json::json;
use tokio::process::Command;

use crate::{
    site::{SCRIPT, Site, exec},
    support::{Home, binary, put},
};

/// What is typed, how it ends, and what it says on either stream.
type Typed<'a> = (&'a [&'a str], i32, &'a str);

async fn typed(site: &Site, table: &[Typed<'_>]) {
    for (args, code, words) in table {
        for ran in [site.home.ctl(args).await, site.home.agent(args).await] {
            let ran = ran.unwrap().exits(*code).unwrap();
            let said = format!("{}{}", ran.stdout, ran.stderr);
            assert!(said.contains(words), "{args:?}: no {words:?} in {said}");
        }
    }
}

#[tokio::test]
async fn every_command_answers_under_both_names() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let done = site.run(exec("/usr/bin/echo", &["printed"])).await.job_id;
    let refused = site.run(exec("/usr/bin/touch", &["/x"])).await.job_id;
    let (script, other) = (site.home.path().join("s.sh"), site.home.path().join("o.sh"));
    put(&script, SCRIPT).unwrap();
    put(&other, b"exit 0\n").unwrap();
    let (script, other) = (script.to_str().unwrap(), other.to_str().unwrap());
    let inside = site.home.files().join("x");
    let inside = inside.to_str().unwrap();
    typed(
        &site,
        &[
            (&["status"], 0, &site.id),
            (&["health"], 0, "healthy"),
            (&["health", "--live"], 0, "live"),
            (&["health", "--ready"], 0, "ready"),
            (&["version"], 0, "jtnt.admin.v1"),
            (&["test-connection"], 0, "client_certificate"),
            (&["cert", "check"], 0, "leads to the hub's CA"),
            (&["cert", "plan"], 0, "30 days"),
            (&["policy", "show"], 0, "/usr/bin/echo"),
            (&["policy", "refresh"], 0, "is the newest already"),
            (&["policy", "check-exec", "/usr/bin/echo", "a", "-b"], 0, "echo"),
            (&["policy", "check-exec", "/usr/bin/touch", "--help"], 1, "NO_RULE"),
            (&["policy", "check-script", "--interpreter", "/bin/sh", script], 0, "script"),
            (&["policy", "check-script", "--interpreter", "/bin/sh", other, "-h"], 1, "CONTENT"),
            (&["policy", "check-file", "write", inside], 0, "files"),
            (&["policy", "check-file", "read", "/etc/shadow"], 1, "NO_RULE"),
            (&["audit", "list", "--job", &done], 0, "job_executed"),
            (&["audit", "list", "--since", "yesterday-ish"], 2, "is no time"),
            (&["audit", "verify"], 0, "OK"),
            (&["audit", "clean"], 0, "nothing is older"),
            (&["jobs", "list"], 0, &done),
            (&["jobs", "list", "--state", "rejected"], 0, &refused),
            (&["jobs", "show", &refused], 0, "DENIED"),
            (&["jobs", "logs", &done], 0, "printed"),
            (&["jobs", "show", "no-such-job"], 1, "jobs list"),
            (&["jobs", "cancel", &done], 1, &done),
            (&["cache", "status"], 0, "0 results"),
            (&["cache", "clean"], 0, ""),
            (&["log", "level"], 0, "info"),
            (&["log", "level", "info"], 0, "info until the next restart"),
            (&["authz", "explain", "root", "JobService/CancelJob"], 0, "allowed"),
            (&["authz", "explain", "daemon", "JobService/CancelJob"], 1, "denied"),
            (&["reload"], 0, "nothing"),
            (&["jobs", "list", "--state", "strange"], 2, "strange"),
            (&["dance"], 2, "dance"),
        ],
    )
    .await;
    agent.stop().await.unwrap();
    without_an_agent(&site, &done).await;
}

/// `jtntctl` needs an agent; `jtnt-agent` reads the files itself.
async fn without_an_agent(site: &Site, done: &str) {
    for args in [&["status"][..], &["jobs", "list"], &["version"], &["audit", "verify"]] {
        let ran = site.home.ctl(args).await.unwrap().exits(3).unwrap();
        assert!(ran.stderr.contains("admin.sock"), "{args:?}: {}", ran.stderr);
    }
    site.home.agent(&["status"]).await.unwrap().exits(3).unwrap();
    for (args, code, words) in [
        (&["cert", "check"][..], 0, "leads to the hub's CA"),
        (&["audit", "verify"], 0, "OK"),
        (&["jobs", "list"], 0, done),
        (&["jobs", "show", done], 0, "/usr/bin/echo printed"),
        (&["policy", "show"], 0, "/usr/bin/echo"),
        (&["policy", "check-exec", "/usr/bin/touch"], 1, "NO_RULE"),
        (&["cache", "clean"], 0, ""),
        (&["audit", "clean"], 0, "nothing is older"),
    ] {
        let ran = site.home.agent(args).await.unwrap().exits(code).unwrap();
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains(words), "{args:?}: no {words:?} in {said}");
    }
}

#[tokio::test]
async fn a_running_job_is_called_off_from_here() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let id = site.order(exec("/usr/bin/sleep", &["300"]), |_| {}).await;
    site.running(&id).await;
    site.home.ctl(&["jobs", "cancel", &id]).await.unwrap().exits(0).unwrap();
    let view = site.end_of(&id).await;
    assert_eq!(view.state, "cancelled");
    let lines = site.audit();
    let called = lines.iter().find(|line| line["event"] == "admin_call").unwrap();
    assert_eq!(called["command"], "/jtnt.admin.v1.JobService/CancelJob");
    assert!(called["caller"]["uid"].is_u64() && called["caller"]["pid"].is_u64(), "{called}");
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_leaves_its_hub_goes_on_without_one() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    // What changes files under a running agent is refused, and tells who has them.
    for args in [&["unenroll"][..], &["clock", "reset"]] {
        let ran = site.home.agent(args).await.unwrap().exits(1).unwrap();
        assert!(ran.stderr.contains(&format!("pid {}", agent.pid())), "{}", ran.stderr);
    }
    // A command that only asks must not be read as answered with no.
    let elsewhere = site.home.path().join("no.sock");
    let lost = ["--socket", elsewhere.to_str().unwrap(), "audit", "verify"];
    let ran = site.home.agent(&lost).await.unwrap().exits(3).unwrap();
    assert!(ran.stderr.contains(&format!("pid {}", agent.pid())), "{}", ran.stderr);
    agent.stop().await.unwrap();
    site.home.agent(&["clock", "reset"]).await.unwrap().exits(0).unwrap();
    site.home.agent(&["unenroll"]).await.unwrap().exits(0).unwrap();
    assert!(!site.home.data().join("certs/client.key").exists());
    let agent = site.home.start().await.unwrap();
    let status = site.home.asked(&["status"]).await.unwrap();
    assert_eq!(status["enrolled"], json!(false));
    assert_eq!(agent.get("health_listen", "/health").await.unwrap().status, 503);
    for ran in [site.home.ctl(&["cert", "check"]).await, site.home.agent(&["cert", "check"]).await]
    {
        let ran = ran.unwrap().exits(1).unwrap();
        assert!(ran.stderr.contains("not enrolled; run: jtnt-agent enroll"), "{}", ran.stderr);
    }
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn output_that_nobody_takes_ends_a_command_without_a_panic() {
    let home = Home::new().unwrap();
    let commands = || {
        let mut ctl = Command::new(binary("jtntctl").unwrap());
        ctl.args(["completions", "bash"]);
        [ctl, home.agent_command(&["config", "show"]).unwrap()]
    };
    for mut command in commands() {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let child = command.stdout(write).stderr(Stdio::piped()).kill_on_drop(true).spawn();
        // The command keeps the end it was given for its child.
        drop(command);
        let ended = child.unwrap().wait_with_output().await.unwrap();
        assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]));
    }
    for mut command in commands() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let child = command.stdout(full).stderr(Stdio::piped()).kill_on_drop(true).spawn();
        let ended = child.unwrap().wait_with_output().await.unwrap();
        assert_eq!(ended.status.code(), Some(6));
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.starts_with("error: cannot write the output: "), "{said}");
    }
}
