//! An installation for tests of what stands above the keyring: keys, roots and signed policies.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use jtnt_proto::{
    envelope::{Envelope, PayloadType},
    key::PublicKey,
    root::{Role, Roles, Root},
};
use serde_json::{Value, json};

use super::Keyring;

/// Keys 1 to 5 in the roles root, policy, job, script and witness.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    pub(crate) root: Root,
}

impl Installation {
    pub(crate) fn new() -> Self {
        let role = |n| Role { keyids: [public(n).id()].into(), threshold: 1 };
        let root = Root {
            root_id: "installation".into(),
            version: 1,
            issued_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            expires_at: "2030-01-01T00:00:00Z".parse().unwrap(),
            keys: (1..=5).map(|n| (public(n).id(), public(n))).collect(),
            roles: Roles {
                root: role(1),
                policy: role(2),
                job: role(3),
                script: role(4),
                witness: role(5),
            },
            hub_ca: Vec::new(),
            max_policy_days: None,
        };
        Self { root }
    }

    /// The next version of the root, with key `n` in the policy role.
    pub(crate) fn rotated(&self, n: u8) -> Self {
        let mut root = self.root.clone();
        root.version += 1;
        let kept: BTreeMap<_, _> = root
            .keys
            .into_iter()
            .filter(|(id, _)| !root.roles.policy.keyids.contains(id))
            .collect();
        root.keys = kept;
        root.keys.insert(public(n).id(), public(n));
        root.roles.policy.keyids = [public(n).id()].into();
        Self { root }
    }

    pub(crate) fn signed(&self) -> Vec<u8> {
        let payload = serde_json::to_vec(&self.root).unwrap();
        serde_json::to_vec(&Envelope::sign(PayloadType::Root, payload, &[&secret(1)])).unwrap()
    }

    pub(crate) fn keyring(&self) -> Keyring {
        Keyring::from_root(&self.signed()).unwrap()
    }
}

pub(crate) fn secret(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn public(n: u8) -> PublicKey {
    PublicKey::of(&secret(n))
}

/// A policy of this installation in June 2026, with what `changes` says otherwise, signed by key
/// `key`.
pub(crate) fn policy(key: u8, changes: &Value) -> Envelope {
    let mut document = json!({
        "policy_id": "p", "version": 1, "audience": {"root_id": "installation"},
        "issued_at": "2026-06-01T00:00:00Z", "expires_at": "2026-06-30T00:00:00Z",
        "require_enforcement": "none",
    });
    document.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let payload = serde_json::to_vec(&document).unwrap();
    Envelope::sign(PayloadType::Policy, payload, &[&secret(key)])
}
