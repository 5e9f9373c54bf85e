//! The REST API that agents use, one file a concern. `front` stands before all of them.

pub(crate) mod artifacts;
pub(crate) mod caller;
mod enroll;
mod front;
mod heartbeat;
mod jobs;
pub(crate) mod lines;
mod odd;
mod policy;
pub(crate) mod problem;
mod renew;
mod spoil;
pub(crate) mod streams;
mod trust;
pub(crate) mod uploads;

use std::sync::Arc;

use axum::{
    Router, middleware,
    routing::{get, post},
};
use http::{HeaderValue, StatusCode, header};

use crate::hub::Shared;
use problem::Refusal;

/// The description of this API, OpenAPI 3.1.
pub(crate) const OPENAPI: &str = include_str!("../../openapi.json");

/// The longest text that stands in a field for people or names, in bytes.
const MAX_TEXT_BYTES: usize = 1024;
/// The most labels of an agent.
const MAX_LABELS: usize = 64;

/// The agents' side of the hub.
pub(crate) fn router(core: Shared) -> Router {
    Router::new()
        .route("/api/v1/enroll", post(enroll::enroll))
        .route("/api/v1/trust/root/{n}", get(trust::root))
        .route("/api/v1/heartbeat", post(heartbeat::heartbeat))
        .route("/api/v1/jobs", get(jobs::poll))
        .route("/api/v1/jobs/{id}/status", post(jobs::status))
        .route("/api/v1/jobs/{id}/result", post(jobs::result))
        .route("/api/v1/jobs/{id}/output", axum::routing::put(streams::put))
        .route("/api/v1/policy", get(policy::policy))
        .route("/api/v1/certificates/renew", post(renew::renew))
        .route("/api/v1/artifacts/{sha256}", get(artifacts::get))
        .route("/api/v1/artifacts/{job_id}/{name}", axum::routing::put(artifacts::put))
        .route("/api/v1/audit/{log_id}", axum::routing::put(lines::put))
        .route("/openapi.json", get(|| async { openapi() }))
        .fallback(|| async {
            Refusal::new(StatusCode::NOT_FOUND, "NO_SUCH_ROUTE", "see /openapi.json")
        })
        .method_not_allowed_fallback(|| async {
            let why = "this path has other methods; see /openapi.json";
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", why)
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&core), front::front))
        .with_state(core)
}

/// `GET /openapi.json`.
pub(crate) fn openapi() -> ([(header::HeaderName, HeaderValue); 1], &'static str) {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI)
}

/// Refuses texts and labels beyond reason.
fn bounded<'a>(
    texts: impl IntoIterator<Item = &'a String>,
    labels: &'a std::collections::BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let mut texts = texts.into_iter().chain(labels.keys()).chain(labels.values());
    if labels.len() > MAX_LABELS || texts.any(|t| t.len() > MAX_TEXT_BYTES) {
        let why = format!("at most {MAX_LABELS} labels and {MAX_TEXT_BYTES} bytes in a text");
        return Err(Refusal::unprocessable("TOO_LONG", why));
    }
    Ok(())
}

/// Whether a fault wants the connection closed instead of this response.
pub(crate) fn hangs_up(response: &axum::response::Response) -> bool {
    response.extensions().get::<spoil::HangUp>().is_some()
}
