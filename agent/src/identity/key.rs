//! The audit key on disk: PKCS#8 in PEM, as openssl writes Ed25519 keys, so that nobody needs this
//! program to read it.

use std::{
    fmt, fs,
    io::{self, Write as _},
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer as _, SigningKey};
use jtnt_proto::key::PublicKey;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::files::{Paths, optional};
use crate::runtime::{
    durable,
    entropy::{Entropy, SharedEntropy, seed},
    signer::AuditSigner,
};

/// RFC 8410: a `OneAsymmetricKey` of version 1 for Ed25519, up to the 32 bytes of the key.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// The key in force, and its history.
struct FileSigner {
    paths: Paths,
    /// Nothing for those who only sign.
    entropy: Option<SharedEntropy>,
    held: RwLock<Held>,
}

struct Held {
    /// Wiped when dropped, as is the other.
    current: SigningKey,
    /// Public halves, the first first, the one in force last.
    keys: Vec<PublicKey>,
    next: Option<SigningKey>,
}

/// A proposed key, for its acceptance.
struct Proposed(SigningKey);

impl fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileSigner({})", self.public_key())
    }
}

impl fmt::Debug for Proposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposed({})", self.public_key())
    }
}

impl AuditSigner for Proposed {
    fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl FileSigner {
    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuditSigner for FileSigner {
    fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.held().current)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.held().current.sign(message).to_bytes()
    }

    fn keys(&self) -> Vec<PublicKey> {
        self.held().keys.clone()
    }

    fn propose(&self) -> io::Result<Arc<dyn AuditSigner>> {
        let entropy = self.entropy.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let seed = seed(entropy.as_ref())?;
        let (path, pem) = (self.paths.audit_key_next(), encode(&seed));
        durable::replace(&path, pem.as_bytes(), durable::PRIVATE)?;
        let next = SigningKey::from_bytes(&seed);
        self.change().next = Some(next.clone());
        Ok(Arc::new(Proposed(next)))
    }

    fn adopt(&self) -> io::Result<()> {
        let mut held = self.change();
        let next = held.next.clone().ok_or(io::ErrorKind::NotFound)?;
        let public = PublicKey::of(&next);
        let mut keys = held.keys.clone();
        if keys.last() != Some(&public) {
            keys.push(public);
        }
        // The list first: it must hold whatever key is in place.
        durable::replace(&self.paths.audit_keys(), list(&keys).as_bytes(), durable::PRIVATE)?;
        fs::rename(self.paths.audit_key_next(), self.paths.audit_key())?;
        durable::sync_parent(&self.paths.audit_key())?;
        *held = Held { current: next, keys, next: None };
        publish(&self.paths.audit_pub(), &held.keys)
    }

    fn settle(&self, told: Option<PublicKey>) -> io::Result<()> {
        let path = self.paths.audit_key_next();
        let Some(pem) = optional(&path)?.map(Zeroizing::new) else { return Ok(()) };
        let next = decode(&pem).filter(|next| Some(PublicKey::of(next)) == told);
        if next.is_none() {
            return durable::remove(&path);
        }
        self.change().next = next;
        self.adopt()
    }
}

/// Public keys, a line each.
fn list(keys: &[PublicKey]) -> String {
    keys.iter().map(|key| format!("{key}\n")).collect()
}

/// The key, when there is one.
pub(super) fn open(paths: &Paths) -> Result<Option<Arc<dyn AuditSigner>>, String> {
    Ok(read(paths, None)?.map(|key| -> Arc<dyn AuditSigner> { Arc::new(key) }))
}

fn read(paths: &Paths, entropy: Option<SharedEntropy>) -> Result<Option<FileSigner>, String> {
    let path = paths.audit_key();
    let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    let Some(pem) = optional(&path).map_err(|e| at(&e))?.map(Zeroizing::new) else {
        return Ok(None);
    };
    durable::private(&path)?;
    let current = decode(&pem).ok_or_else(|| at(&"not an Ed25519 key in PKCS#8 and PEM"))?;
    let keys = history(paths, &PublicKey::of(&current))?;
    let held = RwLock::new(Held { current, keys, next: None });
    Ok(Some(FileSigner { paths: paths.clone(), entropy, held }))
}

/// All keys up to the one in place. A crash may have left one more in the list, which is yet to come.
fn history(paths: &Paths, current: &PublicKey) -> Result<Vec<PublicKey>, String> {
    let path = paths.audit_keys();
    let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    // Where it is lost, what was published tells as much; a key of its own is a history of one.
    let published = || optional(&paths.audit_pub()).map_err(|e| at(&e));
    let text = match optional(&path).map_err(|e| at(&e))? {
        Some(text) => text,
        None => {
            match published()?.filter(|text| text.iter().filter(|b| **b == b'\n').count() > 1) {
                Some(text) => text,
                None => return Ok(vec![*current]),
            }
        }
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let keys: Option<Vec<_>> = text.lines().map(PublicKey::parse).collect();
    let mut keys = keys.ok_or_else(|| at(&"not a list of public keys"))?;
    let place = keys.iter().rposition(|key| key == current);
    let place = place.ok_or_else(|| {
        at(&"the audit key that is in place is none of these; restore keys/ as a whole")
    })?;
    keys.truncate(place + 1);
    Ok(keys)
}

pub(super) fn open_or_create(
    paths: &Paths,
    entropy: &SharedEntropy,
) -> Result<Arc<dyn AuditSigner>, String> {
    let path = paths.audit_key();
    let at = |e: io::Error| format!("{}: {e}", path.display());
    if !path.exists() {
        not_lost(paths)?;
        forget(&paths.audit_keys()).map_err(at)?;
        create(&path, entropy.as_ref()).map_err(at)?;
    }
    let key = read(paths, Some(Arc::clone(entropy)))?;
    let Some(key) = key else { return Err(at(io::ErrorKind::NotFound.into())) };
    publish(&paths.audit_pub(), &key.keys())
        .map_err(|e| format!("{}: {e}", paths.audit_pub().display()))?;
    Ok(Arc::new(key))
}

/// Keys of another agent, which this one was before it lost them.
fn forget(path: &Path) -> io::Result<()> {
    match fs::rename(path, path.with_extension("keys.lost")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => durable::sync_parent(path),
    }
}

/// A key that is gone while its log is there is not made again: the agent would be another one, behind
/// lines that are not its own.
fn not_lost(paths: &Paths) -> Result<(), String> {
    let public = paths.audit_pub();
    if !public.exists() {
        return Ok(());
    }
    let audit = public.parent().unwrap_or(Path::new(".")).display();
    Err(format!(
        "{key} is gone, and {public} says that there was one; restore it from a backup. It cannot be made \
         again: without it this is another agent, which enrols anew. To keep the old log as evidence and \
         begin as that, type: mv {audit} {audit}.lost",
        key = paths.audit_key().display(),
        public = public.display(),
    ))
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

fn publish(path: &Path, keys: &[PublicKey]) -> io::Result<()> {
    let text = list(keys);
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

    fn seeded(seed: u64) -> SharedEntropy {
        SeededEntropy::new(seed)
    }

    fn paths(dir: &Path) -> Paths {
        Paths { data_dir: dir.to_owned() }
    }

    #[test]
    fn the_key_is_made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(open(&paths).unwrap().is_none());
        let made = open_or_create(&paths, &seeded(1)).unwrap();
        let read = open_or_create(&paths, &seeded(2)).unwrap();
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
    fn a_key_that_took_the_place_of_another_remembers_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let signer = open_or_create(&paths, &seeded(1)).unwrap();
        let first = signer.public_key();
        let next = signer.propose().unwrap().public_key();
        assert_eq!((signer.public_key(), signer.keys()), (first, vec![first]), "not yet");
        signer.adopt().unwrap();
        assert_eq!((signer.public_key(), signer.keys()), (next, vec![first, next]));
        assert!(next.verifies(b"line", &signer.sign(b"line")));
        let again = open_or_create(&paths, &seeded(9)).unwrap();
        assert_eq!(again.keys(), [first, next]);
        assert_eq!(fs::read_to_string(paths.audit_pub()).unwrap(), format!("{first}\n{next}\n"));
        signer.adopt().unwrap_err();
    }

    #[test]
    fn a_crash_before_the_log_tells_undoes_it_and_one_after_ends_it() {
        for (told, listed) in [(false, false), (true, false), (true, true)] {
            let dir = tempfile::tempdir().unwrap();
            let paths = paths(dir.path());
            let signer = open_or_create(&paths, &seeded(1)).unwrap();
            let (first, next) = (signer.public_key(), signer.propose().unwrap().public_key());
            if listed {
                let both = list(&[first, next]);
                durable::replace(&paths.audit_keys(), both.as_bytes(), 0o600).unwrap();
            }
            let signer = open_or_create(&paths, &seeded(2)).unwrap();
            assert_eq!(signer.keys(), [first]);
            signer.settle(told.then_some(next)).unwrap();
            let keys = if told { vec![first, next] } else { vec![first] };
            assert_eq!(signer.keys(), keys);
            assert_eq!(open_or_create(&paths, &seeded(3)).unwrap().keys(), keys);
            assert!(!paths.audit_key_next().exists());
        }
    }

    #[test]
    fn a_lost_key_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        open_or_create(&paths, &seeded(1)).unwrap();
        fs::remove_file(paths.audit_key()).unwrap();
        let refused = open_or_create(&paths, &seeded(2)).unwrap_err();
        assert!(refused.contains("restore it") && refused.contains("type: mv "), "{refused}");
        assert!(!paths.audit_key().exists());
        // Another's key is none of its history.
        let signer = {
            fs::remove_file(paths.audit_pub()).unwrap();
            open_or_create(&paths, &seeded(2)).unwrap()
        };
        signer.propose().unwrap();
        signer.adopt().unwrap();
        // Lost again, after it had been replaced.
        fs::remove_file(paths.audit_key()).unwrap();
        fs::remove_file(paths.audit_pub()).unwrap();
        let signer = open_or_create(&paths, &seeded(3)).unwrap();
        assert_eq!(signer.keys().len(), 1);
        assert!(paths.audit_keys().with_extension("keys.lost").exists());
        signer.propose().unwrap();
        signer.adopt().unwrap();
        let other = encode(&[9; 32]);
        durable::replace(&paths.audit_key(), other.as_bytes(), 0o600).unwrap();
        assert!(open(&paths).unwrap_err().contains("none of these"));
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
        open_or_create(&paths, &seeded(1)).unwrap();
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
            assert!(open_or_create(&paths, &seeded(1)).is_err());
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
