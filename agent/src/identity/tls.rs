//! TLS as the agent speaks it: 1.3 only, hybrid post-quantum key exchange first, and no authority
//! but those it was told to believe.

use std::sync::{Arc, OnceLock};

use jtnt_proto::bytes::Hash;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, aws_lc_rs,
        aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768},
        verify_tls12_signature, verify_tls13_signature,
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// One hub, so few tickets.
const TICKETS: usize = 4;

/// Whose word on the hub's certificate counts.
#[derive(Debug, Clone)]
pub enum Trust {
    /// These authorities.
    Authorities(Vec<CertificateDer<'static>>),
    /// The system's authorities.
    System,
    /// An authority that the hub shows and whose hash is known.
    Pinned(Arc<CaPin>),
    /// Nobody's. Only to fetch a document whose hash is known already.
    Anyone,
}

/// All cryptography of TLS.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let kx_groups = vec![X25519MLKEM768, X25519, SECP256R1];
        Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
    }))
}

/// A configuration of its own for each identity: see [`super::Identity::tls`].
///
/// # Errors
/// When no authority can be used.
pub fn client_config(
    trust: &Trust,
    client: Option<CertifiedKey>,
) -> Result<Arc<ClientConfig>, String> {
    let said = |e: Error| e.to_string();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(said)?;
    let builder = match trust {
        Trust::Authorities(ca) => builder.with_root_certificates(store(ca)?),
        Trust::System => builder.with_root_certificates(system()?),
        Trust::Pinned(pin) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(pin) as Arc<dyn ServerCertVerifier>),
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer)),
    };
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(TICKETS);
    Ok(Arc::new(config))
}

/// The same, for handshakes in which the client key signs: a session that is resumed shows what
/// certificate there was, not that its key is still there.
#[must_use]
pub fn in_full(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn store(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    if roots.is_empty() { Err("no authority that can be used".to_owned()) } else { Ok(roots) }
}

fn system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    store(&found.certs).map_err(|_none| {
        "this system has no certificate authorities; install ca-certificates or give --hub-ca"
            .to_owned()
    })
}

/// Believes the authority of one hash, wherever in the chain the hub shows it.
#[derive(Debug)]
pub struct CaPin {
    sha256: Hash,
    seen: OnceLock<CertificateDer<'static>>,
}

impl CaPin {
    /// For the authority whose DER has this hash.
    #[must_use]
    pub fn new(sha256: Hash) -> Arc<Self> {
        Arc::new(Self { sha256, seen: OnceLock::new() })
    }

    /// The authority, once the hub has shown it.
    #[must_use]
    pub fn seen(&self) -> Option<&CertificateDer<'static>> {
        self.seen.get()
    }
}

impl ServerCertVerifier for CaPin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = intermediates.iter().find(|c| Hash::of(c) == self.sha256).ok_or(unknown)?;
        let ca = ca.clone().into_owned();
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let verified = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        self.seen.get_or_init(|| ca);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Believes anyone: see [`Trust::Anyone`].
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn tls12(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
}

fn tls13(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
}
