//! `POST /api/v1/enroll`: a token, a request for a certificate, and the proof that whoever sends
//! both holds the audit key from which the agent's id follows.

use std::collections::{BTreeMap, VecDeque};

use axum::{Json, extract::State};
use bytes::Bytes;
use jtnt_proto::{
    audit_keys::{self, MAX_ROTATIONS},
    bytes::Hash,
    hub::{EnrollRequest, EnrollResponse},
    identity,
    key::PublicKey,
};
use rcgen::ExtendedKeyUsagePurpose;

use super::{
    bounded,
    caller::read,
    odd::instead,
    problem::Refusal,
    renew::{certificate_window, proven},
};
use crate::{
    clock,
    faults::{Fault, Kind},
    hub::{Inner, Shared},
    pki::{Authority, Issued},
    state::{Agent, Certificate, Event, Standing},
};

pub(super) async fn enroll(
    State(core): State<Shared>,
    fault: Option<Fault>,
    body: Bytes,
) -> Result<Json<EnrollResponse>, Refusal> {
    let asked: EnrollRequest = read(&body)?;
    let keys = checked(&asked)?;
    let request = Authority::check(&asked.csr, &asked.agent_id)
        .map_err(|e| Refusal::unprocessable("CSR", e.to_string()))?;
    let token = Hash::of(asked.token.as_bytes());
    token_counts(&core.lock(), token)?;

    let window = certificate_window(core.settings.certificate_life, fault.as_ref());
    let to = (asked.agent_id.as_str(), ExtendedKeyUsagePurpose::ClientAuth);
    let mut issued = core.authorities.issue(&request, to, window)?;
    let odd = instead(&core, fault.as_ref(), (&request, &asked.agent_id), &issued)?;
    let seq = {
        let mut inner = core.lock();
        // Again under the lock that uses it up: two requests may have come with one token.
        token_counts(&inner, token)?;
        let before = inner.state.agents.get(&asked.agent_id);
        let mut certificates = before.map_or_else(VecDeque::new, |a| a.certificates.clone());
        if fault.is_some_and(|f| f.kind == Kind::Replay)
            && let Some(oldest) = certificates.front()
        {
            issued.pem.clone_from(&oldest.pem);
        }
        certificates.push_back(certificate(&issued));
        let agent_id = asked.agent_id.clone();
        let agent = Box::new(agent(&asked, keys, certificates));
        core.record(&mut inner, Event::Enrolled { token, agent_id, agent })
    };
    core.durable(seq).await?;
    core.hint_renewal(&asked.agent_id, false);
    Ok(Json(EnrollResponse {
        agent_id: asked.agent_id,
        certificate: odd.unwrap_or(issued.pem),
        ca_bundle: core.authorities.bundle(),
        hub_time: clock::now(),
    }))
}

/// What is remembered of an issued certificate.
pub(super) fn certificate(issued: &Issued) -> Certificate {
    Certificate {
        serial: issued.serial.clone(),
        pem: issued.pem.clone(),
        not_after: issued.not_after,
        standing: Standing::Good,
        csr: None,
        used: false,
        authority: issued.authority,
    }
}

fn agent(
    asked: &EnrollRequest,
    mut keys: Vec<PublicKey>,
    certificates: VecDeque<Certificate>,
) -> Agent {
    Agent {
        audit_key: keys.pop().unwrap_or(asked.audit_key),
        past_keys: keys,
        seal_key: asked.seal_key.clone(),
        host: asked.host.clone(),
        labels: asked.labels.clone(),
        enrolled_at: clock::now(),
        certificates,
        open: BTreeMap::new(),
        logs: BTreeMap::new(),
    }
}

/// What can be told without the state.
fn checked(asked: &EnrollRequest) -> Result<Vec<PublicKey>, Refusal> {
    let host = &asked.host;
    let texts =
        [&asked.token, &host.hostname, &host.os, &host.arch, &host.kernel, &host.agent_version];
    bounded(texts, &asked.labels)?;
    if identity::agent_id(&asked.audit_key) != asked.agent_id {
        let why = "the agent id does not follow from the audit key";
        return Err(Refusal::unprocessable("AGENT_ID", why));
    }
    if asked.seal_key.as_ref().is_some_and(|k| k.0.len() != 32) {
        return Err(Refusal::unprocessable("SEAL_KEY", "a seal key has 32 bytes (X25519)"));
    }
    let message = identity::enroll_proof_message(&asked.token, &asked.csr, &asked.agent_id);
    let keys = keys(asked)?;
    proven(keys.last().unwrap_or(&asked.audit_key), &message, &asked.proof)?;
    Ok(keys)
}

/// The keys that all rotations since the first one lead over, the one in force last.
fn keys(asked: &EnrollRequest) -> Result<Vec<PublicKey>, Refusal> {
    let mut keys = vec![asked.audit_key];
    for line in asked.key_rotations.iter().take(MAX_ROTATIONS) {
        let known = keys.last().unwrap_or(&asked.audit_key);
        let why = "the lines that tell of new audit keys do not follow from one to the other";
        let next = audit_keys::rotated(known, &asked.agent_id, line.as_bytes());
        keys.push(next.ok_or_else(|| Refusal::unprocessable("KEY_ROTATIONS", why))?);
    }
    Ok(keys)
}

fn token_counts(inner: &Inner, token: Hash) -> Result<(), Refusal> {
    let Some(token) = inner.state.tokens.get(&token) else {
        let why = "this hub did not make the token; ask its operator for one";
        return Err(Refusal::forbidden("TOKEN_UNKNOWN", why));
    };
    if token.used_by.is_some() {
        let why = "the token was used already; ask the hub's operator for a new one";
        return Err(Refusal::forbidden("TOKEN_USED", why));
    }
    if token.expires_at <= clock::now() {
        let why = "the token has expired; ask the hub's operator for a new one";
        return Err(Refusal::forbidden("TOKEN_EXPIRED", why));
    }
    Ok(())
}
