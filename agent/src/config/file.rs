//! From text to [`Config`], with the place of every fault: a setting is looked up by name, its
//! value is read on its own, and both are slices of the text, so their position is known.

use std::{
    borrow::Cow,
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{Config, DEFAULT_PATH, settings};
use crate::{platform::users, runtime::durable};

/// More than any configuration needs.
const MAX_BYTES: u64 = 1024 * 1024;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The settings say where files lie below `~`, and this user has no `~`.
    #[error("user {0} is not in the user database, so it has no home folder")]
    NoHome(u32),
    /// The file is wrong. One line a fault, as compilers print them.
    #[error("{}", Lines(path, faults))]
    Faults {
        /// The file.
        path: PathBuf,
        /// Every fault that could be found.
        faults: Vec<Fault>,
    },
}

struct Lines<'a>(&'a Path, &'a [Fault]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Fault { line, column, message }) in self.1.iter().enumerate() {
            let gap = if n == 0 { "" } else { "\n" };
            write!(f, "{gap}{}:{line}:{column}: {message}", self.0.display())?;
        }
        Ok(())
    }
}

/// Reads the file at `path`.
///
/// # Errors
/// When it cannot be read, or with all of its faults.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    check(path, &text(path)?)
}

pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let bytes = durable::read(path, MAX_BYTES).map_err(read)?;
    String::from_utf8(bytes).map_err(|e| read(io::Error::new(io::ErrorKind::InvalidData, e)))
}

/// Reads the file at `path`. At the default path there may be none, since an agent that waits for
/// its enrolment has no file yet; one that somebody named has to be there.
///
/// # Errors
/// When it cannot be read, or with all of its faults.
pub fn load_or_default(path: &Path) -> Result<Config, ConfigError> {
    match load(path) {
        Err(ConfigError::Read { source, .. })
            if source.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) =>
        {
            check(path, "{}")
        }
        other => other,
    }
}

/// Reads the file at `path` for a client, which needs no home folder of its own: only the daemon's
/// files may lie in one.
///
/// # Errors
/// As [`load_or_default`].
pub fn load_as_client(path: &Path) -> Result<Config, ConfigError> {
    let text = match text(path) {
        Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            "{}".to_owned()
        }
        other => other?,
    };
    let home = users::home(users::own_uid()).unwrap_or_else(|| "/nonexistent".into());
    parse(&text, &home).map_err(|faults| ConfigError::Faults { path: path.to_owned(), faults })
}

/// Reads a text as if it stood at `path`.
pub(super) fn check(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let uid = users::own_uid();
    let home = users::home(uid).ok_or(ConfigError::NoHome(uid))?;
    parse(text, &home).map_err(|faults| ConfigError::Faults { path: path.to_owned(), faults })
}

/// Reads a configuration for a user whose home folder is `home`.
pub(super) fn parse(text: &str, home: &Path) -> Result<Config, Vec<Fault>> {
    let Document(entries) = serde_json::from_str(text).map_err(|e| vec![syntax(text, &e)])?;
    let mut config = Config::defaults(home);
    let mut faults = Vec::new();
    let mut seen = Vec::new();
    for entry in &entries {
        let (line, column) = entry.key_place(text);
        let mut fault = |(line, column), message| faults.push(Fault { line, column, message });
        let name = entry.key.as_ref();
        let Some(setting) = settings::find(name) else {
            fault((line, column), unknown(name));
            continue;
        };
        if seen.contains(&name) {
            fault((line, column), format!("\"{name}\" stands twice"));
            continue;
        }
        seen.push(name);
        let value = jtnt_proto::json::from_slice::<Value>(entry.value.get().as_bytes());
        let read =
            value.map_err(|e| e.to_string()).and_then(|v| setting.read(&mut config, &v, home));
        if let Err(why) = read {
            fault(place(text, offset(text, entry.value.get())), format!("{name}: {why}"));
        }
    }
    if faults.is_empty() { Ok(config) } else { Err(faults) }
}

fn unknown(name: &str) -> String {
    match settings::nearest(name) {
        Some(near) => format!("unknown setting {name:?}; did you mean \"{near}\"?"),
        None => format!("unknown setting {name:?}; `jtnt-agent config show` lists all of them"),
    }
}

fn syntax(text: &str, error: &serde_json::Error) -> Fault {
    let (line, column) = if error.is_eof() {
        jtnt_proto::json::end(text.as_bytes())
    } else {
        (error.line(), error.column())
    };
    let full = error.to_string();
    let message = full.rsplit_once(" at line ").map_or(full.as_str(), |(what, _)| what);
    let message = match last_key(text, line, column) {
        Some(key) => format!("not JSON: {message} (after {key})"),
        None => format!("not JSON: {message}"),
    };
    Fault { line, column, message }
}

/// The last setting that is named before the fault: columns of a syntax error are hard to count.
fn last_key(text: &str, line: usize, column: usize) -> Option<&'static str> {
    let upto: usize =
        text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum::<usize>()
            + column;
    let before = text.get(..upto.min(text.len())).unwrap_or(text);
    settings::all()
        .iter()
        .filter_map(|s| Some((before.rfind(&format!("\"{}\"", s.name))?, s.name)))
        .max()
        .map(|(_, name)| name)
}

/// The object at the top, its values still text.
pub(super) struct Document<'a>(pub(super) Vec<Entry<'a>>);

pub(super) struct Entry<'a> {
    pub(super) key: Cow<'a, str>,
    pub(super) value: &'a RawValue,
}

impl Entry<'_> {
    fn key_place(&self, text: &str) -> (usize, usize) {
        match &self.key {
            // The slice begins behind the quote.
            Cow::Borrowed(key) => place(text, offset(text, key).saturating_sub(1)),
            Cow::Owned(_) => place(text, offset(text, self.value.get())),
        }
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Document<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Document<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of settings in braces")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    entries.push(Entry { key, value: map.next_value()? });
                }
                Ok(Document(entries))
            }
        }
        d.deserialize_map(Entries)
    }
}

/// Where `part`, a slice of `text`, begins.
pub(super) fn offset(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize)
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Config {
        parse(text, Path::new("/home/u")).unwrap()
    }

    fn fault(text: &str) -> String {
        let faults = parse(text, Path::new("/home/u")).unwrap_err();
        ConfigError::Faults { path: "c.json".into(), faults }.to_string()
    }

    #[test]
    fn a_single_key_is_enough_and_the_rest_is_default() {
        let config = parsed(r#"{"audit_retention_days": 90}"#);
        assert_eq!(config.audit_retention_days, 90);
        assert_eq!(config.state_dir, Path::new("/home/u/.jtnt/state"));
        assert_eq!(parsed("{}"), Config::defaults(Path::new("/home/u")));
    }

    #[test]
    fn an_unknown_key_is_named_with_place_and_nearest_name() {
        assert_eq!(
            fault("{\n  \"hub_ulr\": \"https://hub\"\n}"),
            "c.json:2:3: unknown setting \"hub_ulr\"; did you mean \"hub_url\"?"
        );
        assert_eq!(
            fault(r#"{"zzzzzzzzzzzzzzzz": 1}"#),
            "c.json:1:2: unknown setting \"zzzzzzzzzzzzzzzz\"; `jtnt-agent config show` lists all \
             of them"
        );
    }

    #[test]
    fn a_wrong_type_names_the_key_and_both_types() {
        assert_eq!(
            fault("{\n  \"heartbeat_interval_seconds\": \"30\"\n}"),
            "c.json:2:33: heartbeat_interval_seconds: expected a whole number from 1 to 120, \
             found the text \"30\""
        );
        assert_eq!(
            fault(r#"{"labels": {"site": 1}}"#),
            "c.json:1:12: labels: \"site\": expected text, found the number 1"
        );
    }

    #[test]
    fn a_number_out_of_range_is_refused() {
        for n in ["0", "121", "1.5", "-1"] {
            let text = format!(r#"{{"heartbeat_interval_seconds": {n}}}"#);
            assert_eq!(
                fault(&text),
                format!(
                    "c.json:1:32: heartbeat_interval_seconds: expected a whole number from 1 to \
                     120, found the number {n}"
                )
            );
        }
        assert_eq!(
            parsed(r#"{"heartbeat_interval_seconds": 120}"#).heartbeat_interval_seconds,
            120
        );
    }

    #[test]
    fn a_trailing_comma_is_named_with_place_and_the_key_before_it() {
        assert_eq!(
            fault("{\n  \"log_level\": \"info\",\n}"),
            "c.json:3:1: not JSON: trailing comma (after log_level)"
        );
    }

    #[test]
    fn a_file_that_was_cut_off_is_named_with_the_place_behind_what_is_there() {
        assert_eq!(
            fault("{\n  \"log_level\": \"info\",\n"),
            "c.json:2:23: not JSON: EOF while parsing a value (after log_level)"
        );
        assert_eq!(fault("{\n"), "c.json:1:2: not JSON: EOF while parsing an object");
    }

    #[test]
    fn a_listener_beyond_the_machine_is_refused() {
        assert_eq!(
            fault(r#"{"metrics_listen": "0.0.0.0:9090"}"#),
            "c.json:1:20: metrics_listen: 0.0.0.0 is reachable from outside; only loopback \
             addresses such as 127.0.0.1:9090 or [::1]:9090 are accepted"
        );
        parsed(r#"{"metrics_listen": "[::1]:0"}"#);
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let text = "{\"log_level\": \"loud\",\n \"data_dir\": \"relative\"}";
        assert_eq!(
            fault(text),
            "c.json:1:15: log_level: expected one of error, warn, info, debug, trace, found the \
             text \"loud\"\nc.json:2:14: data_dir: expected an absolute path or one that begins \
             with ~/, found the text \"relative\""
        );
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_however_it_is_spelled() {
        assert!(fault("{\"labels\":{},\"labels\":{}}").contains("\"labels\" stands twice"));
        assert!(fault("{\"labels\":{},\"l\\u0061bels\":{}}").contains("\"labels\" stands twice"));
        assert!(fault(r#"{"labels":{"a":"1","a":"2"}}"#).contains("\"a\" stands twice"));
    }

    #[test]
    fn other_documents_are_refused() {
        for text in ["", "[]", "null", "{} {}", "{\"labels\"", "7"] {
            assert!(fault(text).contains(": not JSON: "), "{text}");
        }
    }

    #[test]
    fn the_home_folder_is_meant_by_a_tilde() {
        assert_eq!(parsed(r#"{"data_dir": "~/d"}"#).data_dir, Path::new("/home/u/d"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("/nonexistent/c.json")).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read the configuration /nonexistent/c.json: "),
            "{error}"
        );
    }
}
