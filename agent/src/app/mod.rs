//! The composition root: command line, and what is put together for each command. Everything below
//! is handed what it needs from here; nothing below knows of this floor.

mod beat;
mod certs;
mod cli;
mod commands;
mod core;
mod daemon;
mod degraded;
mod enrolments;
mod host;
mod published;
mod reload;
mod settings;
mod witness;

use std::{path::Path, process::ExitCode, time::Duration};

use jtntctl::{Exit, Failure, Io};

use self::{
    cli::{Cli, Command, PROGRAM},
    host::AgentHost,
};
use crate::{
    config::{Config, Environment, load_as_client},
    shim,
};

/// For blocking work that is under way at the end.
const LEFT_BEHIND: Duration = Duration::from_secs(10);

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    // Before all else: a job waits for it, and it needs nothing of what follows.
    if let Some(exit) = shim::as_process(std::env::args_os()) {
        return exit;
    }
    let environment = Environment::read();
    let mut cli = Cli::of_process();
    let mut io = Io::of_process(cli.global.color);
    // One thread for everything that waits, and blocking work on threads that end when idle: an
    // agent is idle most of its life.
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Exit::Io.into();
    };
    let exit = runtime.block_on(Box::pin(dispatch(&mut cli, environment, &mut io)));
    // A device that keeps keys may never answer; what it holds up is not waited for any longer.
    runtime.shutdown_timeout(LEFT_BEHIND);
    exit.into()
}

async fn dispatch(cli: &mut Cli, environment: Environment, io: &mut Io) -> Exit {
    let path = cli.config.clone().unwrap_or_else(|| environment.config.clone());
    let command = cli.command.clone();
    let done = match command {
        Command::Run => daemon::run(path, environment).await,
        Command::Enroll(enroll) => commands::enroll::run(*enroll, path, environment, io).await,
        Command::Unenroll => commands::unenroll::run(path, io).await,
        Command::Config(command) => commands::config::run(command, &path, io),
        Command::Clock(command) => commands::clock::run(command, path, io).await,
        Command::Service(command) => commands::service::run(command, io),
        Command::Ctl(command) => return client(cli, command, path, io).await,
    };
    match done {
        Ok(exit) => exit,
        Err(failure) => complain(cli, io, &failure),
    }
}

/// A command of `jtntctl`: asked of the daemon, or where none answers, of the files.
async fn client(
    cli: &mut Cli,
    command: jtntctl::Command,
    path: std::path::PathBuf,
    io: &mut Io,
) -> Exit {
    if !cli.socket_was_given {
        let socket = match load_as_client(&path) {
            Ok(config) => config.admin_socket,
            // It tells at least its own version, also to who may not read the configuration.
            Err(error) if matches!(command, jtntctl::Command::Version) => {
                let note = format!("note: asking at the default address, since {error}\n");
                let _told = io.complain(note.as_bytes());
                Config::defaults(Path::new("/")).admin_socket
            }
            Err(error) => return complain(cli, io, &commands::config::failure(&error)),
        };
        cli.global.socket = jtntctl::Target::Socket(socket);
    }
    let host = AgentHost::new(&command, path);
    let exit = jtntctl::run(command, &cli.global, io, &host).await;
    host.end().await;
    exit
}

fn complain(cli: &Cli, io: &mut Io, failure: &Failure) -> Exit {
    let json = cli.global.output == jtntctl::cli::Output::Json;
    match io.complain(failure.told(json, PROGRAM).as_bytes()) {
        Ok(()) | Err(_) => failure.exit,
    }
}

#[cfg(test)]
mod tests;
