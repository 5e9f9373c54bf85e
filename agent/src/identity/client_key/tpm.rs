//! A key that a TPM keeps. `client.key` holds it as the TPM gives it out, in the form that openssl's
//! provider reads: TSS2 PRIVATE KEY, draft-bottomley-tpm2-keys.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use x509_parser::pem::Pem;
use yasna::{ASN1Result, Tag, models::ObjectIdentifier};

use crate::{
    identity::x509,
    platform::keys::tpm::{self, OWNER, Sealed},
    runtime::signer::TlsSigner,
};

pub(super) const LABEL: &str = "TSS2 PRIVATE KEY";
/// `id-loadablekey`.
const LOADABLE: [u64; 6] = [2, 23, 133, 10, 1, 3];

#[derive(Debug)]
struct TpmKey {
    device: PathBuf,
    sealed: Sealed,
    point: [u8; 65],
}

impl TlsSigner for TpmKey {
    fn point(&self) -> &[u8; 65] {
        &self.point
    }

    fn sign(&self, sha256: &[u8; 32]) -> Result<[u8; 64], String> {
        tpm::sign(&self.device, &self.sealed, sha256)
    }
}

/// Makes one; the content of its file, and the key.
pub(super) fn make(device: &Path) -> Result<(String, Arc<dyn TlsSigner>), String> {
    let sealed = tpm::make(device)?;
    let point = sealed.point()?;
    // What stands before the block is skipped by whoever reads PEM.
    let file = format!("tpm2:{}\n{}", device.display(), x509::block(LABEL, &encode(&sealed)));
    Ok((file, Arc::new(TpmKey { device: device.to_owned(), sealed, point })))
}

/// The one of which a file tells.
pub(super) fn open(device: &Path, file: &[u8]) -> Result<Arc<dyn TlsSigner>, String> {
    let block = Pem::iter_from_buffer(file).find_map(Result::ok);
    let block = block.filter(|block| block.label == LABEL);
    let block = block.ok_or_else(|| format!("no {LABEL} in PEM below the TPM's name"))?;
    let sealed = decode(&block.contents).ok_or_else(|| {
        format!("the {LABEL} is not one that is made below the owner without a password")
    })?;
    let point = sealed.point()?;
    Ok(Arc::new(TpmKey { device: device.to_owned(), sealed, point }))
}

fn encode(sealed: &Sealed) -> Vec<u8> {
    yasna::construct_der(|der| {
        der.write_sequence(|key| {
            key.next().write_oid(&ObjectIdentifier::from_slice(&LOADABLE));
            key.next().write_tagged(Tag::context(0), |empty_auth| empty_auth.write_bool(true));
            key.next().write_u32(OWNER);
            key.next().write_bytes(&sealed.public);
            key.next().write_bytes(&sealed.private);
        });
    })
}

fn decode(der: &[u8]) -> Option<Sealed> {
    let read: ASN1Result<_> = yasna::parse_der(der, |der| {
        der.read_sequence(|key| {
            let oid = key.next().read_oid()?;
            let empty_auth = key.next().read_tagged(Tag::context(0), |auth| auth.read_bool())?;
            let parent = key.next().read_u32()?;
            let (public, private) = (key.next().read_bytes()?, key.next().read_bytes()?);
            Ok((oid, empty_auth, parent, Sealed { public, private }))
        })
    });
    let (oid, empty_auth, parent, sealed) = read.ok()?;
    let ours = oid == ObjectIdentifier::from_slice(&LOADABLE) && empty_auth && parent == OWNER;
    ours.then_some(sealed)
}
