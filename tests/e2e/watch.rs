//! Commands that go on: what is so now comes first, then every change, until its end or Ctrl-C.

use std::{process::Stdio, time::Duration};

use jtnt_hub_mock::Hub;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{
    site::{Site, exec},
    support::binary,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A command that is still running, and its lines.
struct Watching {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watching {
    fn start(site: &Site, args: &[&str]) -> Self {
        let mut command = Command::new(binary("jtntctl").unwrap());
        command.arg("--socket").arg(site.home.socket()).args(["--output", "json"]).args(args);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The first line from here on that is `wanted`.
    async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let looking = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                let line: Value = serde_json::from_str(&line).unwrap();
                if wanted(&line) {
                    return line;
                }
            }
            panic!("it ended before");
        };
        timeout(PATIENCE, looking).await.expect("the line comes")
    }
}

#[tokio::test]
async fn status_jobs_and_log_are_followed_as_they_go() {
    let site = Site::ready(Hub::builder()).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let mut status = Watching::start(&site, &["status", "--watch"]);
    let first = status.until(|_| true).await;
    assert_eq!((&first["enrolled"], &first["jobs"]["running"]), (&json!(true), &json!(0)));
    let mut log = Watching::start(&site, &["audit", "tail", "--lines", "1"]);
    log.until(|_| true).await;

    let id = site.order(exec("/usr/bin/sleep", &["300"]), |_| {}).await;
    site.running(&id).await;
    status.until(|status| status["jobs"]["running"] == 1).await;
    log.until(|line| line["event"] == "job_started" && line["job_id"] == id.as_str()).await;
    let mut output = Watching::start(&site, &["jobs", "logs", "--follow", &id]);

    site.home.ctl(&["jobs", "cancel", &id]).await.unwrap().exits(0).unwrap();
    status.until(|status| status["jobs"]["running"] == 0).await;
    let end = log.until(|line| line["event"] == "job_executed").await;
    assert_eq!((&end["job_id"], &end["status"]), (&json!(id), &json!("cancelled")));
    let ended = timeout(PATIENCE, output.child.wait()).await.expect("it ends with its job");
    assert!(ended.unwrap().success());

    // Whoever watches does not keep the agent from stopping, and is told of it.
    agent.stop().await.unwrap();
    for watching in [status, log] {
        let ended = timeout(PATIENCE, watching.child.wait_with_output()).await;
        let ended = ended.expect("it ends with the agent").unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(3), "{said}");
        assert!(said.contains("the agent is stopping"), "{said}");
    }
}
