//! Reading the configuration again: what can change does, what cannot is named, and a file that is
//! wrong changes nothing.

use std::{path::PathBuf, sync::Arc};

use jtnt_proto::audit::{Caller, Event, Status};
use tokio::sync::{Mutex, watch};

use super::published::Published;
use super::settings;
use crate::{
    admin::{Authz, Names, Reloaded},
    audit::{Audit, Record},
    config::{Config, difference, load_or_default, take_up},
    platform::users,
    telemetry::log::LogLevel,
};

/// Of why a file was refused, in the audit log.
const MAX_MESSAGE: usize = 1024;

/// The configuration in force, and what hears of its changes.
#[derive(Debug)]
pub(super) struct Reloader {
    path: PathBuf,
    running: Mutex<Config>,
    published: Arc<Published>,
    authz: watch::Sender<Authz>,
    log: LogLevel,
    audit: Audit,
}

/// The names that give roles.
fn names(config: &Config) -> Names {
    Names {
        admin_users: config.admin_users.clone(),
        admin_groups: config.admin_groups.clone(),
        operator_groups: config.operator_groups.clone(),
        reader_groups: config.reader_groups.clone(),
    }
}

/// Who has the configuration read again.
#[derive(Debug, Clone)]
pub(super) enum By {
    /// Somebody at the admin socket, as far as it is known.
    Caller(Option<Caller>),
    /// SIGHUP, which tells nobody's name.
    Signal,
    /// The agent itself, after an enrolment.
    Enrolment,
}

impl Reloader {
    pub(super) fn new(
        (path, config): (PathBuf, Config),
        published: Arc<Published>,
        log: LogLevel,
        audit: Audit,
    ) -> Arc<Self> {
        let authz = watch::Sender::new(Authz::resolve(&names(&config), users::own_uid()));
        Arc::new(Self { path, running: Mutex::new(config), published, authz, log, audit })
    }

    pub(super) fn authz(&self) -> watch::Receiver<Authz> {
        self.authz.subscribe()
    }

    /// Reads the file and looks at the identity. A file that is refused is recorded, too, but for
    /// what stands behind an admin call: that is recorded with its outcome.
    pub(super) async fn reload(&self, by: By) -> Result<Reloaded, String> {
        let told = matches!(by, By::Caller(_));
        let reloaded = self.read_again(&by).await;
        if let Err(why) = &reloaded
            && !told
        {
            let message: String = why.chars().take(MAX_MESSAGE).collect();
            let record = Record::of(Event::ConfigChanged).detail("message", message);
            if let Err(error) = self.record(record, Status::Error, &by).await {
                tracing::error!(error, "a refused configuration is not in the audit log");
            }
        }
        reloaded
    }

    async fn read_again(&self, by: &By) -> Result<Reloaded, String> {
        let mut running = self.running.lock().await;
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || load_or_default(&path)).await;
        let new = read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let seen = difference(&running, &new);
        if !seen.changed.is_empty() && !self.path.exists() {
            return Err(format!("{} is gone; put it back", self.path.display()));
        }
        if !seen.changed.is_empty() {
            let record = Record::of(Event::ConfigChanged)
                .detail("changed", seen.changed.clone())
                .detail("needs_restart", seen.needs_restart.clone());
            self.record(record, Status::Success, by).await?;
        }
        // The next start has nothing more to tell of it.
        settings::keep(&new).await?;
        take_up(&mut running, new);
        if seen.changed.iter().any(|name| name == "log_level") {
            self.log.set(running.log_level);
        }
        // Looked up anew each time: the user database may have changed.
        self.authz.send_replace(Authz::resolve(&names(&running), users::own_uid()));
        self.published.refresh(&running).await;
        if seen.changed.is_empty() {
            tracing::debug!("configuration read again; nothing differs");
        } else {
            tracing::info!(changed = ?seen.changed, "configuration read again");
        }
        Ok(Reloaded { changed: seen.changed, needs_restart: seen.needs_restart })
    }

    /// Looks at the identity alone.
    pub(super) async fn refresh_identity(&self) {
        let running = self.running.lock().await;
        self.published.refresh(&running).await;
    }

    async fn record(&self, record: Record, status: Status, by: &By) -> Result<(), String> {
        let mut record = match by {
            By::Caller(_) => record,
            By::Signal => record.detail("by", "SIGHUP"),
            By::Enrolment => record.detail("by", "enrollment"),
        };
        record.status = Some(status);
        record.origin = Some(if matches!(by, By::Enrolment) { "agent" } else { "local" });
        if let By::Caller(caller) = by {
            record.caller.clone_from(caller);
        }
        record.object = Some(self.path.display().to_string());
        self.audit.append(record).await.map(drop).map_err(|e| e.to_string())
    }
}
