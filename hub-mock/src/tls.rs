//! TLS as the hub speaks it: 1.3 only, post-quantum key exchange first, client certificates asked
//! for but not demanded, since enrolment has none. Which route needs one is the routes' business.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::error::HubError;

/// What a client certificate says, once TLS has checked who signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Common name and URI name, which agree.
    pub(crate) agent_id: String,
    /// Lower hex.
    pub(crate) serial: String,
    /// Seconds since 1970.
    pub(crate) not_after: i64,
}

impl Peer {
    /// Reads a certificate; nothing when it is not of the form the hub issues.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, x509) = X509Certificate::from_der(certificate).ok()?;
        let agent_id = x509.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let urn = format!("urn:jtnt:agent:{agent_id}");
        let names = x509.subject_alternative_name().ok()??;
        let named =
            names.value.general_names.iter().any(|n| matches!(n, GeneralName::URI(u) if *u == urn));
        named.then(|| Self {
            agent_id,
            serial: hex::encode(x509.raw_serial()),
            not_after: x509.validity().not_after.timestamp(),
        })
    }
}

/// The provider of all cryptography in TLS.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The server's side: `clients` are the authorities of agents, `ca` is its own.
pub(crate) fn server_config(
    clients: &[CertificateDer<'static>],
    ca: &CertificateDer<'static>,
    (certificate, key): (CertificateDer<'static>, PrivateKeyDer<'static>),
) -> Result<Arc<ServerConfig>, HubError> {
    let said = |e: &dyn std::fmt::Display| HubError::Tls(e.to_string());
    let mut roots = RootCertStore::empty();
    for client in clients {
        roots.add(client.clone()).map_err(|e| said(&e))?;
    }
    let provider = provider();
    let strict =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|e| said(&e))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| said(&e))?
        .with_client_cert_verifier(Arc::new(ExpiryLater(strict)))
        .with_single_cert(vec![certificate, ca.clone()], key)
        .map_err(|e| said(&e))?;
    Ok(Arc::new(config))
}

/// Checks a certificate as always, but leaves its expiry to the routes: a renewal may use an
/// expired one, and every other route can then say what is wrong instead of hanging up.
#[derive(Debug)]
struct ExpiryLater(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ExpiryLater {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refusal = match self.0.verify_client_cert(end_entity, intermediates, now) {
            Err(Error::InvalidCertificate(
                e @ (CertificateError::Expired | CertificateError::ExpiredContext { .. }),
            )) => Error::InvalidCertificate(e),
            verdict => return verdict,
        };
        // As of its last second everything else about it must hold.
        let last = Peer::of(end_entity).and_then(|p| u64::try_from(p.not_after).ok());
        let Some(last) = last else { return Err(refusal) };
        let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(last));
        self.0.verify_client_cert(end_entity, intermediates, then)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
