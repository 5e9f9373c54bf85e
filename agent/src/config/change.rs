//! What differs between two configurations, and how enrolment writes into one that an operator
//! wrote by hand.

use std::{collections::BTreeMap, io, path::Path};

use serde_json::{Map, Value};

use super::{
    Config, edit,
    file::{ConfigError, check, text},
    settings::{self, Effect},
};

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

/// The configuration as it is remembered, for [`changed_since`].
#[must_use]
pub fn remembered(config: &Config) -> Vec<u8> {
    serde_json::to_vec(&shown(config)).unwrap_or_default()
}

/// Names of settings that are not as they were remembered; nothing where that cannot be read.
#[must_use]
pub fn changed_since(remembered: &[u8], config: &Config) -> Option<Vec<String>> {
    let old: Map<String, Value> = serde_json::from_slice(remembered).ok()?;
    let new = shown(config);
    let differs = settings::all().iter().filter(|s| old.get(s.name) != new.get(s.name));
    Some(differs.map(|setting| setting.name.to_owned()).collect())
}

/// Makes `running` what it can become without a restart.
pub fn take_up(running: &mut Config, new: Config) {
    running.hub_url = new.hub_url;
    running.labels = new.labels;
    running.log_level = new.log_level;
    running.admin_users = new.admin_users;
    running.admin_groups = new.admin_groups;
    running.operator_groups = new.operator_groups;
    running.reader_groups = new.reader_groups;
    running.key_store = new.key_store;
}

fn shown(config: &Config) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// What an enrolment writes.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The hub; without one it is removed.
    pub hub_url: Option<&'a str>,
    /// Where keys are kept, if that is to change.
    pub key_store: Option<&'a str>,
    /// Beside those that are there.
    pub labels: &'a BTreeMap<String, String>,
}

/// The text of the file at `path` with this in it and every other byte as it is; also when there is
/// no file yet. Nothing is written.
///
/// # Errors
/// When the file as it is, or as it would be, is no configuration.
pub fn merged(path: &Path, entry: Entry<'_>) -> Result<Vec<u8>, ConfigError> {
    let io = |source| ConfigError::Read { path: path.to_owned(), source };
    let text = match text(path) {
        Ok(text) => {
            check(path, &text)?; // so that its faults are told with their place
            text
        }
        Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            "{}\n".to_owned()
        }
        Err(error) => return Err(error),
    };
    let text = edited(text, entry).map_err(|e| io(e.into()))?;
    check(path, &text)?;
    Ok(text.into_bytes())
}

fn edited(mut text: String, entry: Entry<'_>) -> Result<String, serde_json::Error> {
    const GAP: &str = "\n  ";
    let Entry { hub_url, key_store, labels } = entry;
    text = match hub_url {
        Some(url) => edit::set(&text, "hub_url", &Value::from(url).to_string(), GAP)?,
        None => edit::remove(&text, "hub_url")?,
    };
    if let Some(store) = key_store {
        text = edit::set(&text, "key_store", &Value::from(store).to_string(), GAP)?;
    }
    if labels.is_empty() {
        return Ok(text);
    }
    let mut all = edit::value(&text, "labels")?.unwrap_or("{}").to_owned();
    // One level deeper, in a text that has lines.
    let gap = match edit::first_gap(&text) {
        gap if gap.contains('\n') => format!("{gap}  "),
        _ => String::new(),
    };
    for (name, label) in labels {
        all = edit::set(&all, name, &Value::from(label.as_str()).to_string(), &gap)?;
    }
    edit::set(&text, "labels", &all, GAP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::load, runtime::durable};

    fn defaults() -> Config {
        Config::defaults(Path::new("/home/u"))
    }

    fn merged(
        path: &Path,
        hub_url: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<u8>, ConfigError> {
        super::merged(path, Entry { hub_url, key_store: None, labels })
    }

    #[test]
    fn what_was_changed_while_nothing_ran_is_found() {
        let old = defaults();
        let new = Config { operator_groups: vec!["games".to_owned()], ..old.clone() };
        let seen = remembered(&old);
        assert_eq!(changed_since(&seen, &old), Some(Vec::new()));
        assert_eq!(changed_since(&seen, &new), Some(vec!["operator_groups".to_owned()]));
        assert_eq!(changed_since(b"garbage", &new), None);
    }

    #[test]
    fn what_counts_at_a_reload_is_taken_up_and_nothing_else() {
        let text = r#"{"hub_url": "https://h", "data_dir": "/d", "admin_users": ["a"],
            "admin_groups": ["b"], "operator_groups": ["c"], "reader_groups": ["d"],
            "labels": {"e": "f"}, "log_level": "debug", "key_store": "tpm2:/dev/tpmrm0",
            "max_concurrent_jobs": 7, "cert_check_time": "04:00"}"#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        let (old, new) = (defaults(), load(&path).unwrap());
        let mut running = old.clone();
        take_up(&mut running, new.clone());
        let (old, new, running) = (shown(&old), shown(&new), shown(&running));
        for setting in settings::all() {
            let name = setting.name;
            let reload = setting.effect == Effect::Reload;
            assert_eq!(running[name], if reload { &new } else { &old }[name], "{name}");
            assert!(!reload || old[name] != new[name], "{name} is not tested here");
        }
    }

    #[test]
    fn a_store_of_keys_is_written_where_one_is_asked_for_and_stays_as_it_is_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let labels = BTreeMap::new();
        let entry = |key_store| Entry { hub_url: Some("https://one"), key_store, labels: &labels };
        let text = super::merged(&path, entry(Some("tpm2:/dev/tpmrm0"))).unwrap();
        durable::replace(&path, &text, 0o644).unwrap();
        assert_eq!(load(&path).unwrap().key_store.to_string(), "tpm2:/dev/tpmrm0");
        assert_eq!(super::merged(&path, entry(None)).unwrap(), text);
        let fault = super::merged(&path, entry(Some("pkcs11:token=a"))).unwrap_err().to_string();
        assert!(fault.contains("key_store") && fault.contains("module-path"), "{fault}");
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
        let path = dir.path().join("config.json");
        let labels = |k: &str| BTreeMap::from([(k.to_owned(), "x".to_owned())]);
        let first = merged(&path, Some("https://one"), &labels("a")).unwrap();
        assert!(!path.exists(), "it is for others to put it in place");
        let mut text = String::from_utf8(first).unwrap();
        text = text.replacen('{', "{\"audit_retention_days\": 90,", 1);
        durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        let second = merged(&path, Some("https://two"), &labels("b")).unwrap();
        durable::replace(&path, &second, 0o644).unwrap();
        let config = load(&path).unwrap();
        assert_eq!(config.hub_url.as_deref(), Some("https://two"));
        assert_eq!(config.audit_retention_days, 90);
        assert_eq!(config.labels.keys().collect::<Vec<_>>(), ["a", "b"]);
        let without = merged(&path, None, &BTreeMap::new()).unwrap();
        durable::replace(&path, &without, 0o644).unwrap();
        assert_eq!(load(&path).unwrap().hub_url, None);
    }

    #[test]
    fn the_form_of_the_file_is_its_writers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let text = "{\n\t\"log_level\" : \"info\",\n\n\t\"admin_users\": [ \"ops\" ]\n}";
        durable::replace(&path, text.as_bytes(), 0o644).unwrap();
        let labels = BTreeMap::from([("site".to_owned(), "a \"b\"".to_owned())]);
        let with = merged(&path, Some("https://one"), &labels).unwrap();
        let with = String::from_utf8(with).unwrap();
        let added = ",\n\t\"hub_url\": \"https://one\",\n\t\"labels\": {\n\t  \"site\": \"a \\\"b\\\"\"\n\t}";
        assert_eq!(with, text.replace(" ]\n}", &format!(" ]{added}\n}}")));
        durable::replace(&path, with.as_bytes(), 0o644).unwrap();
        assert_eq!(merged(&path, Some("https://one"), &labels).unwrap(), with.as_bytes());
        assert_eq!(load(&path).unwrap().labels, labels);
    }

    #[test]
    fn what_is_wrong_is_told_and_nothing_is_made_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        durable::replace(&path, b"{\"hub\": 1,}", 0o644).unwrap();
        assert!(merged(&path, Some("https://one"), &BTreeMap::new()).is_err());
        durable::replace(&path, b"{}", 0o644).unwrap();
        let fault = merged(&path, Some("http://one"), &BTreeMap::new()).unwrap_err();
        assert!(fault.to_string().contains("hub_url: expected a URL"), "{fault}");
    }
}
