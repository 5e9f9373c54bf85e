//! Readers of single values. Each error says what was expected and what was found.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde_json::Value;

pub(super) type Read<T> = Result<T, String>;

const MAX_LABELS: usize = 64;
const MAX_LABEL_BYTES: usize = 256;

fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the text {s:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn expected<T>(what: &str, value: &Value) -> Read<T> {
    Err(format!("expected {what}, found {}", found(value)))
}

pub(super) fn text(value: &Value) -> Read<&str> {
    value.as_str().map_or_else(|| expected("text", value), Ok)
}

pub(super) fn number(value: &Value, range: RangeInclusive<u64>) -> Read<u64> {
    match value.as_u64().filter(|n| range.contains(n)) {
        Some(n) => Ok(n),
        None => {
            expected(&format!("a whole number from {} to {}", range.start(), range.end()), value)
        }
    }
}

pub(super) fn small(value: &Value, range: RangeInclusive<u32>) -> Read<u32> {
    let n = number(value, u64::from(*range.start())..=u64::from(*range.end()))?;
    u32::try_from(n).map_err(|e| e.to_string())
}

pub(super) fn choice<T: Copy>(value: &Value, words: &[(&str, T)]) -> Read<T> {
    let word = value.as_str();
    match words.iter().find(|(w, _)| Some(*w) == word) {
        Some((_, meant)) => Ok(*meant),
        None => {
            let list: Vec<_> = words.iter().map(|(w, _)| *w).collect();
            expected(&format!("one of {}", list.join(", ")), value)
        }
    }
}

/// A list of some of them.
pub(super) fn choices<T: Copy>(value: &Value, words: &[(&str, T)]) -> Read<Vec<T>> {
    let Some(items) = value.as_array() else { return expected("a list of words", value) };
    items.iter().map(|item| choice(item, words)).collect()
}

pub(super) fn path(value: &Value, home: &Path) -> Read<PathBuf> {
    let given = value.as_str().filter(|t| !t.contains('\0'));
    match given {
        Some(t) if t.starts_with('/') => Ok(t.into()),
        Some(t) => match t.strip_prefix("~/") {
            Some(rest) => Ok(home.join(rest)),
            None => expected("an absolute path or one that begins with ~/", value),
        },
        None => expected("a path", value),
    }
}

pub(super) fn list(value: &Value) -> Read<Vec<String>> {
    let Some(items) = value.as_array() else { return expected("a list of names", value) };
    items.iter().map(|item| text(item).map(str::to_owned)).collect()
}

pub(super) fn map(value: &Value) -> Read<BTreeMap<String, String>> {
    let Some(object) = value.as_object() else {
        return expected("an object of names and texts", value);
    };
    if object.len() > MAX_LABELS {
        return Err(format!("{} names; at most {MAX_LABELS} are accepted", object.len()));
    }
    object
        .iter()
        .map(|(name, value)| {
            let text = text(value).map_err(|why| format!("{name:?}: {why}"))?;
            if name.is_empty() || name.len() > MAX_LABEL_BYTES || text.len() > MAX_LABEL_BYTES {
                return Err(format!("{name:?}: name and text have 1 to {MAX_LABEL_BYTES} bytes"));
            }
            Ok((name.clone(), text.to_owned()))
        })
        .collect()
}

pub(super) fn loopback(value: &Value) -> Read<SocketAddr> {
    let Some(address) = value.as_str().and_then(|t| t.parse::<SocketAddr>().ok()) else {
        return expected("an address and a port such as 127.0.0.1:9090", value);
    };
    if address.ip().is_loopback() {
        return Ok(address);
    }
    let port = address.port();
    Err(format!(
        "{} is reachable from outside; only loopback addresses such as 127.0.0.1:{port} or \
         [::1]:{port} are accepted",
        address.ip()
    ))
}

/// `HH:MM`.
pub(super) fn time(value: &Value) -> Read<String> {
    match value.as_str().filter(|t| t.len() == 5 && is_time(t)) {
        Some(t) => Ok(t.to_owned()),
        None => expected("a local time such as \"03:00\"", value),
    }
}

/// `HH:MM-HH:MM`.
pub(super) fn window(value: &Value) -> Read<String> {
    let both = |t: &&str| t.split_once('-').is_some_and(|(a, b)| is_time(a) && is_time(b));
    match value.as_str().filter(both) {
        Some(t) => Ok(t.to_owned()),
        None => expected("a span of local time such as \"01:00-05:00\"", value),
    }
}

fn is_time(text: &str) -> bool {
    let two = |t: &str, below: u8| {
        t.len() == 2
            && t.bytes().all(|b| b.is_ascii_digit())
            && t.parse::<u8>().is_ok_and(|n| n < below)
    };
    text.split_once(':').is_some_and(|(h, m)| two(h, 24) && two(m, 60))
}

/// `FIRST-LAST`, both ordinary user ids.
pub(super) fn uids(value: &Value) -> Read<String> {
    let range = |t: &&str| {
        t.split_once('-')
            .and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)))
            .is_some_and(|(a, b)| 1000 <= a && a <= b && b < 4_294_967_294)
    };
    match value.as_str().filter(range) {
        Some(t) => Ok(t.to_owned()),
        None => expected("a span of user ids from 1000 on, such as \"61184-65519\"", value),
    }
}

pub(super) fn url(value: &Value, scheme: &str) -> Read<String> {
    let whole = |t: &&str| {
        t.parse::<http::Uri>().is_ok_and(|uri| {
            uri.scheme_str() == Some(scheme)
                && uri.host().is_some_and(|h| !h.is_empty())
                && uri.authority().is_some_and(|a| !a.as_str().contains('@'))
                && uri.path_and_query().is_none_or(|p| p.as_str() == "/")
        })
    };
    match value.as_str().filter(whole) {
        Some(t) => Ok(t.trim_end_matches('/').to_owned()),
        None => expected(&format!("a URL such as \"{scheme}://hub.example.com:8443\""), value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn urls_are_a_scheme_a_host_and_perhaps_a_port() {
        assert_eq!(url(&json!("https://h:1/"), "https").unwrap(), "https://h:1");
        for bad in ["http://h", "https://", "https://u@h", "https://h/path", "h", ""] {
            assert!(url(&json!(bad), "https").is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_of_a_day() {
        assert!(time(&json!("23:59")).is_ok());
        for bad in ["24:00", "3:00", "03:60", "+3:00", "03-00"] {
            assert!(time(&json!(bad)).is_err(), "{bad}");
        }
        assert!(window(&json!("22:00-04:00")).is_ok());
        assert!(window(&json!("22:00")).is_err());
    }

    #[test]
    fn job_uids_are_never_system_users() {
        assert!(uids(&json!("61184-65519")).is_ok());
        for bad in ["0-10", "2000-1000", "1000", "1000-4294967295"] {
            assert!(uids(&json!(bad)).is_err(), "{bad}");
        }
    }
}
