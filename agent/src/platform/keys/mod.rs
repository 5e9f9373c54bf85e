//! Devices that keep keys and sign with them: tokens behind PKCS#11, and the TPM. Every call blocks,
//! as long as the device takes.

#[cfg(feature = "pkcs11")]
pub mod token;
#[cfg(feature = "tpm2")]
pub mod tpm;
mod turn;

/// A point of P-256, uncompressed (SEC 1, 2.3.3).
pub type Point = [u8; 65];
/// r and s of an ECDSA signature by P-256.
pub type Signature = [u8; 64];
