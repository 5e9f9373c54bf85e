//! The last accepted policy on disk, with what is needed to judge it again.

use std::{
    io,
    path::{Path, PathBuf},
};

use jtnt_proto::{
    bytes::Hash,
    envelope::Envelope,
    json,
    root::{Role, Root},
};
use serde::{Deserialize, Serialize};

use crate::runtime::durable;

/// A payload of the greatest length in base64, and room for the rest.
const MAX_FILE_BYTES: u64 = 2 << 20;
/// A longer ETag is not kept: the next fetch then brings the same policy again.
const MAX_ETAG_BYTES: usize = 256;

/// `data_dir/policy/policy.json`. Nothing in it is believed but what the envelope proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    /// The installation. A policy of another one is as good as none.
    pub(super) root_id: String,
    /// The policy role under which it was accepted. Under another one its version is no floor:
    /// new keys begin anew.
    pub(super) role: Role,
    /// The hub's name for these bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) etag: Option<String>,
    /// The policy as it was signed.
    pub(super) envelope: Envelope,
}

impl Stored {
    pub(super) fn new(root: &Root, etag: String, envelope: Envelope) -> Self {
        Self {
            root_id: root.root_id.clone(),
            role: root.roles.policy.clone(),
            etag: Some(etag).filter(|e| e.len() <= MAX_ETAG_BYTES),
            envelope,
        }
    }

    /// Reads the file, if there is one.
    pub(super) fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        match durable::read(&file(data_dir), MAX_FILE_BYTES) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
            Ok(bytes) => json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        }
    }

    /// Puts the file in place, durably.
    pub(super) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let path = file(data_dir);
        if let Some(folder) = path.parent() {
            durable::create_dir(folder, 0o700)?;
        }
        let content = serde_json::to_vec(self).map_err(io::Error::other)?;
        durable::replace(&path, &content, durable::PRIVATE)
    }
}

pub(super) fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("policy/policy.json")
}

/// The document that was signed, when it is still the one of that hash; empty otherwise.
///
/// # Errors
/// When the file cannot be read.
pub fn document(data_dir: &Path, payload_sha256: Hash) -> io::Result<String> {
    let Some(stored) = Stored::read(data_dir)? else { return Ok(String::new()) };
    let payload = stored.envelope.payload.0;
    if Hash::of(&payload) != payload_sha256 {
        return Ok(String::new());
    }
    String::from_utf8(payload).map_err(io::Error::other)
}
