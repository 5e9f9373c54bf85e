//! A hub in this process, and an enrolled agent's folders.

use std::{
    fs::File,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use jtnt_hub_mock::{Handle, Hub, JobView, operator::Operator};
use jtnt_proto::{
    job::{Exec, Work},
    policy::Policy,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::{
    Outcome,
    agent::{Agent, Doors},
};

/// Nothing takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What outlives a run of the agent.
pub(crate) struct Site {
    pub(crate) hub: Handle,
    /// Opened once: its keys are in files.
    pub(crate) operator: Operator,
    pub(crate) agent_id: String,
    /// Beside the build's output, since a temporary folder is often memory.
    pub(crate) dir: TempDir,
    /// A socket's path is short.
    doors: Doors,
    _room: TempDir,
    program: PathBuf,
}

impl Site {
    /// Starts a hub with a policy and enrols an agent.
    pub(crate) async fn new(program: &Path) -> Outcome<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let room = TempDir::new()?;
        std::fs::create_dir(dir.path().join("files"))?;
        let hub = Hub::builder().dir(dir.path().join("hub")).start().await?;
        let policy: Policy = serde_json::from_value(policy(&hub, dir.path())?)?;
        hub.publish_policy(hub.operator()?.sign_policy(&policy)).await?;
        let doors = Doors {
            socket: room.path().join("admin.sock"),
            metrics: free_port()?,
            health: free_port()?,
        };
        let config = json!({
            "data_dir": dir.path().join("data"), "state_dir": dir.path().join("state"),
            "admin_socket": doors.socket, "metrics_listen": doors.metrics,
            "health_listen": doors.health, "log_format": "json",
        });
        write(&dir.path().join("config.json"), config.to_string().as_bytes())?;
        write(&dir.path().join("token"), hub.token().await?.as_bytes())?;
        enrol(program, dir.path(), &hub).await?;
        let agent_id = hub.agents().first().ok_or("nobody enrolled")?.agent_id.clone();
        let operator = hub.operator()?;
        Ok(Self { hub, operator, agent_id, dir, doors, _room: room, program: program.to_owned() })
    }

    pub(crate) fn start(&self) -> Outcome<Agent> {
        let (config, log) = (self.path("config.json"), self.path("agent.log"));
        Agent::start(&self.program, &config, self.doors.clone(), &log)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.doors.socket.clone()
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Signs a job and leaves it at the hub; its id.
    pub(crate) async fn order(&self, work: Work) -> Outcome<String> {
        let job = self.operator.job(&self.agent_id, work)?;
        Ok(self.hub.enqueue(&self.agent_id, self.operator.sign_job(&job)).await?)
    }

    /// The same, and waits for its end, which must be a good one.
    pub(crate) async fn run(&self, work: Work) -> Outcome<JobView> {
        let id = self.order(work).await?;
        let job = timeout(PATIENCE, self.hub.wait_job(&id)).await.map_err(|_late| "no end")?;
        if job.state == "ok" { Ok(job) } else { Err(format!("{job:?}").into()) }
    }

    /// Runs jobs until the agent has its policy and all paths are warm.
    pub(crate) async fn warm_up(&self) -> Outcome<()> {
        let mut good = 0;
        for _ in 0..200 {
            match self.run(exec_true()).await {
                Ok(_) => good += 1,
                Err(error) if good > 0 => return Err(error),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
            if good == 5 {
                return Ok(());
            }
        }
        self.run(exec_true()).await.map(drop)
    }
}

pub(crate) fn exec_true() -> Work {
    let path = "/bin/true".to_owned();
    Work::Exec(Exec { path, args: Vec::new(), env: [].into(), cwd: None, run_as: None })
}

/// The user of transfers that must reach a private folder of whoever runs this.
pub(crate) fn owner() -> Option<String> {
    rustix::process::geteuid().is_root().then(|| "root".to_owned())
}

fn policy(hub: &Handle, dir: &Path) -> Outcome<Value> {
    let program = std::fs::canonicalize("/bin/true")?;
    let files = dir.join("files").join("*");
    Ok(json!({
        "policy_id": "bench", "version": 1, "audience": hub.operator()?.audience(),
        "issued_at": jiff::Timestamp::now(),
        "expires_at": jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24),
        "require_enforcement": "none",
        "exec": [{"id": "true", "effect": "allow", "path": program}],
        "file": [{"id": "files", "effect": "allow", "access": ["read", "write"], "path": files,
                  "run_as": owner()}],
    }))
}

async fn enrol(program: &Path, dir: &Path, hub: &Handle) -> Outcome<()> {
    let mut command = Command::new(program);
    command.arg("--config").arg(dir.join("config.json")).args(["enroll", "--hub", &hub.url()]);
    command.arg("--token-file").arg(dir.join("token")).arg("--root").arg(hub.root_file());
    // The hub answers on other threads of this process meanwhile.
    let ended = tokio::task::spawn_blocking(move || command.output()).await??;
    if ended.status.success() {
        return Ok(());
    }
    Err(format!("the agent did not enrol: {}", String::from_utf8_lossy(&ended.stderr)).into())
}

fn free_port() -> Outcome<std::net::SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Outcome<()> {
    Ok(File::create(path)?.write_all(bytes)?)
}
