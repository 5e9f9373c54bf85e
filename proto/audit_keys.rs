//! How an audit key gives way to another: the old one signs a line that names the new one, and the new
//! one accepts the log at that place.

use crate::{
    audit::{Event, Line, SealedLine},
    bytes::from_base64,
    key::PublicKey,
};

/// What a new key signs to accept a log begins with this.
pub const ACCEPTANCE_DOMAIN: &str = "jtnt-audit-key/v1";
/// The most times that an agent's key is replaced.
pub const MAX_ROTATIONS: usize = 64;

/// What a new audit key signs to take a log over: [`ACCEPTANCE_DOMAIN`], the agent's id, the `seq`
/// and the `prev` of the `key_rotated` line, and the new key, each on a line of its own that ends
/// in LF. The base64 of that signature stands in the line's `details.acceptance`, the new key in
/// `details.public_key`; the line itself is signed by the old key. `prev` binds all history, so
/// the new key vouches for exactly the log it was given.
#[must_use]
pub fn acceptance_message(agent_id: &str, seq: u64, prev: &str, new_key: &PublicKey) -> Vec<u8> {
    format!("{ACCEPTANCE_DOMAIN}\n{agent_id}\n{seq}\n{prev}\n{new_key}\n").into_bytes()
}

/// The key that a line names.
pub(crate) fn key_in(line: &Line) -> Option<PublicKey> {
    PublicKey::parse(line.details.get("public_key")?.as_str()?)
}

/// The new key of a `key_rotated` line, if it has accepted the log.
pub(crate) fn accepted(line: &Line) -> Option<PublicKey> {
    let new = key_in(line)?;
    let message = acceptance_message(&line.agent_id, line.seq, &line.prev, &new);
    let signature = line.details.get("acceptance")?.as_str().and_then(from_base64)?;
    new.verifies(&message, &signature).then_some(new)
}

/// The key that took the place of `known`, by this line of the agent's log; nothing where the line
/// shows no such thing.
#[must_use]
pub fn rotated(known: &PublicKey, agent_id: &str, raw: &[u8]) -> Option<PublicKey> {
    let sealed = SealedLine::parse(raw).ok()?;
    let line = &sealed.line;
    let told = line.event == Event::KeyRotated.name() && line.agent_id == agent_id;
    (told && sealed.is_signed_by(known)).then(|| accepted(line))?
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};
    use serde_json::json;

    use super::*;
    use crate::{audit::seal, bytes::to_base64};

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    /// A line by the first key that names the second, accepted by the third.
    fn line(agent: &str, event: &str, keys: (u8, u8, u8)) -> Vec<u8> {
        let new = PublicKey::of(&key(keys.1));
        let message = acceptance_message("a", 7, "p", &new);
        let acceptance = to_base64(&key(keys.2).sign(&message).to_bytes());
        let line = json!({
            "timestamp": "2026-06-01T00:00:00Z", "type": "audit", "event": event, "agent_id": agent,
            "details": {"public_key": new.to_string(), "acceptance": acceptance},
            "seq": 7, "prev": "p",
        });
        let line: Line = serde_json::from_value(line).unwrap();
        seal(&line, |text| key(keys.0).sign(text).to_bytes()).unwrap()
    }

    #[test]
    fn a_key_follows_by_the_old_ones_word_and_its_own() {
        let known = PublicKey::of(&key(1));
        let of = |raw: &[u8]| rotated(&known, "a", raw);
        assert_eq!(of(&line("a", "key_rotated", (1, 2, 2))), Some(PublicKey::of(&key(2))));
        for bad in [
            line("a", "key_rotated", (3, 2, 2)),
            line("a", "key_rotated", (1, 2, 3)),
            line("b", "key_rotated", (1, 2, 2)),
            line("a", "startup", (1, 2, 2)),
            b"{}".to_vec(),
        ] {
            assert_eq!(of(&bad), None, "{}", String::from_utf8_lossy(&bad));
        }
    }
}
