//! A renewal under way, on disk: the new key and its request before the hub is asked, the new
//! certificate before it is tried. A process that was killed goes on from there, with the same key.

use std::io;

use zeroize::Zeroizing;

use super::{error::RenewError, keep::Known};
use crate::{
    domain::key_store::KeyStore,
    identity::{
        Pair, Paths,
        client_key::{self, NewKey},
    },
    runtime::{durable, entropy::Entropy},
};

const MAX_BYTES: u64 = 64 * 1024;

/// What is there of it.
#[derive(Debug)]
pub(super) struct Pending {
    /// PEM.
    pub(super) csr: String,
    key: Zeroizing<Vec<u8>>,
    crt: Option<Vec<u8>>,
}

impl Pending {
    /// What an earlier try has left; nothing where that is not whole.
    pub(super) fn find(paths: &Paths) -> Option<Self> {
        let key = Zeroizing::new(durable::read(&paths.client_key_pending(), MAX_BYTES).ok()?);
        let csr = durable::read(&paths.client_csr_pending(), MAX_BYTES).ok()?;
        let csr = String::from_utf8(csr).ok()?;
        let crt = durable::read(&paths.client_crt_pending(), super::MAX_CRT_BYTES).ok();
        Some(Self { csr, key, crt })
    }

    /// A new key and its request, durable. The request comes last: only with it is there anything.
    /// Blocks.
    pub(super) fn make(
        paths: &Paths,
        (store, agent_id): (&KeyStore, &str),
        entropy: &dyn Entropy,
    ) -> Result<Self, RenewError> {
        let failed = |e: io::Error| RenewError::storage("the new key was not stored", &e);
        Self::discard(paths).map_err(failed)?;
        let made = client_key::make(store, agent_id, &paths.client_key_pending(), entropy);
        let NewKey { file: key, csr } = made.map_err(|e| RenewError::key(store, &e))?;
        durable::replace(&paths.client_key_pending(), &key, durable::PRIVATE).map_err(failed)?;
        let csr_file = paths.client_csr_pending();
        durable::replace(&csr_file, csr.as_bytes(), durable::PUBLIC).map_err(failed)?;
        Ok(Self { csr, key, crt: None })
    }

    /// Whether this is the key of it.
    pub(super) fn is_of(&self, key: &[u8]) -> bool {
        *self.key == key
    }

    /// The pair, once the hub has issued its certificate.
    pub(super) fn pair(&self) -> Option<Pair> {
        let crt = self.crt.clone()?;
        Some(Pair { crt, key: self.key.clone() })
    }

    /// The pair that this certificate would make.
    pub(super) fn pair_with(&self, crt: Vec<u8>) -> Pair {
        Pair { crt, key: self.key.clone() }
    }

    /// Keeps what the hub has issued, and what is known of it, which comes first: there is nothing
    /// before there is a certificate.
    pub(super) fn issued(paths: &Paths, crt: &[u8], known: &Known) -> Result<(), RenewError> {
        let known = serde_json::to_vec(known).map_err(io::Error::from);
        known
            .and_then(|known| {
                durable::replace(&paths.renewal_pending(), &known, durable::PUBLIC)?;
                durable::replace(&paths.client_crt_pending(), crt, durable::PUBLIC)
            })
            .map_err(|e| RenewError::storage("the new cert was not stored", &e))
    }

    /// Forgets all of it. The key goes last, or what is left would be a request without one.
    pub(super) fn discard(paths: &Paths) -> io::Result<()> {
        let all = [
            paths.client_crt_pending(),
            paths.renewal_pending(),
            paths.client_csr_pending(),
            paths.client_key_pending(),
        ];
        all.iter().try_for_each(|path| durable::remove(path))
    }
}
