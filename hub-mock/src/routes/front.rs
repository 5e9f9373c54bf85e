//! What every request passes: its body is bounded, its fault is taken, its record is kept.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use jtnt_proto::{bytes::Hash, hub::MAX_BODY_BYTES};
use serde_json::Value;

use super::{problem::Refusal, spoil};
use crate::{
    clock,
    faults::Route,
    hub::Shared,
    record::{MAX_KEPT_BODY_BYTES, Recorded},
    tls::Peer,
};

const JSON: &str = "application/json";
/// JSON objects, a line each.
const LINES: &str = "application/x-ndjson";
/// A whole body has this long to arrive.
const BODY_SECONDS: u64 = 30;

/// The outermost layer of the agents' side.
pub(super) async fn front(State(core): State<Shared>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let route = Route::of(&parts.method, parts.uri.path());
    let mut record = begin(&parts, route);
    let body = if route == Some(Route::Artifact) {
        record.body_bytes = length(&parts.headers).unwrap_or(0);
        Ok(body)
    } else {
        let kind = if route == Some(Route::Audit) { LINES } else { JSON };
        whole(&parts.headers, body, kind).await.map(|bytes| {
            keep(&mut record, &bytes);
            Body::from(bytes)
        })
    };
    let response = match body {
        Err(refusal) => refusal.into_response(),
        Ok(body) => match route.and_then(|r| core.faults.take(r)) {
            None => next.run(Request::from_parts(parts, body)).await,
            Some(fault) => {
                if spoil::leaves_no_answer(fault.kind) {
                    core.recorder.push(record);
                    return spoil::silence(&core, fault.kind).await;
                }
                parts.extensions.insert(fault.clone());
                spoil::answer(&core, &fault, Request::from_parts(parts, body), next).await
            }
        },
    };
    record.status = response.status().as_u16();
    core.recorder.push(record);
    response
}

fn begin(parts: &Parts, route: Option<Route>) -> Recorded {
    let peer = parts.extensions.get::<Peer>();
    let path = parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    Recorded {
        seq: 0,
        at: clock::now(),
        method: parts.method.to_string(),
        path,
        route,
        agent_id: peer.map(|p| p.agent_id.clone()),
        serial: peer.map(|p| p.serial.clone()),
        status: 0,
        body_bytes: 0,
        body_sha256: None,
        body: None,
    }
}

fn keep(record: &mut Recorded, body: &Bytes) {
    record.body_bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
    record.body_sha256 = Some(Hash::of(body));
    if body.len() <= MAX_KEPT_BODY_BYTES {
        record.body = serde_json::from_slice(body).ok();
    }
    if let Some(token) = record.body.as_mut().and_then(|b| b.get_mut("token")) {
        *token = Value::from("(left out)");
    }
}

async fn whole(headers: &HeaderMap, body: Body, wanted: &str) -> Result<Bytes, Refusal> {
    let arriving = Limited::new(body, MAX_BODY_BYTES).collect();
    let body = match tokio::time::timeout(Duration::from_secs(BODY_SECONDS), arriving).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            let why = format!("a body has at most {MAX_BODY_BYTES} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", why));
        }
        Ok(Err(e)) => {
            let why = format!("the body did not arrive: {e}");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "BODY_CUT", why));
        }
        Err(_) => {
            let why = format!("the body did not arrive within {BODY_SECONDS} seconds");
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "BODY_SLOW", why));
        }
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let fits = kind.split(';').next().is_some_and(|k| k.trim() == wanted);
    if !body.is_empty() && !fits {
        let why = format!("send it with Content-Type: {wanted}");
        let reason = if wanted == JSON { "NOT_JSON" } else { "NOT_LINES" };
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason, why));
    }
    Ok(body)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
