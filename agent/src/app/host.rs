//! The agent's own program as a client: where no daemon answers, the commands that an operator
//! needs most work on the files themselves, by the same services over a pipe.

use std::{cell::RefCell, path::PathBuf, sync::Arc, time::Duration};

use clap::CommandFactory as _;
use jtntctl::{
    AGENT_BUSY, Channel, Command, Exit, Failure, Global, Host,
    cli::{Audit, Cache, Cert, Jobs, Policy},
};

use super::{
    certs,
    cli::{Cli, PROGRAM},
    core::Core,
    reload::Reloader,
};
use crate::{
    admin::{Admin, Deps},
    config::load_or_default,
    platform::{peer::Peer, sandbox, users},
    runtime::tasks::Class,
    telemetry::log::LogLevel,
};

const PIPE_BYTES: usize = 64 * 1024;
const END: Duration = Duration::from_secs(5);

/// How a command reaches the services.
#[derive(Debug)]
pub(super) struct AgentHost {
    config: PathBuf,
    alone: bool,
    core: RefCell<Option<Core>>,
}

/// Whether a command makes sense without a daemon.
const fn works_alone(command: &Command) -> bool {
    matches!(
        command,
        Command::Cert(Cert::Check { prove: false } | Cert::Plan | Cert::Rollback { .. })
            | Command::Audit(
                Audit::List { .. }
                    | Audit::Verify { .. }
                    | Audit::Prove { .. }
                    | Audit::Export { .. }
                    | Audit::RotateKey
                    | Audit::Clean
            )
            | Command::Cache(Cache::Status | Cache::Clean)
            | Command::Jobs(Jobs::List { .. } | Jobs::Show { .. } | Jobs::Logs { .. })
            | Command::Policy(
                Policy::Show
                    | Policy::CheckExec { .. }
                    | Policy::CheckScript { .. }
                    | Policy::CheckFile { .. }
                    | Policy::Diff { .. }
                    | Policy::Learn { .. }
            )
    )
}

impl AgentHost {
    pub(super) fn new(command: &Command, config: PathBuf) -> Self {
        Self { config, alone: works_alone(command), core: RefCell::new(None) }
    }

    /// Ends what was started for a command without a daemon.
    pub(super) async fn end(self) {
        if let Some(core) = self.core.into_inner() {
            // Nothing of it does more than answer.
            let _late = core.base.tasks.drain(END).await;
        }
    }

    async fn alone(&self) -> Result<Channel, Failure> {
        let config =
            load_or_default(&self.config).map_err(|e| super::commands::config::failure(&e))?;
        if !config.data_dir.is_dir() {
            let why = "no daemon answers, and this machine has no agent's data";
            return Err(Failure::new(Exit::Unreachable, "reach the agent", why)
                .advise("is it installed and enrolled? See jtnt-agent enroll --help"));
        }
        // Whoever has the files answers for them. Here a no would be read as that of the command.
        let core = Core::open(config, self.config.clone(), "command", sandbox::abilities).await;
        let mut core = core.map_err(|mut failure| {
            if failure.exit == Exit::No {
                failure.exit = Exit::Unreachable;
            }
            failure
        })?;
        if let Some((mut keeper, _)) = core.work.take() {
            keeper.begin().await;
        }
        let log = LogLevel::detached(core.base.config.log_level);
        let reloader = Reloader::new(
            (core.base.path.clone(), core.base.config.clone()),
            Arc::clone(&core.published),
            log.clone(),
            core.state.audit.clone(),
        );
        let admin = Admin::new(Deps {
            overview: core.overview.clone(),
            jobs: core.jobs.clone(),
            renewal: core.renewal.clone(),
            proof: certs::proof(&core.published, &core.overview),
            authz: reloader.authz(),
            log,
            reload: Arc::new(|_| {
                Box::pin(std::future::ready(Err("no daemon is running".to_owned())))
            }),
            audit_dir: core.base.config.paths().audit(),
            tasks: core.base.tasks.clone(),
        });
        let admin = admin.await.map_err(|e| Failure::new(Exit::Io, "open the services", e))?;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let me = Peer { uid: users::own_uid(), pid: Some(std::process::id()), groups: Vec::new() };
        core.base.tasks.spawn("command", Class::OneShot, async move {
            admin.serve(theirs, me).await;
        });
        if let Some(renewals) = core.renewals.take() {
            let stop = core.base.tasks.shutdown();
            core.base.tasks.spawn("renewal", Class::OneShot, renewals.serve_only(stop));
        }
        self.core.replace(Some(core));
        jtntctl::over(ours, "the agent's files").await
    }
}

impl Host for AgentHost {
    async fn connect(&self, global: &Global) -> Result<Channel, Failure> {
        match global.socket.connect(global.patience()).await {
            // A busy agent runs, and has its files to itself.
            Err(failure) if failure.reason.as_deref() == Some(AGENT_BUSY) => Err(failure),
            Err(failure) if failure.exit == Exit::Unreachable && self.alone => {
                Box::pin(self.alone()).await
            }
            other => other,
        }
    }

    fn program(&self) -> &'static str {
        PROGRAM
    }

    fn command_line(&self) -> clap::Command {
        Cli::command()
    }
}
