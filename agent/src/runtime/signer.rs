//! The seam behind which the audit key lives: a file now, a token or TPM for whoever has one.

use std::fmt;

use jtnt_proto::key::PublicKey;

/// Signs with the agent's audit key.
pub trait AuditSigner: fmt::Debug + Send + Sync {
    /// The public half.
    fn public_key(&self) -> PublicKey;

    /// An Ed25519 signature over `message`.
    fn sign(&self, message: &[u8]) -> [u8; 64];
}
