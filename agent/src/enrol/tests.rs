//! Enrolment against a real hub over real TLS, stopped at every step, and refused in every way.

use std::{
    cell::RefCell, fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration,
};

use jtnt_hub_mock::{Filter, Handle, Hub, Kind, Route};

use super::*;
use crate::{
    domain::key_store::KeyStore,
    runtime::{clock::SystemClock, entropy::SeededEntropy},
};

fn deps() -> Deps {
    Deps {
        clock: Arc::new(SystemClock),
        entropy: SeededEntropy::new(7),
        metrics: Metrics::new("test").unwrap(),
    }
}

async fn options(hub: &Handle, data: &Path) -> Options {
    Options {
        data_dir: data.join("data"),
        hub: Address::hub(&hub.url()).unwrap(),
        proxy: None,
        token: Zeroizing::new(hub.token().await.unwrap()),
        root: RootPin::File(hub.root_file()),
        hub_ca: None,
        labels: BTreeMap::from([("site".to_owned(), "b7".to_owned())]),
        host: host_facts("0.0.0"),
        config: Some(ConfigFile {
            path: data.join("etc/config.json"),
            content: format!("{{\"hub_url\":\"{}\"}}", hub.url()).into_bytes(),
        }),
        key_store: KeyStore::File,
        force: false,
    }
}

fn paths(data: &Path) -> Paths {
    Paths { data_dir: data.join("data") }
}

/// Every file but the audit key and the record of attempts, with its content.
fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if !["keys/audit.key", "audit/audit.pub", "attempts", "enrol.lock"]
                .iter()
                .any(|other| name.contains(other))
            {
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy(&entry, &target);
        } else {
            fs::copy(entry, target).unwrap();
        }
    }
}

/// Tries, and expects a refusal that leaves everything as it was.
async fn refused(options: Options, data: &Path) -> EnrolError {
    let before = tree(data);
    let error = enroll(options, deps()).await.unwrap_err();
    assert_eq!(tree(data), before, "{error}");
    assert!(!error.advice.is_empty() && !error.message.is_empty());
    error
}

fn reason(error: &EnrolError) -> &str {
    &error.reason
}

#[tokio::test]
async fn a_token_and_a_root_make_an_identity() {
    let (hub, dir) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    let enrolled = enroll(options(&hub, dir.path()).await, deps()).await.unwrap();
    let paths = paths(dir.path());
    let identity = identity::load(&paths).unwrap();
    assert_eq!(identity.agent_id, enrolled.agent_id);
    assert_eq!(identity.cert, enrolled.cert);
    assert_eq!((identity.root_source, enrolled.root_version), (RootSource::Pinned, 1));
    assert_eq!(hub.agents()[0].agent_id, enrolled.agent_id);
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&paths.client_key()), 0o600);
    assert_eq!(mode(paths.client_key().parent().unwrap()), 0o700);
    assert_eq!(mode(&paths.audit_key()), 0o600);
    let config = fs::read_to_string(dir.path().join("etc/config.json")).unwrap();
    assert!(config.contains(&hub.url()));
    let attempts = attempts::read_from(&paths.data_dir, 0).unwrap();
    assert_eq!((attempts.len(), attempts[0].status.as_str()), (1, "success"));
}

#[tokio::test]
async fn wherever_it_is_killed_the_agent_is_enrolled_or_it_is_not() {
    let (hub, dir) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    let copies = tempfile::tempdir().unwrap();
    let steps = RefCell::new(Vec::new());
    let mut options = options(&hub, dir.path()).await;
    // Inside the folder that is copied; the copy's manifest still names the original's config.
    options.config = None;
    let data = options.data_dir.clone();
    let mut step = |name: &'static str| {
        let n = steps.borrow().len();
        copy(&data, &copies.path().join(n.to_string()));
        steps.borrow_mut().push(name);
        Ok(())
    };
    let enrolled = enroll_stepwise(options, deps(), &mut step).await.unwrap();
    let steps = steps.into_inner();
    let decided = steps.iter().position(|s| *s == "committed").unwrap();
    assert!(steps.len() > 10 && decided > 5, "{steps:?}");
    // The original has to be away: a copy is put in place where the manifest says.
    for (n, step) in steps.iter().enumerate() {
        fs::remove_dir_all(&data).unwrap();
        copy(&copies.path().join(n.to_string()), &data);
        match identity::load(&paths(dir.path())) {
            Ok(identity) if n >= decided => assert_eq!(identity.agent_id, enrolled.agent_id),
            Err(IdentityError::NotEnrolled) if n < decided => {}
            other => panic!("killed after {n} ({step}): {other:?}"),
        }
        assert!(!commit::is_pending(&data));
    }
}

#[tokio::test]
async fn a_full_disk_before_the_commit_leaves_no_trace_and_the_same_agent_next_time() {
    let (hub, dir) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    let mut full = |name: &'static str| match name {
        "staged" => Err(io::Error::from(io::ErrorKind::StorageFull)),
        _ => Ok(()),
    };
    let error = enroll_stepwise(options(&hub, dir.path()).await, deps(), &mut full).await;
    assert_eq!(reason(&error.unwrap_err()), "STORAGE");
    assert!(tree(dir.path()).is_empty());
    assert_eq!(identity::load(&paths(dir.path())).unwrap_err(), IdentityError::NotEnrolled);
    let first = hub.agents()[0].agent_id.clone();
    let again = enroll(options(&hub, dir.path()).await, deps()).await.unwrap();
    assert_eq!(again.agent_id, first);
}

#[tokio::test]
async fn the_root_may_come_by_its_hash_or_on_trust() {
    let hub = Hub::builder().start().await.unwrap();
    let file = fs::read(hub.root_file()).unwrap();
    let by = |root, hub_ca| (root, hub_ca);
    let pinned = RootPin::Sha256(Hash::of(&file));
    let pem = fs::read(hub.ca_file()).unwrap();
    let ca = Hash::of(&certificates(&pem).unwrap()[0]);
    for ((root, hub_ca), source) in [
        (by(pinned.clone(), None), RootSource::Pinned),
        (by(pinned, Some(HubCa::File(hub.ca_file()))), RootSource::Pinned),
        (by(RootPin::TrustHub, Some(HubCa::File(hub.ca_file()))), RootSource::TrustedHub),
        (by(RootPin::TrustHub, Some(HubCa::Sha256(ca))), RootSource::TrustedHub),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { root, hub_ca, ..options(&hub, dir.path()).await };
        let enrolled = enroll(options, deps()).await.unwrap();
        assert_eq!(enrolled.root_source, source);
        assert_eq!(enrolled.root_sha256, Hash::of(&file));
        assert_eq!(identity::load(&paths(dir.path())).unwrap().root_source, source);
    }
}

#[tokio::test]
async fn the_token_stays_here_until_the_hub_is_known() {
    let (hub, other) =
        (Hub::builder().start().await.unwrap(), Hub::builder().start().await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let asked = || async { options(&hub, dir.path()).await };
    let zeros = Hash([0; 32]);
    for (changed, expected) in [
        (Options { root: RootPin::File(other.root_file()), ..asked().await }, "HUB_UNTRUSTED"),
        (Options { root: RootPin::Sha256(zeros), ..asked().await }, "ROOT_MISMATCH"),
        (Options { hub_ca: Some(HubCa::File(other.ca_file())), ..asked().await }, "HUB_UNTRUSTED"),
        (Options { hub_ca: Some(HubCa::Sha256(zeros)), ..asked().await }, "HUB_UNTRUSTED"),
        (
            Options { hub_ca: Some(HubCa::File(hub.root_file())), ..asked().await },
            "HUB_CA_UNREADABLE",
        ),
        (Options { root: RootPin::File(hub.ca_file()), ..asked().await }, "ROOT_INVALID"),
        (Options { root: RootPin::File("/none".into()), ..asked().await }, "ROOT_UNREADABLE"),
    ] {
        assert_eq!(reason(&refused(changed, dir.path()).await), expected);
    }
    let sent = hub.requests(&Filter::default());
    assert!(sent.iter().all(|r| r.route != Some(Route::Enroll)), "{sent:?}");
}

#[tokio::test]
async fn a_hub_of_another_name_is_refused_with_both_names() {
    let hub = Hub::builder().names(["other.example"]).start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = refused(options(&hub, dir.path()).await, dir.path()).await;
    assert_eq!(reason(&error), "HUB_NAME");
    assert!(error.message.contains("other.example") && error.message.contains("localhost"));
}

#[tokio::test]
async fn tokens_that_do_not_count_are_told_apart() {
    let (hub, dir) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    let forged = Options { token: "forged".to_owned().into(), ..options(&hub, dir.path()).await };
    assert_eq!(reason(&refused(forged, dir.path()).await), "TOKEN_UNKNOWN");
    let expired = hub.token_for(Some(Duration::ZERO)).await.unwrap();
    let expired = Options { token: expired.into(), ..options(&hub, dir.path()).await };
    assert_eq!(reason(&refused(expired, dir.path()).await), "TOKEN_EXPIRED");
    let first = options(&hub, dir.path()).await;
    let used = first.token.clone();
    enroll(first, deps()).await.unwrap();
    let again = Options { token: used, force: true, ..options(&hub, dir.path()).await };
    assert_eq!(reason(&refused(again, dir.path()).await), "TOKEN_USED");
    let attempts = attempts::read_from(&paths(dir.path()).data_dir, 0).unwrap();
    let reasons: Vec<_> = attempts.iter().map(|a| a.reason.as_deref().unwrap_or("-")).collect();
    assert_eq!(reasons, ["TOKEN_UNKNOWN", "TOKEN_EXPIRED", "-", "TOKEN_USED"]);
}

#[tokio::test]
async fn an_identity_is_replaced_only_by_force_and_then_as_a_whole() {
    let (hub, dir) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    let first = enroll(options(&hub, dir.path()).await, deps()).await.unwrap();
    let error = refused(options(&hub, dir.path()).await, dir.path()).await;
    assert_eq!(reason(&error), "ALREADY_ENROLLED");
    let forced = Options { force: true, ..options(&hub, dir.path()).await };
    let second = enroll(forced, deps()).await.unwrap();
    assert_eq!(second.agent_id, first.agent_id, "the audit key stays");
    assert_ne!(second.cert.serial, first.cert.serial);
    assert_eq!(identity::load(&paths(dir.path())).unwrap().cert, second.cert);
}

#[tokio::test]
async fn no_answer_of_a_broken_hub_changes_anything() {
    let (hub, dir) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    // So that a replay has an older certificate to give.
    let first = enroll(options(&hub, dir.path()).await, deps()).await.unwrap();
    for (kind, expected) in [
        (Kind::Garbage, "BAD_ANSWER"),
        (Kind::Oversized, "BAD_ANSWER"),
        (Kind::Redirect, "BAD_ANSWER"),
        (Kind::WrongShape, "BAD_ANSWER"),
        (Kind::Cut, "CONNECTION_LOST"),
        (Kind::Refuse, "CONNECTION_LOST"),
        (Kind::InternalError, ""),
        (Kind::TooMany, ""),
        (Kind::Expired, "BAD_CERTIFICATE"),
        (Kind::Replay, "BAD_CERTIFICATE"),
        (Kind::OtherAgent, "BAD_CERTIFICATE"),
        (Kind::NotForClients, "BAD_CERTIFICATE"),
        (Kind::NotYetValid, "BAD_CERTIFICATE"),
        (Kind::Stranger, "BAD_CERTIFICATE"),
        (Kind::Disordered, "BAD_CERTIFICATE"),
        (Kind::LongChain, "BAD_CERTIFICATE"),
    ] {
        hub.set_fault(Route::Enroll, kind, Some(1)).unwrap();
        let forced = Options { force: true, ..options(&hub, dir.path()).await };
        let error = refused(forced, dir.path()).await;
        assert!(expected.is_empty() || reason(&error) == expected, "{kind:?}: {error:?}");
        hub.clear_faults();
    }
    assert_eq!(identity::load(&paths(dir.path())).unwrap().cert, first.cert);
}

#[tokio::test]
async fn one_enrolment_at_a_time() {
    let (hub, dir) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    durable::create_dir(&paths(dir.path()).data_dir, 0o755).unwrap();
    let _held = Lock::take(&paths(dir.path()).enrol_lock(), "first").unwrap();
    let error = enroll(options(&hub, dir.path()).await, deps()).await.unwrap_err();
    assert_eq!(reason(&error), "BUSY");
}

#[tokio::test]
async fn an_identity_that_was_tampered_with_is_not_used() {
    let (hub, dir) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    let (other, away) = (Hub::builder().start().await.unwrap(), tempfile::tempdir().unwrap());
    enroll(options(&hub, dir.path()).await, deps()).await.unwrap();
    let elsewhere = Deps { entropy: SeededEntropy::new(8), ..deps() };
    enroll(options(&other, away.path()).await, elsewhere).await.unwrap();
    let (here, there) = (paths(dir.path()), paths(away.path()));
    let unusable = |what: &str| match identity::load(&here) {
        Err(IdentityError::Unusable(why)) => why,
        other => panic!("{what}: {other:?}"),
    };
    for (file, foreign) in [
        (here.client_key(), there.client_key()),
        (here.client_crt(), there.client_crt()),
        (here.audit_key(), there.audit_key()),
        (here.root(), there.root()),
    ] {
        let good = fs::read(&file).unwrap();
        fs::copy(&foreign, &file).unwrap();
        unusable("another agent's");
        let changed = [here.client_key(), here.client_crt()].contains(&file);
        assert_eq!(identity::inspect(&here).key_matches, !changed, "{file:?}");
        fs::remove_file(&file).unwrap();
        let why = unusable("missing");
        assert!(why.contains("missing"), "{why}");
        durable::replace(&file, b"garbage", 0o600).unwrap();
        unusable("garbage");
        durable::replace(&file, &good, 0o600).unwrap();
        identity::load(&here).unwrap();
    }
    fs::set_permissions(here.client_key(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(unusable("readable").contains("chmod 600"));
    fs::set_permissions(here.client_key(), fs::Permissions::from_mode(0o600)).unwrap();
    // An authority that nobody named is not believed, and does no harm.
    let bundle = [fs::read(here.ca_bundle()).unwrap(), fs::read(other.ca_file()).unwrap()].concat();
    durable::replace(&here.ca_bundle(), &bundle, 0o644).unwrap();
    identity::load(&here).unwrap();
    // A clone has another machine id.
    let source = fs::read_to_string(here.source()).unwrap();
    let mut source: Source = serde_json::from_str(&source).unwrap();
    source.machine_id_sha256 = Some(Hash([1; 32]));
    durable::replace(&here.source(), &serde_json::to_vec(&source).unwrap(), 0o644).unwrap();
    let clone = identity::load_placed(&here, Some(Hash([2; 32]))).unwrap_err().to_string();
    assert!(clone.starts_with("NEEDS_REENROLL"), "{clone}");
    identity::load_placed(&here, Some(Hash([1; 32]))).unwrap();
}
