//! The root of roles: which keys may sign what, for one hub. Everything an agent believes begins
//! with this document, which reaches it from outside the hub.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    bytes::{Base64, Hash},
    key::{KeyId, PublicKey},
};

/// Payload of type `application/vnd.jtnt.root.v1+json`, signed by the thresholds of its own root
/// role and, beyond version 1, of its predecessor's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// A random UUID, the same in every version. Policies and jobs name it, so that a document of
    /// one installation means nothing in another.
    pub root_id: String,
    /// 1, 2, 3, ...
    pub version: u64,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// A root past this no longer introduces new documents.
    pub expires_at: Timestamp,
    /// Every key that a role names, by id.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Who may sign what. A key serves one role.
    pub roles: Roles,
    /// Certificate authorities of the hub and of the agents' certificates, DER. The agent's CA
    /// bundle holds these and no others.
    pub hub_ca: Vec<Base64>,
    /// The longest life a policy may have, in days; 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_policy_days: Option<u16>,
}

/// The roles of a [`Root`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// Signs roots.
    pub root: Role,
    /// Signs policies.
    pub policy: Role,
    /// Signs jobs and cancels.
    pub job: Role,
    /// Signs scripts that rules admit by signer.
    pub script: Role,
    /// Cosigns audit checkpoints (C2SP tlog-witness).
    pub witness: Role,
}

impl Roles {
    /// Each role with its name.
    #[must_use]
    pub const fn each(&self) -> [(&'static str, &Role); 5] {
        [
            ("root", &self.root),
            ("policy", &self.policy),
            ("job", &self.job),
            ("script", &self.script),
            ("witness", &self.witness),
        ]
    }
}

/// The keys of a role and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Keys in [`Root::keys`].
    pub keyids: BTreeSet<KeyId>,
    /// Distinct keys needed, at least 1.
    pub threshold: u8,
}

/// Why a root document contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootFault {
    /// A key is filed under an id that is not its own.
    #[error("key {0} is filed under another key's id")]
    WrongKeyId(KeyId),
    /// A role names a key the document does not hold.
    #[error("role {0} names key {1}, which the root does not hold")]
    MissingKey(&'static str, KeyId),
    /// A threshold of zero, or of more keys than there are.
    #[error("role {0} cannot reach its threshold")]
    Threshold(&'static str),
    /// A key that serves two roles.
    #[error("key {0} serves more than one role")]
    SharedKey(KeyId),
}

impl Root {
    /// The longest life of a policy when the root is silent, in days.
    pub const DEFAULT_POLICY_DAYS: u16 = 30;

    /// The keys of `role`.
    #[must_use]
    pub fn keys_of(&self, role: &Role) -> Vec<PublicKey> {
        role.keyids.iter().filter_map(|id| self.keys.get(id).copied()).collect()
    }

    /// SHA-256 of each certificate authority named here.
    #[must_use]
    pub fn ca_hashes(&self) -> BTreeSet<Hash> {
        self.hub_ca.iter().map(|der| Hash::of(&der.0)).collect()
    }

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), RootFault> {
        if let Some((id, _)) = self.keys.iter().find(|(id, key)| key.id() != **id) {
            return Err(RootFault::WrongKeyId(*id));
        }
        let mut served = BTreeSet::new();
        for (name, role) in self.roles.each() {
            if role.threshold == 0 || usize::from(role.threshold) > role.keyids.len() {
                return Err(RootFault::Threshold(name));
            }
            for id in &role.keyids {
                if !self.keys.contains_key(id) {
                    return Err(RootFault::MissingKey(name, *id));
                }
                if !served.insert(*id) {
                    return Err(RootFault::SharedKey(*id));
                }
            }
        }
        Ok(())
    }
}
