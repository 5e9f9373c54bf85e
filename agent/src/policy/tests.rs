//! The keeper against a hub that is a script: what takes effect, what never does, and what a
//! restart finds.

use std::{
    fs,
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
    time::Duration,
};

use ed25519_dalek::{Signer as _, SigningKey};
use jtnt_proto::{audit::SealedLine, key::PublicKey};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use super::*;
use crate::{
    audit,
    runtime::{
        clock::{FixedClock, SharedClock},
        entropy::SeededEntropy,
        signer::AuditSigner,
    },
    store::Journal,
    telemetry::overheard::overhear,
    trust::fixture::{Installation, policy},
};

#[derive(Debug)]
struct Key(SigningKey);

impl AuditSigner for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// What the hub has, and how often it was asked for a policy.
#[derive(Default)]
struct Hub {
    policy: Mutex<Option<(Envelope, String)>>,
    roots: Mutex<BTreeMap<u64, Vec<u8>>>,
    down: Mutex<bool>,
    asked: AtomicUsize,
}

impl Hub {
    fn has(&self, envelope: Envelope) {
        let etag = jtnt_proto::bytes::Hash::of(&envelope.payload.0).to_string();
        *self.policy.lock().unwrap() = Some((envelope, etag));
    }

    /// What it answers; `None` while it is down.
    fn answer(&self, etag: Option<&str>) -> Option<Offer> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let has = self.policy.lock().unwrap().clone();
        (!*self.down.lock().unwrap()).then(|| match has {
            None => Offer::Nothing,
            Some((_, tag)) if etag == Some(&tag) => Offer::Same,
            Some((envelope, tag)) => Offer::Policy(Box::new(envelope), tag),
        })
    }
}

/// An agent's disk, clock and hub; the keeper itself may start and end on them.
struct Fixture {
    dir: tempfile::TempDir,
    clock: Arc<FixedClock>,
    hub: Arc<Hub>,
    keyring: Arc<watch::Sender<Option<Keyring>>>,
    labels: watch::Sender<Labels>,
}

impl Fixture {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            clock: FixedClock::at("2026-06-02T00:00:00Z"),
            hub: Arc::default(),
            keyring: Arc::new(watch::channel(Some(Installation::new().keyring())).0),
            labels: watch::channel(Labels::new()).0,
        }
    }

    fn source(&self) -> Source {
        let (hub, roots, keyring) =
            (Arc::clone(&self.hub), Arc::clone(&self.hub), Arc::clone(&self.keyring));
        Source {
            policy: Box::new(move |etag| {
                let answer =
                    hub.answer(etag.as_deref()).ok_or_else(|| "no answer".to_owned().into());
                Box::pin(async move { answer })
            }),
            root: Box::new(move |n| {
                let root = roots.roots.lock().unwrap().get(&n).cloned();
                Box::pin(async move { Ok(root) })
            }),
            adopt_root: Box::new(move |new| {
                keyring.send_replace(Some(new));
            }),
        }
    }

    fn start(&self) -> (Keeper, PolicyKeeper, PolicyWatch) {
        let clock: SharedClock = Arc::<FixedClock>::clone(&self.clock);
        let entropy = SeededEntropy::new(1);
        let journal = Journal::open(&self.dir.path().join("jobs.redb"), Arc::clone(&clock));
        let log = audit::Config {
            dir: self.dir.path().join("audit"),
            agent_id: "agent".into(),
            retention: crate::domain::retention::Retention::default(),
            zone: jiff::tz::TimeZone::UTC,
        };
        let signer = Arc::new(Key(SigningKey::from_bytes(&[9; 32])));
        keeper(Config {
            data_dir: self.dir.path().to_owned(),
            agent_id: "agent".into(),
            labels: self.labels.subscribe(),
            keyring: self.keyring.subscribe(),
            source: self.source(),
            time: TrustedTime::load(journal.unwrap(), Arc::clone(&clock)).unwrap(),
            audit: Audit::open(log, signer, clock, entropy.as_ref()).unwrap(),
            entropy,
            metrics: Metrics::new("1.2.3").unwrap(),
        })
    }

    /// `status` and `details.reason` or `details.new_version` of every line about policies and
    /// roots.
    fn log(&self) -> Vec<String> {
        let mut said = Vec::new();
        let logs = fs::read_dir(self.dir.path().join("audit")).unwrap().map(|e| e.unwrap().path());
        for file in logs.filter(|p| p.extension().is_some_and(|e| e == "log")) {
            for raw in fs::read(file).unwrap().split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                let line = SealedLine::parse(raw).unwrap().line;
                if matches!(line.event.as_str(), "policy_changed" | "root_changed") {
                    let details = &line.details;
                    let what = details.get("reason").or(details.get("new_version")).unwrap();
                    said.push(format!("{} {}", line.event, what.to_string().replace('"', "")));
                }
            }
        }
        said
    }

    fn stored(&self) -> Option<Vec<u8>> {
        fs::read(stored::file(self.dir.path())).ok()
    }
}

fn version(watch: &PolicyWatch) -> u64 {
    watch.borrow().as_ref().map_or(0, |p| p.verified.get().version)
}

fn v(n: u64) -> Envelope {
    policy(2, &json!({ "version": n }))
}

#[tokio::test]
async fn a_policy_is_recorded_stored_and_published() {
    let f = Fixture::new();
    let (mut keeper, _handle, watch) = f.start();
    assert_eq!(keeper.refresh().await, Ok((0, false)), "the hub has none yet");
    f.hub.has(v(3));
    assert_eq!(keeper.refresh().await, Ok((3, true)));
    assert_eq!(keeper.refresh().await, Ok((3, false)));
    assert_eq!((version(&watch), f.log()), (3, vec!["policy_changed 3".to_owned()]));
    assert!(f.stored().is_some());
}

#[tokio::test]
async fn a_restart_finds_the_policy_without_the_hub() {
    let f = Fixture::new();
    f.hub.has(v(3));
    f.start().0.refresh().await.unwrap();
    *f.hub.down.lock().unwrap() = true;
    let (mut keeper, handle, watch) = f.start();
    assert_eq!(version(&watch), 0);
    keeper.reload().await;
    assert_eq!(version(&watch), 3);
    assert_eq!(keeper.refresh().await, Err("no answer".to_owned().into()));
    assert_eq!(handle.standing().last_error.as_deref(), Some("no answer"));
    assert_eq!(version(&watch), 3, "an outage takes nothing away");
    f.hub.has(v(2));
    *f.hub.down.lock().unwrap() = false;
    assert!(keeper.refresh().await.unwrap_err().message.contains("VERSION_TOO_OLD"));
}

/// Version 3 is in force; `envelope` is offered; nothing changes but the log.
async fn refused(envelope: Envelope) -> String {
    let f = Fixture::new();
    let (mut keeper, handle, watch) = f.start();
    f.hub.has(v(3));
    keeper.refresh().await.unwrap();
    let before = f.stored();
    f.hub.has(envelope);
    let said = keeper.refresh().await.unwrap_err().message;
    keeper.refresh().await.unwrap_err();
    assert_eq!((version(&watch), f.stored()), (3, before), "{said}");
    assert_eq!(handle.standing().last_error.as_ref(), Some(&said));
    let log = f.log();
    assert_eq!(log.len(), 2, "a refused document is recorded once: {log:?}");
    log[1].strip_prefix("policy_changed ").unwrap().to_owned()
}

async fn refused_with(changes: Value) -> String {
    let mut document = json!({"version": 4});
    document.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    refused(policy(2, &document)).await
}

#[tokio::test]
async fn versions_never_go_back_and_are_never_reused() {
    assert_eq!(refused(v(2)).await, "VERSION_TOO_OLD");
    assert_eq!(
        refused(policy(2, &json!({"version": 3, "mode": "monitor"}))).await,
        "VERSION_REUSED"
    );
}

#[tokio::test]
async fn keys_of_other_roles_and_unknown_keys_do_not_count() {
    for key in [1, 3, 4, 5, 77] {
        assert_eq!(refused(policy(key, &json!({"version": 4}))).await, "BAD_SIGNATURE");
    }
}

#[tokio::test]
async fn a_document_that_is_not_understood_does_not_take_effect() {
    assert_eq!(refused_with(json!({"surprise": 1})).await, "MALFORMED");
    let twice = json!({"exec": [{"id": "a", "effect": "allow", "path": "usr/bin/ls"}]});
    assert_eq!(refused_with(twice).await, "MALFORMED");
}

#[tokio::test]
async fn a_policy_for_others_does_not_take_effect() {
    for audience in [
        json!({"root_id": "another"}),
        json!({"root_id": "installation", "agents": ["another"]}),
        json!({"root_id": "installation", "labels": {"site": "x"}}),
    ] {
        assert_eq!(refused_with(json!({ "audience": audience })).await, "NOT_FOR_ME");
    }
}

#[tokio::test]
async fn times_are_judged_at_their_boundaries() {
    // It is 2 June, 00:00 UTC.
    assert_eq!(refused_with(json!({"expires_at": "2026-06-02T00:00:00Z"})).await, "EXPIRED");
    assert_eq!(refused_with(json!({"expires_at": "2026-05-02T00:00:00Z"})).await, "EXPIRED");
    let ahead = json!({"issued_at": "2026-06-02T00:05:00.001Z"});
    assert_eq!(refused_with(ahead).await, "ISSUED_IN_FUTURE");
    assert_eq!(refused_with(json!({"expires_at": "2026-07-01T00:00:01Z"})).await, "VALID_TOO_LONG");

    let f = Fixture::new();
    let (mut keeper, ..) = f.start();
    f.hub.has(policy(
        2,
        &json!({
        "version": 4, "issued_at": "2026-06-02T00:05:00Z", "expires_at": "2026-07-02T00:05:00Z"}),
    ));
    assert_eq!(keeper.refresh().await, Ok((4, true)));
}

#[tokio::test]
async fn labels_decide_as_they_are_in_the_config() {
    let f = Fixture::new();
    let (mut keeper, _handle, watch) = f.start();
    let audience = json!({"root_id": "installation", "labels": {"site": "x"}});
    f.labels.send_replace([("site".to_owned(), "x".to_owned())].into());
    f.hub.has(policy(2, &json!({"version": 4, "audience": audience})));
    assert_eq!(keeper.refresh().await, Ok((4, true)));
    f.labels.send_replace(Labels::new());
    keeper.reload().await;
    assert_eq!(version(&watch), 0, "the machine left the audience");
    f.hub.has(v(3));
    assert!(keeper.refresh().await.unwrap_err().message.contains("VERSION_TOO_OLD"));
    f.labels.send_replace([("site".to_owned(), "x".to_owned())].into());
    keeper.reload().await;
    assert_eq!(version(&watch), 4);
}

#[tokio::test]
async fn an_expired_policy_stays_in_force() {
    let f = Fixture::new();
    f.hub.has(v(3));
    f.start().0.refresh().await.unwrap();
    f.clock.jump_to("2026-08-01T00:00:00Z");
    let (mut keeper, _handle, watch) = f.start();
    keeper.reload().await;
    assert_eq!(version(&watch), 3);
    f.clock.jump_to("2026-06-02T00:00:00Z");
    f.hub.has(v(4));
    let said = keeper.refresh().await.unwrap_err().message;
    assert!(said.contains("EXPIRED"), "a clock set back revives nothing: {said}");
}

#[tokio::test]
async fn what_cannot_be_recorded_does_not_take_effect() {
    let f = Fixture::new();
    let (mut keeper, _handle, watch) = f.start();
    f.hub.has(v(3));
    // A folder stands where the next day's file would be.
    f.clock.jump_to("2026-06-03T00:00:00Z");
    fs::create_dir(f.dir.path().join("audit/audit-2026-06-03.log")).unwrap();
    let said = keeper.refresh().await.unwrap_err().message;
    assert!(said.contains("CANNOT_RECORD"), "{said}");
    assert_eq!((version(&watch), f.stored()), (0, None));
}

#[tokio::test]
async fn what_cannot_be_stored_does_not_take_effect() {
    let f = Fixture::new();
    let (mut keeper, _handle, watch) = f.start();
    f.hub.has(v(3));
    fs::create_dir_all(stored::file(f.dir.path())).unwrap();
    let said = keeper.refresh().await.unwrap_err().message;
    assert!(said.contains("CANNOT_STORE"), "{said}");
    assert_eq!(version(&watch), 0);
}

#[tokio::test]
async fn a_damaged_file_is_no_policy_and_no_obstacle() {
    let f = Fixture::new();
    f.hub.has(v(3));
    f.start().0.refresh().await.unwrap();
    let mut bytes = f.stored().unwrap();
    bytes.truncate(bytes.len() / 2);
    crate::runtime::durable::replace(&stored::file(f.dir.path()), &bytes, 0o600).unwrap();
    let (mut keeper, handle, watch) = f.start();
    keeper.reload().await;
    assert_eq!(version(&watch), 0);
    assert!(handle.standing().last_error.unwrap().contains("policy.json cannot be used"));
    assert_eq!(keeper.refresh().await, Ok((3, true)));
}

#[tokio::test]
async fn a_new_root_is_followed_and_its_policy_role_begins_anew() {
    let f = Fixture::new();
    let (mut keeper, _handle, watch) = f.start();
    f.hub.has(v(3));
    keeper.refresh().await.unwrap();
    let (two, three) = (Installation::new().rotated(8), Installation::new().rotated(8).rotated(9));
    f.hub.roots.lock().unwrap().extend([(2, two.signed()), (3, three.signed())]);
    f.hub.has(policy(9, &json!({"version": 1})));
    assert_eq!(keeper.refresh().await, Ok((1, true)));
    assert_eq!(f.keyring.borrow().as_ref().unwrap().root().version, 3);
    assert_eq!(fs::read(f.dir.path().join("trust/root.json")).unwrap(), three.signed());
    assert_eq!(
        f.log(),
        ["policy_changed 3", "root_changed 3", "policy_changed BAD_SIGNATURE", "policy_changed 1"]
    );
    assert_eq!(version(&watch), 1);
    // The old role's policy is nobody's now.
    f.hub.has(v(4));
    assert!(keeper.refresh().await.unwrap_err().message.contains("BAD_SIGNATURE"));
}

#[tokio::test]
async fn a_hint_at_a_root_takes_away_what_its_keys_did_not_sign() {
    let f = Fixture::new();
    let (mut keeper, handle, watch) = f.start();
    f.hub.has(v(3));
    keeper.refresh().await.unwrap();
    f.hub.roots.lock().unwrap().insert(2, Installation::new().rotated(8).signed());
    assert_eq!(keeper.refresh().await, Ok((3, false)), "nobody told");
    handle.poke_root(2);
    keeper.refresh().await.unwrap_err();
    assert_eq!(version(&watch), 0);
}

#[tokio::test]
async fn a_root_that_does_not_follow_changes_nothing() {
    let f = Fixture::new();
    let (mut keeper, handle, watch) = f.start();
    f.hub.has(v(3));
    keeper.refresh().await.unwrap();
    let skipping = Installation::new().rotated(8).rotated(9);
    f.hub.roots.lock().unwrap().insert(2, skipping.signed());
    handle.poke_root(3);
    let said = keeper.refresh().await.unwrap_err().message;
    assert!(said.contains("root 3 does not follow root 1"), "{said}");
    assert_eq!(f.keyring.borrow().as_ref().unwrap().root().version, 1);
    assert_eq!(version(&watch), 3);
    assert!(!f.dir.path().join("trust").exists());
}

#[tokio::test]
async fn an_expired_root_introduces_no_policy() {
    let f = Fixture::new();
    let mut installation = Installation::new();
    installation.root.expires_at = "2026-06-01T12:00:00Z".parse().unwrap();
    f.keyring.send_replace(Some(installation.keyring()));
    f.hub.has(v(3));
    assert!(f.start().0.refresh().await.unwrap_err().message.contains("ROOT_EXPIRED"));
}

#[tokio::test]
async fn an_identity_that_appears_brings_the_policy_and_its_end_takes_it() {
    let f = Fixture::new();
    let keyring = f.keyring.send_replace(None);
    f.hub.has(v(3));
    let (keeper, handle, mut watch) = f.start();
    let stop = CancellationToken::new();
    let others = async {
        assert!(handle.refresh().await.unwrap_err().message.contains("not enrolled"));
        f.keyring.send_replace(keyring);
        watch.wait_for(Option::is_some).await.unwrap();
        f.keyring.send_replace(None);
        watch.wait_for(Option::is_none).await.unwrap();
        stop.cancel();
    };
    tokio::join!(keeper.run(stop.clone()), others);
}

#[tokio::test]
async fn the_log_tells_a_policy_from_none() {
    let (_listening, said) = overhear(LevelFilter::INFO);
    let fixture = Fixture::new();
    fixture.keyring.send_replace(None);
    let (mut keeper, _, _) = fixture.start();
    keeper.begin().await;
    let said = said.text();
    assert!(said.contains("no policy is in force, so no job may run"), "{said}");
    assert!(!said.contains("version=0"), "{said}");
}

#[tokio::test]
async fn a_hub_that_hangs_does_not_hold_up_the_end() {
    let f = Fixture::new();
    let (mut keeper, ..) = f.start();
    let stop = CancellationToken::new();
    let told = stop.clone();
    keeper.set_source(Source {
        policy: Box::new(move |_| {
            told.cancel();
            Box::pin(std::future::pending())
        }),
        ..f.source()
    });
    keeper.run(stop).await;
}

#[tokio::test(start_paused = true)]
async fn hints_in_a_row_are_one_try_in_five_seconds() {
    let f = Fixture::new();
    let (keeper, handle, _watch) = f.start();
    let stop = CancellationToken::new();
    let asked = || f.hub.asked.load(Ordering::SeqCst);
    let others = async {
        handle.refresh().await.unwrap();
        let before = asked();
        let start = tokio::time::Instant::now();
        for _ in 0..100 {
            handle.poke();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!((3..=5).contains(&(asked() - before)), "{} tries", asked() - before);
        assert!(start.elapsed() >= Duration::from_secs(20));
        stop.cancel();
    };
    tokio::join!(keeper.run(stop.clone()), others);
}

#[tokio::test(start_paused = true)]
async fn without_a_reason_the_hub_is_asked_every_five_minutes() {
    let f = Fixture::new();
    let (keeper, handle, _watch) = f.start();
    let stop = CancellationToken::new();
    let others = async {
        handle.refresh().await.unwrap();
        let before = f.hub.asked.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_hours(1)).await;
        let asked = f.hub.asked.load(Ordering::SeqCst) - before;
        assert!((10..=14).contains(&asked), "{asked} times in an hour");
        stop.cancel();
    };
    tokio::join!(keeper.run(stop.clone()), others);
}
