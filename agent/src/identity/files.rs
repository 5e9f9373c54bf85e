//! The files of an identity: their names, their limits, and who may read them.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use jtnt_proto::{bytes::Hash, json};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{IdentityError, RootSource};
use crate::runtime::durable;

/// The largest file of an identity, in bytes.
const MAX_BYTES: u64 = 2 << 20;

/// Where the identity lives.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `data_dir`.
    pub data_dir: PathBuf,
}

#[expect(missing_docs, reason = "the names are those of the contract")]
impl Paths {
    #[must_use]
    pub fn client_crt(&self) -> PathBuf {
        self.data_dir.join("certs/client.crt")
    }

    #[must_use]
    pub fn client_key(&self) -> PathBuf {
        self.data_dir.join("certs/client.key")
    }

    #[must_use]
    pub fn client_crt_backup(&self) -> PathBuf {
        self.data_dir.join("certs/client.crt.backup")
    }

    #[must_use]
    pub fn client_key_backup(&self) -> PathBuf {
        self.data_dir.join("certs/client.key.backup")
    }

    #[must_use]
    pub fn client_crt_pending(&self) -> PathBuf {
        self.data_dir.join("certs/client.crt.pending")
    }

    #[must_use]
    pub fn client_key_pending(&self) -> PathBuf {
        self.data_dir.join("certs/client.key.pending")
    }

    #[must_use]
    pub fn client_csr_pending(&self) -> PathBuf {
        self.data_dir.join("certs/client.csr.pending")
    }

    #[must_use]
    pub fn enrol_key(&self) -> PathBuf {
        self.data_dir.join("enrol.key")
    }

    #[must_use]
    pub fn renewal(&self) -> PathBuf {
        self.data_dir.join("certs/renewal.json")
    }

    #[must_use]
    pub fn renewal_pending(&self) -> PathBuf {
        self.data_dir.join("certs/renewal.json.pending")
    }

    #[must_use]
    pub fn ca_bundle(&self) -> PathBuf {
        self.data_dir.join("certs/ca-bundle.crt")
    }

    #[must_use]
    pub fn audit_key(&self) -> PathBuf {
        self.data_dir.join("keys/audit.key")
    }

    #[must_use]
    pub fn audit_key_next(&self) -> PathBuf {
        self.data_dir.join("keys/audit.key.next")
    }

    #[must_use]
    pub fn audit_keys(&self) -> PathBuf {
        self.data_dir.join("keys/audit.keys")
    }

    #[must_use]
    pub fn audit_pub(&self) -> PathBuf {
        self.data_dir.join("audit/audit.pub")
    }

    #[must_use]
    pub fn seal_key(&self) -> PathBuf {
        self.data_dir.join("keys/seal.key")
    }

    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.data_dir.join("trust/root.json")
    }

    #[must_use]
    pub fn source(&self) -> PathBuf {
        self.data_dir.join("trust/source.json")
    }

    #[must_use]
    pub fn enrol_lock(&self) -> PathBuf {
        self.data_dir.join("enrol.lock")
    }

    #[must_use]
    pub fn attempts(&self) -> PathBuf {
        self.data_dir.join("enrol-attempts.jsonl")
    }
}

/// `trust/source.json`: how the enrolment came by what it believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Where the root came from.
    pub root_source: RootSource,
    /// Authorities beside those of the root, accepted by `--hub-ca` or `--hub-ca-sha256`.
    #[serde(default)]
    pub extra_ca_sha256: BTreeSet<Hash>,
    /// The machine that enrolled, where it has an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id_sha256: Option<Hash>,
    /// The root of roles that it enrolled under, in whatever version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_id: Option<String>,
}

/// A certificate with its intermediates, and its key, both as PEM and not judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair {
    /// Leaf first.
    pub crt: Vec<u8>,
    /// PKCS#8.
    pub key: Zeroizing<Vec<u8>>,
}

impl Pair {
    /// The pair in these two files; nothing where one of them is not there.
    ///
    /// # Errors
    /// When one cannot be read, or others can read the key.
    pub fn read(crt: &Path, key: &Path) -> Result<Option<Self>, IdentityError> {
        let failed = |path: &Path, e: &dyn std::fmt::Display| {
            IdentityError::Unusable(format!("{}: {e}", path.display()))
        };
        let Some(pem) = optional(crt).map_err(|e| failed(crt, &e))? else { return Ok(None) };
        if !key.exists() {
            return Ok(None);
        }
        durable::private(key).map_err(IdentityError::Unusable)?;
        let secret = optional(key).map_err(|e| failed(key, &e))?;
        Ok(secret.map(|secret| Self { crt: pem, key: Zeroizing::new(secret) }))
    }
}

/// The contents of the files, none of them judged.
pub(super) struct Files {
    pub(super) client_crt: Vec<u8>,
    pub(super) client_key: Zeroizing<Vec<u8>>,
    pub(super) ca_bundle: Vec<u8>,
    pub(super) root: Vec<u8>,
    pub(super) source: Source,
}

/// Reads everything but the pair, which is this one.
pub(super) fn others(paths: &Paths, pair: Pair) -> Result<Files, IdentityError> {
    if !paths.root().exists() {
        return Err(IdentityError::NotEnrolled);
    }
    Ok(Files {
        client_crt: pair.crt,
        client_key: pair.key,
        ca_bundle: bytes(&paths.ca_bundle())?,
        root: bytes(&paths.root())?,
        source: source(paths)?,
    })
}

pub(super) fn source(paths: &Paths) -> Result<Source, IdentityError> {
    let source = bytes(&paths.source())?;
    json::from_slice(&source)
        .map_err(|e| IdentityError::Unusable(format!("{}: {e}", paths.source().display())))
}

/// Reads all files, or nothing when none is there.
pub(super) fn read(paths: &Paths) -> Result<Option<Files>, IdentityError> {
    let all =
        [paths.client_crt(), paths.client_key(), paths.ca_bundle(), paths.root(), paths.source()];
    let missing: Vec<_> = all.iter().filter(|p| !p.exists()).collect();
    match missing.first() {
        Some(_) if missing.len() == all.len() => return Ok(None),
        Some(path) => {
            return Err(IdentityError::Unusable(format!(
                "{} is missing, other files of the identity are there; \
                 restore it, or enrol again: {}",
                path.display(),
                super::ENROL_AGAIN
            )));
        }
        None => {}
    }
    let key = paths.client_key();
    durable::private(&key).map_err(IdentityError::Unusable)?;
    let crt = bytes(&paths.client_crt())?;
    let pair = Pair { crt, key: Zeroizing::new(bytes(&key)?) };
    others(paths, pair).map(Some)
}

fn bytes(path: &Path) -> Result<Vec<u8>, IdentityError> {
    durable::read(path, MAX_BYTES)
        .map_err(|e| IdentityError::Unusable(format!("{}: {e}", path.display())))
}

/// The content of a file that may be missing.
pub(super) fn optional(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match durable::read(path, MAX_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
