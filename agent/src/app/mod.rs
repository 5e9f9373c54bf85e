//! The composition root: command line, and what is put together for each command. Everything below
//! is handed what it needs from here; nothing below knows of this floor.

mod beat;
mod cli;
mod commands;
mod core;
mod daemon;
mod enrolments;
mod host;
mod probe;
mod published;
mod reload;

use std::{path::Path, process::ExitCode};

use jtntctl::{Exit, Failure, Io};

use self::{
    cli::{Cli, Command},
    host::AgentHost,
};
use crate::config::{Config, Environment, load_as_client};

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let environment = Environment::read();
    let mut cli = Cli::of_process();
    let mut io = Io::of_process(cli.global.color);
    // One thread for everything that waits, and blocking work on threads that end when idle: an
    // agent is idle most of its life.
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Exit::Io.into();
    };
    runtime.block_on(Box::pin(dispatch(&mut cli, environment, &mut io))).into()
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
        Err(failure) => complain(io, &failure),
    }
}

/// A command of `jtntctl`: asked of the daemon, or where none answers, of the files.
async fn client(
    cli: &mut Cli,
    command: jtntctl::Command,
    path: std::path::PathBuf,
    io: &mut Io,
) -> Exit {
    let mut elsewhere = None;
    if !cli.socket_was_given {
        let (socket, health) = match load_as_client(&path) {
            Ok(config) => (config.admin_socket, config.health_listen),
            // These answer everybody, also who may not read the configuration or where it is wrong.
            Err(error)
                if matches!(command, jtntctl::Command::Version | jtntctl::Command::Health(_)) =>
            {
                let note = format!("note: asking at the default addresses, since {error}\n");
                let _told = io.complain(note.as_bytes());
                let defaults = Config::defaults(Path::new("/"));
                (defaults.admin_socket, defaults.health_listen)
            }
            Err(error) => return complain(io, &commands::config::failure(&error)),
        };
        cli.global.socket = jtntctl::Target::Socket(socket);
        elsewhere = Some(health);
    }
    let host = AgentHost::new(&command, path);
    let exit = match (&command, elsewhere) {
        (jtntctl::Command::Health(how), Some(health)) if how.live || how.ready => {
            probe::run(*how, health, (&cli.global, io), &host).await
        }
        _ => jtntctl::run(command, &cli.global, io, &host).await,
    };
    host.end().await;
    exit
}

fn complain(io: &mut Io, failure: &Failure) -> Exit {
    match io.complain(failure.text().as_bytes()) {
        Ok(()) | Err(_) => failure.exit,
    }
}

#[cfg(test)]
mod tests;
