//! Ed25519 keys as the project writes them: the public key, its id, and strict verification.

use std::fmt;

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::bytes::{Hash, from_base64, to_base64};

/// SHA-256 of a raw Ed25519 public key. A hint where a signature names it, an identity where a
/// root document lists it.
pub type KeyId = Hash;

/// An Ed25519 public key (RFC 8032); 44 characters of base64 in text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads the 32 raw bytes; refuses what is not a point, and points of small order.
    #[must_use]
    pub fn from_bytes(raw: &[u8; 32]) -> Option<Self> {
        VerifyingKey::from_bytes(raw).ok().filter(|k| !k.is_weak()).map(Self)
    }

    /// Reads standard base64.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_bytes(&from_base64(text)?)
    }

    /// The public half of `key`.
    #[must_use]
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key())
    }

    /// The 32 raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        Hash::of(self.as_bytes())
    }

    /// Whether `signature` is this key's over `message`, by the strict rules of `verify_strict`
    /// (no malleability, no small-order components).
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_base64(self.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("expected an Ed25519 public key"))
    }
}
