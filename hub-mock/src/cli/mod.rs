//! The command line: `serve` is the hub, everything else is its operator.

mod args;
mod authority;
mod client;
mod fault;
mod job;
mod lint;
mod output;
mod policy;
mod root;
mod serve;
mod show;
mod watch;

use std::{io, process::ExitCode};

use clap::Parser as _;

use crate::{error::HubError, operator::Operator};
use args::{Arguments, CertCommand, Command, FaultCommand};
use client::Client;
use output::Output;

/// How a command ended well: with yes or with no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Yes,
    No,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.output);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            output.fault(&format!("cannot start: {e}"));
            return ExitCode::from(6);
        }
    };
    match runtime.block_on(run(arguments, &output)) {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        // Whoever read us has seen enough.
        Err(HubError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            output.failure(&error);
            code(&error)
        }
    }
}

fn code(error: &HubError) -> ExitCode {
    match error {
        HubError::Refused { .. } => ExitCode::from(1),
        HubError::Unreachable(_) => ExitCode::from(3),
        HubError::File { .. }
        | HubError::NotAHub { .. }
        | HubError::Output(_)
        | HubError::Listen { .. }
        | HubError::Damaged { .. }
        | HubError::Certificate(_)
        | HubError::Tls(_)
        | HubError::Journal
        | HubError::Entropy(_) => ExitCode::from(6),
    }
}

/// What every operator's command works with.
struct Desk<'a> {
    dir: std::path::PathBuf,
    client: Client,
    output: &'a Output,
}

impl Desk<'_> {
    fn operator(&self) -> Result<Operator, HubError> {
        Operator::open(&self.dir)
    }
}

async fn run(arguments: Arguments, output: &Output) -> Result<Verdict, HubError> {
    // A policy can be looked at without any hub.
    if let Command::Policy(args::PolicyCommand::Lint { file }) = &arguments.command {
        return policy::lint(file, output);
    }
    if matches!(arguments.command, Command::Policy(args::PolicyCommand::Template)) {
        return policy::template(output);
    }
    let Some(dir) = arguments.dir else {
        let why = "name the hub's folder, which `jtnt-hub-mock serve --dir DIR` makes, with --dir \
                   DIR or JTNT_HUB_DIR";
        return Err(HubError::refused("NO_DIR", why));
    };
    let command = arguments.command;
    if let Command::Serve(wish) = command {
        return serve::serve(dir, wish, output).await;
    }
    let desk = Desk { client: Client::open(&dir)?, dir, output };
    match command {
        Command::Token { life } => show::token(&desk, life).await,
        Command::Agents => show::agents(&desk).await,
        Command::Audit { agent, anchor, lines } => match lines {
            Some(log) => show::held(&desk, &agent, log).await,
            None => show::logs(&desk, &agent, anchor).await,
        },
        Command::Witness => show::witness(&desk).await,
        Command::Requests { agent } => show::requests(&desk, agent).await,
        Command::Job(command) => job::run(&desk, command).await,
        Command::Policy(command) => policy::run(&desk, command).await,
        Command::Root(command) => root::run(&desk, command).await,
        Command::Ca(command) => authority::run(&desk, command).await,
        Command::Cert(command) => certificate(&desk, command).await,
        Command::Fault(FaultCommand::Clear) => fault::clear(&desk).await,
        Command::Fault(FaultCommand::Set(wish)) => fault::set(&desk, &wish).await,
        Command::Sign(wish) => root::sign(&desk, &wish),
        Command::Serve(_) => Ok(Verdict::No),
    }
}

async fn certificate(desk: &Desk<'_>, command: CertCommand) -> Result<Verdict, HubError> {
    use crate::{
        control::{Judge, Rule},
        state::Standing,
    };
    let (agent, standing) = match command {
        CertCommand::Policy { rule } => {
            desk.client.put("/control/v1/certificates/rule", &Rule { rule }).await?;
            return desk.output.done("rule set");
        }
        CertCommand::Expire { agent } => (agent, Standing::Expired),
        CertCommand::Revoke { agent } => (agent, Standing::Revoked),
    };
    let agent_id = desk.client.agent(agent).await?;
    let judge = Judge { agent_id: agent_id.clone(), standing };
    desk.client.post_nothing("/control/v1/certificates", &judge).await?;
    desk.output.done(&format!("the certificates of {agent_id} no longer count"))
}
