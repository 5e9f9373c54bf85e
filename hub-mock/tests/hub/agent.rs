//! An agent as small as can be: a key, a certificate, and requests over TLS 1.3.

use std::{io, sync::Arc};

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use jtnt_hub_mock::Handle;
use jtnt_proto::{
    bytes::Base64,
    hub::{
        EnrollRequest, EnrollResponse, HeartbeatRequest, HostFacts, JobCounts, JobResult,
        JobStatus, JobStatusState, Outcome, Problem, RenewRequest,
    },
    identity,
    key::PublicKey,
};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {} {:?}", self.status, self.body))
    }

    pub(crate) fn reason(&self) -> String {
        self.json::<Problem>().reason.unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// A request to come.
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Ask {
    pub(crate) fn get(path: &str) -> Self {
        Self { method: Method::GET, path: path.into(), headers: vec![], body: Bytes::new() }
    }

    pub(crate) fn post(path: &str, body: &impl Serialize) -> Self {
        Self::raw(Method::POST, path, serde_json::to_vec(body).unwrap())
            .with("content-type", "application/json")
    }

    pub(crate) fn put(path: &str, body: &impl Serialize) -> Self {
        Self { method: Method::PUT, ..Self::post(path, body) }
    }

    pub(crate) fn raw(method: Method, path: &str, body: impl Into<Bytes>) -> Self {
        Self { method, path: path.into(), headers: vec![], body: body.into() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// Certificate and key, PEM.
pub(crate) type Identity = (String, String);

/// Sends one request on a connection of its own.
pub(crate) async fn send(hub: &Handle, identity: Option<&Identity>, ask: Ask) -> io::Result<Reply> {
    let ca = std::fs::read(hub.ca_file())?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
            let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let tcp = TcpStream::connect(hub.addr()).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(io::Error::other)?;
    let mut request =
        Request::builder().method(ask.method).uri(ask.path).header("host", "localhost");
    for (name, value) in ask.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(ask.body)).unwrap();
    let exchange = async move {
        let reply = sender.send_request(request).await.map_err(io::Error::other)?;
        let (parts, body) = reply.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Reply { status: parts.status, headers: parts.headers, body })
    };
    // The connection is driven beside the exchange and ends with it.
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        reply = &mut exchange => reply,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(e) => Err(io::Error::other(e)),
        }
    }
}

/// An enrolled agent.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) audit: SigningKey,
    pub(crate) identity: Identity,
}

/// A certificate request of `name`, with its key.
pub(crate) fn csr(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.serialize_request(&key).unwrap().pem().unwrap(), key.serialize_pem())
}

/// A request that is right in everything, and the TLS key it is for.
pub(crate) fn enroll_request(token: &str, audit: &SigningKey) -> (EnrollRequest, String) {
    let agent_id = identity::agent_id(&PublicKey::of(audit));
    let (csr, key) = csr(&agent_id);
    let proof = audit.sign(&identity::enroll_proof_message(token, &csr, &agent_id));
    let request = EnrollRequest {
        token: token.to_owned(),
        csr,
        audit_key: PublicKey::of(audit),
        agent_id,
        key_rotations: Vec::new(),
        proof: Base64(proof.to_bytes().to_vec()),
        seal_key: Some(Base64(vec![7; 32])),
        host: HostFacts {
            hostname: "host".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            kernel: "6.18".into(),
            machine_id_sha256: None,
            agent_version: "0.1.0".into(),
        },
        labels: [("site".to_owned(), "lab".to_owned())].into(),
    };
    (request, key)
}

impl Agent {
    /// Enrols with the audit key that `seed` makes.
    pub(crate) async fn enrol(hub: &Handle, seed: u8) -> Self {
        let audit = SigningKey::from_bytes(&[seed; 32]);
        let (request, key) = enroll_request(&hub.token().await.unwrap(), &audit);
        let reply = send(hub, None, Ask::post("/api/v1/enroll", &request)).await.unwrap();
        let answer: EnrollResponse = reply.json();
        Self { id: answer.agent_id, audit, identity: (answer.certificate, key) }
    }

    pub(crate) async fn ask(&self, hub: &Handle, ask: Ask) -> io::Result<Reply> {
        send(hub, Some(&self.identity), ask).await
    }

    pub(crate) async fn get(&self, hub: &Handle, path: &str) -> Reply {
        self.ask(hub, Ask::get(path)).await.unwrap()
    }

    pub(crate) async fn post(&self, hub: &Handle, path: &str, body: &impl Serialize) -> Reply {
        self.ask(hub, Ask::post(path, body)).await.unwrap()
    }

    /// The serial of the certificate in use.
    pub(crate) fn serial(&self, hub: &Handle) -> String {
        let agents = hub.agents();
        let me = agents.iter().find(|a| a.agent_id == self.id).unwrap();
        me.certificates.last().unwrap().serial.clone()
    }

    pub(crate) fn heartbeat(&self, hub: &Handle) -> HeartbeatRequest {
        HeartbeatRequest {
            agent_id: self.id.clone(),
            version: "0.1.0".into(),
            state: "ok".into(),
            boot_id: "boot".into(),
            uptime_seconds: 1,
            root_version: 1,
            root_source: "pinned".into(),
            policy_version: 0,
            certificate_serial: self.serial(hub),
            certificate_expires_at: jiff::Timestamp::now(),
            enforcement: "none".into(),
            jobs: JobCounts::default(),
            audit: None,
            labels: [].into(),
        }
    }

    pub(crate) fn renewal(&self, hub: &Handle) -> (RenewRequest, String) {
        let (csr, key) = csr(&self.id);
        let (serial, at) = (self.serial(hub), jiff::Timestamp::now());
        let message = identity::renew_proof_message(&self.id, &serial, &csr, &at.to_string());
        let proof = Base64(self.audit.sign(&message).to_bytes().to_vec());
        (RenewRequest { csr, serial, at, proof }, key)
    }
}

pub(crate) fn status(state: JobStatusState) -> JobStatus {
    JobStatus {
        attempt: 1,
        state,
        reason: None,
        message: None,
        policy_version: None,
        rule: None,
        at: jiff::Timestamp::UNIX_EPOCH,
    }
}

pub(crate) fn result(job_id: &str) -> JobResult {
    JobResult {
        job_id: job_id.to_owned(),
        attempt: 1,
        outcome: Outcome::Ok,
        exit_code: Some(0),
        signal: None,
        reason: None,
        message: None,
        started_at: None,
        finished_at: jiff::Timestamp::UNIX_EPOCH,
        duration_ms: 5,
        stdout: None,
        stderr: None,
        artifact: None,
        user: None,
        enforcement: "none".into(),
        policy_version: 1,
        rule: None,
    }
}
