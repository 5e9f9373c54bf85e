//! Who calls: taken from the client certificate, never from a body.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::{StatusCode, request::Parts};
use jtnt_proto::{hub::MAX_BODY_BYTES, json};
use serde::de::DeserializeOwned;

use super::problem::Refusal;
use crate::{
    clock,
    faults::Fault,
    hub::{Core, Shared},
    state::Standing,
    tls::Peer,
};

/// An enrolled agent with a certificate that counts.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Its id.
    pub(crate) agent_id: String,
    /// Of its certificate, lower hex.
    pub(crate) serial: String,
}

/// An enrolled agent whose certificate may be over, or replaced by one that it never used, but was
/// never called back.
#[derive(Debug, Clone)]
pub(crate) struct Renewing(pub(crate) Peer);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, core: &Shared) -> Result<Self, Refusal> {
        let peer = peer(parts)?;
        match standing(core, peer)? {
            Standing::Expired => {
                let why = "the client certificate has expired; renew it or enrol again";
                return Err(Refusal::forbidden("CERTIFICATE_EXPIRED", why));
            }
            Standing::Replaced => {
                let why = "the client certificate was replaced by a newer one; use that";
                return Err(Refusal::forbidden("CERTIFICATE_REPLACED", why));
            }
            Standing::Good | Standing::Revoked => {}
        }
        core.used(&peer.agent_id, &peer.serial);
        Ok(Self { agent_id: peer.agent_id.clone(), serial: peer.serial.clone() })
    }
}

impl FromRequestParts<Shared> for Renewing {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, core: &Shared) -> Result<Self, Refusal> {
        let peer = peer(parts)?;
        match standing(core, peer)? {
            Standing::Expired if !core.settings.renews_expired => {
                let why = "this hub does not renew expired certificates; enrol again";
                return Err(Refusal::forbidden("CERTIFICATE_EXPIRED", why));
            }
            // Whoever got a newer one and lost it on the way has this one alone. Once the newer
            // one was seen, this one is over.
            Standing::Replaced if core.newest_was_used(&peer.agent_id) => {
                let why = "the client certificate was replaced by a newer one; use that";
                return Err(Refusal::forbidden("CERTIFICATE_REPLACED", why));
            }
            Standing::Good | Standing::Expired | Standing::Replaced | Standing::Revoked => {}
        }
        Ok(Self(peer.clone()))
    }
}

/// The fault this request has to suffer, where a handler has to play along.
impl OptionalFromRequestParts<Shared> for Fault {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        _: &Shared,
    ) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.remove::<Self>())
    }
}

fn peer(parts: &Parts) -> Result<&Peer, Refusal> {
    parts.extensions.get::<Peer>().ok_or_else(|| {
        let why = "this route needs a client certificate of this hub; enrol first";
        Refusal::new(StatusCode::UNAUTHORIZED, "CLIENT_CERTIFICATE_REQUIRED", why)
    })
}

fn standing(core: &Core, peer: &Peer) -> Result<Standing, Refusal> {
    let inner = core.lock();
    let known = inner.state.certificate(&peer.agent_id, &peer.serial);
    match known.map(|c| c.standing) {
        Some(Standing::Good) if peer.not_after <= clock::now().as_second() => Ok(Standing::Expired),
        Some(Standing::Revoked) => {
            let why = "the client certificate was revoked; enrol again";
            Err(Refusal::forbidden("CERTIFICATE_REVOKED", why))
        }
        Some(standing) => Ok(standing),
        None => {
            let why = "this hub did not issue the client certificate; enrol again";
            Err(Refusal::forbidden("CERTIFICATE_UNKNOWN", why))
        }
    }
}

/// Reads a body strictly.
pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    debug_assert!(body.len() <= MAX_BODY_BYTES, "front lets no larger body through");
    json::from_slice(body).map_err(|e| {
        let why = format!("the body is not what this route takes: {e}");
        Refusal::new(StatusCode::BAD_REQUEST, "MALFORMED", why)
    })
}
