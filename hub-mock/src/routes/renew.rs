//! `POST /api/v1/certificates/renew`: a new key for a known agent. A stolen TLS key alone renews
//! nothing; the audit key has to agree.

use std::time::Duration;

use axum::{Json, extract::State};
use bytes::Bytes;
use jiff::Timestamp;
use jtnt_proto::{
    bytes::{Base64, Hash},
    hub::{RenewRequest, RenewResponse, Window},
    identity,
    key::PublicKey,
};
use rcgen::ExtendedKeyUsagePurpose;

use super::{
    caller::{Renewing, read},
    enroll::certificate,
    odd::instead,
    problem::Refusal,
};
use crate::{
    clock,
    faults::{Fault, Kind},
    hub::{Core, Shared},
    pki::Authority,
    state::{Certificate, Event, Standing},
};

/// A request whose `at` is further away than this from the hub's clock is stale.
const MAX_AGE_SECONDS: i64 = 86_400;

pub(super) async fn renew(
    State(core): State<Shared>,
    Renewing(peer): Renewing,
    fault: Option<Fault>,
    body: Bytes,
) -> Result<Json<RenewResponse>, Refusal> {
    let asked: RenewRequest = read(&body)?;
    let agent_id = peer.agent_id;
    if asked.serial != peer.serial {
        let why = "the serial is not the one of the client certificate that asks";
        return Err(Refusal::unprocessable("SERIAL", why));
    }
    let away = asked.at.as_second().abs_diff(clock::now().as_second());
    if away > MAX_AGE_SECONDS.unsigned_abs() {
        let why = "the request was made more than a day from the hub's time; set the clock";
        return Err(Refusal::unprocessable("CLOCK_SKEW", why));
    }
    let key = core.lock().state.agents.get(&agent_id).map(|a| a.audit_key);
    let key = key.ok_or_else(|| Refusal::forbidden("AGENT_UNKNOWN", "enrol again"))?;
    let at = asked.at.to_string();
    let message = identity::renew_proof_message(&agent_id, &asked.serial, &asked.csr, &at);
    proven(&key, &message, &asked.proof)?;
    let request = Authority::check(&asked.csr, &agent_id)
        .map_err(|e| Refusal::unprocessable("CSR", e.to_string()))?;

    // The answer to this very request may have been lost.
    let csr = Hash::of(asked.csr.as_bytes());
    if let Some(again) = issued_before(&core, &agent_id, csr) {
        return Ok(Json(again));
    }
    let (from, life) = certificate_window(core.settings.certificate_life, fault.as_ref());
    let to = (agent_id.as_str(), ExtendedKeyUsagePurpose::ClientAuth);
    let issued = core.authorities.issue(&request, to, (from, life))?;
    let odd = instead(&core, fault.as_ref(), (&request, &agent_id), &issued)?;
    let mut pem = odd.unwrap_or_else(|| issued.pem.clone());
    let seq = {
        let mut inner = core.lock();
        let oldest = inner.state.agents.get(&agent_id).and_then(|a| a.certificates.front());
        if fault.is_some_and(|f| f.kind == Kind::Replay)
            && let Some(oldest) = oldest
        {
            pem.clone_from(&oldest.pem);
        }
        let event = Event::CertificateIssued {
            agent_id: agent_id.clone(),
            certificate: Certificate { csr: Some(csr), ..certificate(&issued) },
        };
        core.record(&mut inner, event)
    };
    core.durable(seq).await?;
    core.hint_renewal(&agent_id, false);
    Ok(Json(RenewResponse {
        certificate: pem,
        ca_bundle: core.authorities.bundle(),
        window: Some(next_window(from, life)),
    }))
}

/// The newest certificate, if it answers this request.
fn issued_before(core: &Core, agent_id: &str, csr: Hash) -> Option<RenewResponse> {
    let inner = core.lock();
    let newest = inner.state.agents.get(agent_id)?.certificates.back()?;
    (newest.csr == Some(csr) && newest.standing == Standing::Good).then(|| RenewResponse {
        certificate: newest.pem.clone(),
        ca_bundle: core.authorities.bundle(),
        window: None,
    })
}

/// When a certificate begins and how long it lives.
pub(super) fn certificate_window(life: Duration, fault: Option<&Fault>) -> (Timestamp, Duration) {
    let over = fault.is_some_and(|f| f.kind == Kind::Expired);
    let back = i64::try_from(life.as_secs()).unwrap_or(i64::MAX).saturating_add(3600);
    let from = if over { clock::shift(clock::now(), back.saturating_neg()) } else { clock::now() };
    (from, life)
}

/// Checks a proof by the audit key.
pub(super) fn proven(key: &PublicKey, message: &[u8], proof: &Base64) -> Result<(), Refusal> {
    let proof: Option<&[u8; 64]> = proof.0.as_slice().try_into().ok();
    if proof.is_some_and(|proof| key.verifies(message, proof)) {
        return Ok(());
    }
    let why = "the proof is not the audit key's signature over this request";
    Err(Refusal::forbidden("PROOF", why))
}

/// The last third of a certificate's life, without its last tenth.
fn next_window(from: Timestamp, life: Duration) -> Window {
    let at = |part: u32| {
        let seconds = i64::try_from((life / 30 * part).as_secs()).unwrap_or(i64::MAX);
        clock::shift(from, seconds)
    };
    Window { start: at(20), end: at(27) }
}
