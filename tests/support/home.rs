//! Everything of one agent in one folder, and the commands that are typed there.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    agent::Agent,
    binaries::binary,
    daemon::Daemon,
    fault::{Fault, Res},
    ran::{Ran, run},
    uids::Uids,
};

/// Whether jobs get users of their own here.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Writes a file of the tests' own.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> Res<()> {
    let written = File::create(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(|e| Fault::new(format!("{}: {e}", path.display())))
}

/// The folder of an agent, which vanishes with this.
#[derive(Debug)]
pub(crate) struct Home {
    dir: TempDir,
    real: PathBuf,
    /// What the agent finds in its environment beside what the tests have.
    pub(crate) env: Vec<(&'static str, PathBuf)>,
    _uids: Option<Uids>,
}

/// Jobs outlive their agent, and not the tests.
impl Drop for Home {
    fn drop(&mut self) {
        self.kill_shims();
    }
}

impl Home {
    /// Kills every process that keeps a job of this agent.
    pub(crate) fn kill_shims(&self) {
        self.shims().into_iter().for_each(|pid| {
            let _gone_already = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        });
    }

    /// Every process that keeps a job of this agent.
    pub(crate) fn shims(&self) -> Vec<rustix::process::Pid> {
        let jobs = fs::read_dir(self.state().join("jobs")).into_iter().flatten();
        let files = jobs.filter_map(|job| fs::read_dir(job.ok()?.path()).ok()).flatten();
        files.filter_map(|file| holder(&file.ok()?.path())).collect()
    }
}

/// The process that holds this file as its lock, as it wrote of itself.
fn holder(path: &Path) -> Option<rustix::process::Pid> {
    use rustix::fs::{FlockOperation, flock};
    if !path.file_name()?.to_str()?.starts_with("shim.") {
        return None;
    }
    let free = flock(File::open(path).ok()?, FlockOperation::NonBlockingLockShared).is_ok();
    let text = fs::read_to_string(path).ok().filter(|_| !free)?;
    let pid = text.trim().rsplit_once("(pid ")?.1.strip_suffix(')')?;
    rustix::process::Pid::from_raw(pid.parse().ok()?)
}

impl Home {
    /// A folder with a configuration that takes free ports. Its name is short, since the path of
    /// a socket may have 107 bytes.
    pub(crate) fn new() -> Res<Self> {
        let dir = tempfile::Builder::new().prefix("jtnt-").tempdir()?;
        let real = dir.path().canonicalize()?;
        let uids = if is_root() { Some(Uids::take()?) } else { None };
        let range = uids.as_ref().map(|uids| uids.range.clone());
        let home = Self { dir, real, env: Vec::new(), _uids: uids };
        fs::create_dir(home.files())?;
        home.configure(&json!({
            "data_dir": home.data(),
            "state_dir": home.state(),
            "admin_socket": home.socket(),
            "metrics_listen": "127.0.0.1:0",
            "health_listen": "127.0.0.1:0",
            "heartbeat_interval_seconds": 1,
            "log_format": "json",
        }))?;
        if let Some(range) = range {
            home.configure(&json!({ "job_uid_range": range }))?;
        }
        Ok(home)
    }

    /// The folder itself, without links in its path.
    pub(crate) fn path(&self) -> &Path {
        &self.real
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.real.join("config.json")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.real.join("data")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.real.join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.real.join("run/admin.sock")
    }

    /// A folder that policies of the tests open to transfers.
    pub(crate) fn files(&self) -> PathBuf {
        self.real.join("files")
    }

    /// Sets these settings and keeps the others.
    pub(crate) fn configure(&self, changes: &Value) -> Res<()> {
        let mut all: Map<String, Value> = match fs::read(self.config()) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(e) => return Err(e.into()),
        };
        all.extend(changes.as_object().cloned().unwrap_or_default());
        put(&self.config(), &serde_json::to_vec_pretty(&all)?)
    }

    /// `jtnt-agent ARGS...` with this configuration.
    pub(crate) fn agent_command(&self, args: &[&str]) -> Res<Command> {
        let mut command = Command::new(binary("jtnt-agent")?);
        command.arg("--config").arg(self.config()).args(args).env_remove("JTNT_SOCKET");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Runs `jtnt-agent ARGS...` to its end.
    pub(crate) async fn agent(&self, args: &[&str]) -> Res<Ran> {
        run(&mut self.agent_command(args)?).await
    }

    /// Runs `jtntctl ARGS...` to its end.
    pub(crate) async fn ctl(&self, args: &[&str]) -> Res<Ran> {
        let mut command = Command::new(binary("jtntctl")?);
        run(command.arg("--socket").arg(self.socket()).args(args)).await
    }

    /// The answer of `jtntctl --output json ARGS...`, which must end with 0.
    pub(crate) async fn asked(&self, args: &[&str]) -> Res<Value> {
        let args = [&["--output", "json"], args].concat();
        self.ctl(&args).await?.exits(0)?.json()
    }

    /// Starts the agent and waits until everything is up.
    pub(crate) async fn start(&self) -> Res<Agent> {
        let agent = self.spawn(&mut self.agent_command(&["run"])?)?;
        agent.says(0, "ready").await?;
        Ok(agent)
    }

    /// Starts the agent, prepared by the caller.
    pub(crate) fn spawn(&self, command: &mut Command) -> Res<Agent> {
        Ok(Agent(Daemon::spawn("jtnt-agent", command.current_dir(self.dir.path()))?))
    }
}
