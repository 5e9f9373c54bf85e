//! Who an agent is: an id that follows from its audit key, and the proofs that it holds that key.

use crate::{bytes::Hash, key::PublicKey};

/// The agent's id: a UUIDv8 (RFC 9562, 5.8) whose free bits are the first of the SHA-256 of its
/// first audit public key. The hub can check it and can assign no other.
#[must_use]
pub fn agent_id(audit_key: &PublicKey) -> String {
    let mut id = [0_u8; 16];
    id.copy_from_slice(Hash::of(audit_key.as_bytes()).0.split_at(16).0);
    id[6] = (id[6] & 0x0f) | 0x80;
    id[8] = (id[8] & 0x3f) | 0x80;
    let h = hex::encode(id);
    let part = |from: usize, to: usize| h.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// Whether `text` is a job, policy or rule id: `[A-Za-z0-9_-]{1,64}`.
#[must_use]
pub fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What the audit key signs when an agent enrols: the token, the TLS key's request and the id,
/// each by hash, so that none of them can be moved to another request.
#[must_use]
pub fn enroll_proof_message(token: &str, csr_pem: &str, agent_id: &str) -> Vec<u8> {
    let (token, csr) = (Hash::of(token.as_bytes()), Hash::of(csr_pem.as_bytes()));
    format!("jtnt-enroll/v1\n{agent_id}\n{token}\n{csr}\n").into_bytes()
}

/// What the audit key signs when a certificate is renewed: the request, the certificate it
/// replaces (serial in lower hex), and when.
#[must_use]
pub fn renew_proof_message(agent_id: &str, serial: &str, csr_pem: &str, at: &str) -> Vec<u8> {
    let csr = Hash::of(csr_pem.as_bytes());
    format!("jtnt-renew/v1\n{agent_id}\n{serial}\n{csr}\n{at}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    #[test]
    fn the_id_is_a_uuid_of_version_8_and_follows_from_the_key() {
        let key = PublicKey::of(&SigningKey::from_bytes(&[7; 32]));
        let id = agent_id(&key);
        assert_eq!(id, agent_id(&key));
        let digits: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(digits, [8, 4, 4, 4, 12]);
        assert_eq!(id.as_bytes()[14], b'8');
        assert!(b"89ab".contains(&id.as_bytes()[19]));
    }

    #[test]
    fn ids_are_short_and_plain() {
        assert!(is_id("job-1_A"));
        for bad in ["", "a/b", "..", "a b", "é", &"x".repeat(65)] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
