//! What of checking a line needs no line before it: its shape, its signature, its hash. That is nearly
//! all the work, so it may be done by any thread, before its turn.
//!
//! Little is kept of a line, whatever it says, so that many can wait for their turn. The few that
//! say more than where they stand are read again by whoever needs that.

use crate::{
    audit::{Event, Line, LineFault, SealedLine},
    bytes::{Hash, from_base64},
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
        let sealed = match SealedLine::parse(raw) {
            Ok(sealed) => sealed,
            Err(fault) => return Self { raw, signed: None, place: Err(fault) },
        };
        let line = &sealed.line;
        let place = Place {
            seq: line.seq,
            prev: from_base64(&line.prev).map(Hash),
            hash: sealed.leaf_hash(),
            notable: NOTABLE.iter().any(|event| line.event == event.text()),
        };
        let signed = key.map(|key| (key, sealed.is_signed_by(key)));
        Self { raw, signed, place: Ok(place) }
    }

    /// Whether this key signed it; another than was expected has to be tried now.
    pub(crate) fn is_signed_by(&self, key: &PublicKey) -> bool {
        match self.signed {
            Some((tried, signed)) if tried == key => signed,
            _ => SealedLine::parse(self.raw).is_ok_and(|sealed| sealed.is_signed_by(key)),
        }
    }

    /// All that the line says.
    pub(crate) fn line(&self) -> Option<Line> {
        SealedLine::parse(self.raw).ok().map(|sealed| sealed.line)
    }
}
