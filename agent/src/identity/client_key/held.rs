//! A key that is kept elsewhere, as TLS and requests for certificates want one.

use std::{fmt, sync::Arc};

use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    Error, OtherError, SignatureAlgorithm, SignatureScheme,
    sign::{Signer, SigningKey, public_key_to_spki},
};
use rustls_pki_types::{SubjectPublicKeyInfoDer, alg_id};
use sha2::{Digest as _, Sha256};

use super::Unsigned;
use crate::runtime::signer::TlsSigner;

/// See [`TlsSigner`].
#[derive(Clone)]
pub(super) struct Held(pub(super) Arc<dyn TlsSigner>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({:?})", self.0)
    }
}

impl Held {
    /// `Ecdsa-Sig-Value` (RFC 3279, 2.2.3).
    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, Unsigned> {
        let signature = self.0.sign(&Sha256::digest(message).into()).map_err(Unsigned)?;
        let (r, s) = signature.split_at(32);
        Ok(yasna::construct_der(|der| {
            der.write_sequence(|both| {
                both.next().write_bigint_bytes(r, true);
                both.next().write_bigint_bytes(s, true);
            });
        }))
    }
}

impl SigningKey for Held {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let known = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        known.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(spki(self.0.point()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Held {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.signature(message).map_err(|e| Error::Other(OtherError(Arc::new(e))))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

impl PublicKeyData for Held {
    fn der_bytes(&self) -> &[u8] {
        self.0.point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// What makes a request for a certificate asks for no reason, so it is told here.
impl rcgen::SigningKey for Held {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signature(message).map_err(|error| {
            tracing::warn!(%error, "no request for a cert");
            rcgen::Error::RemoteKeyError
        })
    }
}

/// `SubjectPublicKeyInfo` of a point of P-256.
pub(super) fn spki(point: &[u8; 65]) -> SubjectPublicKeyInfoDer<'static> {
    public_key_to_spki(&alg_id::ECDSA_P256, point)
}
