//! How the arguments of a rule are read: by hand, so that a fault says what may stand there and has
//! its place in the document.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};

use crate::policy::{AnyArgs, ArgPattern, ArgSlot, ArgsRule};

const ARGS: &str = r#"args: "any", or a list such as ["status", {"match": "[a-z]+"}]"#;
const SLOT: &str = r#"an argument: "TEXT" for exactly that, or {"match": "PATTERN"}"#;

impl<'de> Deserialize<'de> for ArgsRule {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ArgsVisitor)
    }
}

struct ArgsVisitor;

impl<'de> Visitor<'de> for ArgsVisitor {
    type Value = ArgsRule;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ARGS)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ArgsRule, E> {
        if text == "any" {
            return Ok(ArgsRule::Any(AnyArgs::Any));
        }
        Err(E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ArgsRule, A::Error> {
        let mut slots = Vec::new();
        while let Some(slot) = list.next_element()? {
            slots.push(slot);
        }
        Ok(ArgsRule::Slots(slots))
    }
}

impl<'de> Deserialize<'de> for ArgSlot {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(SlotVisitor)
    }
}

struct SlotVisitor;

impl<'de> Visitor<'de> for SlotVisitor {
    type Value = ArgSlot;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SLOT)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ArgSlot, E> {
        Ok(ArgSlot::Literal(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<ArgSlot, A::Error> {
        ArgPattern::deserialize(MapAccessDeserializer::new(fields)).map(ArgSlot::Pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    fn refused(text: &str) -> String {
        json::from_slice::<ArgsRule>(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_comes_back() {
        for text in [r#""any""#, "[]", r#"["status",{"match":"[a-z]+"}]"#] {
            let rule: ArgsRule = json::from_slice(text.as_bytes()).unwrap();
            assert_eq!(serde_json::to_string(&rule).unwrap(), text);
            let value = serde_json::to_value(&rule).unwrap();
            assert_eq!(serde_json::from_value::<ArgsRule>(value).unwrap(), rule);
        }
    }

    #[test]
    fn a_fault_says_what_may_stand_there_and_where_it_is() {
        for (text, place) in [
            (r#""all""#, "column 5"),
            ("7", "column 1"),
            ("null", "column 4"),
            (r#"{"match": "x"}"#, "column 1"),
        ] {
            let said = refused(text);
            assert!(said.contains(ARGS) && said.ends_with(place), "{said}");
        }
        let said = refused("[\n  \"a\",\n  7]");
        assert!(said.contains(SLOT) && said.ends_with("at line 3 column 3"), "{said}");
        assert!(refused(r#"[{"mach": "x"}]"#).contains("unknown field `mach`, expected `match`"));
    }
}
