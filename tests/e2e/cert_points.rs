//! The agent is killed at one system call after another of a renewal. After each, an agent that nobody
//! helps has a pair that its hub takes, whatever that does with the certificate before.

use std::{fs, process::Stdio, time::Duration};

use jtnt_hub_mock::{Hub, OldCertificates};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    site::Site,
    support::{Agent, eventually},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// Calls by which a renewal changes or learns something.
const CALLS: &[&str] = &[
    "openat",
    "read",
    "write",
    "writev",
    "close",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "rmdir",
    "statx",
    "fchmod",
    "flock",
    "socket",
    "connect",
    "sendto",
    "recvfrom",
    "getrandom",
    "lseek",
    "pwrite64",
];
/// Of one call no more than these.
const MOST_OF_ONE: usize = 10;
/// Fewer would mean that it was not a renewal that was traced.
const LEAST: usize = 200;

#[tokio::test]
#[ignore = "takes minutes and strace: `cargo test --test e2e -- --ignored --nocapture points`"]
async fn wherever_a_renewal_is_killed_the_agent_comes_back_by_itself() {
    let mut points = 0;
    for rule in [OldCertificates::OldDies, OldCertificates::OldStays] {
        let site = Site::ready(Hub::builder()).await;
        // Nothing else of the agent's shall be met.
        let quiet = json!({"heartbeat_interval_seconds": 120, "breaker_failures": 1000});
        site.home.configure(&quiet).unwrap();
        site.hub.set_old_certificates(rule);
        let mut agent = Some(site.home.start().await.unwrap());
        site.in_force(1).await;
        for call in CALLS {
            for at in 1..=MOST_OF_ONE {
                let running = agent.take().unwrap();
                let (again, killed) = kill_at(&site, running, call, at).await;
                agent = Some(again);
                if !killed {
                    break;
                }
                println!("{rule:?} {call:12} {at:3}");
                points += 1;
            }
        }
        let told = site.home.ctl(&["audit", "verify"]).await.unwrap();
        told.exits(0).unwrap();
        agent.unwrap().stop().await.unwrap();
    }
    println!("{points} points");
    assert!(points >= LEAST, "{points} points");
}

/// Kills the agent when one of its threads makes `call` for the `at`th time of a renewal; whether
/// one did, and the agent that runs then.
async fn kill_at(site: &Site, mut agent: Agent, call: &str, at: usize) -> (Agent, bool) {
    let mut tracer = traced(agent.pid(), call, at).await;
    let renewed = site.home.ctl(&["cert", "renew", "--force"]);
    let renewed = timeout(2 * PATIENCE, renewed).await.expect("it answers or ends").unwrap();
    let renewed = renewed.exits(0).is_ok();
    tracer.start_kill().unwrap();
    tracer.wait().await.unwrap();
    // It may also have been met by what follows a renewal.
    let killed = !renewed || site.home.ctl(&["cert", "plan"]).await.unwrap().exits(0).is_err();
    if killed {
        timeout(PATIENCE, agent.ended()).await.expect("nothing but its end is left").unwrap();
    }
    let agent = if killed { site.home.start().await.unwrap() } else { agent };
    let place = format!("{call} {at}");
    eventually(&place, async || {
        let proof = site.home.ctl(&["cert", "check", "--prove"]).await;
        let proof = proof.map_err(|f| f.to_string())?.exits(0).map_err(|f| f.to_string())?;
        // What was left half done is done by now, or will be.
        match fs::exists(site.home.data().join("certs/client.key.pending")) {
            Ok(false) => Ok(proof),
            other => Err(format!("{other:?}: {}", proof.stdout)),
        }
    })
    .await
    .unwrap();
    (agent, killed)
}

/// Traces a running process; it has begun when this returns.
async fn traced(pid: i32, call: &str, at: usize) -> Child {
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-p", &pid.to_string()]);
    command.arg("-e").arg(format!("trace={call}"));
    command.arg("-e").arg(format!("inject={call}:signal=KILL:when={at}"));
    let mut tracer = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut told = BufReader::new(tracer.stderr.take().unwrap()).lines();
    let attached = async {
        while let Some(line) = told.next_line().await.unwrap() {
            if line.contains("attached") {
                return;
            }
        }
        panic!("strace does not trace");
    };
    timeout(PATIENCE, attached).await.unwrap();
    tracer
}
