//! What of the configuration the audit log was told: also what somebody changed while no agent ran.

use std::path::Path;

use jtnt_proto::audit::{Event, Status};

use crate::{
    audit::{Audit, Record},
    config::{Config, changed_since, remembered},
    runtime::durable,
};

const MAX_BYTES: u64 = 1 << 20;
const MODE: u32 = 0o600;

/// Tells of the settings that are not as they were at the last start or reload.
pub(super) async fn tell(config: &Config, path: &Path, audit: &Audit) -> Result<(), String> {
    let told = config.paths().config_told();
    let (read, known) = (told.clone(), remembered(config));
    let before = tokio::task::spawn_blocking(move || durable::read(&read, MAX_BYTES).ok());
    let before = before.await.map_err(|e| e.to_string())?;
    // The first start has nothing to compare with, and the file may be any.
    let changed = before.as_deref().map(|before| {
        changed_since(before, config).unwrap_or_else(|| vec!["(all of it)".to_owned()])
    });
    if let Some(changed) = changed.filter(|changed| !changed.is_empty()) {
        let mut record =
            Record::of(Event::ConfigChanged).detail("changed", changed).detail("by", "start");
        (record.status, record.origin) = (Some(Status::Success), Some("local"));
        record.object = Some(path.display().to_string());
        audit.append(record).await.map_err(|e| e.to_string())?;
    }
    if before.as_ref() == Some(&known) { Ok(()) } else { keep(config).await }
}

/// The log knows of it.
pub(super) async fn keep(config: &Config) -> Result<(), String> {
    let (path, bytes) = (config.paths().config_told(), remembered(config));
    let written = tokio::task::spawn_blocking(move || durable::replace(&path, &bytes, MODE));
    written.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}
