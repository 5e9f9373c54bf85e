//! From a parsed command to an exit code.

use std::{future::Future, io, time::Duration};

use clap::CommandFactory as _;
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    Cli, Command, Exit, Failure, Global, Io,
    cli::{Audit, Output, Policy},
    commands,
};

/// The program around a command: how it reaches a daemon, and what else it can do.
pub trait Host {
    /// A connection for one command.
    ///
    /// # Errors
    /// When there is none to be had.
    fn connect(&self, global: &Global) -> impl Future<Output = Result<Channel, Failure>>;

    /// The name under which the commands are typed.
    fn program(&self) -> &'static str {
        "jtntctl"
    }

    /// The whole command line, for completions and manual pages.
    fn command_line(&self) -> clap::Command;
}

/// `jtntctl` itself: a daemon answers on the socket, or there is no answer.
#[derive(Debug, Clone, Copy)]
pub struct Standalone;

impl Host for Standalone {
    async fn connect(&self, global: &Global) -> Result<Channel, Failure> {
        global.socket.connect(global.patience()).await
    }

    fn command_line(&self) -> clap::Command {
        Cli::command()
    }
}

/// Why a command stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(Failure),
    /// Standard output or error does not take any more.
    Output(io::Error),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

pub(crate) type Outcome<T = Exit> = Result<T, Stop>;

/// What a command works with.
pub(crate) struct Session<'a> {
    pub(crate) io: &'a mut Io,
    pub(crate) json: bool,
    pub(crate) program: &'static str,
    timeout: Duration,
    link: Result<Channel, Failure>,
}

impl Session<'_> {
    /// The connection.
    pub(crate) fn channel(&self) -> Result<Channel, Failure> {
        self.link.clone()
    }

    /// Waits for one answer, within the bound.
    pub(crate) async fn call<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // The channel keeps the same time and may notice first.
            Ok(Err(status)) if status.message() == "Timeout expired" => Err(self.too_late(what)),
            Ok(Err(status)) => Err(Failure::rpc(what, &status)),
            Err(_) => Err(self.too_late(what)),
        }
    }

    /// The next message of a stream, within the bound.
    pub(crate) async fn next<T>(
        &self,
        what: &str,
        stream: &mut tonic::Streaming<T>,
    ) -> Result<Option<T>, Failure> {
        match tokio::time::timeout(self.timeout, stream.message()).await {
            Ok(message) => message.map_err(|status| Failure::rpc(what, &status)),
            Err(_) => Err(self.too_late(what)),
        }
    }

    fn too_late(&self, what: &str) -> Failure {
        let why = format!("no answer within {} s", self.timeout.as_secs());
        Failure::rpc(what, &Status::deadline_exceeded(why))
    }

    /// A request that tells the daemon how long we wait.
    pub(crate) fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

/// The next message of a stream that may be silent for as long as nothing happens.
pub(crate) async fn wait<T>(
    what: &str,
    stream: &mut tonic::Streaming<T>,
) -> Result<Option<T>, Failure> {
    stream.message().await.map_err(|status| Failure::rpc(what, &status))
}

/// Runs a command. Whatever goes wrong has been said when this returns.
pub async fn run(command: Command, global: &Global, io: &mut Io, host: &impl Host) -> Exit {
    let link = if needs_daemon(&command) {
        host.connect(global).await
    } else {
        Err(Failure::new(Exit::Unreachable, "reach the agent", "this command does not use it"))
    };
    let json = global.output == Output::Json;
    let timeout = global.patience();
    let program = host.program();
    let mut session = Session { io, json, program, timeout, link };
    let command_line = || host.command_line();
    let outcome = Box::pin(commands::dispatch(command, &mut session, command_line)).await;
    match outcome {
        Ok(exit) => exit,
        Err(Stop::Failed(failure)) => match io.complain(failure.told(json, program).as_bytes()) {
            Ok(()) | Err(_) => failure.exit,
        },
        // Whoever read us has seen enough.
        Err(Stop::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(Stop::Output(error)) => {
            let failure = Failure::new(Exit::Io, "write the output", error.to_string());
            match io.complain(failure.told(json, program).as_bytes()) {
                Ok(()) | Err(_) => failure.exit,
            }
        }
    }
}

fn needs_daemon(command: &Command) -> bool {
    !matches!(
        command,
        Command::Completions { .. }
            | Command::Man { .. }
            | Command::Policy(Policy::Lint { .. })
            | Command::Audit(
                Audit::Verify { key: Some(_), .. }
                    | Audit::Verify { anchor: Some(_), .. }
                    | Audit::Verify { proof: Some(_), .. }
            )
    )
}
