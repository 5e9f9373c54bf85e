//! What the release chain signs: the manifest of a channel and the proof that it is fresh.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bytes::Hash;

/// Payload of type `application/vnd.jtnt.update-manifest.v1+json`, signed by the release role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `jtnt-agent`.
    pub product: String,
    /// `stable`, `beta`, ...
    pub channel: String,
    /// Semantic version of the release.
    pub version: String,
    /// Grows with every manifest of the channel; an agent never goes back.
    pub manifest_version: u64,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// Void from then on.
    pub expires_at: Timestamp,
    /// The oldest version that may update directly.
    pub min_from: String,
    /// One build per target triple.
    pub platforms: BTreeMap<String, Build>,
    /// Builds that must never run again.
    #[serde(default)]
    pub revoked: BTreeSet<Hash>,
    /// Who gets it when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Whether it is applied without being asked for.
    #[serde(default)]
    pub critical: bool,
    /// Release notes.
    #[serde(default)]
    pub notes: String,
}

/// One binary of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// Artifact path on the hub.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the binary.
    pub sha256: Hash,
    /// Cheaper ways to arrive at the same bytes.
    #[serde(default)]
    pub delta: Vec<Delta>,
}

/// A zstd patch from one binary to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// The binary it starts from.
    pub from_sha256: Hash,
    /// Artifact path on the hub.
    pub path: String,
    /// Size of the patch in bytes.
    pub size: u64,
    /// SHA-256 of the patch.
    pub sha256: Hash,
}

/// A gradual release: an agent takes part when SHA-256(seed || agent_id), read as a fraction, is
/// below `percent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Shuffles agents anew for each release.
    pub seed: String,
    /// 0 to 100.
    pub percent: u8,
    /// Nobody before.
    pub start: Timestamp,
}

/// Payload of type `application/vnd.jtnt.timestamp.v1+json`, signed by the timestamp role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    /// Always `jtnt-agent`.
    pub product: String,
    /// The channel it speaks of.
    pub channel: String,
    /// The newest manifest.
    pub manifest_version: u64,
    /// SHA-256 of that manifest's payload.
    pub manifest_sha256: Hash,
    /// The nonce of the request, echoed.
    pub nonce: Hash,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// Void from then on.
    pub expires_at: Timestamp,
}
