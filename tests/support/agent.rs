//! A running agent, by what it logs and by what its endpoints show.

use std::{net::SocketAddr, process::ExitStatus, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use super::{
    daemon::Daemon,
    fault::{Fault, Res},
    http::{Reply, get},
    wait::PATIENCE,
};

/// A stop is done within this time.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// `jtnt-agent run`.
#[derive(Debug)]
pub(crate) struct Agent(pub(super) Daemon);

impl Agent {
    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Where its log stands, for [`Self::says`].
    pub(crate) fn mark(&self) -> usize {
        self.0.log().mark()
    }

    /// The first line after `mark` whose message contains `words`, written or still to come.
    pub(crate) async fn says(&self, mark: usize, words: &str) -> Res<Value> {
        let pick = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            line.get("message")?.as_str()?.contains(words).then_some(line)
        };
        self.0.log().find(&format!("the agent's log line {words:?}"), mark, pick).await
    }

    /// The address that the setting got: tests leave the port to the system.
    pub(crate) async fn endpoint(&self, setting: &str) -> Res<SocketAddr> {
        let pick = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            let listens = line.get("message")? == "listening" && line.get("setting")? == setting;
            listens.then(|| line.get("address")?.as_str()?.parse().ok()).flatten()
        };
        self.0.log().find(&format!("the address of {setting}"), 0, pick).await
    }

    /// A page of the endpoint that the setting places.
    pub(crate) async fn get(&self, setting: &str, path: &str) -> Res<Reply> {
        get(self.endpoint(setting).await?, path).await
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Res<()> {
        self.0.signal(signal)
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Res<ExitStatus> {
        self.0.ended(PATIENCE).await
    }

    /// Stops it as a service manager does; that must go well and be quick.
    pub(crate) async fn stop(mut self) -> Res<()> {
        self.signal(Signal::TERM)?;
        let status = self.0.ended(DRAIN).await?;
        if status.success() {
            return Ok(());
        }
        let log = self.0.log().tail();
        Err(Fault::new(format!("the agent ended with {status} on SIGTERM; last lines:\n{log}")))
    }
}
