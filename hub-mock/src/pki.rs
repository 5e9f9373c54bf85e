//! A certificate authority of the hub: one P-256 key that names the server to the agents and the
//! agents to the server.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

use crate::{
    clock,
    durable::{self, Access},
    error::{HubError, random},
};

const CA_LIFE: Duration = Duration::from_secs(3650 * 86_400);
const SERVER_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Certificates begin a little in the past, for agents whose clocks are a little slow.
pub(crate) const BACKDATE_SECONDS: i64 = 300;

/// The certificate authority.
#[derive(Debug)]
pub(crate) struct Authority {
    number: u32,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate for an agent.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    /// PEM.
    pub(crate) pem: String,
    /// Lower hex.
    pub(crate) serial: String,
    /// From then on it is void.
    pub(crate) not_after: Timestamp,
    /// Number of the authority.
    pub(crate) authority: u32,
}

/// Why a certificate request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsrFault {
    #[error("the certificate request cannot be read or its own signature is wrong: {0}")]
    Unreadable(#[from] rcgen::Error),
    #[error("the common name of the certificate request is not the agent id")]
    WrongName,
    #[error("the key of the certificate request is neither P-256, P-384 nor Ed25519")]
    WrongKey,
}

impl Authority {
    /// Reads certificate and key of `dir`, or makes them: `ca.crt` and `ca.key` of the first,
    /// `ca-2.crt` and so on of those that follow.
    pub(crate) fn open_or_create(dir: &Path, number: u32) -> Result<Self, HubError> {
        let stem = if number == 1 { "ca".to_owned() } else { format!("ca-{number}") };
        let (crt, key) = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
        if !key.exists() {
            let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let pem = ca_params(&stem)?.self_signed(&pair)?.pem();
            // The certificate first: a key without one would be taken for a whole authority.
            durable::replace(&crt, pem.as_bytes(), Access::Public).map_err(HubError::file(&crt))?;
            durable::replace(&key, pair.serialize_pem().as_bytes(), Access::Private)
                .map_err(HubError::file(&key))?;
        }
        let pem = fs::read_to_string(&crt).map_err(HubError::file(&crt))?;
        let pair = fs::read_to_string(&key).map_err(HubError::file(&key))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&pair)?)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| HubError::damaged(format!("{stem}.crt"), e))?;
        Ok(Self { number, issuer, pem, der })
    }

    /// One that nobody has heard of, and that is forgotten.
    pub(crate) fn stranger() -> Result<Self, HubError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = ca_params("ca")?.self_signed(&pair)?;
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Ok(Self { number: 0, issuer: Issuer::from_ca_cert_pem(&pem, pair)?, pem, der })
    }

    /// The authority's certificate, PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate, DER.
    pub(crate) const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// A new key and certificate for the TLS server, for `names`.
    pub(crate) fn server(
        &self,
        names: &[String],
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), HubError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf("JTNT mock hub", clock::now(), SERVER_LIFE)?;
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&pair, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        Ok((certificate.der().clone(), key))
    }

    /// Checks a request of `agent_id`: it is signed by its own key, of a kind we know, and names
    /// the agent and nobody else. Whatever else it asks for is ignored.
    pub(crate) fn check(
        csr: &str,
        agent_id: &str,
    ) -> Result<CertificateSigningRequestParams, CsrFault> {
        let request = CertificateSigningRequestParams::from_pem(csr)?;
        let name = match request.params.distinguished_name.get(&DnType::CommonName) {
            Some(DnValue::Utf8String(s)) => s.as_str(),
            Some(DnValue::PrintableString(s)) => s.as_str(),
            _ => "",
        };
        if name != agent_id {
            return Err(CsrFault::WrongName);
        }
        let known = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        let algorithm = rcgen::PublicKeyData::algorithm(&request.public_key);
        if !known.contains(&algorithm) {
            return Err(CsrFault::WrongKey);
        }
        Ok(request)
    }

    /// A certificate for the key of `request`, from `from` for `life`.
    pub(crate) fn issue(
        &self,
        request: &CertificateSigningRequestParams,
        (agent_id, purpose): (&str, ExtendedKeyUsagePurpose),
        (from, life): (Timestamp, Duration),
    ) -> Result<Issued, HubError> {
        let mut params = leaf(agent_id, from, life)?;
        let urn = format!("urn:jtnt:agent:{agent_id}");
        params.subject_alt_names = vec![SanType::URI(urn.as_str().try_into()?)];
        params.extended_key_usages = vec![purpose];
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let pem = params.signed_by(&request.public_key, &self.issuer)?.pem();
        let life = i64::try_from(life.as_secs()).unwrap_or(i64::MAX);
        Ok(Issued {
            pem,
            serial: hex::encode(serial),
            not_after: clock::shift(from, life),
            authority: self.number,
        })
    }
}

fn ca_params(stem: &str) -> Result<CertificateParams, HubError> {
    // Names of their own: a chain is found by them.
    let name = format!("JTNT mock hub {}", stem.to_uppercase());
    let mut params = leaf(&name, clock::now(), CA_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    Ok(params)
}

fn leaf(name: &str, from: Timestamp, life: Duration) -> Result<CertificateParams, HubError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |t| epoch + Duration::from_secs(clock::unix_seconds(t));
    params.not_before = at(clock::shift(from, -BACKDATE_SECONDS));
    params.not_after = at(from) + life;
    let mut serial = random::<16>()?;
    // Positive and of full length, so that it reads the same in every tool.
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
