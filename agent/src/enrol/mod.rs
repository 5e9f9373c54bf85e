//! Enrolment: a token and an outside root become an identity, all or nothing.
//!
//! The order is the security of it. First the root of roles, from outside the hub; then the hub,
//! authenticated by TLS; only then the token leaves this machine. What comes back is judged before
//! any of it is written, and one rename decides whether the agent is enrolled.
//!
//! The audit key alone may outlive a failed try: the agent's id follows from it, so the next try,
//! or the one after an answer that was lost, is by the same agent.

pub mod attempts;
mod contact;
mod error;
mod facts;

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use jtnt_proto::{
    bytes::{Base64, Hash},
    hub::{EnrollRequest, EnrollResponse, HostFacts},
    identity::enroll_proof_message,
};
use rustls_pki_types::CertificateDer;
use tokio::{task::spawn_blocking, time::timeout};
use zeroize::Zeroizing;

use crate::{
    audit,
    domain::key_store::KeyStore,
    hub::Address,
    identity::{
        self, CertInfo, Identity, IdentityError, Paths, RootSource, Source,
        client_key::{self, NewKey},
        commit::{self, NewFile, Step},
        x509::{CertFault, Judged, certificates, pem},
    },
    runtime::{
        clock::SharedClock,
        durable,
        entropy::SharedEntropy,
        lock::{Lock, LockError},
        signer::AuditSigner,
    },
    telemetry::metrics::Metrics,
};
use attempts::Attempt;
use contact::Contact;

pub use error::{EnrolError, Input};
pub use facts::host_facts;

/// How long a device may take for a key.
const DEVICE: Duration = Duration::from_secs(60);
/// Beyond this, a certificate with odd dates is a matter of clocks.
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What an enrolment is asked to do.
#[derive(Debug)]
pub struct Options {
    /// `data_dir`.
    pub data_dir: PathBuf,
    /// Where the hub is.
    pub hub: Address,
    /// Through whom.
    pub proxy: Option<Address>,
    /// One-time token.
    pub token: Zeroizing<String>,
    /// Where the root of roles comes from.
    pub root: RootPin,
    /// Who vouches for the hub's TLS, if not the root.
    pub hub_ca: Option<HubCa>,
    /// Labels of the agent's configuration.
    pub labels: BTreeMap<String, String>,
    /// The machine: [`host_facts`].
    pub host: HostFacts,
    /// The configuration as it is to be, with `hub_url` and labels; part of the commit.
    pub config: Option<ConfigFile>,
    /// Where the key of the certificate is made.
    pub key_store: KeyStore,
    /// Replace an identity that is there.
    pub force: bool,
}

/// Where the root of roles comes from.
#[derive(Debug, Clone)]
pub enum RootPin {
    /// From the enrolment before, whose word on where it came from stays.
    Kept,
    /// A file that came by another way than the hub.
    File(PathBuf),
    /// The SHA-256 of such a file; the file itself is fetched from the hub.
    Sha256(Hash),
    /// Whatever the hub says: for trials.
    TrustHub,
}

/// Who vouches for the hub's TLS.
#[derive(Debug, Clone)]
pub enum HubCa {
    /// Authorities in a PEM file.
    File(PathBuf),
    /// The SHA-256 of an authority's DER, which the hub must show.
    Sha256(Hash),
}

/// A configuration to be put in place.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// Where.
    pub path: PathBuf,
    /// All of it.
    pub content: Vec<u8>,
}

/// What an enrolment needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Time.
    pub clock: SharedClock,
    /// Chance, for the audit key.
    pub entropy: SharedEntropy,
    /// Requests are counted here.
    pub metrics: Metrics,
}

/// An enrolment that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// Who this agent is.
    pub agent_id: String,
    /// Its certificate.
    pub cert: CertInfo,
    /// Where its root came from.
    pub root_source: RootSource,
    /// Version of that root.
    pub root_version: u64,
    /// Hash of the root's file, to compare with what the operator has.
    pub root_sha256: Hash,
}

/// Enrols, and writes down that it was tried.
///
/// # Errors
/// As [`EnrolError`]; then the agent is as enrolled as it was before.
pub async fn enroll(options: Options, deps: Deps) -> Result<Enrolled, EnrolError> {
    enroll_stepwise(options, deps, &mut |_| Ok(())).await
}

async fn enroll_stepwise(
    options: Options,
    deps: Deps,
    step: Step<'_>,
) -> Result<Enrolled, EnrolError> {
    let paths = Paths { data_dir: options.data_dir.clone() };
    durable::create_dir(&paths.data_dir, 0o755)
        .map_err(|e| EnrolError::storage(&paths.data_dir, &e))?;
    let _lock = Lock::take(&paths.enrol_lock(), "jtnt-agent enroll").map_err(|e| match e {
        LockError::Held { .. } => EnrolError::busy(&e),
        LockError::Unnamed { .. } => EnrolError::locked(&e),
        LockError::Io { path, source } => EnrolError::storage(&path, &source),
    })?;
    let hub = options.hub.to_string();
    let now = deps.clock.now();
    let outcome = under_lock(&paths, options, &deps, step).await;
    let placed = outcome.is_ok() || commit::is_pending(&paths.data_dir);
    clear_up(&paths, placed).await;
    let attempt = Attempt::new(now, hub, &outcome);
    let recorded = attempts::record(&paths.data_dir, attempt);
    match (outcome, recorded) {
        (Ok(_), Err(e)) => Err(EnrolError::unrecorded(&paths.attempts(), &e)),
        (outcome, _) => outcome,
    }
}

/// What is left of the key's making: its name, and where it serves nothing, the key itself.
async fn clear_up(paths: &Paths, in_use: bool) {
    let own = paths.clone();
    let work = move || match in_use {
        true => drop(durable::remove(&own.enrol_key())),
        false => client_key::abandon(&own),
    };
    // A device that does not answer is not waited for.
    let _late = timeout(DEVICE, spawn_blocking(work)).await;
}

async fn under_lock(
    paths: &Paths,
    options: Options,
    deps: &Deps,
    step: Step<'_>,
) -> Result<Enrolled, EnrolError> {
    let at = |e: io::Error| EnrolError::storage(&paths.data_dir, &e);
    commit::finish(&paths.data_dir, &mut |_| Ok(())).map_err(at)?;
    let machine = identity::machine_id_sha256();
    match identity::load_placed(paths, machine) {
        Err(IdentityError::NotEnrolled) => {}
        Ok(Identity { agent_id, .. }) if !options.force => {
            return Err(EnrolError::enrolled(&format!("agent {agent_id}")));
        }
        Err(e) if !options.force => return Err(EnrolError::enrolled(&e.to_string())),
        Ok(_) | Err(_) => {}
    }
    let contact = Contact::make(&options, deps).await?;
    let signer = identity::audit_key(paths, &deps.entropy).map_err(|e| EnrolError::key(&e))?;
    let asked = Asked::new(signer.as_ref(), &options, &deps.entropy).await?;
    let answer = contact.client.enroll(&asked.request).await.map_err(EnrolError::hub)?;
    let extra = contact.extra();
    let judged = judge(&asked, &answer, (&contact, &extra), deps.clock.now())?;
    let source = Source {
        root_source: contact.source,
        extra_ca_sha256: extra.iter().map(|ca| Hash::of(ca)).collect(),
        machine_id_sha256: machine,
        root_id: Some(contact.keyring.root().root_id.clone()),
    };
    let files = files(paths, &asked, &answer, Parts { judged: &judged, contact: &contact, source })
        .into_iter()
        .chain(options.config.map(config_file));
    let files: Vec<_> = files.collect();
    if let Err(e) = commit::commit(&paths.data_dir, &files, step) {
        return Err(if commit::is_pending(&paths.data_dir) {
            EnrolError::unplaced(&paths.data_dir, &e)
        } else {
            at(e)
        });
    }
    if let Err(error) = identity::forget_others(paths) {
        tracing::warn!(%error, "pairs of the identity before stay beside the new one");
    }
    Ok(Enrolled {
        agent_id: asked.request.agent_id.clone(),
        cert: judged.info,
        root_source: contact.source,
        root_version: contact.keyring.root().version,
        root_sha256: Hash::of(&contact.root),
    })
}

/// A request, with the key that must fit the answer.
struct Asked {
    request: EnrollRequest,
    /// `client.key`.
    key: Zeroizing<Vec<u8>>,
    /// The file of the key that secrets are sealed to.
    seal: Zeroizing<Vec<u8>>,
}

impl Asked {
    async fn new(
        signer: &dyn AuditSigner,
        options: &Options,
        entropy: &SharedEntropy,
    ) -> Result<Self, EnrolError> {
        let id = identity::id_of(signer);
        let audit_key = signer.keys().into_iter().next().unwrap_or_else(|| signer.public_key());
        let paths = Paths { data_dir: options.data_dir.clone() };
        let dir = paths.audit_pub().parent().map(std::path::Path::to_owned).unwrap_or_default();
        let key_rotations = audit::rotations(&dir)
            .map_err(|e| EnrolError::key(&IdentityError::Unusable(e.to_string())))?;
        let (store, own, entropy) = (options.key_store.clone(), id.clone(), Arc::clone(entropy));
        let intent = paths.enrol_key();
        let make = move || client_key::make(&store, &own, &intent, entropy.as_ref());
        let made = match timeout(DEVICE, spawn_blocking(make)).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_late) => Err("it does not answer".to_owned()),
        };
        let NewKey { file: key, csr } =
            made.map_err(|e| EnrolError::tls_key(&options.key_store, &e))?;
        let (seal_key, seal) = identity::SealKey::generate()
            .map_err(|e| EnrolError::key(&IdentityError::Unusable(e)))?;
        let proof = signer.sign(&enroll_proof_message(&options.token, &csr, &id));
        let request = EnrollRequest {
            token: options.token.to_string(),
            csr,
            audit_key,
            agent_id: id,
            key_rotations,
            proof: Base64(proof.to_vec()),
            seal_key: Some(Base64(seal_key)),
            host: options.host.clone(),
            labels: options.labels.clone(),
        };
        Ok(Self { request, key, seal })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.request.token);
    }
}

/// An answer that holds.
struct Good {
    info: CertInfo,
    /// The authorities that are kept.
    bundle: Vec<CertificateDer<'static>>,
}

/// Believes nothing of the answer before it was checked against what was asked.
fn judge(
    asked: &Asked,
    answer: &EnrollResponse,
    (contact, extra): (&Contact, &[CertificateDer<'static>]),
    now: Timestamp,
) -> Result<Good, EnrolError> {
    let id = &asked.request.agent_id;
    if answer.agent_id != *id {
        return Err(EnrolError::certificate(&format!("it is for the agent {:?}", answer.agent_id)));
    }
    let unreadable = |why: String| EnrolError::certificate(&why);
    let chain = certificates(answer.certificate.as_bytes()).map_err(unreadable)?;
    let offered = certificates(answer.ca_bundle.as_bytes()).map_err(unreadable)?;
    let mut named = contact.keyring.root().ca_hashes();
    named.extend(extra.iter().map(|ca| Hash::of(ca)));
    // Only what the root names is kept; where it names nothing, the hub's own word is all there
    // is about agents' certificates, and the system's authorities vouch for the hub.
    let mut bundle: Vec<_> = offered
        .into_iter()
        .filter(|ca| named.is_empty() || named.contains(&Hash::of(ca)))
        .collect();
    bundle.extend(extra.iter().filter(|ca| !bundle.contains(ca)).cloned().collect::<Vec<_>>());
    let judged = Judged { chain: &chain, anchors: &bundle, agent_id: id };
    let skewed = answer.hub_time.duration_since(now).abs() > MAX_SKEW;
    let info = judged.at(now).map_err(|fault| match fault {
        CertFault::NotYetValid(begins) if begins <= answer.hub_time => {
            EnrolError::skew(now, answer.hub_time)
        }
        CertFault::Expired(_) if skewed => EnrolError::skew(now, answer.hub_time),
        other @ (CertFault::Unreadable(_)
        | CertFault::WrongName { .. }
        | CertFault::NotForClients
        | CertFault::Untrusted(_)
        | CertFault::NotYetValid(_)
        | CertFault::Expired(_)) => EnrolError::certificate(&other.to_string()),
    })?;
    client_key::open(&asked.key).and_then(|key| key.with(chain)).map_err(unreadable)?;
    let trust = identity::tls::Trust::Authorities(bundle.clone());
    identity::tls::client_config(&trust, None).map_err(unreadable)?;
    Ok(Good { info, bundle })
}

struct Parts<'a> {
    judged: &'a Good,
    contact: &'a Contact,
    source: Source,
}

/// The identity as files. The key comes first, so that no reader of a half-placed set finds a new
/// certificate beside an old key and thinks the worse of it than it is.
fn files(
    paths: &Paths,
    asked: &Asked,
    answer: &EnrollResponse,
    Parts { judged, contact, source }: Parts<'_>,
) -> Vec<NewFile> {
    let file = |target, content: Vec<u8>, mode, folder_mode| NewFile {
        target,
        content: content.into(),
        mode,
        folder_mode,
    };
    let bundle: String = judged.bundle.iter().map(|ca| pem(ca)).collect();
    let source = serde_json::to_vec(&source).unwrap_or_default();
    let crt = answer.certificate.clone().into_bytes();
    vec![
        file(paths.client_key(), asked.key.to_vec(), durable::PRIVATE, 0o700),
        file(paths.seal_key(), asked.seal.to_vec(), durable::PRIVATE, 0o700),
        file(paths.client_crt(), crt, durable::PUBLIC, 0o700),
        file(paths.ca_bundle(), bundle.into_bytes(), durable::PUBLIC, 0o700),
        file(paths.root(), contact.root.clone(), durable::PUBLIC, 0o755),
        file(paths.source(), source, durable::PUBLIC, 0o755),
    ]
}

fn config_file(ConfigFile { path, content }: ConfigFile) -> NewFile {
    let mode = durable::mode_of(&path);
    NewFile { target: path, content: content.into(), mode, folder_mode: 0o755 }
}

#[cfg(test)]
mod tests;
