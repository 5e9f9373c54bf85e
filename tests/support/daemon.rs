//! A process that stays: its log is read, signals reach it by its pid, and it ends with its handle.

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use super::{
    fault::{Fault, Res},
    log::Log,
};

/// A running process.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    pid: Pid,
    log: Log,
    _reader: JoinSet<()>,
}

impl Daemon {
    /// Starts `command`, in a process group of its own, so that Ctrl-C at a terminal reaches only
    /// whoever started it.
    pub(crate) fn spawn(name: &'static str, command: &mut Command) -> Res<Self> {
        command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| Fault::new(format!("{name}: {e}")))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let (Some(pid), Some(stderr)) = (pid, child.stderr.take()) else {
            return Err(Fault::new(format!("{name} was gone before it could be looked at")));
        };
        let mut reader = JoinSet::new();
        let log = Log::of(stderr, &mut reader);
        Ok(Self { name, child, pid, log, _reader: reader })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// What it writes to standard error.
    pub(crate) const fn log(&self) -> &Log {
        &self.log
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Res<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Waits until it has ended, no longer than `within`.
    pub(crate) async fn ended(&mut self, within: Duration) -> Res<ExitStatus> {
        match timeout(within, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => Err(Fault::new(format!(
                "{} did not end within {within:?}; its last lines:\n{}",
                self.name,
                self.log.tail()
            ))),
        }
    }
}
