//! A key in a token. `client.key` holds its URI and, so that nobody has to ask the token, its
//! public half.

use std::sync::Arc;

use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
use x509_parser::{prelude::FromDer as _, x509::SubjectPublicKeyInfo};

pub(super) use crate::platform::keys::token::{destroy, list};

use super::held;
use crate::{
    domain::key_store::TokenUri, identity::x509, platform::keys::token, runtime::signer::TlsSigner,
};

#[derive(Debug)]
struct TokenKey {
    uri: TokenUri,
    point: [u8; 65],
}

impl TlsSigner for TokenKey {
    fn point(&self) -> &[u8; 65] {
        &self.point
    }

    fn sign(&self, sha256: &[u8; 32]) -> Result<[u8; 64], String> {
        token::sign(&self.uri, sha256)
    }
}

/// Makes one; the content of its file, and the key.
pub(super) fn make(uri: &TokenUri) -> Result<(String, Arc<dyn TlsSigner>), String> {
    let point = token::make(uri)?;
    let file = format!("{uri}\n{}", x509::block("PUBLIC KEY", &held::spki(&point)));
    Ok((file, Arc::new(TokenKey { uri: uri.clone(), point })))
}

/// The one of which a file tells.
pub(super) fn open(uri: &TokenUri, file: &[u8]) -> Result<Arc<dyn TlsSigner>, String> {
    let spki = SubjectPublicKeyInfoDer::from_pem_slice(file)
        .map_err(|e| format!("no public key in PEM below the URI: {e}"))?;
    let point = point(&spki).ok_or("the public key below the URI is none of P-256")?;
    Ok(Arc::new(TokenKey { uri: uri.clone(), point }))
}

/// The point in a `SubjectPublicKeyInfo`; nothing where it is not one of P-256.
fn point(spki_der: &[u8]) -> Option<[u8; 65]> {
    let (_, info) = SubjectPublicKeyInfo::from_der(spki_der).ok()?;
    let point = info.subject_public_key.data.as_ref().try_into().ok()?;
    (held::spki(&point).as_ref() == spki_der).then_some(point)
}
