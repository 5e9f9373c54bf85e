//! The steps of the demo, in order. Each checks what came of it.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path};

use jtnt_proto::bytes::Hash;
use serde_json::{Value, json};

use crate::{
    hub::{Hub, Ports},
    screen::Screen,
    support::{
        Agent, Home, binary, eventually,
        fault::{Fault, Res},
        is_root, put,
    },
};

const SCRIPT: &str = "echo \"$1 from $(uname -n), as uid $(id -u)\"\n";
const NOTICE: &str = "This file came by a signed download.\n";
/// What the guide says: metrics and health, and the hub's own.
const GUIDE: [u16; 4] = [9090, 9091, 8443, 8444];

/// A hub and an agent that is enrolled with it.
pub(crate) struct Pair {
    home: Home,
    hub: Hub,
    agent: Agent,
}

pub(crate) async fn run(screen: &mut Screen, keep: bool) -> Res<Pair> {
    screen.text("JTNT: a hub and an agent on this machine. Every step is checked.\n\n");
    let pair = start(screen, keep).await?;
    enrol(screen, &pair).await?;
    policy(screen, &pair).await?;
    exec_and_script(screen, &pair).await?;
    transfers(screen, &pair).await?;
    forbidden(screen, &pair).await?;
    endpoints(screen, &pair).await?;
    for args in [&["status"][..], &["jobs", "list"], &["audit", "verify"]] {
        let shown = pair.home.ctl(args).await?.exits(0)?;
        screen.command(&format!("jtntctl {}", args.join(" ")), &shown.stdout);
    }
    if keep {
        look_around(screen, Some(&pair))?;
    }
    Ok(pair)
}

pub(crate) async fn stop(screen: &mut Screen, keep: bool, pair: Pair) -> Res<()> {
    let Pair { home, hub, agent } = pair;
    agent.stop().await?;
    hub.stop().await?;
    let folder = home.path().display().to_string();
    drop(home);
    screen.text("\n");
    screen.done("Stop both and remove their folder", &folder);
    if keep { Ok(()) } else { look_around(screen, None) }
}

async fn start(screen: &mut Screen, keep: bool) -> Res<Pair> {
    let (mut ports, home) = (Ports { agents: 0, control: 0 }, Home::new()?);
    if keep {
        let [metrics, health, agents, control] = GUIDE;
        for port in GUIDE {
            free(port)?;
        }
        ports = Ports { agents, control };
        home.configure(&json!({
            "metrics_listen": format!("127.0.0.1:{metrics}"),
            "health_listen": format!("127.0.0.1:{health}"),
        }))?;
    }
    screen.text("    Building the programs; the first time takes minutes.\n");
    let folder = tokio::task::spawn_blocking(|| binary("jtnt-agent")).await??;
    let folder = folder.parent().unwrap_or(Path::new("")).display().to_string();
    screen.done("Build jtnt-agent, jtntctl, jtnt-hub-mock", &folder);

    let hub = Hub::start(home.path(), ports).await?;
    screen.done("Start a hub with a CA of its own, TLS 1.3", &hub.url);

    let agent = home.start().await?;
    let health = agent.get("health_listen", "/health").await?;
    let body = health.json()?;
    let why = text(&body, "/checks/enrolled/message")?;
    expect(health.status == 503, || format!("not enrolled, but health says {}", health.body))?;
    screen.done("Start the agent; it waits to be enrolled", &format!("pid {}: {why}", agent.pid()));
    Ok(Pair { home, hub, agent })
}

async fn enrol(screen: &mut Screen, Pair { home, hub, agent }: &Pair) -> Res<()> {
    let (token, root) = (home.path().join("token"), hub.dir().join("root.json"));
    put(&token, hub.operate(&["token"]).await?.exits(0)?.stdout.as_bytes())?;
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
    let (token, root) = (token.display().to_string(), root.display().to_string());
    let args = ["enroll", "--hub", &hub.url, "--token-file", &token, "--root", &root];
    home.agent(&args).await?.exits(0)?;
    let status = eventually("the agent speaks with the hub", async || {
        let status = home.asked(&["status"]).await.map_err(|fault| fault.to_string())?;
        if is(&status, "/hub/connected", &json!(true)) {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    });
    let status = status.await?;
    let id = text(&status, "/agent_id")?;
    let kept = agent.get("health_listen", "/livez").await?.status == 200;
    expect(kept, || "the running agent did not notice its enrolment".to_owned())?;
    screen.done("Enrol it: token by file, root from outside", &format!("agent {id}"));
    Ok(())
}

async fn policy(screen: &mut Screen, Pair { home, hub, .. }: &Pair) -> Res<()> {
    let file = home.path().join("policy.json");
    put(&file, serde_json::to_string_pretty(&document(home)?)?.as_bytes())?;
    let file = file.display().to_string();
    home.ctl(&["policy", "lint", &file]).await?.exits(0)?;
    hub.operate(&["policy", "push", &file]).await?.exits(0)?;
    let told = home.asked(&["policy", "refresh"]).await?;
    expect(is(&told, "/version", &json!(1)), || format!("version 1 is not in force: {told}"))?;
    home.ctl(&["policy", "check-exec", "/usr/bin/uname", "-s"]).await?.exits(0)?;
    home.ctl(&["policy", "check-exec", "/usr/bin/uname", "-a"]).await?.exits(1)?;
    screen.done("Sign and push a policy", "version 1 allows `uname -s` and not `uname -a`");
    Ok(())
}

/// Allows one program with one argument, one script by its hash, and transfers in one folder.
fn document(home: &Home) -> Res<Value> {
    let expires = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(29 * 24))?;
    let path = format!("{}/**", home.files().display());
    let access = json!(["read", "write"]);
    let files = if is_root() {
        // Without it a user of the job's own writes, who may not enter this private folder.
        json!({"id": "files", "effect": "allow", "access": access, "path": path, "run_as": "root"})
    } else {
        json!({"id": "files", "effect": "allow", "access": access, "path": path})
    };
    Ok(json!({
        "version": 1,
        "expires_at": expires.to_string(),
        "require_enforcement": "none",
        "exec": [{"id": "uname", "effect": "allow", "path": "/usr/bin/uname", "args": ["-s"]}],
        "script": [{"id": "greeting", "effect": "allow", "interpreter": "/bin/sh",
            "sha256": Hash::of(SCRIPT.as_bytes()), "args": "any"}],
        "file": [files],
    }))
}

async fn exec_and_script(screen: &mut Screen, Pair { home, hub, .. }: &Pair) -> Res<()> {
    let job = hub.job(&["exec", "--wait", "--", "/usr/bin/uname", "-s"]).await?;
    let said = ok(&job)?;
    screen.done("Job exec: /usr/bin/uname -s", &said);

    let file = home.path().join("greeting.sh");
    put(&file, SCRIPT.as_bytes())?;
    let file = file.display().to_string();
    let job = hub.job(&["script", "--wait", "--interpreter", "/bin/sh", &file, "hello"]).await?;
    let said = ok(&job)?;
    expect(said.starts_with("hello from "), || format!("the script said {said:?}"))?;
    screen.done("Job script: pinned by its SHA-256", &said);
    Ok(())
}

async fn transfers(screen: &mut Screen, Pair { home, hub, .. }: &Pair) -> Res<()> {
    let (local, back) = (home.path().join("notice.txt"), home.path().join("back.txt"));
    put(&local, NOTICE.as_bytes())?;
    let remote = home.files().join("notice.txt");
    let to = remote.display().to_string();
    let local = local.display().to_string();
    let job = hub.job(&["download", "--wait", "--file", &local, "--dest", &to]).await?;
    ok(&job)?;
    let arrived = fs::read(&remote)?;
    expect(arrived == NOTICE.as_bytes(), || format!("{to} holds {arrived:?}"))?;
    screen.done("Job download: a file of the hub's", &to);

    let saved = back.display().to_string();
    let job = hub.job(&["upload", "--wait", "--path", &to, "--save", &saved]).await?;
    ok(&job)?;
    let came = fs::read(&back)?;
    expect(came == NOTICE.as_bytes(), || format!("the hub got {came:?}"))?;
    let came = format!("{} bytes, the very ones that went out", came.len());
    screen.done("Job upload: the same file back", &came);
    Ok(())
}

/// The demo fails unless the agent refuses.
async fn forbidden(screen: &mut Screen, Pair { home, hub, .. }: &Pair) -> Res<()> {
    let file = home.files().join("must-not-be-there");
    let path = file.display().to_string();
    let job = hub.job(&["exec", "--wait", "--", "/usr/bin/touch", &path]).await?;
    let refused = is(&job, "/state", &json!("rejected")) && is(&job, "/reason", &json!("DENIED"));
    expect(refused && !file.exists(), || {
        format!("a job that no rule allows was not refused: {job}")
    })?;
    let id = text(&job, "/job_id")?;
    let known = home.asked(&["jobs", "show", id]).await?;
    let why = text(&known, "/message")?;
    screen.done("A job that no rule allows: /usr/bin/touch", &format!("refused: {why}"));
    Ok(())
}

async fn endpoints(screen: &mut Screen, Pair { agent, .. }: &Pair) -> Res<()> {
    let health = eventually("the agent is healthy", async || {
        let health = agent.get("health_listen", "/health").await.map_err(|f| f.to_string())?;
        if health.status == 200 { Ok(health) } else { Err(health.body) }
    });
    let at = agent.endpoint("health_listen").await?;
    let body = health.await?.json()?;
    let status = text(&body, "/status")?;
    screen.done("Ask for its health", &format!("http://{at}/health: {status}"));

    let metrics = agent.get("metrics_listen", "/metrics").await?;
    let at = agent.endpoint("metrics_listen").await?;
    for line in [
        "jtnt_agent_jobs_executed_total{status=\"success\",type=\"exec\"} 1",
        "jtnt_agent_jobs_executed_total{status=\"success\",type=\"script\"} 1",
        "jtnt_agent_jobs_executed_total{status=\"success\",type=\"download\"} 1",
        "jtnt_agent_jobs_executed_total{status=\"success\",type=\"upload\"} 1",
        "jtnt_agent_policy_violations_total{type=\"exec\"} 1",
    ] {
        let there = metrics.body.lines().any(|l| l == line);
        expect(there, || format!("{line} is missing from http://{at}/metrics"))?;
    }
    let series = metrics.body.lines().filter(|l| !l.starts_with('#')).count();
    screen.done("Scrape its metrics", &format!("http://{at}/metrics: {series} series"));
    Ok(())
}

/// What to try next. Only what stays up can be tried at once.
fn look_around(screen: &mut Screen, kept: Option<&Pair>) -> Res<()> {
    match kept {
        Some(Pair { home, hub, .. }) => {
            let bin = binary("jtntctl")?;
            let bin = bin.parent().unwrap_or(Path::new("")).display();
            screen.title("Everything stays up until Ctrl-C. In another terminal:");
            screen.text(&format!("  export PATH='{bin}':$PATH\n"));
            for (name, value) in [
                ("JTNT_SOCKET", home.socket()),
                ("JTNT_CONFIG", home.config()),
                ("JTNT_HUB_DIR", hub.dir().to_owned()),
            ] {
                screen.text(&format!("  export {name}='{}'\n", value.display()));
            }
            screen.text("\n");
        }
        None => {
            screen.title("To look around, type `cargo demo --keep`: it says what to export. Then:");
        }
    }
    let [metrics, health, ..] = GUIDE;
    let grpcurl = "grpcurl -plaintext -unix -authority localhost $JTNT_SOCKET";
    screen.text(&format!(
        "  jtntctl status --watch
  jtntctl audit tail
  jtntctl policy check-exec /usr/bin/uname -a
  jtnt-hub-mock job exec --wait -- /usr/bin/uname -s
  jtnt-hub-mock job exec --wait -- /usr/bin/id
  jtnt-hub-mock fault set heartbeat 500 --times 3
  curl http://127.0.0.1:{health}/health
  curl -s http://127.0.0.1:{metrics}/metrics | grep ^jtnt_agent_jobs
  {grpcurl} list
  {grpcurl} jtnt.admin.v1.AgentService/GetStatus

"
    ));
    Ok(())
}

/// The output of a job that must have gone well.
fn ok(job: &Value) -> Res<String> {
    expect(is(job, "/state", &json!("ok")), || format!("the job did not go well: {job}"))?;
    let stdout = job.pointer("/stdout").and_then(Value::as_str);
    Ok(stdout.unwrap_or_default().trim_end().to_owned())
}

fn is(value: &Value, pointer: &str, wanted: &Value) -> bool {
    value.pointer(pointer) == Some(wanted)
}

fn text<'a>(value: &'a Value, pointer: &str) -> Res<&'a str> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.ok_or_else(|| Fault::new(format!("no text at {pointer} of {value}")))
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Res<()> {
    if holds { Ok(()) } else { Err(Fault::new(otherwise())) }
}

fn free(port: u16) -> Res<()> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::new(format!(
            "port {port} cannot be had: {error}; free it, or leave out --keep"
        ))),
    }
}
