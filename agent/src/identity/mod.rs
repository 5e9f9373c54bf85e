//! Who the agent is on this machine: its audit key, its TLS pair, the root it believes, and the
//! TLS configuration made from them.
//!
//! An identity is whole or it is not used: the key must fit the certificate, the certificate must
//! chain to an authority that the root names, and its name must follow from the audit key.

pub mod client_key;
pub mod commit;
mod files;
mod inspect;
mod key;
mod machine;
mod seal;
pub mod tls;
pub mod x509;

use std::{io, path::PathBuf, sync::Arc};

use jtnt_proto::{bytes::Hash, identity::agent_id};
use rustls_pki_types::CertificateDer;

use crate::{
    domain::key_store::KeyStore,
    runtime::{durable, entropy::SharedEntropy, lock::Lock, signer::AuditSigner},
    trust::Keyring,
};

pub use files::{Pair, Paths, Source};
pub use inspect::{Inspection, inspect};
pub use machine::machine_id_sha256;
pub use seal::SealKey;
pub use x509::CertInfo;

/// An enrolled agent's identity, whole and consistent.
#[derive(Debug)]
pub struct Identity {
    /// UUIDv8 of the first audit key.
    pub agent_id: String,
    /// The client certificate; perhaps one that has expired, which is for others to judge.
    pub cert: CertInfo,
    /// The root of roles.
    pub keyring: Keyring,
    /// Whether the root came from outside (`pinned`) or from the hub (`trusted_hub`).
    pub root_source: RootSource,
    /// For the connection to the hub. A new identity has a new one, so that neither resumption
    /// nor a pooled connection brings the old certificate back.
    pub tls: Arc<rustls::ClientConfig>,
    /// Where the key for it is.
    pub key_store: KeyStore,
    /// Why another pair than the one in place is used, where that is so.
    pub makeshift: Option<String>,
    /// What opens secrets of jobs; an enrolment of an older version made none.
    pub seal: Option<Arc<SealKey>>,
}

/// How the root of roles arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootSource {
    /// From outside the hub.
    Pinned,
    /// From the hub itself: a trial.
    TrustedHub,
}

impl RootSource {
    /// The word in heartbeats and status.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::TrustedHub => "trusted_hub",
        }
    }
}

/// Why there is no usable identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Nothing is there.
    #[error("not enrolled; run: jtnt-agent enroll")]
    NotEnrolled,
    /// Something is there and cannot be used; says what, where, and what to type.
    #[error("{0}")]
    Unusable(String),
}

/// Loads the audit key, or makes it at first start (0600, durable), and writes `audit.pub`.
///
/// # Errors
/// When it cannot be read or made, or others can read it.
pub fn audit_key(
    paths: &Paths,
    entropy: &SharedEntropy,
) -> Result<Arc<dyn AuditSigner>, IdentityError> {
    key::open_or_create(paths, entropy).map_err(IdentityError::Unusable)
}

/// The agent's id, which follows from the first key that it has had.
#[must_use]
pub fn id_of(signer: &dyn AuditSigner) -> String {
    agent_id(&signer.keys().into_iter().next().unwrap_or_else(|| signer.public_key()))
}

/// Loads the identity. Finishes an enrolment that was committed but not put in place.
///
/// # Errors
/// As [`IdentityError`].
pub fn load(paths: &Paths) -> Result<Identity, IdentityError> {
    let finished = roll_forward(paths);
    let loaded = load_placed(paths, machine_id_sha256());
    match (finished, loaded) {
        (Ok(()), loaded) => loaded,
        // What could not be finished is tried again; a whole identity may be there all the same.
        (Err(error), Ok(identity)) => {
            tracing::error!("{error}");
            Ok(identity)
        }
        (Err(error), Err(_)) => Err(error),
    }
}

/// Loads what is in place, on the machine of this id.
pub(crate) fn load_placed(paths: &Paths, machine: Option<Hash>) -> Result<Identity, IdentityError> {
    let why = match files::read(paths) {
        Ok(None) => return Err(IdentityError::NotEnrolled),
        Ok(Some(files)) => {
            not_a_clone(paths, &files, machine)?;
            match assemble(paths, &files) {
                Ok(identity) => return Ok(identity),
                Err(flaw) => flaw.told(),
            }
        }
        Err(why) => why,
    };
    // A key that others can read is for somebody to look at, whatever lies beside it.
    if paths.client_key().exists() {
        durable::private(&paths.client_key()).map_err(IdentityError::Unusable)?;
    }
    // Whatever else happened to the pair in place: another whole one is better than none.
    for (pair, what) in spare(paths) {
        let Ok(files) = files::others(paths, pair) else { break };
        not_a_clone(paths, &files, machine)?;
        if let Ok(identity) = assemble(paths, &files) {
            let makeshift = format!("{why}; the {what} pair of cert and key is used meanwhile");
            tracing::error!("{makeshift}");
            return Ok(Identity { makeshift: Some(makeshift), ..identity });
        }
    }
    Err(why)
}

/// Refuses what was copied from another machine.
fn not_a_clone(
    paths: &Paths,
    files: &files::Files,
    machine: Option<Hash>,
) -> Result<(), IdentityError> {
    match (files.source.machine_id_sha256, machine) {
        (Some(then), Some(now)) if then != now => Err(IdentityError::Unusable(format!(
            "NEEDS_REENROLL: this machine is not the one that enrolled (its machine id differs), \
             so this is a clone. Remove {}, then type: jtnt-agent enroll",
            paths.data_dir.display()
        ))),
        _ => Ok(()),
    }
}

/// Where the root in place came from.
///
/// # Errors
/// As [`IdentityError`].
pub fn root_source(paths: &Paths) -> Result<RootSource, IdentityError> {
    files::source(paths).map(|source| source.root_source)
}

/// Pairs beside the one in place, the newest first.
fn spare(paths: &Paths) -> impl Iterator<Item = (Pair, &'static str)> {
    let pending = (paths.client_crt_pending(), paths.client_key_pending(), "pending");
    let backup = (paths.client_crt_backup(), paths.client_key_backup(), "backup");
    [pending, backup].into_iter().filter_map(|(crt, key, what)| {
        let pair = Pair::read(&crt, &key).ok().flatten()?;
        Some((pair, what))
    })
}

/// The identity in place with another pair; `bundle` are authorities to be considered instead of
/// those in place. Nothing is written.
///
/// # Errors
/// As [`IdentityError`].
pub fn with_pair(
    paths: &Paths,
    pair: Pair,
    bundle: Option<Vec<u8>>,
) -> Result<Identity, IdentityError> {
    let files = files::others(paths, pair)?;
    let ca_bundle = bundle.unwrap_or_else(|| files.ca_bundle.clone());
    let assembled = assemble(paths, &files::Files { ca_bundle, ..files });
    assembled.map_err(|flaw| IdentityError::Unusable(flaw.why))
}

/// Of the authorities that somebody offers, those that may be believed, beside those in place: what
/// the root names, and what was accepted by `--hub-ca`. PEM.
///
/// # Errors
/// As [`IdentityError`]; an offer that cannot be read is one.
pub fn bundle_with(paths: &Paths, offered: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let files = files::others(paths, Pair::default())?;
    let unusable = |why: String| IdentityError::Unusable(format!("the CA bundle: {why}"));
    let keyring = Keyring::from_root(&files.root).map_err(|e| unusable(e.to_string()))?;
    let mut allowed = keyring.root().ca_hashes();
    allowed.extend(&files.source.extra_ca_sha256);
    let before = x509::certificates(&files.ca_bundle).map_err(unusable)?;
    let offered = x509::certificates(offered).map_err(unusable)?;
    if allowed.is_empty() {
        return Ok(files.ca_bundle);
    }
    let mut kept: Vec<CertificateDer<'static>> = Vec::new();
    for ca in offered.into_iter().chain(before) {
        if allowed.contains(&Hash::of(&ca)) && !kept.contains(&ca) {
            kept.push(ca);
        }
    }
    Ok(kept.iter().map(|ca| x509::pem(ca)).collect::<String>().into_bytes())
}

/// What is wrong with an identity.
struct Flaw {
    /// Where, unless that is said already.
    file: Option<PathBuf>,
    why: String,
}

impl Flaw {
    fn told(self) -> IdentityError {
        IdentityError::Unusable(match self.file {
            Some(file) => {
                format!("{}: {}; enrol again: {ENROL_AGAIN}", file.display(), self.why)
            }
            None => self.why,
        })
    }
}

/// A pair with its chain as short as it can be: PEM of nothing but what leads to an authority.
///
/// # Errors
/// As [`IdentityError`].
pub fn trimmed(paths: &Paths, pair: Pair, bundle: &[u8]) -> Result<Pair, IdentityError> {
    let files = files::others(paths, pair.clone())?;
    let unusable = IdentityError::Unusable;
    let keyring = Keyring::from_root(&files.root).map_err(|e| unusable(e.to_string()))?;
    let files = files::Files { ca_bundle: bundle.to_vec(), ..files };
    let anchors = anchors(&keyring, &files).map_err(unusable)?;
    let chain = x509::certificates(&pair.crt).map_err(unusable)?;
    let chain = x509::needed(chain, &anchors.issuers).map_err(unusable)?;
    let crt = chain.iter().map(|der| x509::pem(der)).collect::<String>().into_bytes();
    Ok(Pair { crt, ..pair })
}

/// An identity of these contents, if it is whole.
fn assemble(paths: &Paths, files: &files::Files) -> Result<Identity, Flaw> {
    let unusable = |file: PathBuf, why: String| Flaw { file: Some(file), why };
    let told = |why: String| Flaw { file: None, why };
    let keyring =
        Keyring::from_root(&files.root).map_err(|e| unusable(paths.root(), e.to_string()))?;
    let Some(audit) = key::open(paths).map_err(told)? else {
        return Err(unusable(paths.audit_key(), "the audit key is missing".to_owned()));
    };
    let id = id_of(audit.as_ref());
    let anchors = anchors(&keyring, files).map_err(|why| unusable(paths.ca_bundle(), why))?;
    let chain =
        x509::certificates(&files.client_crt).map_err(|why| unusable(paths.client_crt(), why))?;
    let by = |anchors| x509::Judged { chain: &chain, anchors, agent_id: &id }.at_its_end();
    let known = by(&anchors.known).map_err(|e| unusable(paths.client_crt(), e.to_string()))?;
    // It was good when it came, and whether it still is says the hub: it is all there is to get a
    // better one with.
    let cert = CertInfo { authority_dropped: by(&anchors.issuers).is_err(), ..known };
    let key = client_key::open(&files.client_key);
    let key = key.map_err(|why| unusable(paths.client_key(), why))?;
    let key_store = key.store.clone();
    let pair = key.with(chain).map_err(|why| unusable(paths.client_key(), why))?;
    let tls = tls::client_config(&anchors.servers, Some(pair))
        .map_err(|why| unusable(paths.ca_bundle(), why))?;
    let seal = seal::open(paths).map_err(told)?.map(Arc::new);
    let root_source = files.source.root_source;
    let makeshift = None;
    Ok(Identity { agent_id: id, cert, keyring, root_source, tls, key_store, makeshift, seal })
}

/// Forgets other pairs than the one in place, and what is known of that: it is another identity's.
///
/// # Errors
/// As the system's.
pub(crate) fn forget_others(paths: &Paths) -> io::Result<()> {
    let others = [
        paths.client_crt_backup(),
        paths.client_key_backup(),
        paths.client_crt_pending(),
        paths.client_csr_pending(),
        paths.client_key_pending(),
        paths.renewal_pending(),
        paths.renewal(),
    ];
    others.iter().try_for_each(|path| durable::remove(path))
}

/// Removes the identity. The audit key stays, and with it the agent's id.
///
/// # Errors
/// As the system's; what is left then is no identity, and this can be called again.
pub fn remove(paths: &Paths) -> io::Result<()> {
    let all = [
        paths.client_crt(),
        paths.client_key(),
        paths.ca_bundle(),
        paths.root(),
        paths.source(),
        paths.seal_key(),
    ];
    all.iter().try_for_each(|path| durable::remove(path))?;
    forget_others(paths)
}

const ENROL_AGAIN: &str = "jtnt-agent enroll --force --token-file FILE";

/// The authorities of an identity.
struct Anchors {
    /// That a client certificate chains to.
    issuers: Vec<CertificateDer<'static>>,
    /// These, and those that counted when the certificate in place came.
    known: Vec<CertificateDer<'static>>,
    /// That the hub's certificate chains to.
    servers: tls::Trust,
}

/// What the root names, and what was accepted by `--hub-ca`. Anything else in the bundle is not
/// believed of a hub or of a new certificate, so that a root that drops an authority is obeyed at
/// once.
fn anchors(keyring: &Keyring, files: &files::Files) -> Result<Anchors, String> {
    let mut allowed = keyring.root().ca_hashes();
    allowed.extend(&files.source.extra_ca_sha256);
    let bundle = x509::certificates(&files.ca_bundle)?;
    if allowed.is_empty() {
        // A hub with a public certificate: its own authority vouches for agents only.
        let servers = tls::Trust::System;
        return Ok(Anchors { issuers: bundle.clone(), known: bundle, servers });
    }
    let named = keyring.root().hub_ca.iter().map(|der| CertificateDer::from(der.0.clone()));
    let mut issuers: Vec<_> = named.collect();
    let mut dropped = Vec::new();
    for ca in bundle {
        if !allowed.contains(&Hash::of(&ca)) {
            tracing::debug!(
                sha256 = %Hash::of(&ca),
                "the CA bundle holds a cert that the root of roles does not name; no hub is \
                 believed by it"
            );
            dropped.push(ca);
        } else if !issuers.contains(&ca) {
            issuers.push(ca);
        }
    }
    // A later version of the same root may have dropped it; another root never knew it.
    let same = files.source.root_id.as_ref() == Some(&keyring.root().root_id);
    let known = if same { [issuers.clone(), dropped].concat() } else { issuers.clone() };
    Ok(Anchors { servers: tls::Trust::Authorities(issuers.clone()), known, issuers })
}

/// Finishes a commit that another process left, unless that process is still at it.
fn roll_forward(paths: &Paths) -> Result<(), IdentityError> {
    if !commit::is_pending(&paths.data_dir) {
        return Ok(());
    }
    let failed = |why: String| {
        IdentityError::Unusable(format!("an enrolment could not be put in place: {why}"))
    };
    let _lock = Lock::take(&paths.enrol_lock(), "jtnt-agent, finishing an enrolment")
        .map_err(|e| failed(e.to_string()))?;
    commit::finish(&paths.data_dir, &mut |_| Ok(()))
        .map(drop)
        .map_err(|e: io::Error| failed(e.to_string()))
}
