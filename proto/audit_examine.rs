//! What of checking a line needs no line before it: its shape, its signature, its hash. That is nearly
//! all the work, so it may be done by any thread, before its turn.
//!
//! Little is kept of a line, whatever it says, so that many can wait for their turn. The few that
//! say more than where they stand are read again by whoever needs that.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    audit::{Event, Line, LineFault, Seal, SealedLine, leaf_hash},
    bytes::{Hash, from_base64},
    json::Walked,
    key::PublicKey,
};

/// Lines whose `details` change how others are read.
const NOTABLE: [Event; 3] = [Event::Genesis, Event::KeyRotated, Event::Prune];

/// A line, looked at by itself.
pub(crate) struct Examined<'a> {
    raw: &'a [u8],
    /// The key that was tried, and whether it signed the line.
    signed: Option<(&'a PublicKey, bool)>,
    /// Where it says it stands.
    pub(crate) place: Result<Place, LineFault>,
}

/// What its place in a log depends on.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    /// Nothing where no hash is written like that.
    pub(crate) prev: Option<Hash>,
    pub(crate) hash: Hash,
    /// It is one of those that are to be read in full.
    pub(crate) notable: bool,
}

impl<'a> Examined<'a> {
    /// Looks at a line without its LF, which `key` should have signed.
    pub(crate) fn of(raw: &'a [u8], key: Option<&'a PublicKey>) -> Self {
        match Seal::of(raw).and_then(|seal| Ok((seal, Place::of(raw)?))) {
            Ok((seal, place)) => {
                let signed = key.map(|key| (key, seal.is_by(key)));
                Self { raw, signed, place: Ok(place) }
            }
            Err(fault) => Self { raw, signed: None, place: Err(fault) },
        }
    }

    /// Whether this key signed it; another than was expected has to be tried now.
    pub(crate) fn is_signed_by(&self, key: &PublicKey) -> bool {
        match self.signed {
            Some((tried, signed)) if tried == key => signed,
            _ => Seal::of(self.raw).is_ok_and(|seal| seal.is_by(key)),
        }
    }

    /// All that the line says.
    pub(crate) fn line(&self) -> Option<Line> {
        SealedLine::parse(self.raw).ok().map(|sealed| sealed.line)
    }
}

impl Place {
    fn of(raw: &[u8]) -> Result<Self, LineFault> {
        if let Some(brief) = Brief::of(raw) {
            return Ok(Self::at(raw, brief.seq, &brief.prev, &brief.event));
        }
        let line = SealedLine::parse(raw)?.line;
        Ok(Self::at(raw, line.seq, &line.prev, &line.event))
    }

    fn at(raw: &[u8], seq: u64, prev: &str, event: &str) -> Self {
        let notable = NOTABLE.iter().any(|notable| event == notable.text());
        Self { seq, prev: from_base64(prev).map(Hash), hash: leaf_hash(raw), notable }
    }
}

/// A [`Line`] in one pass and without copies. Whatever is a `Brief` is a line that says the same; a
/// line with fields that are not known here is none, and is read the long way.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they are what they have to be is all there is to know of most")]
struct Brief<'a> {
    timestamp: Timestamp,
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    agent_id: Text<'a>,
    job_id: Option<Text<'a>>,
    command: Option<Text<'a>>,
    status: Option<Text<'a>>,
    user: Option<Text<'a>>,
    policy_version: Option<u64>,
    caller: Option<BriefCaller<'a>>,
    origin: Option<Text<'a>>,
    object: Option<Text<'a>>,
    #[serde(default)]
    details: Walked,
    seq: u64,
    #[serde(borrow)]
    prev: Cow<'a, str>,
    #[serde(borrow)]
    signature: Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "as above")]
struct BriefCaller<'a> {
    uid: Option<u32>,
    pid: Option<u32>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

/// Borrowed also where it may be absent.
#[derive(Deserialize)]
#[expect(dead_code, reason = "as above")]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Brief<'a> {
    fn of(raw: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(raw).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::json;

    fn whole() -> Value {
        json!({
            "timestamp": "2026-01-02T03:04:05Z", "type": "audit", "event": "admin_call",
            "agent_id": "agent-1", "job_id": "j", "command": "c", "status": "success", "user": "u",
            "policy_version": 7, "caller": {"uid": 1, "pid": 2, "name": "n"}, "origin": "local",
            "object": "o", "details": {"a": {"b": [1, "x", null, 1.5]}}, "seq": 3, "prev": "p",
            "signature": "s",
        })
    }

    /// What both ways make of a document: the long one has the word, and the short one may pass.
    fn both(text: &str) -> (bool, bool) {
        let long = json::from_slice::<Line>(text.as_bytes()).ok();
        let short = Brief::of(text.as_bytes());
        if let Some(short) = &short {
            let long = long.as_ref().unwrap_or_else(|| panic!("only the short way: {text}"));
            assert_eq!(
                (short.seq, &*short.prev, &*short.event),
                (long.seq, &*long.prev, &*long.event)
            );
        }
        (long.is_some(), short.is_some())
    }

    #[test]
    fn the_short_way_takes_every_line_that_an_agent_writes() {
        assert_eq!(both(&whole().to_string()), (true, true));
        for absent in ["job_id", "command", "status", "user", "policy_version", "caller", "details"]
        {
            let mut line = whole();
            line.as_object_mut().unwrap().remove(absent);
            assert_eq!(both(&line.to_string()), (true, true), "{absent}");
        }
        let escaped = whole().to_string().replace("admin_call", "admin\\u005fcall");
        assert_eq!(both(&escaped), (true, true));
        let newer = whole().to_string().replacen('{', "{\"later\":1,", 1);
        assert_eq!(both(&newer), (true, false));
    }

    #[test]
    fn the_short_way_takes_nothing_that_is_no_line() {
        let values = [
            "null",
            "1",
            "-1",
            "1.5",
            "1e999",
            "true",
            "\"\"",
            "\"\\ud800\"",
            "[]",
            "[1,2,\"n\"]",
            "{}",
            r#"{"uid":1,"uid":1}"#,
            r#"{"later":1}"#,
            r#"{"later":1,"later":1}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"$serde_json::private::RawValue":"{\"a\":1,\"a\":1}"}"#,
            r#"{"a":{"$serde_json::private::RawValue":"1 1"}}"#,
            "18446744073709551616",
        ];
        let deep = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
        let deep = [json::MAX_DEPTH - 3, json::MAX_DEPTH - 2, json::MAX_DEPTH - 1].map(deep);
        let whole = whole();
        for (field, was) in whole.as_object().unwrap() {
            let was = format!("\"{field}\":{was}");
            let text = whole.to_string();
            assert!(text.contains(&was), "{was}");
            both(&text.replacen(&was, &format!("{was},{was}"), 1));
            for value in values.iter().copied().chain(deep.iter().map(String::as_str)) {
                both(&text.replacen(&was, &format!("\"{field}\":{value}"), 1));
            }
            let mut less = whole.clone();
            less.as_object_mut().unwrap().remove(field);
            both(&less.to_string());
            for end in 0..text.len() {
                both(text.get(..end).unwrap());
            }
        }
    }
}
