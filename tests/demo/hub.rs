//! The mock hub as a process, and its operator's commands.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::support::{
    Ran, binary,
    daemon::Daemon,
    eventually,
    fault::{Fault, Res},
    run,
};

/// Where the hub listens: for agents, and for its operator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) agents: u16,
    pub(crate) control: u16,
}

/// A running hub.
#[derive(Debug)]
pub(crate) struct Hub {
    daemon: Daemon,
    dir: PathBuf,
    pub(crate) url: String,
}

impl Hub {
    /// Starts it in a folder below `home`.
    pub(crate) async fn start(home: &Path, ports: Ports) -> Res<Self> {
        let (dir, out) = (home.join("hub"), home.join("hub.json"));
        let mut command = Command::new(binary("jtnt-hub-mock")?);
        command.arg("--dir").arg(&dir).args(["--output", "json", "serve"]);
        command.arg("--listen").arg(format!("127.0.0.1:{}", ports.agents));
        command.arg("--control").arg(format!("127.0.0.1:{}", ports.control));
        command.stdout(File::create(&out)?);
        let daemon = Daemon::spawn("jtnt-hub-mock", &mut command)?;
        let mut hub = Self { daemon, dir, url: String::new() };
        let started = eventually("the hub says where it listens", async || {
            let text = fs::read_to_string(&out).map_err(|e| e.to_string())?;
            serde_json::from_str::<Value>(&text)
                .map_err(|e| format!("{e} in {text:?}\n{}", hub.daemon.log().tail()))
        });
        let started = started.await?;
        let url = started.get("url").and_then(Value::as_str);
        hub.url = url.ok_or_else(|| Fault::new(format!("no url in {started}")))?.to_owned();
        Ok(hub)
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// `jtnt-hub-mock ARGS...`, run to its end.
    pub(crate) async fn operate(&self, args: &[&str]) -> Res<Ran> {
        let mut command = Command::new(binary("jtnt-hub-mock")?);
        run(command.arg("--dir").arg(&self.dir).args(args)).await
    }

    /// Orders a job, waits for its end, and gives the hub's object about it.
    pub(crate) async fn job(&self, args: &[&str]) -> Res<Value> {
        let args = [&["--output", "json", "job"], args].concat();
        self.operate(&args).await?.json()
    }

    /// Stops it.
    pub(crate) async fn stop(mut self) -> Res<()> {
        self.daemon.signal(Signal::TERM)?;
        let status = self.daemon.ended(std::time::Duration::from_secs(10)).await?;
        if status.success() { Ok(()) } else { Err(Fault::new(format!("the hub ended: {status}"))) }
    }
}
