//! The certificate as `cert check` shows it: part by part, also when the whole is no identity.

use super::{
    CertInfo, IdentityError, Paths, anchors, client_key, files, id_of, key, load,
    x509::{self, CertFault, Judged},
};
use crate::{domain::key_store::KeyStore, trust::Keyring};

/// What the files show.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspection {
    /// The certificate, where it can be read.
    pub info: Option<CertInfo>,
    /// It leads to an authority that the root names.
    pub chain_ok: bool,
    /// The private key is the certificate's.
    pub key_matches: bool,
    /// Where the key is, where that can be read.
    pub key_store: Option<KeyStore>,
    /// What is wrong with the identity; dates are not judged here.
    pub problems: Vec<String>,
}

/// Looks at the files. Blocks.
#[must_use]
pub fn inspect(paths: &Paths) -> Inspection {
    match load(paths) {
        Ok(identity) => {
            let chain_ok = !identity.cert.authority_dropped;
            let dropped = "the root of roles no longer names the authority that issued it; it is \
                           renewed as soon as the hub lets it";
            let dropped = (!chain_ok).then(|| dropped.to_owned());
            Inspection {
                info: Some(identity.cert),
                chain_ok,
                key_matches: true,
                key_store: Some(identity.key_store),
                problems: identity.makeshift.into_iter().chain(dropped).collect(),
            }
        }
        Err(fault @ IdentityError::NotEnrolled) => {
            Inspection { problems: vec![fault.to_string()], ..Inspection::default() }
        }
        Err(IdentityError::Unusable(why)) => {
            Inspection { problems: vec![why], ..in_parts(paths).unwrap_or_default() }
        }
    }
}

/// As far as one gets with each part on its own.
fn in_parts(paths: &Paths) -> Option<Inspection> {
    let files = files::read(paths).ok()??;
    let chain = x509::certificates(&files.client_crt).ok()?;
    let info = chain.first().and_then(|leaf| x509::info(leaf).ok());
    let key = client_key::open(&files.client_key).ok();
    let key_store = key.as_ref().map(|key| key.store.clone());
    let key_matches = key.is_some_and(|key| key.with(chain.clone()).is_ok());
    let id = key::open(paths).ok().flatten().map(|key| id_of(key.as_ref()));
    let anchors =
        Keyring::from_root(&files.root).ok().and_then(|keyring| anchors(&keyring, &files).ok());
    let chain_ok = anchors.is_some_and(|anchors| {
        let agent_id = id.unwrap_or_default();
        let judged = Judged { chain: &chain, anchors: &anchors.issuers, agent_id: &agent_id };
        !matches!(judged.at_its_end(), Err(CertFault::Untrusted(_) | CertFault::Unreadable(_)))
    });
    Some(Inspection { info, chain_ok, key_matches, key_store, problems: Vec::new() })
}
