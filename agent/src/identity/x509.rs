//! Certificates: reading them, and judging whether one is this agent's.

use std::fmt::Write as _;

use jiff::Timestamp;
use jtnt_proto::identity::is_id;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject as _};
use rustls_webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A file or an answer holds at most this many certificates.
const MAX_CERTIFICATES: usize = 32;

/// A certificate as the agent shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertInfo {
    /// Lower hex.
    pub serial: String,
    /// Distinguished name.
    pub subject: String,
    /// Distinguished name.
    pub issuer: String,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// The root of roles no longer names the authority that it chains to.
    pub authority_dropped: bool,
}

/// Why a certificate is not this agent's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertFault {
    /// No certificate, or one that cannot be read.
    #[error("not a certificate: {0}")]
    Unreadable(String),
    /// It is somebody else's.
    #[error("the cert is for {found:?}, but this agent is {wanted}")]
    WrongName {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// It does not say that a client may use it.
    #[error("the cert is not for clients (no extended key usage clientAuth)")]
    NotForClients,
    /// No authority that counts has signed it.
    #[error("the cert does not chain to an authority that the root of roles names: {0}")]
    Untrusted(String),
    /// Its time is over.
    #[error("the cert expired at {0}")]
    Expired(Timestamp),
    /// Its time has not come: a clock is wrong.
    #[error("the cert is not valid before {0}")]
    NotYetValid(Timestamp),
}

/// The certificates of a PEM file.
///
/// # Errors
/// When one cannot be read, none is there, or there are too many.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if found.len() == MAX_CERTIFICATES {
            return Err(format!("more than {MAX_CERTIFICATES} certificates"));
        }
        let certificate = certificate.map_err(|e| format!("not PEM: {e}"))?;
        info(&certificate)?;
        found.push(certificate);
    }
    if found.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(found) }
}

/// A certificate in PEM.
#[must_use]
pub fn pem(der: &[u8]) -> String {
    block("CERTIFICATE", der)
}

/// Something in PEM (RFC 7468), 64 characters a line.
pub(super) fn block(label: &str, der: &[u8]) -> String {
    let text = jtnt_proto::bytes::to_base64(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for (n, c) in text.chars().enumerate() {
        if n > 0 && n % 64 == 0 {
            out.push('\n');
        }
        out.push(c);
    }
    let _infallible = writeln!(out, "\n-----END {label}-----");
    out
}

/// What a certificate says.
///
/// # Errors
/// When it cannot be read.
pub fn info(certificate: &CertificateDer<'_>) -> Result<CertInfo, String> {
    let (_, x509) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
    let time = |seconds| Timestamp::from_second(seconds).map_err(|e| e.to_string());
    Ok(CertInfo {
        serial: hex::encode(x509.raw_serial()),
        subject: x509.subject().to_string(),
        issuer: x509.issuer().to_string(),
        not_before: time(x509.validity().not_before.timestamp())?,
        not_after: time(x509.validity().not_after.timestamp())?,
        authority_dropped: false,
    })
}

/// A chain is no longer than this, in certificates and in bytes: servers refuse what is.
const MAX_CHAIN: usize = 6;
const MAX_CHAIN_BYTES: usize = 32 * 1024;

/// Of what came with a certificate, that by which it leads to an authority; the rest is nobody's
/// business to store, or to send with every connection.
///
/// # Errors
/// When even that is longer than any server takes.
pub fn needed(
    chain: Vec<CertificateDer<'static>>,
    anchors: &[CertificateDer<'static>],
) -> Result<Vec<CertificateDer<'static>>, String> {
    let names = |der: &CertificateDer<'static>| {
        let (_, x509) = X509Certificate::from_der(der).ok()?;
        Some((x509.subject().as_raw().to_vec(), x509.issuer().as_raw().to_vec()))
    };
    let roots: Vec<_> = anchors.iter().filter_map(|ca| Some(names(ca)?.0)).collect();
    let mut rest = chain.into_iter();
    let mut kept: Vec<_> = rest.next().into_iter().collect();
    let rest: Vec<_> = rest.collect();
    while let Some((_, issuer)) = kept.last().and_then(names) {
        let next = rest.iter().find(|ca| names(ca).is_some_and(|(subject, _)| subject == issuer));
        match next {
            Some(next) if !roots.contains(&issuer) && kept.len() < MAX_CHAIN => {
                kept.push(next.clone());
            }
            _ => break,
        }
    }
    let bytes: usize = kept.iter().map(|ca| ca.len()).sum();
    if bytes <= MAX_CHAIN_BYTES {
        return Ok(kept);
    }
    Err(format!("its chain has {bytes} bytes, and no server takes more than {MAX_CHAIN_BYTES}"))
}

/// A certificate with all that it is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// Leaf first.
    pub chain: &'a [CertificateDer<'static>],
    /// Authorities that count.
    pub anchors: &'a [CertificateDer<'static>],
    /// Whose it should be.
    pub agent_id: &'a str,
}

impl Judged<'_> {
    /// Judges all but the date: what expired was once good.
    ///
    /// # Errors
    /// Why it is not this agent's.
    pub fn at_its_end(&self) -> Result<CertInfo, CertFault> {
        let info = self.leaf()?.1;
        self.chains(info.not_after)?;
        Ok(info)
    }

    /// Judges everything, as of `now`.
    ///
    /// # Errors
    /// Why it is not this agent's, or not now.
    pub fn at(&self, now: Timestamp) -> Result<CertInfo, CertFault> {
        let info = self.leaf()?.1;
        if now < info.not_before {
            return Err(CertFault::NotYetValid(info.not_before));
        }
        if now >= info.not_after {
            return Err(CertFault::Expired(info.not_after));
        }
        self.chains(now)?;
        Ok(info)
    }

    /// The leaf is this agent's, for clients.
    fn leaf(&self) -> Result<(&CertificateDer<'static>, CertInfo), CertFault> {
        let leaf = self.chain.first().ok_or_else(|| CertFault::Unreadable("empty".to_owned()))?;
        let info = info(leaf).map_err(CertFault::Unreadable)?;
        let (_, x509) =
            X509Certificate::from_der(leaf).map_err(|e| CertFault::Unreadable(e.to_string()))?;
        let names: Vec<_> =
            x509.subject().iter_common_name().filter_map(|n| n.as_str().ok()).collect();
        if names != [self.agent_id] || !is_id(self.agent_id) {
            let (found, wanted) = (names.join(", "), self.agent_id.to_owned());
            return Err(CertFault::WrongName { found, wanted });
        }
        let usage = x509.extended_key_usage().ok().flatten();
        if !usage.is_some_and(|u| u.value.client_auth) {
            return Err(CertFault::NotForClients);
        }
        Ok((leaf, info))
    }

    fn chains(&self, at: Timestamp) -> Result<(), CertFault> {
        let fault = |e: rustls_webpki::Error| CertFault::Untrusted(e.to_string());
        let (leaf, _) = self.leaf()?;
        let anchors: Vec<TrustAnchor<'_>> =
            self.anchors.iter().filter_map(|ca| anchor_from_trusted_cert(ca).ok()).collect();
        let seconds = u64::try_from(at.as_second()).unwrap_or(0);
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let algorithms = super::tls::provider().signature_verification_algorithms;
        EndEntityCert::try_from(leaf)
            .map_err(fault)?
            .verify_for_usage(
                algorithms.all,
                &anchors,
                self.chain.get(1..).unwrap_or_default(),
                at,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map(drop)
            .map_err(fault)
    }
}

#[cfg(test)]
#[path = "x509_tests.rs"]
mod tests;
