//! `GET /api/v1/policy`: the newest signed policy, with an ETag.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jtnt_proto::bytes::Hash;

use super::{caller::Caller, problem::Refusal};
use crate::{
    error::HubError,
    faults::{Fault, Kind},
    hub::Shared,
};

pub(super) async fn policy(
    State(core): State<Shared>,
    _: Caller,
    fault: Option<Fault>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let chosen = {
        let inner = core.lock();
        let policies = &inner.state.policies;
        match fault {
            Some(Fault { kind: Kind::Expired, document: Some(document), .. }) => Some(document),
            Some(Fault { kind: Kind::Replay, .. }) => policies.front().map(|p| p.envelope.clone()),
            _ => policies.back().map(|p| p.envelope.clone()),
        }
    };
    let Some(envelope) = chosen else {
        let why = "no policy was published yet; `jtnt-hub-mock policy push FILE` does that";
        return Err(Refusal::not_found("NO_POLICY", why));
    };
    let body = serde_json::to_vec(&envelope).map_err(|e| HubError::damaged("policy", e))?;
    let tag = format!("\"{}\"", Hash::of(&body));
    let etag = HeaderValue::from_str(&tag).map_err(|e| HubError::damaged("etag", e))?;
    let mut response = if names(&headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    };
    response.headers_mut().insert(header::ETAG, etag);
    Ok(response)
}

fn names(headers: &HeaderMap, tag: &str) -> bool {
    let asked = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    asked.flat_map(|v| v.split(',')).any(|t| {
        let t = t.trim();
        t == "*" || t.strip_prefix("W/").unwrap_or(t) == tag
    })
}
