//! The key that secrets of jobs are sealed to: X25519, PKCS#8 in PEM as openssl writes it. It is
//! made with each enrolment, which tells the hub its public half.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jtnt_proto::job::SealedSecret;
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey},
};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::files::{Paths, optional};
use crate::runtime::durable;

/// RFC 8410: a `OneAsymmetricKey` of version 1 for X25519, up to the 32 bytes of the key.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x6e, 4, 0x22, 4, 0x20];
/// Of the key that each secret brings along.
const ENCAPSULATED_BYTES: usize = 32;

/// The private half.
pub struct SealKey(HpkePrivateKey);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey")
    }
}

impl SealKey {
    /// A new key, its public half, and what its file holds.
    ///
    /// # Errors
    /// When the library makes none.
    pub fn generate() -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), String> {
        let (public, private) = SUITE.generate_key_pair().map_err(|e| e.to_string())?;
        Ok((public.0, encode(private.secret_bytes())))
    }

    /// Opens a secret of this job for this agent.
    ///
    /// # Errors
    /// When it was sealed to another key, for another job or by another name, or was changed.
    pub fn open(
        &self,
        (agent_id, job_id): (&str, &str),
        sealed: &SealedSecret,
    ) -> Result<Zeroizing<Vec<u8>>, String> {
        let why = || {
            format!(
                "the secret {:?} was not sealed to this agent's key for this job; seal it again: \
                 the key changes with each enrolment",
                sealed.name
            )
        };
        let (enc, text) = sealed.sealed.0.split_at_checked(ENCAPSULATED_BYTES).ok_or_else(why)?;
        let info = SealedSecret::info(agent_id, job_id, &sealed.name);
        let enc = EncapsulatedSecret(enc.to_vec());
        SUITE
            .open(&enc, &info, &[], text, &self.0)
            .map(Zeroizing::new)
            .map_err(|_no_more_is_told| why())
    }
}

/// The key, where the enrolment made one: older ones did not.
pub(super) fn open(paths: &Paths) -> Result<Option<SealKey>, String> {
    let path = paths.seal_key();
    let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    let Some(pem) = optional(&path).map_err(|e| at(&e))?.map(Zeroizing::new) else {
        return Ok(None);
    };
    durable::private(&path)?;
    let key = decode(&pem).ok_or_else(|| at(&"not an X25519 key in PKCS#8 and PEM"))?;
    Ok(Some(SealKey(key)))
}

fn encode(secret: &[u8]) -> Zeroizing<Vec<u8>> {
    let der = Zeroizing::new([&PKCS8[..], secret].concat());
    let body = Zeroizing::new(STANDARD.encode(&*der));
    let pem =
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", body.as_str());
    Zeroizing::new(pem.into_bytes())
}

fn decode(pem: &[u8]) -> Option<HpkePrivateKey> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
    let secret: &[u8; 32] = der.secret_pkcs8_der().strip_prefix(&PKCS8)?.try_into().ok()?;
    Some(HpkePrivateKey::from(secret.to_vec()))
}

#[cfg(test)]
mod tests {
    use jtnt_proto::{bytes::Base64, job::SecretDelivery};
    use rustls::crypto::hpke::HpkePublicKey;

    use super::*;

    #[test]
    fn a_secret_opens_for_its_agent_job_and_name_alone() {
        let (public, file) = SealKey::generate().unwrap();
        assert_eq!(public.len(), 32);
        let key = SealKey(decode(&file).unwrap());
        let info = SealedSecret::info("agent", "job", "token");
        let (enc, text) = SUITE.seal(&info, &[], b"hidden", &HpkePublicKey(public)).unwrap();
        let sealed = |name: &str, bytes: Vec<u8>| SealedSecret {
            name: name.to_owned(),
            delivery: SecretDelivery::Fd,
            sealed: Base64(bytes),
        };
        let bytes = [enc.0, text].concat();
        let good = sealed("token", bytes.clone());
        assert_eq!(*key.open(("agent", "job"), &good).unwrap(), b"hidden");
        assert!(key.open(("other", "job"), &good).is_err());
        assert!(key.open(("agent", "other"), &good).is_err());
        assert!(key.open(("agent", "job"), &sealed("name", bytes.clone())).is_err());
        assert!(key.open(("agent", "job"), &sealed("token", bytes[..40].to_vec())).is_err());
        assert!(key.open(("agent", "job"), &sealed("token", vec![])).is_err());
        let another = SealKey(decode(&SealKey::generate().unwrap().1).unwrap());
        assert!(another.open(("agent", "job"), &good).is_err());
    }
}
