//! The seam behind which keys live: the audit key, in a file now; and a key for TLS that is kept
//! elsewhere.

use std::fmt;

use jtnt_proto::key::PublicKey;

/// Signs with the agent's audit key.
pub trait AuditSigner: fmt::Debug + Send + Sync {
    /// The public half.
    fn public_key(&self) -> PublicKey;

    /// An Ed25519 signature over `message`.
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

/// Signs with a key for TLS (ECDSA, P-256) that its keeper gives to nobody. Blocks.
pub trait TlsSigner: fmt::Debug + Send + Sync {
    /// The public half: a point, uncompressed (SEC 1, 2.3.3).
    fn point(&self) -> &[u8; 65];

    /// r and s of a signature over what has this SHA-256.
    ///
    /// # Errors
    /// When the keeper is not there, or does not sign.
    fn sign(&self, sha256: &[u8; 32]) -> Result<[u8; 64], String>;
}
