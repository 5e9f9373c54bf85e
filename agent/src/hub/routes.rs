//! The routes of the hub's API, a method each.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use jtnt_proto::{
    bytes::Hash,
    envelope::Envelope,
    hub::{
        AuditLines, EnrollRequest, EnrollResponse, HeartbeatRequest, HeartbeatResponse, JobStatus,
        JobsResponse, LeasedJob, MAX_LEASED_JOBS, MAX_POLL_SECONDS, OutputChunk, OutputState,
        RenewRequest, RenewResponse, ResultResponse, UploadState,
    },
    json,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    ArtifactBody, HubClient, HubError, POLL_GRACE, STALL,
    body::{Artifact, Readable, Reading},
    exchange::{Answer, Call, Content, Payload, media_type},
};
use crate::domain::ids::JobId;

impl HubClient {
    /// `POST /api/v1/enroll`.
    ///
    /// # Errors
    /// As [`HubError`]; status 403 with reason `TOKEN_UNKNOWN`, `TOKEN_USED` or `TOKEN_EXPIRED`.
    pub async fn enroll(&self, body: &EnrollRequest) -> Result<EnrollResponse, HubError> {
        self.post("/api/v1/enroll", "/api/v1/enroll".to_owned(), encoded(body)?).await
    }

    /// `POST /api/v1/heartbeat`.
    ///
    /// # Errors
    /// As [`HubError`].
    pub async fn heartbeat(&self, body: &HeartbeatRequest) -> Result<HeartbeatResponse, HubError> {
        self.post("/api/v1/heartbeat", "/api/v1/heartbeat".to_owned(), encoded(body)?).await
    }

    /// `GET /api/v1/jobs?wait=S`; the deadline is `wait` and some seconds more.
    ///
    /// # Errors
    /// As [`HubError`].
    pub async fn jobs(&self, wait: Duration) -> Result<JobsResponse, HubError> {
        let wait = wait.as_secs().min(MAX_POLL_SECONDS);
        let mut call = get("/api/v1/jobs", format!("/api/v1/jobs?wait={wait}"));
        call.within = Duration::from_secs(wait) + POLL_GRACE;
        let Polled { jobs, cancels } = decoded(self.call(call).await?)?;
        if jobs.len() > MAX_LEASED_JOBS {
            return Err(bad(&format!("{} jobs, where {MAX_LEASED_JOBS} are the most", jobs.len())));
        }
        Ok(JobsResponse { jobs, cancels })
    }

    /// `POST /api/v1/jobs/{id}/status`.
    ///
    /// # Errors
    /// As [`HubError`].
    pub async fn job_status(&self, id: &JobId, status: &JobStatus) -> Result<(), HubError> {
        let path = format!("/api/v1/jobs/{id}/status");
        let mut call = Call::new(Method::POST, "/api/v1/jobs/{id}/status", path);
        call.payload = Payload::Bytes(encoded(status)?);
        self.call(call).await.map(drop)
    }

    /// `POST /api/v1/jobs/{id}/result`, the very bytes of the result file.
    ///
    /// # Errors
    /// As [`HubError`].
    pub async fn job_result(&self, id: &JobId, body: Vec<u8>) -> Result<ResultResponse, HubError> {
        let path = format!("/api/v1/jobs/{id}/result");
        self.post("/api/v1/jobs/{id}/result", path, body.into()).await
    }

    /// `PUT /api/v1/jobs/{id}/output`; where the hub wants the stream to go on.
    ///
    /// # Errors
    /// As [`HubError`].
    pub async fn job_output(
        &self,
        id: &JobId,
        chunk: &OutputChunk,
    ) -> Result<OutputState, HubError> {
        let path = format!("/api/v1/jobs/{id}/output");
        let mut call = Call::new(Method::PUT, "/api/v1/jobs/{id}/output", path);
        call.payload = Payload::Bytes(encoded(chunk)?);
        decoded(self.call(call).await?)
    }

    /// `GET /api/v1/policy`; `None` when it is still the one of `etag`.
    ///
    /// # Errors
    /// As [`HubError`]; status 404 with reason `NO_POLICY` before the first.
    pub async fn policy(&self, etag: Option<&str>) -> Result<Option<(Envelope, String)>, HubError> {
        let mut call = get("/api/v1/policy", "/api/v1/policy");
        if let Some(etag) = etag.and_then(|e| HeaderValue::from_str(e).ok()) {
            call = call.header(header::IF_NONE_MATCH, etag);
            call.also = &[304];
        }
        let answer = self.call(call).await?;
        if answer.status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let etag = answer.headers.get(header::ETAG).and_then(|v| v.to_str().ok());
        let etag = etag.ok_or_else(|| bad("a policy without an ETag"))?.to_owned();
        Ok(Some((decoded(answer)?, etag)))
    }

    /// `GET /api/v1/trust/root/{n}`.
    ///
    /// # Errors
    /// As [`HubError`]; status 404 when there is none yet.
    pub async fn root(&self, version: u64) -> Result<Vec<u8>, HubError> {
        let path = format!("/api/v1/trust/root/{version}");
        let answer = self.call(get("/api/v1/trust/root/{n}", path)).await?;
        Ok(json_body(answer)?.to_vec())
    }

    /// `POST /api/v1/certificates/renew`.
    ///
    /// # Errors
    /// As [`HubError`].
    pub async fn renew(&self, body: &RenewRequest) -> Result<RenewResponse, HubError> {
        let path = "/api/v1/certificates/renew";
        self.post(path, path.to_owned(), encoded(body)?).await
    }

    /// `GET /api/v1/artifacts/{sha256}` from `offset` on. The stream gives `size - offset` bytes
    /// or fails, and is bounded in time by progress, not in all.
    ///
    /// # Errors
    /// As [`HubError`].
    pub async fn artifact(
        &self,
        sha256: Hash,
        size: u64,
        offset: u64,
    ) -> Result<ArtifactBody, HubError> {
        if offset >= size && offset > 0 {
            return Ok(Box::pin(tokio::io::empty()));
        }
        let mut call = get("/api/v1/artifacts/{sha256}", format!("/api/v1/artifacts/{sha256}"));
        call.stream = true;
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            call = call.header(header::RANGE, range.map_err(|e| bad(&e.to_string()))?);
        }
        let answer = self.call(call).await?;
        let wanted = if offset > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        if answer.status != wanted {
            return Err(bad(&format!("{} where {wanted} was due", answer.status)));
        }
        let length = answer.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
        let length = length.and_then(|v| v.parse::<u64>().ok());
        if length.is_some_and(|n| n != size - offset) {
            return Err(bad("the artifact is not as long as promised"));
        }
        match answer.content {
            Content::Flow(flow) => Ok(Box::pin(Artifact::new(flow, sha256, (offset, size), STALL))),
            Content::Whole(_) => Err(bad("no stream")),
        }
    }

    /// `PUT /api/v1/artifacts/{job_id}/{name}`: an empty body at 0 asks, a body appends at
    /// `offset`, an empty body with `sha256` ends. An answer of 409 that tells where to go on is
    /// no error.
    ///
    /// # Errors
    /// As [`HubError`]; status 422 with reason `HASH_MISMATCH` when the upload starts over.
    pub async fn upload(
        &self,
        id: &JobId,
        name: &str,
        part: UploadPart,
    ) -> Result<UploadState, HubError> {
        if !is_name(name) {
            return Err(HubError::Refused {
                status: StatusCode::UNPROCESSABLE_ENTITY.as_u16(),
                reason: "NAME".to_owned(),
                detail: "an artifact's name matches [A-Za-z0-9._-]{1,64}".to_owned(),
                retry_after: None,
            });
        }
        let (query, payload) = match part {
            UploadPart::Ask => ("offset=0".to_owned(), Payload::Bytes(Bytes::new())),
            UploadPart::Finish { size, sha256 } => {
                (format!("offset={size}&sha256={sha256}"), Payload::Bytes(Bytes::new()))
            }
            UploadPart::Append { bytes, offset, length } => {
                let sent = Arc::new(AtomicU64::new(0));
                let part = Reading::new(bytes, length, Arc::clone(&sent));
                (format!("offset={offset}"), Payload::Read(Some(part), sent))
            }
        };
        let path = format!("/api/v1/artifacts/{id}/{name}?{query}");
        let mut call = Call::new(Method::PUT, "/api/v1/artifacts/{job_id}/{name}", path);
        call.payload = payload;
        call.also = &[409];
        decoded(self.call(call).await?)
    }

    /// `PUT /api/v1/audit/{log_id}`: lines from number `from` on, or none, to ask; where the hub wants
    /// the log to go on, also where that is elsewhere.
    ///
    /// # Errors
    /// As [`HubError`].
    pub async fn audit_lines(
        &self,
        log_id: &str,
        from: u64,
        lines: Bytes,
    ) -> Result<AuditLines, HubError> {
        let path = format!("/api/v1/audit/{log_id}?from={from}");
        let mut call = Call::new(Method::PUT, "/api/v1/audit/{log_id}", path);
        call.payload = Payload::Lines(lines);
        call.also = &[409];
        decoded(self.call(call).await?)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        path: String,
        body: Bytes,
    ) -> Result<T, HubError> {
        let mut call = Call::new(Method::POST, endpoint, path);
        call.payload = Payload::Bytes(body);
        decoded(self.call(call).await?)
    }
}

/// One request of an upload.
pub enum UploadPart {
    /// Where to go on.
    Ask,
    /// More of it.
    Append {
        /// What there is from `offset` on.
        bytes: Readable,
        /// Where in the artifact.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// All `size` bytes are there; the whole has this hash.
    Finish {
        /// Number of all bytes.
        size: u64,
        /// Their hash.
        sha256: Hash,
    },
}

impl fmt::Debug for UploadPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask => f.write_str("Ask"),
            Self::Append { offset, length, .. } => write!(f, "Append({length} from {offset})"),
            Self::Finish { size, .. } => write!(f, "Finish({size})"),
        }
    }
}

/// [`JobsResponse`] with `jobs` as a must: otherwise any object would pass for an idle queue.
#[derive(Deserialize)]
struct Polled {
    jobs: Vec<LeasedJob>,
    #[serde(default)]
    cancels: Vec<Envelope>,
}

pub(super) fn get(endpoint: &'static str, path: impl Into<String>) -> Call {
    Call::new(Method::GET, endpoint, path)
}

fn bad(what: &str) -> HubError {
    HubError::BadAnswer(what.to_owned())
}

fn encoded(body: &impl Serialize) -> Result<Bytes, HubError> {
    let bytes = serde_json::to_vec(body);
    bytes.map(Bytes::from).map_err(|e| bad(&format!("the request cannot be written: {e}")))
}

fn json_body(answer: Answer) -> Result<Bytes, HubError> {
    let found = media_type(&answer.headers);
    if found != "application/json" {
        return Err(bad(&format!("{found:?} instead of application/json")));
    }
    match answer.content {
        Content::Whole(bytes) => Ok(bytes),
        Content::Flow(_) => Err(bad("a stream")),
    }
}

fn decoded<T: DeserializeOwned>(answer: Answer) -> Result<T, HubError> {
    json::from_slice(&json_body(answer)?).map_err(|e| bad(&format!("not the promised JSON: {e}")))
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}
