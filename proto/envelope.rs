//! The one envelope for everything signed: DSSE v1 (secure-systems-lab/dsse) with Ed25519.
//!
//! What is signed is the pre-authentication encoding of type and payload, so that a policy can
//! never pass as a job. Deciding *which* keys count, and how many, is the agent's keyring; here
//! are only the bytes.

use std::collections::BTreeSet;

use ed25519_dalek::{Signer as _, SigningKey};
use serde::{Deserialize, Serialize};

use crate::{
    bytes::Base64,
    key::{KeyId, PublicKey},
};

/// An envelope carries at most this many signatures.
pub const MAX_SIGNATURES: usize = 16;
/// The largest payload any document may have, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// What a payload is. The signed bytes name it, so it is checked before the payload is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PayloadType {
    /// [`crate::root::Root`].
    #[serde(rename = "application/vnd.jtnt.root.v1+json")]
    Root,
    /// [`crate::policy::Policy`].
    #[serde(rename = "application/vnd.jtnt.policy.v1+json")]
    Policy,
    /// [`crate::job::Job`].
    #[serde(rename = "application/vnd.jtnt.job.v1+json")]
    Job,
    /// [`crate::job::Cancel`].
    #[serde(rename = "application/vnd.jtnt.cancel.v1+json")]
    Cancel,
    /// [`crate::job::ScriptEndorsement`].
    #[serde(rename = "application/vnd.jtnt.script.v1+json")]
    Script,
    /// [`crate::update::Manifest`].
    #[serde(rename = "application/vnd.jtnt.update-manifest.v1+json")]
    UpdateManifest,
    /// [`crate::update::Freshness`].
    #[serde(rename = "application/vnd.jtnt.timestamp.v1+json")]
    Timestamp,
}

impl PayloadType {
    /// The media type that is signed.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Root => "application/vnd.jtnt.root.v1+json",
            Self::Policy => "application/vnd.jtnt.policy.v1+json",
            Self::Job => "application/vnd.jtnt.job.v1+json",
            Self::Cancel => "application/vnd.jtnt.cancel.v1+json",
            Self::Script => "application/vnd.jtnt.script.v1+json",
            Self::UpdateManifest => "application/vnd.jtnt.update-manifest.v1+json",
            Self::Timestamp => "application/vnd.jtnt.timestamp.v1+json",
        }
    }
}

/// A signed document on the wire and on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// What the payload is.
    #[serde(rename = "payloadType")]
    pub payload_type: PayloadType,
    /// The exact bytes that were signed.
    pub payload: Base64,
    /// Signatures, in no order that matters.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature of an [`Envelope`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// Which key to try; unauthenticated, so only a hint.
    pub keyid: KeyId,
    /// 64 bytes over [`pae`].
    pub sig: Base64,
}

/// DSSE's pre-authentication encoding: `DSSEv1 SP len SP type SP len SP payload`.
#[must_use]
pub fn pae(payload_type: PayloadType, payload: &[u8]) -> Vec<u8> {
    let kind = payload_type.media_type();
    let mut out = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

impl Envelope {
    /// Signs `payload` with each of `keys`.
    #[must_use]
    pub fn sign(payload_type: PayloadType, payload: Vec<u8>, keys: &[&SigningKey]) -> Self {
        let message = pae(payload_type, &payload);
        let signatures = keys
            .iter()
            .map(|key| EnvelopeSignature {
                keyid: PublicKey::of(key).id(),
                sig: Base64(key.sign(&message).to_bytes().to_vec()),
            })
            .collect();
        Self { payload_type, payload: Base64(payload), signatures }
    }

    /// Which of `keys` signed this. Each key counts once, however often it signed; every check is
    /// strict, and a signature beyond [`MAX_SIGNATURES`] is not looked at.
    #[must_use]
    pub fn signers(&self, keys: &[PublicKey]) -> BTreeSet<KeyId> {
        let message = pae(self.payload_type, &self.payload.0);
        self.signatures
            .iter()
            .take(MAX_SIGNATURES)
            .filter_map(|s| {
                let key = keys.iter().find(|k| k.id() == s.keyid)?;
                let sig: &[u8; 64] = s.sig.0.as_slice().try_into().ok()?;
                key.verifies(&message, sig).then_some(s.keyid)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    #[test]
    fn pae_is_the_one_of_the_specification() {
        let kind = "application/vnd.jtnt.job.v1+json";
        assert_eq!(pae(PayloadType::Job, b"{}"), format!("DSSEv1 32 {kind} 2 {{}}").as_bytes());
    }

    #[test]
    fn the_media_type_is_the_serialised_name() {
        for t in [PayloadType::Root, PayloadType::Policy, PayloadType::Job, PayloadType::Cancel] {
            assert_eq!(serde_json::to_value(t).unwrap(), t.media_type());
        }
    }

    #[test]
    fn each_key_counts_once() {
        let (a, b) = (key(1), key(2));
        let signed = Envelope::sign(PayloadType::Policy, b"{}".to_vec(), &[&a, &a, &b]);
        let keys = [PublicKey::of(&a), PublicKey::of(&b)];
        assert_eq!(signed.signers(&keys).len(), 2);
        assert_eq!(signed.signers(&keys[..1]).len(), 1);
    }

    #[test]
    fn another_type_or_payload_is_not_signed() {
        let a = key(1);
        let keys = [PublicKey::of(&a)];
        let signed = Envelope::sign(PayloadType::Policy, b"{}".to_vec(), &[&a]);
        let other_type = Envelope { payload_type: PayloadType::Job, ..signed.clone() };
        assert!(other_type.signers(&keys).is_empty());
        let other_bytes = Envelope { payload: Base64(b"{ }".to_vec()), ..signed };
        assert!(other_bytes.signers(&keys).is_empty());
    }
}
