//! The audit key on disk: PKCS#8 in PEM, as openssl writes Ed25519 keys, so that nobody needs this
//! program to read it.

use std::{
    fmt, fs,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey};
use jtnt_proto::key::PublicKey;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::files::{Paths, optional};
use crate::runtime::{
    durable,
    entropy::{Entropy, seed},
    signer::AuditSigner,
};

/// RFC 8410: a `OneAsymmetricKey` of version 1 for Ed25519, up to the 32 bytes of the key.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// A key in memory; wiped when dropped.
struct FileSigner(SigningKey);

impl fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileSigner({})", self.public_key())
    }
}

impl AuditSigner for FileSigner {
    fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// The key, when there is one.
pub(super) fn open(paths: &Paths) -> Result<Option<Arc<dyn AuditSigner>>, String> {
    let path = paths.audit_key();
    let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    let Some(pem) = optional(&path).map_err(|e| at(&e))?.map(Zeroizing::new) else {
        return Ok(None);
    };
    durable::private(&path)?;
    let key = decode(&pem).ok_or_else(|| at(&"not an Ed25519 key in PKCS#8 and PEM"))?;
    Ok(Some(Arc::new(FileSigner(key))))
}

pub(super) fn open_or_create(
    paths: &Paths,
    entropy: &dyn Entropy,
) -> Result<Arc<dyn AuditSigner>, String> {
    let path = paths.audit_key();
    let at = |e: io::Error| format!("{}: {e}", path.display());
    if !path.exists() {
        create(&path, entropy).map_err(at)?;
    }
    let Some(key) = open(paths)? else { return Err(at(io::ErrorKind::NotFound.into())) };
    publish(&paths.audit_pub(), &key.public_key())
        .map_err(|e| format!("{}: {e}", paths.audit_pub().display()))?;
    Ok(key)
}

/// Makes the key. A link, unlike a rename, yields to a key that another process made meanwhile:
/// the first one stays, for the agent's id follows from it.
fn create(path: &Path, entropy: &dyn Entropy) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    durable::create_dir(folder, 0o700)?;
    let pem = encode(&*seed(entropy)?);
    let staged = folder.join(format!("audit.key.{}", std::process::id()));
    durable::remove(&staged)?;
    let mut file = durable::create(&staged, durable::PRIVATE)?;
    let linked = file
        .write_all(pem.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&staged, path));
    durable::remove(&staged)?;
    match linked {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => durable::sync_dir(folder),
    }
}

fn publish(path: &Path, key: &PublicKey) -> io::Result<()> {
    let text = format!("{key}\n");
    if optional(path)?.is_some_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    durable::create_dir(path.parent().unwrap_or(Path::new(".")), 0o750)?;
    durable::replace(path, text.as_bytes(), durable::PUBLIC)
}

fn encode(seed: &[u8; 32]) -> Zeroizing<String> {
    let mut der = Zeroizing::new([0; 48]);
    let (head, tail) = der.split_at_mut(PKCS8.len());
    head.copy_from_slice(&PKCS8);
    tail.copy_from_slice(seed);
    let body = Zeroizing::new(STANDARD.encode(*der));
    Zeroizing::new(format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        body.as_str()
    ))
}

fn decode(pem: &[u8]) -> Option<SigningKey> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
    let seed = Zeroizing::new(der.secret_pkcs8_der().to_vec());
    let seed: &[u8; 32] = seed.strip_prefix(&PKCS8)?.try_into().ok()?;
    Some(SigningKey::from_bytes(seed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::runtime::entropy::SeededEntropy;

    fn paths(dir: &Path) -> Paths {
        Paths { data_dir: dir.to_owned() }
    }

    #[test]
    fn the_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(open(&paths).unwrap().is_none());
        let made = open_or_create(&paths, SeededEntropy::new(1).as_ref()).unwrap();
        let read = open_or_create(&paths, SeededEntropy::new(2).as_ref()).unwrap();
        assert_eq!(made.public_key(), read.public_key());
        assert!(made.public_key().verifies(b"line", &read.sign(b"line")));
        let public = fs::read_to_string(paths.audit_pub()).unwrap();
        assert_eq!(PublicKey::parse(public.trim()), Some(made.public_key()));
        assert_eq!(fs::read_dir(dir.path().join("keys")).unwrap().count(), 1);
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&paths.audit_key()), 0o600);
        assert_eq!(mode(&dir.path().join("keys")), 0o700);
        assert_eq!(mode(&paths.audit_pub()), 0o644);
    }

    #[test]
    fn the_second_of_two_makers_gets_the_first_ones_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = paths(dir.path()).audit_key();
        create(&path, SeededEntropy::new(1).as_ref()).unwrap();
        let first = fs::read(&path).unwrap();
        create(&path, SeededEntropy::new(2).as_ref()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        open_or_create(&paths, SeededEntropy::new(1).as_ref()).unwrap();
        fs::set_permissions(paths.audit_key(), fs::Permissions::from_mode(0o640)).unwrap();
        let refused = open(&paths).unwrap_err();
        assert!(refused.contains("(mode 0640)") && refused.contains("type: chmod 600 /"));
        assert!(!format!("{refused:?}").contains("PRIVATE"));
    }

    #[test]
    fn garbage_is_no_key_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        for content in
            ["", "garbage", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
        {
            durable::create_dir(&dir.path().join("keys"), 0o700).unwrap();
            durable::replace(&paths.audit_key(), content.as_bytes(), 0o600).unwrap();
            assert!(open_or_create(&paths, SeededEntropy::new(1).as_ref()).is_err());
            assert_eq!(fs::read_to_string(paths.audit_key()).unwrap(), content);
        }
    }

    #[test]
    fn the_file_is_what_openssl_writes() {
        // The private key of RFC 8410, section 10.3.
        let pem = "-----BEGIN PRIVATE KEY-----\n\
                   MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                   -----END PRIVATE KEY-----\n";
        let key = decode(pem.as_bytes()).unwrap();
        assert_eq!(encode(key.as_bytes()).as_str(), pem);
    }
}
