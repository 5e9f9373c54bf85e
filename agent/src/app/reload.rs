//! Reading the configuration again: what can change does, what cannot is named, and a file that is
//! wrong changes nothing.

use std::{path::PathBuf, sync::Arc};

use jtnt_proto::audit::{Event, Status};
use tokio::sync::{Mutex, watch};

use super::published::Published;
use crate::{
    admin::{Authz, Names, Reloaded},
    audit::{Audit, Record},
    config::{Config, difference, load_or_default, take_up},
    platform::users,
    telemetry::log::LogLevel,
};

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

    /// Reads the file and looks at the identity.
    pub(super) async fn reload(&self) -> Result<Reloaded, String> {
        let mut running = self.running.lock().await;
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || load_or_default(&path)).await;
        let new = read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let seen = difference(&running, &new);
        if !seen.changed.is_empty() && !self.path.exists() {
            return Err(format!("{} is gone; put it back", self.path.display()));
        }
        if !seen.changed.is_empty() {
            self.record(&seen.changed, &seen.needs_restart).await?;
        }
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

    async fn record(&self, changed: &[String], later: &[String]) -> Result<(), String> {
        let mut record = Record::of(Event::ConfigChanged)
            .detail("changed", changed.to_vec())
            .detail("needs_restart", later.to_vec());
        record.status = Some(Status::Success);
        record.origin = Some("local");
        record.object = Some(self.path.display().to_string());
        self.audit.append(record).await.map(drop).map_err(|e| e.to_string())
    }
}
