//! Strict JSON for everything that was signed or came over the network: duplicate keys and deep
//! nesting are refused before a type is built, so that two readers cannot see two documents.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserialize,
    de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Nesting beyond this is refused.
pub const MAX_DEPTH: usize = 32;
/// Keys that mean something to the parser: behind one of them it reads a text as a document of its
/// own, which nobody else would do, and in which nothing was checked.
const PARSERS_OWN: &str = "$serde_json::private::";

/// Why bytes are not an acceptable document.
#[derive(Debug)]
pub struct JsonError {
    error: serde_json::Error,
    line: usize,
    column: usize,
}

impl JsonError {
    fn of(error: serde_json::Error, bytes: &[u8]) -> Self {
        let (line, column) =
            if error.is_eof() { end(bytes) } else { (error.line(), error.column()) };
        Self { error, line, column }
    }

    /// Line of the fault, from 1; 0 when it has none.
    #[must_use]
    pub const fn line(&self) -> usize {
        self.line
    }

    /// Column of the fault, from 1; 0 when it has none.
    #[must_use]
    pub const fn column(&self) -> usize {
        self.column
    }

    /// What is wrong, without the place.
    #[must_use]
    pub fn message(&self) -> String {
        let text = self.error.to_string();
        let place = format!(" at line {} column {}", self.error.line(), self.error.column());
        text.strip_suffix(&place).unwrap_or(&text).to_owned()
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        if self.line == 0 {
            Ok(())
        } else {
            write!(f, " at line {} column {}", self.line, self.column)
        }
    }
}

impl std::error::Error for JsonError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Line and column, from 1, right behind the last character that says something: where a document
/// that was cut off goes on. The parser says column 0 of a line that no editor shows.
#[must_use]
pub fn end(bytes: &[u8]) -> (usize, usize) {
    let said = bytes.trim_ascii_end();
    let begun = said.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let line = said.iter().filter(|b| **b == b'\n').count() + 1;
    (line, said.len() - begun + 1)
}

/// Reads one `T`, refusing duplicate keys, nesting beyond [`MAX_DEPTH`] and trailing bytes.
///
/// # Errors
/// The first fault found, with its line and column.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let read = || {
        let mut shape = serde_json::Deserializer::from_slice(bytes);
        Shape(MAX_DEPTH).deserialize(&mut shape)?;
        shape.end()?;
        serde_json::from_slice(bytes)
    };
    read().map_err(|error| JsonError::of(error, bytes))
}

/// Reads a `T` as its author writes it: the `fields` at its top may be absent and are filled in.
///
/// # Errors
/// As [`from_slice`], with the place in `bytes`; only a field that is missing at the top beside
/// those has none.
pub fn from_slice_filled<T: DeserializeOwned>(
    bytes: &[u8],
    fields: &[(&str, Value)],
) -> Result<T, JsonError> {
    // Faults are looked for in the bytes themselves, since the filled document has other places.
    match from_slice(bytes) {
        Err(error) if fields.iter().any(|(name, _)| error.message() == missing(name)) => {}
        other => return other,
    }
    let mut document: Map<String, Value> = from_slice(bytes)?;
    for (name, value) in fields {
        document.entry(*name).or_insert_with(|| value.clone());
    }
    serde_json::from_value(Value::Object(document)).map_err(|error| JsonError::of(error, bytes))
}

fn missing(field: &str) -> String {
    format!("missing field `{field}`")
}

/// An object right below the top of a document, walked as [`from_slice`] walks it and not kept.
#[derive(Debug, Default)]
pub(crate) struct Walked;

impl<'de> Deserialize<'de> for Walked {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(Shape(MAX_DEPTH - 1)).map(|()| Self)
    }
}

/// Walks a document without keeping it, `0` levels deep at most.
struct Shape(usize);

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let below = self.deeper()?;
        while seq.next_element_seed(Self(below))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let below = self.deeper()?;
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<Key>()? {
            if key.0.starts_with(PARSERS_OWN) {
                return Err(A::Error::custom(format_args!("the key {:?} is not allowed", key.0)));
            }
            map.next_value_seed(Self(below))?;
            if let Some(Key(twice)) = seen.replace(key) {
                return Err(A::Error::custom(format_args!("the key {twice:?} stands twice")));
            }
        }
        Ok(())
    }
}

impl Shape {
    fn deeper<E: serde::de::Error>(&self) -> Result<usize, E> {
        self.0
            .checked_sub(1)
            .ok_or_else(|| E::custom(format_args!("nested more than {MAX_DEPTH} levels deep")))
    }
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Key(String);

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        from_slice::<Value>(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_at_any_depth() {
        assert!(refused(r#"{"a":1,"a":1}"#).contains(r#""a" stands twice"#));
        assert!(refused(r#"{"x":[{"a":1,"b":2,"a":3}]}"#).contains(r#""a" stands twice"#));
        // The escape spells the same key.
        assert!(refused(r#"{"a":1,"\u0061":1}"#).contains(r#""a" stands twice"#));
    }

    #[test]
    fn what_the_parser_would_read_as_another_document_is_refused() {
        let hidden = r#"{"x":{"$serde_json::private::RawValue":"{\"a\":1,\"a\":2}"}}"#;
        assert_eq!(serde_json::from_str::<Value>(hidden).unwrap()["x"]["a"], 2);
        assert!(refused(hidden).contains("is not allowed"));
    }

    #[test]
    fn a_document_that_was_cut_off_has_its_place_behind_what_is_there() {
        let cut = |text: &str| from_slice::<Value>(text.as_bytes()).unwrap_err();
        for (text, line, column) in [("", 1, 1), ("{\n  \"a\": 1,\n\n", 2, 10), ("[1", 1, 3)] {
            let error = cut(text);
            assert_eq!((error.line(), error.column()), (line, column), "{text:?}: {error}");
            assert!(error.to_string().ends_with(&format!(" at line {line} column {column}")));
        }
    }

    #[test]
    fn what_is_filled_in_moves_no_fault() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "it is only read into")]
        struct Draft {
            id: u64,
            rules: Vec<Rule>,
            version: u64,
        }
        #[derive(Debug, Deserialize)]
        struct Rule {
            #[expect(dead_code, reason = "it is only read into")]
            path: String,
        }
        let read = |text: &str| {
            let read = from_slice_filled::<Draft>(text.as_bytes(), &[("id", 7.into())]);
            read.map(|draft| draft.id).map_err(|e| e.to_string())
        };
        assert_eq!(read(r#"{"version": 1, "rules": []}"#), Ok(7));
        assert_eq!(read(r#"{"version": 1, "rules": [], "id": 8}"#), Ok(8));
        for (text, fault) in [
            ("{\"version\": 1,\n\"rules\": [{}]}", "missing field `path` at line 2 column 12"),
            ("{\"version\": 1,\n\"rulse\": []}", "at line 2 column 7"),
            ("{\"rules\": []}", "missing field `version`"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused == fault || refused.ends_with(&format!(" {fault}")), "{refused}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nest = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert!(from_slice::<Value>(nest(MAX_DEPTH).as_bytes()).is_ok());
        assert!(refused(&nest(MAX_DEPTH + 1)).contains("levels deep"));
    }

    #[test]
    fn trailing_bytes_and_trailing_commas_are_refused() {
        assert!(refused("{} {}").contains("trailing"));
        assert!(refused(r#"{"a":1,}"#).contains("trailing comma"));
    }
}
