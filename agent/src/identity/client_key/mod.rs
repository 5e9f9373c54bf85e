//! The private key of the client certificate, wherever it is kept: `client.key` holds it, or says
//! where it is. Whoever moves, backs up or removes the file need not know which.

#[cfg(not(all(feature = "pkcs11", feature = "tpm2")))]
mod absent;
mod held;
mod sweep;
#[cfg(feature = "pkcs11")]
mod token;
#[cfg(feature = "tpm2")]
mod tpm;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey,
};
use rustls::{Error, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

#[cfg(not(feature = "pkcs11"))]
use self::absent::token;
#[cfg(not(feature = "tpm2"))]
use self::absent::tpm;
use self::held::Held;
use super::tls;
use crate::{
    domain::key_store::{KeyStore, TokenUri},
    runtime::{
        durable,
        entropy::{Entropy, seed},
        signer::TlsSigner,
    },
};

pub use sweep::{Which, abandon, sweep, tokens};

/// Of the id of a key in a token: no two are alike.
const ID_BYTES: usize = 16;

/// The keeper of a key did not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the client key does not sign: {0}")]
pub struct Unsigned(String);

/// A key for TLS.
pub struct ClientKey {
    signs: Arc<dyn rustls::sign::SigningKey>,
    /// Where it is.
    pub store: KeyStore,
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
        f.debug_struct("ClientKey").field("store", &self.store).finish_non_exhaustive()
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

/// Makes a key (ECDSA P-256) for this agent. Blocks, as long as the store takes. A key in a token is
/// named in the file `intent` before it is there, so that no sweep ever takes it for an old one.
///
/// # Errors
/// When none can be made.
pub fn make(
    store: &KeyStore,
    agent_id: &str,
    intent: &Path,
    entropy: &dyn Entropy,
) -> Result<NewKey, String> {
    match store {
        KeyStore::File => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| e.to_string())?;
            let csr = request(&key, agent_id)?;
            Ok(NewKey { file: Zeroizing::new(key.serialize_pem().into_bytes()), csr })
        }
        KeyStore::Tpm2(device) => NewKey::of(tpm::make(device)?, agent_id),
        KeyStore::Pkcs11(uri) => {
            let id = seed(entropy).map_err(|e| e.to_string())?;
            let uri = uri.key(agent_id, id.get(..ID_BYTES).unwrap_or_default().to_vec());
            durable::replace(intent, format!("{uri}\n").as_bytes(), durable::PRIVATE)
                .map_err(|e| format!("{}: {e}", intent.display()))?;
            NewKey::of(token::make(&uri)?, agent_id)
        }
    }
}

impl NewKey {
    fn of((file, key): (String, Arc<dyn TlsSigner>), agent_id: &str) -> Result<Self, String> {
        let csr = request(&Held(key), agent_id)?;
        Ok(Self { file: Zeroizing::new(file.into_bytes()), csr })
    }
}

fn request(key: &impl SigningKey, agent_id: &str) -> Result<String, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, agent_id);
    let csr = params.serialize_request(key).and_then(|csr| csr.pem());
    csr.map_err(|e| format!("the key signs no request for a cert: {e}"))
}

/// The key of which `client.key` tells. Asks no device.
///
/// # Errors
/// When there is none, or it cannot be used.
pub fn open(file: &[u8]) -> Result<ClientKey, String> {
    match Kept::of(file)? {
        Kept::Here => {
            let der = PrivateKeyDer::from_pem_slice(file)
                .map_err(|e| format!("not a private key in PEM: {e}"))?;
            let signs = tls::provider().key_provider.load_private_key(der);
            Ok(ClientKey { signs: signs.map_err(|e| e.to_string())?, store: KeyStore::File })
        }
        Kept::ByTpm(device) => {
            let signs = Arc::new(Held(tpm::open(&device, file)?));
            Ok(ClientKey { signs, store: KeyStore::Tpm2(device) })
        }
        Kept::InToken(uri) => {
            let store = KeyStore::Pkcs11(uri.store());
            Ok(ClientKey { signs: Arc::new(Held(token::open(&uri, file)?)), store })
        }
    }
}

/// Where a file says that its key is: the first line does, where the rest is not the key.
enum Kept {
    Here,
    ByTpm(PathBuf),
    InToken(TokenUri),
}

impl Kept {
    fn of(file: &[u8]) -> Result<Self, String> {
        let line = file.split(|b| *b == b'\n').next().unwrap_or_default();
        let Ok(line) = std::str::from_utf8(line) else { return Ok(Self::Here) };
        if line.starts_with("pkcs11:") {
            let uri: TokenUri = line.parse()?;
            if uri.object.is_none() || uri.id.is_none() {
                return Err("the URI names no key: object and id are missing".to_owned());
            }
            return Ok(Self::InToken(uri));
        }
        match line.strip_prefix("tpm2:") {
            Some(device) => Ok(Self::ByTpm(device.into())),
            None => Ok(Self::Here),
        }
    }
}

#[cfg(test)]
mod tests;
