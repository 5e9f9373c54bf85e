//! The private key of the client certificate, wherever it is kept: `client.key` holds it, or says
//! where it is. Whoever moves, backs up or removes the file need not know which.

use std::{fmt, sync::Arc};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey,
};
use rustls::{Error, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::tls;

/// A key for TLS.
pub struct ClientKey {
    signs: Arc<dyn rustls::sign::SigningKey>,
}

impl ClientKey {
    /// With its certificate, leaf first.
    ///
    /// # Errors
    /// When the certificate is another key's.
    pub fn with(self, chain: Vec<CertificateDer<'static>>) -> Result<CertifiedKey, String> {
        let pair = CertifiedKey::new(chain, self.signs);
        match pair.keys_match() {
            Ok(()) => Ok(pair),
            Err(Error::InconsistentKeys(_)) => {
                Err("the private key does not fit the cert".to_owned())
            }
            Err(e) => Err(e.to_string()),
        }
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKey")
    }
}

/// A key that was just made.
pub struct NewKey {
    /// For `client.key`.
    pub file: Zeroizing<Vec<u8>>,
    /// What asks for its certificate: PKCS#10 in PEM.
    pub csr: String,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("csr", &self.csr).finish_non_exhaustive()
    }
}

/// Makes a key (ECDSA P-256) for this agent.
///
/// # Errors
/// When none can be made.
pub fn make(agent_id: &str) -> Result<NewKey, String> {
    let key =
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| format!("no TLS key: {e}"))?;
    let csr = request(&key, agent_id)?;
    Ok(NewKey { file: Zeroizing::new(key.serialize_pem().into_bytes()), csr })
}

fn request(key: &impl SigningKey, agent_id: &str) -> Result<String, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, agent_id);
    let csr = params.serialize_request(key).and_then(|csr| csr.pem());
    csr.map_err(|e| format!("the key signs no request for a cert: {e}"))
}

/// The key of which `client.key` tells.
///
/// # Errors
/// When there is none, or it cannot be used.
pub fn open(file: &[u8]) -> Result<ClientKey, String> {
    let der = PrivateKeyDer::from_pem_slice(file)
        .map_err(|e| format!("not a private key in PEM: {e}"))?;
    let signs = tls::provider().key_provider.load_private_key(der).map_err(|e| e.to_string())?;
    Ok(ClientKey { signs })
}
