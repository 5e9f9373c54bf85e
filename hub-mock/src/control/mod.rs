//! The control port: what the operator's commands ask of the hub. Loopback only, a token from a
//! file that only the hub's owner can read, and a `Host` that no web page can forge.

mod api;

pub(crate) use api::{
    CurrentPolicy, Enqueue, Judge, NewToken, Pieces, Rule, TokenWish, Turn, Version,
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post, put},
};
use http::{HeaderMap, StatusCode, header};
use jtnt_proto::{bytes::Hash, hub::MAX_BODY_BYTES};

use crate::{
    hub::Shared,
    routes::{self, problem::Refusal},
};

/// The operator's side of the hub.
pub(crate) fn router(core: Shared, token: String) -> Router {
    Router::new()
        .route("/control/v1/tokens", post(api::make_token))
        .route("/control/v1/agents", get(api::agents))
        .route("/control/v1/witness", get(api::witness))
        .route("/control/v1/jobs", get(api::jobs).post(api::enqueue))
        .route("/control/v1/jobs/{id}", get(api::job))
        .route("/control/v1/jobs/{id}/cancel", post(api::cancel))
        .route("/control/v1/jobs/{id}/output", get(api::output))
        .route("/control/v1/artifacts/{sha256}", get(api::artifact).put(api::put_artifact))
        .route("/control/v1/policy", get(api::policy).post(api::publish_policy))
        .route("/control/v1/roots", post(api::publish_root))
        .route("/control/v1/authorities", get(api::authorities).post(api::turn))
        .route("/control/v1/certificates", post(api::judge))
        .route("/control/v1/certificates/rule", put(api::rule))
        .route("/control/v1/faults", get(api::faults).post(api::fault).delete(api::clear_faults))
        .route("/control/v1/requests", get(api::requests))
        .route("/openapi.json", get(|| async { routes::openapi() }))
        .fallback(|| async {
            Refusal::not_found("NO_SUCH_ROUTE", "the control port has no such path")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(token, guard))
        .with_state(core)
}

async fn guard(State(token): State<String>, request: Request, next: Next) -> Response {
    match admitted(request.headers(), &token) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn admitted(headers: &HeaderMap, token: &str) -> Result<(), Refusal> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if !matches!(name, "127.0.0.1" | "localhost" | "[::1]") {
        let why = format!("the control port is not known as {host:?}");
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "HOST", why));
    }
    let given = text(header::AUTHORIZATION).and_then(|v| v.strip_prefix("Bearer "));
    // Hashes are compared, so that the time it takes tells nothing about the token.
    if given.is_some_and(|given| Hash::of(given.as_bytes()) == Hash::of(token.as_bytes())) {
        return Ok(());
    }
    let why = "send the token of DIR/control.token as `Authorization: Bearer`";
    Err(Refusal::new(StatusCode::UNAUTHORIZED, "CONTROL_TOKEN", why))
}
