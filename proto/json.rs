//! Strict JSON for everything that was signed or came over the network: duplicate keys and deep
//! nesting are refused before a type is built, so that two readers cannot see two documents.

use std::{collections::BTreeSet, fmt};

use serde::{
    Deserialize,
    de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};

/// Nesting beyond this is refused.
pub const MAX_DEPTH: usize = 32;

/// Why bytes are not an acceptable document.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(#[from] serde_json::Error);

impl JsonError {
    /// Line of the fault, from 1; 0 when it has none.
    #[must_use]
    pub fn line(&self) -> usize {
        self.0.line()
    }

    /// Column of the fault, from 1; 0 when it has none.
    #[must_use]
    pub fn column(&self) -> usize {
        self.0.column()
    }
}

/// Reads one `T`, refusing duplicate keys, nesting beyond [`MAX_DEPTH`] and trailing bytes.
///
/// # Errors
/// The first fault found, with its line and column.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let mut shape = serde_json::Deserializer::from_slice(bytes);
    Shape(MAX_DEPTH).deserialize(&mut shape)?;
    shape.end()?;
    Ok(serde_json::from_slice(bytes)?)
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
        from_slice::<serde_json::Value>(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_at_any_depth() {
        assert!(refused(r#"{"a":1,"a":1}"#).contains(r#""a" stands twice"#));
        assert!(refused(r#"{"x":[{"a":1,"b":2,"a":3}]}"#).contains(r#""a" stands twice"#));
        // The escape spells the same key.
        assert!(refused(r#"{"a":1,"\u0061":1}"#).contains(r#""a" stands twice"#));
    }

    #[test]
    fn depth_is_bounded() {
        let nest = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert!(from_slice::<serde_json::Value>(nest(MAX_DEPTH).as_bytes()).is_ok());
        assert!(refused(&nest(MAX_DEPTH + 1)).contains("levels deep"));
    }

    #[test]
    fn trailing_bytes_and_trailing_commas_are_refused() {
        assert!(refused("{} {}").contains("trailing"));
        assert!(refused(r#"{"a":1,}"#).contains("trailing comma"));
    }
}
