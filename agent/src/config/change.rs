//! What differs between two configurations, and how enrolment writes into one that an operator
//! wrote by hand.

use std::{collections::BTreeMap, io, path::Path};

use serde_json::{Map, Value};

use super::{
    Config,
    file::{ConfigError, load},
    settings::{self, Effect},
};
use crate::runtime::durable;

const MAX_BYTES: u64 = 1024 * 1024;

/// Settings that differ, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// All of them.
    pub changed: Vec<String>,
    /// Those that take effect at the next start.
    pub needs_restart: Vec<String>,
}

/// What `new` changes.
#[must_use]
pub fn difference(old: &Config, new: &Config) -> Difference {
    let (old, new) = (shown(old), shown(new));
    let differs = settings::all().iter().filter(|s| old.get(s.name) != new.get(s.name));
    let mut out = Difference::default();
    for setting in differs {
        out.changed.push(setting.name.to_owned());
        if setting.effect == Effect::Restart {
            out.needs_restart.push(setting.name.to_owned());
        }
    }
    out
}

fn shown(config: &Config) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Writes `hub_url` and `labels` into the file at `path` and leaves every other setting as it is.
/// The file comes into being when there is none.
///
/// # Errors
/// When the file as it is, or as it would be, is no configuration; then nothing was written.
pub fn merge(
    path: &Path,
    hub_url: &str,
    labels: &BTreeMap<String, String>,
) -> Result<Config, ConfigError> {
    let io = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut document = match durable::read(path, MAX_BYTES) {
        Ok(bytes) => {
            load(path)?; // so that its faults are told with their place
            serde_json::from_slice(&bytes).map_err(|e| io(e.into()))?
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(e) => return Err(io(e)),
    };
    document.insert("hub_url".to_owned(), hub_url.into());
    if !labels.is_empty() {
        let mut all = match document.remove("labels") {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        };
        all.extend(labels.iter().map(|(k, v)| (k.clone(), v.clone().into())));
        document.insert("labels".to_owned(), all.into());
    }
    let mut text = serde_json::to_vec_pretty(&document).map_err(|e| io(e.into()))?;
    text.push(b'\n');
    if let Some(parent) = path.parent() {
        durable::create_dir(parent, 0o755).map_err(io)?;
    }
    durable::replace(path, &text, durable::PUBLIC).map_err(io)?;
    load(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Config {
        Config::defaults(Path::new("/home/u"))
    }

    #[test]
    fn a_reload_tells_what_changed_and_what_must_wait() {
        let mut new = defaults();
        new.log_level = crate::telemetry::log::Level::Debug;
        new.data_dir = "/elsewhere".into();
        let seen = difference(&defaults(), &new);
        assert_eq!(seen.changed, ["data_dir", "log_level"]);
        assert_eq!(seen.needs_restart, ["data_dir"]);
        assert_eq!(difference(&new, &new), Difference::default());
    }

    #[test]
    fn enrolment_keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/config.json");
        let labels = |k: &str| BTreeMap::from([(k.to_owned(), "x".to_owned())]);
        merge(&path, "https://one", &labels("a")).unwrap();
        let mut text = String::from_utf8(durable::read(&path, 4096).unwrap()).unwrap();
        text = text.replacen('{', "{\"audit_retention_days\": 90,", 1);
        durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        let config = merge(&path, "https://two", &labels("b")).unwrap();
        assert_eq!(config.hub_url.as_deref(), Some("https://two"));
        assert_eq!(config.audit_retention_days, 90);
        assert_eq!(config.labels.keys().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_file_that_is_wrong_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        durable::replace(&path, b"{\"hub\": 1,}", 0o644).unwrap();
        assert!(merge(&path, "https://one", &BTreeMap::new()).is_err());
        assert_eq!(durable::read(&path, 99).unwrap(), b"{\"hub\": 1,}");
    }
}
