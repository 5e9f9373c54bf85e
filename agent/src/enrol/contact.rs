//! The first contact: the root of roles from outside, and a client that has the hub authenticated
//! before it says anything.

use std::{path::Path, sync::Arc};

use jtnt_proto::bytes::Hash;
use rustls_pki_types::CertificateDer;

use super::{Deps, EnrolError, HubCa, Options, RootPin};
use crate::{
    hub::{HubClient, HubConfig, HubError},
    identity::{
        Paths, RootSource, root_source,
        tls::{CaPin, Trust, client_config},
        x509::certificates,
    },
    runtime::durable,
    trust::Keyring,
};

const MAX_FILE_BYTES: u64 = 2 << 20;
/// A hub that has more roots than this behind it is asked no further.
const MAX_ROOTS: u64 = 1000;
/// Enrolling makes few requests; the breaker stays out of it.
const NO_BREAKER: u32 = u32::MAX;

/// What is known after the first contact.
pub(super) struct Contact {
    pub(super) keyring: Keyring,
    /// The root's bytes.
    pub(super) root: Vec<u8>,
    pub(super) source: RootSource,
    /// Speaks only to a hub that was authenticated.
    pub(super) client: HubClient,
    trust: Trust,
    by_flag: bool,
}

impl Contact {
    pub(super) async fn make(options: &Options, deps: &Deps) -> Result<Self, EnrolError> {
        let by_flag = options.hub_ca.as_ref().map(trust_of).transpose()?;
        let (keyring, root, source) = match &options.root {
            RootPin::Kept => {
                let paths = Paths { data_dir: options.data_dir.clone() };
                let path = paths.root();
                let root = read(&path).map_err(|e| EnrolError::root_file(&path, &e))?;
                let source = root_source(&paths).map_err(|e| EnrolError::key(&e))?;
                (whole(&root)?, root, source)
            }
            RootPin::File(path) => {
                let root = read(path).map_err(|e| EnrolError::root_file(path, &e))?;
                (whole(&root)?, root, RootSource::Pinned)
            }
            RootPin::Sha256(hash) => {
                // The hash makes the document good whoever hands it over.
                let anyone = by_flag.clone().unwrap_or(Trust::Anyone);
                let root = find(&client(options, deps, &anyone)?, *hash).await?;
                (whole(&root)?, root, RootSource::Pinned)
            }
            RootPin::TrustHub => {
                let trust = by_flag.clone().unwrap_or(Trust::System);
                let (keyring, root) = newest(&client(options, deps, &trust)?).await?;
                (keyring, root, RootSource::TrustedHub)
            }
        };
        let expires_at = keyring.root().expires_at;
        if expires_at <= deps.clock.now() {
            return Err(EnrolError::root_expired(expires_at));
        }
        let by_root = || match keyring.root().hub_ca.as_slice() {
            [] => Trust::System,
            named => Trust::Authorities(
                named.iter().map(|der| CertificateDer::from(der.0.clone())).collect(),
            ),
        };
        let (by_flag, trust) = (by_flag.is_some(), by_flag.unwrap_or_else(by_root));
        let client = client(options, deps, &trust)?;
        Ok(Self { keyring, root, source, client, trust, by_flag })
    }

    /// Authorities that were accepted by `--hub-ca*` and that the root does not name.
    pub(super) fn extra(&self) -> Vec<CertificateDer<'static>> {
        let accepted = match &self.trust {
            Trust::Authorities(ca) if self.by_flag => ca.clone(),
            Trust::Pinned(pin) => pin.seen().cloned().into_iter().collect(),
            Trust::Authorities(_) | Trust::System | Trust::Anyone => Vec::new(),
        };
        let named = self.keyring.root().ca_hashes();
        accepted.into_iter().filter(|ca| !named.contains(&Hash::of(ca))).collect()
    }
}

fn trust_of(ca: &HubCa) -> Result<Trust, EnrolError> {
    match ca {
        HubCa::Sha256(hash) => Ok(Trust::Pinned(CaPin::new(*hash))),
        HubCa::File(path) => {
            let pem = read(path).map_err(|e| EnrolError::hub_ca(path, &e))?;
            let found = certificates(&pem).map_err(|e| EnrolError::no_hub_ca(path, &e))?;
            Ok(Trust::Authorities(found))
        }
    }
}

fn client(options: &Options, deps: &Deps, trust: &Trust) -> Result<HubClient, EnrolError> {
    Ok(HubClient::new(HubConfig {
        url: options.hub.clone(),
        proxy: options.proxy.clone(),
        tls: client_config(trust, None).map_err(EnrolError::tls)?,
        slow_key: false,
        breaker_failures: NO_BREAKER,
        metrics: deps.metrics.clone(),
        clock: Arc::clone(&deps.clock),
    }))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    durable::read(path, MAX_FILE_BYTES)
}

fn whole(root: &[u8]) -> Result<Keyring, EnrolError> {
    Keyring::from_root(root).map_err(|e| EnrolError::root(&e))
}

/// The root whose bytes have the hash.
async fn find(client: &HubClient, hash: Hash) -> Result<Vec<u8>, EnrolError> {
    let mut seen = Vec::new();
    for version in 1..=MAX_ROOTS {
        let Some(root) = fetch(client, version).await? else { break };
        let is = Hash::of(&root);
        if is == hash {
            return Ok(root);
        }
        seen.push(is.to_string());
    }
    // The newest are the ones an operator has at hand.
    let newest: Vec<_> = seen.into_iter().rev().take(3).collect();
    Err(EnrolError::root_mismatch(&hash, &newest.join(", ")))
}

/// The newest root, each vouched for by the one before; the first by nobody.
async fn newest(client: &HubClient) -> Result<(Keyring, Vec<u8>), EnrolError> {
    let first = client.root(1).await.map_err(EnrolError::hub)?;
    let mut newest = (whole(&first)?, first);
    for version in 2..=MAX_ROOTS {
        let Some(root) = fetch(client, version).await? else { break };
        let keyring = newest.0.advance(&root).map_err(|e| EnrolError::root(&e))?;
        newest = (keyring, root);
    }
    Ok(newest)
}

async fn fetch(client: &HubClient, version: u64) -> Result<Option<Vec<u8>>, EnrolError> {
    match client.root(version).await {
        Ok(root) => Ok(Some(root)),
        Err(HubError::Refused { status: 404, .. }) => Ok(None),
        Err(e) => Err(EnrolError::hub(e)),
    }
}
