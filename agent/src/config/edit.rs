//! One setting of a JSON text is set or taken out, and every other byte stays as its writer left
//! it: people keep their files in an order and a form of their own.

use serde_json::Value;

use super::file::{Document, offset};

/// The text with `key` in its object set to `value`, which is JSON. `gap` is what stands before a
/// first key, where the object has none yet: nothing, or a line feed with an indent.
pub(super) fn set(
    text: &str,
    key: &str,
    value: &str,
    gap: &str,
) -> Result<String, serde_json::Error> {
    let Document(entries) = serde_json::from_str(text)?;
    let key_text = Value::from(key).to_string();
    if let Some(entry) = entries.iter().find(|e| e.key == key) {
        let old = entry.value.get();
        let at = offset(text, old);
        return Ok(spliced(text, at, at + old.len(), value));
    }
    let (open, close) = braces(text);
    let Some(last) = entries.last() else {
        let tail = gap.strip_suffix("  ").unwrap_or_default();
        let inner = format!("{gap}{key_text}: {value}{tail}");
        return Ok(spliced(text, open + 1, close, &inner));
    };
    let end = offset(text, last.value.get()) + last.value.get().len();
    let between = match first_gap(text) {
        "" => " ",
        gap => gap,
    };
    Ok(spliced(text, end, end, &format!(",{between}{key_text}: {value}")))
}

/// The text without `key` in its object.
pub(super) fn remove(text: &str, key: &str) -> Result<String, serde_json::Error> {
    let Document(entries) = serde_json::from_str(text)?;
    let Some(n) = entries.iter().position(|e| e.key == key) else { return Ok(text.to_owned()) };
    let end_of = |n: usize| {
        let value = entries.get(n).map(|e| e.value.get());
        value.map(|v| offset(text, v) + v.len())
    };
    let (open, _) = braces(text);
    let (from, end) = (n.checked_sub(1).and_then(end_of), end_of(n).unwrap_or(text.len()));
    let to = match from {
        // What goes is the comma before it, or behind it where it is the first.
        Some(_) => end,
        None => match text.get(end..).and_then(|rest| rest.find([',', '}']).map(|at| (rest, at))) {
            Some((rest, at)) if rest.get(at..).is_some_and(|r| r.starts_with(',')) => end + at + 1,
            _ => end,
        },
    };
    Ok(spliced(text, from.unwrap_or(open + 1), to, ""))
}

/// The value of `key` as it stands there.
pub(super) fn value<'a>(text: &'a str, key: &str) -> Result<Option<&'a str>, serde_json::Error> {
    let Document(entries) = serde_json::from_str(text)?;
    Ok(entries.iter().find(|e| e.key == key).map(|e| e.value.get()))
}

/// What stands between the brace and the first key.
pub(super) fn first_gap(text: &str) -> &str {
    let inner = text.get(braces(text).0 + 1..).unwrap_or_default();
    inner.split('"').next().unwrap_or_default()
}

/// Outside of these there is only white space.
fn braces(text: &str) -> (usize, usize) {
    (text.find('{').unwrap_or(0), text.rfind('}').unwrap_or(text.len()))
}

fn spliced(text: &str, from: usize, to: usize, with: &str) -> String {
    let (before, after) = (text.get(..from), text.get(to..));
    [before.unwrap_or_default(), with, after.unwrap_or_default()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "{\n    \"b\" : 1,\n\n    \"a\": [1,  2]\n}\n";

    fn with(text: &str, key: &str, value: &str) -> String {
        set(text, key, value, "\n  ").unwrap()
    }

    #[test]
    fn only_the_value_changes() {
        assert_eq!(with(LINES, "b", "\"x\""), LINES.replace(": 1,", ": \"x\","));
        assert_eq!(with(r#" {"\u0062":1} "#, "b", "2"), r#" {"\u0062":2} "#);
    }

    #[test]
    fn a_new_key_comes_last_and_looks_like_the_others() {
        let longer = LINES.replace("2]", "2],\n    \"c\": true");
        assert_eq!(with(LINES, "c", "true"), longer);
        assert_eq!(with("{\"a\":1}", "c", "2"), "{\"a\":1, \"c\": 2}");
        assert_eq!(with("{}", "c", "2"), "{\n  \"c\": 2\n}");
        assert_eq!(with("{ }\n", "c", "2"), "{\n  \"c\": 2\n}\n");
        assert_eq!(set("{}", "c", "2", "").unwrap(), "{\"c\": 2}");
    }

    #[test]
    fn what_is_removed_takes_its_comma_along() {
        assert_eq!(remove(LINES, "b").unwrap(), "{\n\n    \"a\": [1,  2]\n}\n");
        assert_eq!(remove(LINES, "a").unwrap(), "{\n    \"b\" : 1\n}\n");
        assert_eq!(remove(LINES, "c").unwrap(), LINES);
        assert_eq!(remove("{\"a\": 1}", "a").unwrap(), "{}");
        assert_eq!(remove("{\"a\": \"},\" , \"b\": 2}", "a").unwrap(), "{ \"b\": 2}");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "[]", "{\"a\": 1,}"] {
            assert!(set(text, "a", "1", "").is_err() && remove(text, "a").is_err(), "{text}");
        }
    }
}
