//! What the keyring refuses, each by its reason, and the little that it believes.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use jtnt_proto::{key::PublicKey, root::Roles};
use serde_json::{Value, json};

use super::*;

/// A root whose roles have the keys `base + 1` (root) to `base + 5` (witness), and a second key
/// `base + 6` in the root role.
struct Installation {
    base: u8,
    root: Root,
}

impl Installation {
    fn new(base: u8) -> Self {
        let role = |keys: &[u8]| Role {
            keyids: keys.iter().map(|n| public(base + n).id()).collect(),
            threshold: 1,
        };
        let roles = Roles {
            root: role(&[1, 6]),
            policy: role(&[2]),
            job: role(&[3]),
            script: role(&[4]),
            witness: role(&[5]),
        };
        let keys: BTreeMap<_, _> =
            (1..=6).map(|n| (public(base + n).id(), public(base + n))).collect();
        let root = Root {
            root_id: "installation".into(),
            version: 1,
            issued_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            expires_at: "2030-01-01T00:00:00Z".parse().unwrap(),
            keys,
            roles,
            hub_ca: Vec::new(),
            max_policy_days: None,
        };
        Self { base, root }
    }

    fn key(&self, n: u8) -> SigningKey {
        secret(self.base + n)
    }

    fn signed(&self, keys: &[&SigningKey]) -> Vec<u8> {
        sign_root(&self.root, keys)
    }

    fn keyring(&self) -> Keyring {
        Keyring::from_root(&self.signed(&[&self.key(1)])).unwrap()
    }
}

fn secret(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

fn public(n: u8) -> PublicKey {
    PublicKey::of(&secret(n))
}

fn sign_root(root: &Root, keys: &[&SigningKey]) -> Vec<u8> {
    let payload = serde_json::to_vec(root).unwrap();
    serde_json::to_vec(&Envelope::sign(PayloadType::Root, payload, keys)).unwrap()
}

fn job() -> Value {
    json!({
        "job_id": "job-1", "agent_id": "a", "root_id": "installation",
        "issued_at": "2026-01-01T00:00:00Z", "not_before": "2026-01-01T00:00:00Z",
        "expires_at": "2026-01-02T00:00:00Z",
        "type": "exec", "command": {"path": "/usr/bin/uptime"}
    })
}

fn sign_job(job: &Value, keys: &[&SigningKey]) -> Envelope {
    Envelope::sign(PayloadType::Job, job.to_string().into_bytes(), keys)
}

fn malformed(home: &Installation, payload: &str) -> String {
    let signed = Envelope::sign(PayloadType::Job, payload.as_bytes().to_vec(), &[&home.key(3)]);
    match home.keyring().job(&signed) {
        Err(TrustError::Malformed(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_of_the_job_role_is_believed() {
    let home = Installation::new(0);
    let signed = sign_job(&job(), &[&home.key(3)]);
    let verified = home.keyring().job(&signed).unwrap();
    assert_eq!(verified.get().job_id, "job-1");
    assert_eq!(verified.get().work.kind(), "exec");
    assert_eq!(verified.signers().iter().collect::<Vec<_>>(), [&public(3).id()]);
}

#[test]
fn a_key_of_another_role_or_of_nobody_does_not_count() {
    let home = Installation::new(0);
    for stranger in [home.key(2), home.key(1), secret(99)] {
        let refused = home.keyring().job(&sign_job(&job(), &[&stranger])).unwrap_err();
        assert_eq!(refused, TrustError::Threshold { role: "job", valid: 0, threshold: 1 });
    }
}

#[test]
fn one_key_never_makes_two_signatures() {
    let mut home = Installation::new(0);
    home.root.roles.job.keyids.insert(public(40).id());
    home.root.keys.insert(public(40).id(), public(40));
    home.root.roles.job.threshold = 2;
    let (a, b) = (home.key(3), secret(40));
    let refused = home.keyring().job(&sign_job(&job(), &[&a, &a])).unwrap_err();
    assert_eq!(refused, TrustError::Threshold { role: "job", valid: 1, threshold: 2 });
    assert!(home.keyring().job(&sign_job(&job(), &[&a, &b])).is_ok());
}

#[test]
fn a_cancel_is_no_job_though_the_same_role_signs_both() {
    let home = Installation::new(0);
    let signed = Envelope::sign(PayloadType::Cancel, b"{}".to_vec(), &[&home.key(3)]);
    let refused = home.keyring().job(&signed).unwrap_err();
    assert!(matches!(refused, TrustError::WrongType { .. }), "{refused}");
}

#[test]
fn a_signed_document_must_be_understood_entirely() {
    let home = Installation::new(0);
    let with = |key: &str, value: Value| {
        let mut job = job();
        job[key] = value;
        job.to_string()
    };
    for (payload, why) in [
        (with("only_on_sundays", json!(true)), "unknown field"),
        (with("command", json!({"path": "/x", "shell": true})), "unknown field"),
        (with("type", json!("reboot")), "unknown variant"),
        (with("issued_at", json!("yesterday")), "expected"),
        (job().to_string().replacen('{', r#"{"job_id":"job-0","#, 1), "stands twice"),
        ("[]".to_owned(), "invalid type"),
    ] {
        let found = malformed(&home, &payload);
        assert!(found.contains(why) || why == "expected", "{found} instead of {why}");
    }
}

#[test]
fn the_next_root_is_signed_by_both() {
    let (old, mut new) = (Installation::new(0), Installation::new(100));
    new.root.version = 2;
    let keyring = old.keyring();
    let both = new.signed(&[&old.key(6), &new.key(1)]);
    assert_eq!(keyring.advance(&both).unwrap().root().version, 2);
    for (keys, what) in [(vec![old.key(1)], "only the old"), (vec![new.key(1)], "only the new")] {
        let refused = keyring.advance(&new.signed(&keys.iter().collect::<Vec<_>>())).unwrap_err();
        assert!(matches!(refused, TrustError::Threshold { role: "root", .. }), "{what}");
    }
}

#[test]
fn roots_follow_one_by_one_in_one_installation() {
    let home = Installation::new(0);
    for (version, root_id) in [(1, "installation"), (3, "installation"), (2, "elsewhere")] {
        let next = Root { version, root_id: root_id.into(), ..home.root.clone() };
        let refused = home.keyring().advance(&sign_root(&next, &[&home.key(1)])).unwrap_err();
        assert!(matches!(refused, TrustError::Root(_)), "{version} {root_id}: {refused}");
    }
}

#[test]
fn a_root_that_contradicts_itself_is_refused() {
    let home = Installation::new(0);
    let zero = |root: &mut Root| root.roles.policy.threshold = 0;
    let shared = |root: &mut Root| root.roles.job = root.roles.policy.clone();
    let missing = |root: &mut Root| {
        root.keys.remove(&public(5).id());
    };
    let swapped = |root: &mut Root| {
        root.keys.insert(public(5).id(), public(77));
    };
    for spoil in [&zero as &dyn Fn(&mut Root), &shared, &missing, &swapped] {
        let mut root = home.root.clone();
        spoil(&mut root);
        let refused = Keyring::from_root(&sign_root(&root, &[&home.key(1)])).unwrap_err();
        assert!(matches!(refused, TrustError::Root(_)), "{refused}");
    }
    let unsigned = Keyring::from_root(&home.signed(&[])).unwrap_err();
    assert_eq!(unsigned, TrustError::Threshold { role: "root", valid: 0, threshold: 1 });
    let garbage = Keyring::from_root(b"\x00\xff").unwrap_err();
    assert!(matches!(garbage, TrustError::NotAnEnvelope(_)));
}
