//! What an exported audit log consists of: the files beside the log's own, and the manifest that
//! lists them all.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bytes::Hash;

/// The list of all other files, written last.
pub const MANIFEST: &str = "manifest.json";
/// The agent's public key.
pub const KEY: &str = "audit.pub";
/// Keys of the witnesses that the root of roles names, one a line.
pub const WITNESSES: &str = "witness.pub";
/// The newest checkpoint that a witness cosigned.
pub const ANCHOR: &str = "checkpoint.note";
/// The longest manifest: some thousand files.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;

const KIND: &str = "jtnt-audit-export/v1";

/// The manifest. It is not signed: the checkpoint vouches for the lines, and this tells a file that
/// got lost on the way from one that never was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always `jtnt-audit-export/v1`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whose log.
    pub agent_id: String,
    /// Names the log.
    pub log_id: String,
    /// When it was exported.
    pub created_at: Timestamp,
    /// All other files.
    pub files: Vec<Exported>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Its path in the export.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Of its content.
    pub sha256: Hash,
}

impl Manifest {
    /// Of no file yet.
    #[must_use]
    pub fn new(agent_id: String, log_id: String, created_at: Timestamp) -> Self {
        Self { kind: KIND.to_owned(), agent_id, log_id, created_at, files: Vec::new() }
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is none, in words.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if manifest.kind != KIND {
            return Err(format!("its type is {:?}, not {KIND:?}", manifest.kind));
        }
        match manifest.files.iter().find(|file| !is_plain(&file.name)) {
            Some(strange) => Err(format!("it names the file {:?}", strange.name)),
            None => Ok(manifest),
        }
    }
}

/// Whether a name stays in the folder of the export: one or two plain parts.
#[must_use]
pub fn is_plain(name: &str) -> bool {
    let plain = |part: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        !part.is_empty() && part.len() <= 128 && !part.starts_with('.') && part.chars().all(fits)
    };
    name.split('/').count() <= 2 && name.split('/').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_files_of_an_export() {
        for good in ["audit.pub", "audit-2026-01-02.log", "checkpoints/2026-01-02-7.note"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "..", "../x", "a/../b", "a/b/c", ".hidden", "a b", "a\\b"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn a_manifest_is_read_back_and_another_is_refused() {
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        let mut manifest = Manifest::new("a".into(), "l".into(), now);
        manifest.files.push(Exported { name: "x".into(), bytes: 1, sha256: Hash([0; 32]) });
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(Manifest::parse(json.as_bytes()), Ok(manifest));
        for (from, to) in [("/v1", "/v2"), ("\"x\"", "\"../x\""), ("{", "[")] {
            assert!(Manifest::parse(json.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
    }
}
