//! The commands, a group a file: ask, print, and turn the answer into an exit code.

mod agent;
mod audit;
mod cache;
mod cert;
mod diff;
mod evidence;
mod jobs;
mod lint;
mod policy;
mod shell;
mod verify;

use serde::Serialize;

use crate::{
    Command,
    output::json,
    run::{Outcome, Session},
};

pub(crate) async fn dispatch(
    command: Command,
    session: &mut Session<'_>,
    command_line: impl FnOnce() -> clap::Command,
) -> Outcome {
    match command {
        Command::Status { watch: false } => agent::status(session).await,
        Command::Status { watch: true } => agent::watch(session).await,
        Command::Health(health) => agent::health(session, health).await,
        Command::TestConnection => agent::test_connection(session).await,
        Command::Version => agent::version(session).await,
        Command::Log(log) => agent::log(session, log).await,
        Command::Authz(authz) => agent::authz(session, authz).await,
        Command::Reload => agent::reload(session).await,
        Command::Cert(cert) => cert::run(session, cert).await,
        Command::Policy(policy) => policy::run(session, policy).await,
        Command::Audit(audit) => audit::run(session, audit).await,
        Command::Jobs(jobs) => jobs::run(session, jobs).await,
        Command::Cache(cache) => cache::run(session, cache).await,
        Command::Completions { shell } => shell::completions(session, command_line(), shell),
        Command::Man { dir } => shell::man(session, command_line(), &dir),
    }
}

/// Prints an answer the way the caller reads.
fn show(
    session: &mut Session<'_>,
    value: &impl Serialize,
    text: impl FnOnce(bool) -> String,
) -> Outcome<()> {
    if session.json {
        return json::object(session, value);
    }
    let text = text(session.io.color);
    Ok(session.io.print(text.as_bytes())?)
}
