//! The proof that a payload was signed: a type with no public constructor.

use std::collections::BTreeSet;

use jtnt_proto::{
    bytes::Hash,
    envelope::{Envelope, MAX_PAYLOAD_BYTES, PayloadType},
    json,
    key::KeyId,
    root::{Role, Root},
};
use serde::de::DeserializeOwned;

use super::TrustError;

/// A payload that the threshold of its role signed, parsed from the very bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    signers: BTreeSet<KeyId>,
    payload_sha256: Hash,
}

impl<T> Verified<T> {
    /// The payload.
    pub const fn get(&self) -> &T {
        &self.value
    }

    /// Who signed it.
    pub const fn signers(&self) -> &BTreeSet<KeyId> {
        &self.signers
    }

    /// SHA-256 of the signed bytes.
    pub const fn payload_sha256(&self) -> Hash {
        self.payload_sha256
    }
}

/// A role of one root, whose signatures are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) root: &'a Root,
    pub(super) role: &'a Role,
    pub(super) name: &'static str,
}

impl Wanted<'_> {
    /// Who of the role signed `envelope`, when they are enough.
    pub(super) fn signers(self, envelope: &Envelope) -> Result<BTreeSet<KeyId>, TrustError> {
        let signers = envelope.signers(&self.root.keys_of(self.role));
        let (valid, threshold) = (signers.len(), self.role.threshold);
        // A threshold of zero would make silence a signature; the root's check refuses it too.
        if threshold == 0 || valid < usize::from(threshold) {
            return Err(TrustError::Threshold { role: self.name, valid, threshold });
        }
        Ok(signers)
    }

    /// Checks kind, then signatures, and only then reads the payload.
    pub(super) fn verify<T: DeserializeOwned>(
        self,
        envelope: &Envelope,
        kind: PayloadType,
    ) -> Result<Verified<T>, TrustError> {
        expect_type(envelope, kind)?;
        let signers = self.signers(envelope)?;
        parse(envelope, signers)
    }
}

/// Refuses an envelope of another kind, or one too long to be any.
pub(super) fn expect_type(envelope: &Envelope, wanted: PayloadType) -> Result<(), TrustError> {
    if envelope.payload_type != wanted {
        return Err(TrustError::WrongType {
            found: envelope.payload_type.media_type(),
            wanted: wanted.media_type(),
        });
    }
    let length = envelope.payload.0.len();
    if length > MAX_PAYLOAD_BYTES {
        return Err(TrustError::TooLong(length));
    }
    Ok(())
}

/// Reads a payload whose signatures were counted by the caller.
pub(super) fn parse<T: DeserializeOwned>(
    envelope: &Envelope,
    signers: BTreeSet<KeyId>,
) -> Result<Verified<T>, TrustError> {
    let payload = &envelope.payload.0;
    let value = json::from_slice(payload).map_err(|e| TrustError::Malformed(e.to_string()))?;
    Ok(Verified { value, signers, payload_sha256: Hash::of(payload) })
}
