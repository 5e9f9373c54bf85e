//! Renewal against a real hub over real TLS, refused in every way, and stopped on the way.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use jtnt_agent::{
    domain::key_store::KeyStore,
    enrol::{self, Options},
    hub::{HubClient, HubConfig, HubError},
    identity::{self, Identity, Pair, Paths},
    renewal::{Connect, Deps, Known, Prove, RenewError, Replaced, Step, clean_backup},
    runtime::{
        clock::{Clock, SharedClock, SystemClock},
        durable,
        entropy::{SharedEntropy, SystemEntropy},
    },
    telemetry::metrics::Metrics,
};
use jtnt_hub_mock::{Filter, Handle, Hub, Kind, OldCertificates, Route};
use tempfile::TempDir;

use crate::support::{Line, config, options};

/// An enrolled agent beside its hub.
struct Desk {
    hub: Handle,
    dir: TempDir,
    deps: Deps,
    /// The hub cannot be reached by whoever tries a new certificate.
    cut: Arc<AtomicBool>,
}

fn client(url: &str, identity: &Identity) -> HubClient {
    let metrics = Metrics::new("test").unwrap();
    HubClient::new(HubConfig { breaker_failures: 1000, ..config(url, identity, &metrics) })
}

impl Desk {
    async fn new() -> Self {
        let Line { hub, dir, .. } = Line::to(Hub::builder()).await;
        let (clock, entropy): (SharedClock, SharedEntropy) =
            (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let paths = Paths { data_dir: dir.path().to_owned() };
        let signer = identity::audit_key(&paths, &entropy).unwrap();
        let (url, cut) = (hub.url(), Arc::new(AtomicBool::new(false)));
        let unreachable = Arc::clone(&cut);
        // Any route that agents alone may use proves a certificate; this hub tells no serial here.
        let prove: Prove = Arc::new(move |client: HubClient, _| {
            let cut = unreachable.load(Ordering::SeqCst);
            Box::pin(async move {
                if cut {
                    return Err(HubError::Deadline(std::time::Duration::from_secs(1)));
                }
                client.jobs(std::time::Duration::ZERO).await.map(|_| None)
            })
        });
        let connect: Connect = Arc::new(move |identity| Some(client(&url, identity)));
        let deps = Deps {
            paths,
            key_store: Arc::new(|| KeyStore::File),
            signer,
            clock,
            entropy,
            connect,
            prove,
        };
        Self { hub, dir, deps, cut }
    }

    fn identity(&self) -> Identity {
        identity::load(&self.deps.paths).unwrap()
    }

    async fn renew(&self) -> Result<Replaced, RenewError> {
        let current = Arc::new(self.identity());
        let hub = client(&self.hub.url(), &current);
        self.deps.renew(&hub, &current, &mut |_| {}).await
    }

    /// Every file but those of locks.
    fn tree(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
                let name = path.strip_prefix(self.dir.path()).unwrap().display().to_string();
                if path.is_dir() {
                    folders.push(path);
                } else if !name.contains("lock") {
                    found.insert(name, fs::read(path).unwrap());
                }
            }
        }
        found
    }

    async fn refused(&self, reason: &str) {
        let before = self.tree();
        let error = self.renew().await.unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
        assert!(!error.advice.is_empty());
        assert_eq!(self.tree(), before, "{error}");
    }

    async fn works(&self) {
        client(&self.hub.url(), &self.identity()).jobs(std::time::Duration::ZERO).await.unwrap();
    }

    async fn enrol_again(&self) {
        let options = Options { force: true, ..options(&self.hub, self.dir.path()).await };
        let deps = enrol::Deps {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            metrics: Metrics::new("test").unwrap(),
        };
        enrol::enroll(options, deps).await.unwrap();
    }

    fn certificates(&self) -> usize {
        self.hub.agents()[0].certificates.len()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_new_pair_takes_the_place_of_the_old_which_stays_beside_it() {
    let desk = Desk::new().await;
    let (old, paths) = (Arc::new(desk.identity()), &desk.deps.paths);
    let pair = Pair::read(&paths.client_crt(), &paths.client_key()).unwrap().unwrap();
    let steps = Mutex::new(Vec::new());
    let hub = client(&desk.hub.url(), &old);
    let told = &mut |step| steps.lock().unwrap().push(step);
    let replaced = desk.deps.renew(&hub, &old, told).await.unwrap();
    let expected = [Step::Asking, Step::Checking, Step::Trying, Step::Installing];
    assert_eq!(*steps.lock().unwrap(), expected);
    let new = desk.identity();
    assert_eq!((replaced.before, &replaced.cert), (old.cert.serial.clone(), &new.cert));
    assert_ne!(new.cert.serial, old.cert.serial);
    let backup = Pair::read(&paths.client_crt_backup(), &paths.client_key_backup());
    let backup = backup.unwrap().unwrap();
    assert_eq!((backup.crt, &*backup.key), (pair.crt, &*pair.key));
    assert_ne!(fs::read(paths.client_key()).unwrap(), *backup.key, "a new key each time");
    for key in [paths.client_key(), paths.client_key_backup()] {
        assert_eq!(mode(&key), 0o600);
    }
    assert!(!paths.client_key_pending().exists() && !paths.client_csr_pending().exists());
    let known = Known::of(paths, &new.cert.serial).unwrap();
    assert_eq!((known.before.as_str(), known.renewed), (old.cert.serial.as_str(), true));
    let picked = known.picked_at.expect("the hub suggests a window");
    assert!(new.cert.not_before < picked && picked < new.cert.not_after);
    assert_eq!(Known::of(paths, &old.cert.serial), None);
    desk.works().await;
}

#[tokio::test]
async fn whatever_the_hub_answers_instead_nothing_changes() {
    let desk = Desk::new().await;
    for (kind, reason) in [
        (Kind::Expired, "CERTIFICATE"),
        // The certificate of another key.
        (Kind::Replay, "CERTIFICATE"),
        (Kind::Garbage, "HUB"),
        (Kind::WrongShape, "HUB"),
        (Kind::Redirect, "HUB"),
        (Kind::InternalError, "FAULT"),
    ] {
        desk.hub.set_fault(Route::Renew, kind, Some(1)).unwrap();
        let before = desk.identity().cert;
        let error = desk.renew().await.unwrap_err();
        assert_eq!(error.reason, reason, "{kind:?}: {error}");
        assert_eq!(desk.identity().cert, before, "{kind:?}");
        assert!(!desk.deps.paths.client_crt_backup().exists());
    }
    // And of a certificate that is wrong, not even the request stays.
    for (kind, reason) in [
        (Kind::Expired, "CERTIFICATE"),
        (Kind::OtherAgent, "CERTIFICATE"),
        (Kind::NotForClients, "CERTIFICATE"),
        (Kind::NotYetValid, "CERTIFICATE"),
        (Kind::Stranger, "CERTIFICATE"),
        (Kind::Disordered, "CERTIFICATE"),
        (Kind::LongChain, "CERTIFICATE"),
        (Kind::WrongSignature, "CERTIFICATE"),
    ] {
        let desk = Desk::new().await;
        desk.hub.set_fault(Route::Renew, kind, Some(1)).unwrap();
        desk.refused(reason).await;
    }
    let desk = Desk::new().await;
    desk.hub
        .judge_certificates(&desk.identity().agent_id, jtnt_hub_mock::Standing::Revoked)
        .await
        .unwrap();
    let error = desk.renew().await.unwrap_err();
    assert_eq!((&*error.reason, error.transient), ("CERTIFICATE_REVOKED", false));
    assert!(error.advice.contains("jtnt-agent enroll --force"));
}

/// An hour late.
#[derive(Debug)]
struct LateClock;

impl Clock for LateClock {
    fn now(&self) -> jiff::Timestamp {
        SystemClock.now() - jiff::SignedDuration::from_hours(1)
    }

    fn uptime(&self) -> std::time::Duration {
        SystemClock.uptime()
    }
}

#[tokio::test]
async fn a_clock_that_is_late_is_told_by_how_much() {
    let desk = Desk::new().await;
    let (current, before) = (Arc::new(desk.identity()), desk.tree());
    let metrics = Metrics::new("test").unwrap();
    let late =
        HubConfig { clock: Arc::new(LateClock), ..config(&desk.hub.url(), &current, &metrics) };
    let deps = Deps { clock: Arc::new(LateClock), ..desk.deps.clone() };
    let renewed = deps.renew(&HubClient::new(late), &current, &mut |_| {}).await;
    let error = renewed.unwrap_err();
    assert_eq!(error.reason, "CLOCK_SKEW");
    // A second may have gone by between the hub's clock and this one.
    let told = ["3600 s behind", "3601 s behind", "3599 s behind"];
    assert!(told.iter().any(|told| error.message.contains(told)), "{error}");
    assert_eq!(desk.tree(), before);
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_key_even_where_the_old_one_is_over() {
    for rule in [OldCertificates::OldDies, OldCertificates::OldStays] {
        let desk = Desk::new().await;
        desk.hub.set_old_certificates(rule);
        desk.hub.set_fault(Route::Renew, Kind::Cut, Some(1)).unwrap();
        let lost = desk.renew().await.unwrap_err();
        assert!(lost.transient, "{lost}");
        assert_eq!(desk.certificates(), 2, "the hub has issued it");
        let csr = fs::read(desk.deps.paths.client_csr_pending()).unwrap();
        // Another process goes on.
        let replaced = desk.renew().await.unwrap();
        assert_eq!(desk.certificates(), 2, "and no other");
        assert_eq!(desk.hub.agents()[0].certificates[1].serial, replaced.cert.serial);
        let asked = desk.hub.requests(&Filter::route(Route::Renew));
        let sent = |n: usize| asked[n].body.as_ref().unwrap()["csr"].as_str().unwrap().to_owned();
        assert_eq!((sent(0).into_bytes(), sent(1)), (csr, sent(0)));
        desk.works().await;
    }
}

#[tokio::test]
async fn an_enrolment_that_comes_between_is_not_undone() {
    let desk = Arc::new(Desk::new().await);
    desk.renew().await.unwrap();
    let between = Arc::clone(&desk);
    // While the hub is shown a certificate, the agent is enrolled anew.
    let prove: Prove = Arc::new(move |_, _| {
        let desk = Arc::clone(&between);
        let runtime = tokio::runtime::Handle::current();
        Box::pin(async move {
            let enrolled = move || runtime.block_on(desk.enrol_again());
            tokio::task::spawn_blocking(enrolled).await.unwrap();
            Ok(None)
        })
    });
    let deps = Deps { prove, ..desk.deps.clone() };
    let current = Arc::new(desk.identity());
    let hub = client(&desk.hub.url(), &current);
    let error = deps.renew(&hub, &current, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.reason, "OVERTAKEN", "{error}");
    let enrolled = desk.identity().cert;
    assert_eq!(enrolled.serial, desk.hub.agents()[0].certificates.last().unwrap().serial);
    desk.works().await;

    desk.renew().await.unwrap();
    let error = deps.roll_back(true, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.reason, "OVERTAKEN", "{error}");
    assert_ne!(desk.identity().cert, enrolled);
    desk.works().await;
}

#[tokio::test]
async fn a_certificate_that_could_not_be_tried_waits_and_takes_no_place_before() {
    let desk = Desk::new().await;
    desk.hub.set_old_certificates(OldCertificates::OldDies);
    let old = desk.identity().cert.serial;
    desk.cut.store(true, Ordering::SeqCst);
    let error = desk.renew().await.unwrap_err();
    assert!(error.transient, "{error}");
    assert_eq!(desk.identity().cert.serial, old);
    assert!(desk.deps.paths.client_crt_pending().exists());
    desk.cut.store(false, Ordering::SeqCst);
    let replaced = desk.renew().await.unwrap();
    let known = Known::of(&desk.deps.paths, &replaced.cert.serial).unwrap();
    assert!(known.picked_at.is_some(), "nor is the hub's window lost");
    assert!(!desk.deps.paths.renewal_pending().exists());
    assert_eq!(desk.hub.requests(&Filter::route(Route::Renew)).len(), 1, "it was there already");
    assert_eq!(desk.identity().cert, replaced.cert);
    desk.works().await;
}

#[tokio::test]
async fn a_certificate_that_the_hub_does_not_take_is_forgotten() {
    let desk = Desk::new().await;
    let prove: Prove = Arc::new(|_, _| {
        Box::pin(async {
            Err(HubError::Refused {
                status: 403,
                reason: "CERTIFICATE_UNKNOWN".to_owned(),
                detail: "who?".to_owned(),
                retry_after: None,
            })
        })
    });
    let deps = Deps { prove, ..desk.deps.clone() };
    let (current, before) = (Arc::new(desk.identity()), desk.tree());
    let hub = client(&desk.hub.url(), &current);
    let error = deps.renew(&hub, &current, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.reason, "CERTIFICATE_UNKNOWN");
    assert_eq!(desk.tree(), before);
    let other: Prove = Arc::new(|_, _| Box::pin(async { Ok(Some("00".to_owned())) }));
    let deps = Deps { prove: other, ..desk.deps.clone() };
    let error = deps.renew(&hub, &current, &mut |_| {}).await.unwrap_err();
    assert_eq!(error.reason, "NOT_SEEN");
    assert_eq!(desk.tree(), before);
}

#[tokio::test]
async fn one_that_is_never_taken_does_not_keep_another_from_coming() {
    let desk = Desk::new().await;
    let (current, hub) = (Arc::new(desk.identity()), client(&desk.hub.url(), &desk.identity()));
    desk.cut.store(true, Ordering::SeqCst);
    assert!(desk.renew().await.unwrap_err().transient);
    let waiting = fs::read(desk.deps.paths.client_crt_pending()).unwrap();
    // The hub takes the old one, and of those it issued not the first.
    let asked = Arc::new(AtomicBool::new(false));
    let (old, unlucky) = (current.cert.serial.clone(), Arc::clone(&asked));
    let prove: Prove = Arc::new(move |_, cert| {
        let lost = cert.serial != old && !unlucky.swap(true, Ordering::SeqCst);
        Box::pin(async move {
            if lost { Err(HubError::Deadline(std::time::Duration::from_secs(1))) } else { Ok(None) }
        })
    });
    let deps = Deps { prove, ..desk.deps.clone() };
    let replaced = deps.renew(&hub, &current, &mut |_| {}).await.unwrap();
    assert!(asked.load(Ordering::SeqCst), "the one that waits is tried first");
    assert_eq!(desk.identity().cert, replaced.cert);
    assert_ne!(fs::read(desk.deps.paths.client_crt()).unwrap(), waiting);
    assert!(!desk.deps.paths.client_key_pending().exists());
    desk.works().await;
}

#[tokio::test]
async fn a_full_disk_or_a_lost_file_does_not_take_a_whole_pair_away() {
    let desk = Desk::new().await;
    let old = desk.identity().cert;
    desk.renew().await.unwrap();
    let paths = &desk.deps.paths;
    fs::remove_file(paths.client_crt()).unwrap();
    assert_eq!(desk.identity().cert, old, "the backup");
    // A commit that cannot be finished.
    let commit = desk.dir.path().join("enrol.commit");
    fs::create_dir(&commit).unwrap();
    durable::replace(&commit.join("manifest.json"), b"half", 0o600).unwrap();
    assert_eq!(desk.identity().cert, old);
    fs::remove_dir_all(&commit).unwrap();
    // What others can read is for somebody to look at.
    fs::set_permissions(paths.client_key(), fs::Permissions::from_mode(0o644)).unwrap();
    let error = identity::load(paths).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
}

#[tokio::test]
async fn the_way_back_is_proven_first_and_can_be_gone_again() {
    let desk = Desk::new().await;
    let paths = &desk.deps.paths;
    let back = async |prove| desk.deps.roll_back(prove, &mut |_| {}).await;
    assert_eq!(back(true).await.unwrap_err().reason, "NO_BACKUP");
    let old = desk.identity().cert;
    let new = desk.renew().await.unwrap().cert;
    let replaced = back(true).await.unwrap();
    assert_eq!((replaced.before, &replaced.cert), (new.serial.clone(), &old));
    assert_eq!(desk.identity().cert, old);
    let known = Known::of(paths, &old.serial).unwrap();
    assert!(!known.renewed, "a way back is no renewal that another has to wait for");
    assert_eq!(back(true).await.unwrap().cert, new, "and there again");
    // The hub does not take it any more.
    desk.hub.set_old_certificates(OldCertificates::OldDies);
    let newest = desk.renew().await.unwrap().cert;
    desk.works().await;
    let before = desk.tree();
    let error = back(true).await.unwrap_err();
    assert_eq!((&*error.reason, error.transient), ("UNPROVEN", false));
    desk.cut.store(true, Ordering::SeqCst);
    let error = back(true).await.unwrap_err();
    assert!(error.transient && error.advice.contains("--no-probe"), "{error:?}");
    assert_eq!(desk.tree(), before);
    assert_eq!(desk.identity().cert, newest);
    back(false).await.unwrap();
}

#[tokio::test]
async fn a_backup_that_is_none_changes_nothing() {
    let desk = Desk::new().await;
    desk.renew().await.unwrap();
    let paths = &desk.deps.paths;
    let (crt, key) = (paths.client_crt_backup(), paths.client_key_backup());
    let good = (fs::read(&crt).unwrap(), fs::read(&key).unwrap());
    let own = fs::read(paths.client_key()).unwrap();
    for (crt_is, key_is, key_mode) in [
        (&b""[..], &good.1[..], 0o600),
        (b"garbage", &good.1, 0o600),
        // Of another key, and a key that others can read.
        (&good.0, &own, 0o600),
        (&good.0, &good.1, 0o644),
    ] {
        durable::replace(&crt, crt_is, 0o644).unwrap();
        durable::replace(&key, key_is, key_mode).unwrap();
        let before = desk.tree();
        let error = desk.deps.roll_back(true, &mut |_| {}).await.unwrap_err();
        assert_eq!(error.reason, "BAD_BACKUP", "{error}");
        assert_eq!(error.message.contains("chmod 600"), key_mode == 0o644, "{error}");
        assert_eq!(desk.tree(), before);
    }
}

#[tokio::test]
async fn where_the_pair_in_place_is_broken_another_whole_one_is_used() {
    let desk = Desk::new().await;
    let old = desk.identity().cert;
    desk.renew().await.unwrap();
    let paths = &desk.deps.paths;
    durable::replace(&paths.client_crt(), b"half", 0o644).unwrap();
    assert_eq!(desk.identity().cert, old, "the backup");
    let told = identity::inspect(paths).problems.join("");
    assert!(told.contains("the backup pair"), "{told}");
    desk.works().await;
    // And it is renewed from there.
    let replaced = desk.renew().await.unwrap();
    assert_eq!(identity::inspect(paths).problems, Vec::<String>::new());
    assert_eq!(desk.identity().cert, replaced.cert);
    desk.works().await;
}

#[tokio::test]
async fn backups_go_after_a_week() {
    let desk = Desk::new().await;
    desk.renew().await.unwrap();
    let now = desk.deps.clock.now();
    let after = |hours| now + jiff::SignedDuration::from_hours(hours);
    assert!(!clean_backup(&desk.deps.paths, after(7 * 24 - 1)).unwrap());
    assert!(clean_backup(&desk.deps.paths, after(7 * 24 + 1)).unwrap());
    assert!(!desk.deps.paths.client_key_backup().exists());
    assert!(!clean_backup(&desk.deps.paths, after(8 * 24)).unwrap());
}

/// One request over a connection of its own; whether its session was resumed.
async fn handshake(hub: &Handle, tls: &Arc<rustls::ClientConfig>) -> rustls::HandshakeKind {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = hub.url().replace("https://localhost:", "127.0.0.1:");
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(tls));
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let request = b"GET /api/v1/policy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    stream.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn a_new_pair_takes_up_no_session_of_the_old_one() {
    let desk = Desk::new().await;
    let old = desk.identity();
    let full = [rustls::HandshakeKind::Full, rustls::HandshakeKind::FullWithHelloRetryRequest];
    assert!(full.contains(&handshake(&desk.hub, &old.tls).await));
    let resumed = handshake(&desk.hub, &old.tls).await;
    assert_eq!(resumed, rustls::HandshakeKind::Resumed, "or there is nothing to be taken up");
    let proving = identity::tls::in_full(&old.tls);
    assert!(full.contains(&handshake(&desk.hub, &proving).await), "a proof is one");
    desk.renew().await.unwrap();
    let new = desk.identity();
    assert!(full.contains(&handshake(&desk.hub, &new.tls).await));
    let seen = desk.hub.requests(&Filter::default()).pop().unwrap();
    assert_eq!(seen.serial.as_deref(), Some(new.cert.serial.as_str()));
}

#[tokio::test]
async fn a_new_pair_takes_no_connection_that_rests_from_the_old_one() {
    let desk = Desk::new().await;
    let poll = async |hub: &HubClient| {
        hub.jobs(std::time::Duration::ZERO).await.unwrap();
        desk.hub.requests(&Filter::default()).pop().unwrap().serial
    };
    let (old, before) = (client(&desk.hub.url(), &desk.identity()), desk.identity().cert.serial);
    assert_eq!(poll(&old).await.as_ref(), Some(&before));
    let replaced = desk.renew().await.unwrap();
    assert_eq!(poll(&old).await.as_ref(), Some(&before), "what is under way ends on the old");
    let new = client(&desk.hub.url(), &desk.identity());
    for _ in 0..2 {
        assert_eq!(poll(&new).await.as_ref(), Some(&replaced.cert.serial));
    }
}
