//! The seam behind which keys live: the audit key, in a file now; and a key for TLS that is kept
//! elsewhere.

use std::{fmt, io, sync::Arc};

use jtnt_proto::key::PublicKey;

/// Signs with the agent's audit key.
pub trait AuditSigner: fmt::Debug + Send + Sync {
    /// The public half.
    fn public_key(&self) -> PublicKey;

    /// An Ed25519 signature over `message`.
    fn sign(&self, message: &[u8]) -> [u8; 64];

    /// Every key that it has had, the first first, this one last.
    fn keys(&self) -> Vec<PublicKey> {
        vec![self.public_key()]
    }

    /// Makes the key that is to take its place, durable and not in force before [`Self::adopt`].
    ///
    /// # Errors
    /// When it cannot be made or kept.
    fn propose(&self) -> io::Result<Arc<dyn AuditSigner>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Puts the proposed key in force. The log tells of it by then, durably.
    ///
    /// # Errors
    /// When it cannot be put in place; it is, at the next [`Self::settle`].
    fn adopt(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Ends a replacement that a crash interrupted: done where the log's last line tells of the
    /// proposed key, else undone.
    ///
    /// # Errors
    /// As [`Self::adopt`].
    fn settle(&self, told: Option<PublicKey>) -> io::Result<()> {
        let _nothing_was_proposed = told;
        Ok(())
    }
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
