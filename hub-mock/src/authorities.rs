//! The hub's authorities: one that issues, and beside it, while a rotation is under way, one that
//! is to follow or one that was there before. Certificates of all of them count.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use jtnt_proto::{
    bytes::{Base64, Hash},
    json,
};
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};

use crate::{
    durable::{self, Access},
    error::HubError,
    pki::{Authority, Issued},
    tls,
};

/// More would mean that none is ever given up.
const MAX_ACCEPTED: usize = 8;

/// A step of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Another authority is made. Nothing is issued by it yet.
    Next,
    /// The newest issues, and names the server.
    Switch,
    /// Only the one that issues counts from now on.
    Retire,
}

/// An authority, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityView {
    /// The first is 1.
    pub number: u32,
    /// Of the certificate.
    pub sha256: Hash,
    /// The certificate, DER.
    pub certificate: Base64,
    /// Whether it issues.
    pub issues: bool,
}

/// `authorities.json`; without it there is the first alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Plan {
    issuer: u32,
    accepted: BTreeSet<u32>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Authorities {
    dir: PathBuf,
    /// Of the server.
    names: Vec<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    plan: Plan,
    accepted: BTreeMap<u32, Authority>,
    tls: Arc<ServerConfig>,
}

impl Inner {
    fn open(dir: &std::path::Path, names: &[String], plan: Plan) -> Result<Self, HubError> {
        let open = |number: &u32| Ok((*number, Authority::open_or_create(dir, *number)?));
        let accepted: BTreeMap<_, _> =
            plan.accepted.iter().map(open).collect::<Result<_, HubError>>()?;
        let issuer = issuer(&plan, &accepted)?;
        let clients: Vec<_> = accepted.values().map(|ca| ca.der().clone()).collect();
        let tls = tls::server_config(&clients, issuer.der(), issuer.server(names)?)?;
        Ok(Self { plan, accepted, tls })
    }
}

fn issuer<'a>(
    plan: &Plan,
    accepted: &'a BTreeMap<u32, Authority>,
) -> Result<&'a Authority, HubError> {
    let missing = || HubError::damaged("authorities.json", "the one that issues is not accepted");
    accepted.get(&plan.issuer).ok_or_else(missing)
}

impl Authorities {
    pub(crate) fn open(dir: PathBuf, names: Vec<String>) -> Result<Self, HubError> {
        let path = dir.join("authorities.json");
        let plan = if path.exists() {
            let text = std::fs::read(&path).map_err(HubError::file(&path))?;
            json::from_slice(&text).map_err(|e| HubError::damaged("authorities.json", e))?
        } else {
            Plan { issuer: 1, accepted: [1].into() }
        };
        let inner = Mutex::new(Inner::open(&dir, &names, plan)?);
        Ok(Self { dir, names, inner })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's side of TLS, for the next connection.
    pub(crate) fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.lock().tls)
    }

    /// Certificates of all of them, PEM, the one that issues first.
    pub(crate) fn bundle(&self) -> String {
        let inner = self.lock();
        let first = inner.accepted.get(&inner.plan.issuer);
        let others = inner.accepted.iter().filter(|(number, _)| **number != inner.plan.issuer);
        first.into_iter().chain(others.map(|(_, ca)| ca)).map(Authority::pem).collect()
    }

    pub(crate) fn issue(
        &self,
        request: &CertificateSigningRequestParams,
        to: (&str, ExtendedKeyUsagePurpose),
        window: (Timestamp, Duration),
    ) -> Result<Issued, HubError> {
        let inner = self.lock();
        issuer(&inner.plan, &inner.accepted)?.issue(request, to, window)
    }

    pub(crate) fn views(&self) -> Vec<AuthorityView> {
        let inner = self.lock();
        let view = |(number, ca): (&u32, &Authority)| AuthorityView {
            number: *number,
            sha256: Hash::of(ca.der()),
            certificate: Base64(ca.der().to_vec()),
            issues: *number == inner.plan.issuer,
        };
        inner.accepted.iter().map(view).collect()
    }

    /// Goes a step on, durably. Connections that are open stay so.
    pub(crate) fn go(&self, step: Step) -> Result<(), HubError> {
        let mut inner = self.lock();
        let mut plan = inner.plan.clone();
        let newest = plan.accepted.last().copied().unwrap_or(1);
        match step {
            Step::Next if plan.accepted.len() >= MAX_ACCEPTED => {
                let why = format!("{MAX_ACCEPTED} authorities count already; retire some first");
                return Err(HubError::refused("AUTHORITIES", why));
            }
            Step::Next => drop(plan.accepted.insert(newest + 1)),
            Step::Switch if newest == plan.issuer => {
                let why = "the newest authority issues already; make another with `ca next`";
                return Err(HubError::refused("AUTHORITIES", why));
            }
            Step::Switch => plan.issuer = newest,
            Step::Retire => plan.accepted = [plan.issuer].into(),
        }
        let next = Inner::open(&self.dir, &self.names, plan)?;
        let path = self.dir.join("authorities.json");
        let text = serde_json::to_vec(&next.plan).map_err(|e| HubError::damaged("plan", e))?;
        durable::replace(&path, &text, Access::Public).map_err(HubError::file(&path))?;
        *inner = next;
        Ok(())
    }
}
