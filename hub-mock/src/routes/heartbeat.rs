//! `POST /api/v1/heartbeat`: how the agent is, and what is worth fetching.

use axum::{Json, extract::State};
use bytes::Bytes;
use jtnt_proto::{
    hub::{HeartbeatRequest, HeartbeatResponse},
    identity,
};

use super::{
    bounded,
    caller::{Caller, read},
    problem::Refusal,
};
use crate::{clock, hub::Shared, witness::Word};

/// The longest consistency proof: two hashes for each doubling of a log of 2^63 lines.
const MAX_PROOF_HASHES: usize = 128;

pub(super) async fn heartbeat(
    State(core): State<Shared>,
    caller: Caller,
    body: Bytes,
) -> Result<Json<HeartbeatResponse>, Refusal> {
    let said: HeartbeatRequest = read(&body)?;
    checked(&said, &caller)?;
    let known = core.lock().state.certificate(&said.agent_id, &said.certificate_serial).is_some();
    if !known {
        let why = "certificate_serial is none of this agent's certificates";
        return Err(Refusal::unprocessable("SERIAL", why));
    }
    let word = match &said.audit {
        Some(head) => {
            core.rotate(&said.agent_id, &head.key_rotations).await?;
            core.witness(&said.agent_id, head).await?
        }
        None => Word::default(),
    };
    let hints = core.heartbeat(said);
    let hub_time = clock::now();
    let certificate_serial = Some(caller.serial);
    Ok(Json(HeartbeatResponse {
        hub_time,
        hints,
        witness: word.cosignature,
        witnessed_size: word.has,
        audit_refusal: word.refusal,
        certificate_serial,
        rolled_back: word.seen,
    }))
}

fn checked(said: &HeartbeatRequest, caller: &Caller) -> Result<(), Refusal> {
    if said.agent_id != caller.agent_id {
        let why = "agent_id is not the one of the client certificate";
        return Err(Refusal::forbidden("AGENT_MISMATCH", why));
    }
    let texts = [
        &said.version,
        &said.state,
        &said.boot_id,
        &said.root_source,
        &said.certificate_serial,
        &said.enforcement,
    ];
    bounded(texts, &said.labels)?;
    if !matches!(said.root_source.as_str(), "pinned" | "trusted_hub") {
        let why = "root_source is `pinned` or `trusted_hub`";
        return Err(Refusal::unprocessable("ROOT_SOURCE", why));
    }
    if let Some(audit) = &said.audit {
        let long = audit.checkpoint.as_ref().is_some_and(|c| c.len() > 8192);
        let shrunk = audit.old_size.is_some_and(|old| old > audit.size);
        let odd = !identity::is_id(&audit.log_id) || audit.proof.len() > MAX_PROOF_HASHES;
        if long || shrunk || odd {
            let why = "the audit head has an improper id, an overlong proof, or has shrunk";
            return Err(Refusal::unprocessable("AUDIT_HEAD", why));
        }
    }
    Ok(())
}
