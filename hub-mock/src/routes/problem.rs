//! How the hub says no: RFC 9457 problem details with a stable reason.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use jtnt_proto::hub::{Problem, about_blank};

use crate::error::HubError;

/// An answer that is no.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    reason: String,
    detail: String,
    retry_after: Option<u32>,
}

impl Refusal {
    /// A refusal with a stable reason, and what is wrong and what to do.
    pub(crate) fn new(status: StatusCode, reason: &str, detail: impl Into<String>) -> Self {
        Self { status, reason: reason.to_owned(), detail: detail.into(), retry_after: None }
    }

    /// 422: it can be read, but not be true.
    pub(crate) fn unprocessable(reason: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, reason, detail)
    }

    /// 403.
    pub(crate) fn forbidden(reason: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, reason, detail)
    }

    /// 404.
    pub(crate) fn not_found(reason: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason, detail)
    }

    /// 409.
    pub(crate) fn conflict(reason: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, reason, detail)
    }

    /// With `Retry-After`.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl From<HubError> for Refusal {
    fn from(error: HubError) -> Self {
        let detail = error.to_string();
        match error {
            HubError::Refused { reason, detail } => {
                let status = match reason.as_str() {
                    "AGENT_UNKNOWN" | "JOB_UNKNOWN" => StatusCode::NOT_FOUND,
                    "JOB_EXISTS" | "JOB_ENDED" => StatusCode::CONFLICT,
                    _ => StatusCode::UNPROCESSABLE_ENTITY,
                };
                Self::new(status, &reason, detail)
            }
            HubError::Journal | HubError::File { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "STORAGE", detail).retry_after(5)
            }
            HubError::Listen { .. }
            | HubError::Damaged { .. }
            | HubError::Certificate(_)
            | HubError::Tls(_)
            | HubError::Output(_)
            | HubError::Unreachable(_)
            | HubError::NotAHub { .. }
            | HubError::Entropy(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", detail)
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: about_blank(),
            title: self.status.canonical_reason().unwrap_or("Refused").to_owned(),
            status: self.status.as_u16(),
            detail: Some(self.detail),
            reason: Some(self.reason),
        };
        let mut response = (self.status, axum::Json(problem)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
