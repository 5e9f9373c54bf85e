//! Artifacts: content by its hash to agents (`GET`, with ranges), files of agents to the hub
//! (`PUT`, resumable). Both stream between socket and disk.

use std::{io, path::PathBuf};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jtnt_proto::{bytes::Hash, hub::UploadState, job::Artifact};
use serde::Deserialize;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom},
};
use tokio_util::io::ReaderStream;

use super::{
    caller::Caller,
    jobs::owned,
    problem::Refusal,
    uploads::{CHUNK_BYTES, Upload},
};
use crate::{
    error::HubError,
    hub::{Core, Shared},
    state::Event,
};

/// The largest artifact, in bytes.
pub(crate) const MAX_ARTIFACT_BYTES: u64 = 64 << 30;

pub(super) async fn get(
    State(core): State<Shared>,
    _: Caller,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let sha256 = Hash::parse(&sha256).ok_or_else(|| {
        Refusal::unprocessable("HASH", "an artifact is named by 64 lower hex digits")
    })?;
    serve(&core, sha256, &headers).await
}

/// Streams an artifact, or the part that `Range` names.
pub(crate) async fn serve(
    core: &Core,
    sha256: Hash,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let path = folder(core).join(sha256.to_string());
    let mut file = File::open(&path).await.map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound {
            Refusal::not_found("ARTIFACT_UNKNOWN", format!("there is no artifact {sha256}"))
        } else {
            HubError::file(&path)(e).into()
        }
    })?;
    let failed = |e| Refusal::from(HubError::file(&path)(e));
    let size = file.metadata().await.map_err(failed)?.len();
    let etag = format!("\"{sha256}\"");
    let range = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    let (status, from, to) = match range.map(|r| span(r, size)) {
        None | Some(Span::Ignored) => (StatusCode::OK, 0, size),
        Some(Span::Part(from, to)) => (StatusCode::PARTIAL_CONTENT, from, to),
        Some(Span::Beyond) => {
            let mut answer = Refusal::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "RANGE",
                format!("it has {size} bytes"),
            )
            .into_response();
            set(&mut answer, header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(answer);
        }
    };
    file.set_max_buf_size(CHUNK_BYTES);
    file.seek(SeekFrom::Start(from)).await.map_err(failed)?;
    let body = ReaderStream::with_capacity(file.take(to - from), CHUNK_BYTES);
    let mut answer = (status, Body::from_stream(body)).into_response();
    set(&mut answer, header::CONTENT_TYPE, "application/octet-stream");
    set(&mut answer, header::CONTENT_LENGTH, &(to - from).to_string());
    set(&mut answer, header::ACCEPT_RANGES, "bytes");
    set(&mut answer, header::ETAG, &etag);
    if status == StatusCode::PARTIAL_CONTENT {
        let last = to.saturating_sub(1);
        set(&mut answer, header::CONTENT_RANGE, &format!("bytes {from}-{last}/{size}"));
    }
    Ok(answer)
}

/// The query of an upload.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    offset: u64,
    sha256: Option<Hash>,
}

pub(super) async fn put(
    State(core): State<Shared>,
    caller: Caller,
    Path((job_id, name)): Path<(String, String)>,
    query: Result<Query<Part>, QueryRejection>,
    body: Body,
) -> Result<Response, Refusal> {
    let Query(part) = query.map_err(|e| Refusal::unprocessable("QUERY", e.body_text()))?;
    if !is_name(&name) {
        let why = "a name matches [A-Za-z0-9._-]{1,64} and begins with no dot";
        return Err(Refusal::unprocessable("NAME", why));
    }
    let known = owned(&core.lock(), &caller, &job_id)?.artifacts.get(&name).copied();
    if let Some(artifact) = known {
        return repeated(artifact, part.sha256);
    }
    let path = core.settings.dir.join("uploads").join(&job_id).join(format!("{name}.part"));
    let failed = |e| Refusal::from(HubError::file(&path)(e));
    let mut upload = core.uploads.take(path.clone()).await.map_err(failed)?;
    if part.offset != upload.received() && !asks(&part, &body) {
        return Ok(state(StatusCode::CONFLICT, upload.received(), false));
    }
    upload.append(body.into_data_stream(), MAX_ARTIFACT_BYTES).await.map_err(|e| {
        Refusal::new(StatusCode::BAD_REQUEST, "BODY_CUT", format!("the upload broke off: {e}"))
    })?;
    let Some(expected) = part.sha256 else {
        return Ok(state(StatusCode::OK, upload.received(), false));
    };
    finish(&core, (job_id, name), upload, expected).await
}

/// Ends an upload whose bytes are all there.
async fn finish(
    core: &Core,
    (job_id, name): (String, String),
    mut upload: Upload,
    expected: Hash,
) -> Result<Response, Refusal> {
    let artifacts = folder(core);
    let failed = |e| Refusal::from(HubError::file(&artifacts)(e));
    if upload.hash() != expected {
        upload.discard().await.map_err(failed)?;
        let why = format!("what came does not have the hash {expected}; begin again at offset 0");
        return Err(Refusal::unprocessable("HASH_MISMATCH", why));
    }
    let path = core.settings.dir.join("uploads").join(&job_id).join(format!("{name}.part"));
    let artifact = upload.keep(&artifacts).await.map_err(failed)?;
    let seq = core.record(&mut core.lock(), Event::ArtifactStored { job_id, name, artifact });
    core.durable(seq).await?;
    core.uploads.forget(&path);
    Ok(state(StatusCode::OK, artifact.size, true))
}

/// Where artifacts are.
pub(crate) fn folder(core: &Core) -> PathBuf {
    core.settings.dir.join("artifacts")
}

/// Whether a request only asks how far the upload is.
fn asks(part: &Part, body: &Body) -> bool {
    part.offset == 0 && part.sha256.is_none() && http_body::Body::is_end_stream(body)
}

/// An upload that has ended already, asked for again.
fn repeated(artifact: Artifact, sha256: Option<Hash>) -> Result<Response, Refusal> {
    if sha256.is_some_and(|h| h != artifact.sha256) {
        let why = "an upload of this name has ended with another hash";
        return Err(Refusal::conflict("UPLOAD_CONFLICT", why));
    }
    Ok(state(StatusCode::OK, artifact.size, true))
}

fn state(status: StatusCode, received: u64, complete: bool) -> Response {
    (status, Json(UploadState { received, complete })).into_response()
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// `[A-Za-z0-9._-]{1,64}`, and no hidden file.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// What a `Range` asks for: from (inclusive), to (exclusive).
#[derive(Debug, PartialEq, Eq)]
enum Span {
    Part(u64, u64),
    Beyond,
    /// Another unit, several parts, or nonsense: the whole is a proper answer.
    Ignored,
}

fn span(range: &str, size: u64) -> Span {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Span::Ignored;
    };
    let bounds = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, size),
        (Err(_), Ok(last)) if first.trim().is_empty() => (size.saturating_sub(last), size),
        _ => return Span::Ignored,
    };
    if bounds.0 >= bounds.1 { Span::Beyond } else { Span::Part(bounds.0, bounds.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        assert_eq!(span("bytes=0-9", 100), Span::Part(0, 10));
        assert_eq!(span("bytes=90-", 100), Span::Part(90, 100));
        assert_eq!(span("bytes=-10", 100), Span::Part(90, 100));
        assert_eq!(span("bytes=50-500", 100), Span::Part(50, 100));
        assert_eq!(span("bytes=100-", 100), Span::Beyond);
        assert_eq!(span("bytes=-0", 100), Span::Beyond);
        for odd in ["bytes=9-0", "bytes=0-1,5-6", "lines=0-1", "bytes=-", "0-1"] {
            assert_eq!(span(odd, 100), Span::Ignored, "{odd}");
        }
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        assert!(is_name("report-1.tar.gz"));
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
