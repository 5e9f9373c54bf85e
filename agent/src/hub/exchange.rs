//! One request and its answer, held to the contract: bounded, uncompressed, no redirects, of the
//! promised type. What comes out is either the answer or a [`HubError`] that says what it was.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use jtnt_proto::{
    hub::{MAX_BODY_BYTES, Problem},
    json,
};

use super::{
    body::{Outgoing, Reading},
    error::{Fault, HubError},
    pool::{Conn, Flow, Pool},
};
use crate::runtime::clock::SharedClock;

/// A refusal has at most this much to say.
const MAX_PROBLEM_BYTES: usize = 64 * 1024;
/// No hub keeps an agent away for longer.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);
const USER_AGENT: &str = concat!("jtnt-agent/", env!("CARGO_PKG_VERSION"));

/// A request to be.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// The template, which is the label of metrics.
    pub(super) endpoint: &'static str,
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) payload: Payload,
    /// From the first byte of the connection to the last of a whole answer; for files and streams
    /// without any progress.
    pub(super) within: Duration,
    /// Beside 2xx, answers that are no refusals.
    pub(super) also: &'static [u16],
    /// The body is read by the caller.
    pub(super) stream: bool,
}

/// What a request carries.
pub(super) enum Payload {
    Bytes(Bytes),
    /// JSON objects, a line each.
    Lines(Bytes),
    /// The part, until it is on its way, and what counts its bytes.
    Read(Option<Reading>, Arc<AtomicU64>),
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bodies hold tokens and results; neither belongs into a log.
        f.write_str(if matches!(self, Self::Bytes(_)) { "bytes" } else { "file" })
    }
}

/// An answer that is no refusal.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

/// Its body.
#[derive(Debug)]
pub(super) enum Content {
    Whole(Bytes),
    Flow(Flow),
}

impl Call {
    pub(super) fn new(method: Method, endpoint: &'static str, path: impl Into<String>) -> Self {
        Self {
            method,
            endpoint,
            path: path.into(),
            headers: Vec::new(),
            payload: Payload::Bytes(Bytes::new()),
            within: super::ANSWER,
            also: &[],
            stream: false,
        }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    fn request(&mut self, host: &str) -> Result<Request<Outgoing>, HubError> {
        let body = match &mut self.payload {
            Payload::Bytes(bytes) | Payload::Lines(bytes) => Outgoing::bytes(bytes.clone()),
            Payload::Read(part, _) => match part.take() {
                Some(part) => Outgoing::Read(part),
                None => return Err(HubError::BadAnswer("the upload was sent already".to_owned())),
            },
        };
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(&self.path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, USER_AGENT);
        match &self.payload {
            Payload::Bytes(bytes) | Payload::Lines(bytes) if bytes.is_empty() => {}
            Payload::Bytes(_) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
            }
            Payload::Lines(_) => {
                request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
            }
            Payload::Read(..) => {
                request = request.header(header::CONTENT_TYPE, "application/octet-stream");
            }
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(body).map_err(|e| HubError::BadAnswer(format!("no such request: {e}")))
    }

    const fn can_repeat(&self) -> bool {
        matches!(self.payload, Payload::Bytes(_) | Payload::Lines(_))
    }
}

/// Sends and receives.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) pool: Arc<Pool>,
    pub(super) clock: SharedClock,
    /// Agent's clock minus the hub's, as of the last answer.
    pub(super) offset: Arc<Mutex<Option<SignedDuration>>>,
}

impl Exchange {
    pub(super) async fn run(self, mut call: Call) -> Result<Answer, HubError> {
        let (response, conn) = self.send(&mut call).await?;
        let (head, body) = response.into_parts();
        let flow = Flow::new(body, conn, Arc::clone(&self.pool));
        self.note_date(&head.headers);
        judge_head(head.status, &head.headers, &call)?;
        if !is_fine(head.status, &head.headers, &call) {
            return Err(self.refusal(head.status, &head.headers, flow).await);
        }
        let content = if call.stream {
            Content::Flow(flow)
        } else {
            Content::Whole(whole(flow, &head.headers, MAX_BODY_BYTES).await?)
        };
        Ok(Answer { status: head.status, headers: head.headers, content })
    }

    /// Over a rested connection if there is one. The hub may close it at the same moment; then
    /// the request goes over a new one, since every route takes the same request twice.
    async fn send(&self, call: &mut Call) -> Result<(Response<Incoming>, Conn), HubError> {
        let target = self.pool.target();
        let host = target.hub.authority();
        let broken = |e: hyper::Error| HubError::Unreachable(Fault::broken(&target.hub.host, &e));
        if let Some(mut conn) = self.pool.rested().await {
            match conn.send(call.request(&host)?).await {
                Ok(response) => return Ok((response, conn)),
                Err(e) if call.can_repeat() && was_closed(&e) => {}
                Err(e) => return Err(broken(e)),
            }
        }
        let mut conn = self.pool.fresh().await.map_err(HubError::Unreachable)?;
        let response = conn.send(call.request(&host)?).await.map_err(broken)?;
        Ok((response, conn))
    }

    async fn refusal(&self, status: StatusCode, headers: &HeaderMap, flow: Flow) -> HubError {
        let body = whole(flow, headers, MAX_PROBLEM_BYTES).await.unwrap_or_default();
        let problem: Option<Problem> = json::from_slice(&body).ok();
        let (reason, detail) =
            problem.map_or((None, None), |p| (p.reason, p.detail.or(Some(p.title))));
        let words = status.canonical_reason().unwrap_or("no reason given");
        HubError::Refused {
            status: status.as_u16(),
            reason: reason.unwrap_or_default(),
            detail: detail.unwrap_or_else(|| words.to_owned()),
            retry_after: retry_after(headers, self.clock.now()),
        }
    }

    /// The hub's Date is nobody's clock here; it only shows how far the two are apart.
    fn note_date(&self, headers: &HeaderMap) {
        let date = headers.get(header::DATE).and_then(|v| http_date(v.as_bytes()));
        if let Some(date) = date {
            let offset = self.clock.now().duration_since(date);
            *self.offset.lock().unwrap_or_else(PoisonError::into_inner) = Some(offset);
        }
    }
}

/// What no answer of a hub has, whatever its status.
fn judge_head(status: StatusCode, headers: &HeaderMap, call: &Call) -> Result<(), HubError> {
    let bad = |what: String| Err(HubError::BadAnswer(format!("{what} at {}", call.endpoint)));
    if status.is_redirection() && !call.also.contains(&status.as_u16()) {
        let to = headers.get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or("nowhere");
        let to: String = to.chars().take(200).collect();
        return bad(format!("a redirect to {to:?}, and the agent follows none"));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|v| v != "identity") {
        return bad("a compressed body".to_owned());
    }
    Ok(())
}

/// Whether an answer is one the caller can use.
fn is_fine(status: StatusCode, headers: &HeaderMap, call: &Call) -> bool {
    let problem = media_type(headers) == "application/problem+json";
    status.is_success() || (call.also.contains(&status.as_u16()) && !problem)
}

/// The body as a whole, if it is not longer than `limit`.
async fn whole(mut flow: Flow, headers: &HeaderMap, limit: usize) -> Result<Bytes, HubError> {
    let too_long = || HubError::BadAnswer(format!("a body of more than {limit} bytes"));
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    let length: u64 = length.and_then(|v| v.parse().ok()).unwrap_or(0);
    if usize::try_from(length).is_ok_and(|n| n > limit) {
        return Err(too_long());
    }
    let mut body = BytesMut::new();
    while let Some(data) = flow.data().await {
        let data = data.map_err(HubError::Unreachable)?;
        if body.len() + data.len() > limit {
            return Err(too_long());
        }
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

/// `Content-Type` without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim()
}

/// Whether the other side had closed a connection before it saw the request.
fn was_closed(error: &hyper::Error) -> bool {
    use std::{error::Error as _, io};
    let io = error.source().and_then(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    let reset = [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::UnexpectedEof,
    ];
    error.is_canceled()
        || error.is_closed()
        || error.is_incomplete_message()
        || io.is_some_and(|kind| reset.contains(&kind))
}

/// `Retry-After`: seconds or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?;
    let wait = match value.to_str().ok()?.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let wait = http_date(value.as_bytes())?.duration_since(now);
            Duration::try_from(wait).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &[u8]) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap());
        let now = "1994-11-06T08:49:00Z".parse().unwrap();
        retry_after(&headers, now).map(|d| d.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        assert_eq!(after("7"), Some(7));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(after("99999999"), Some(3600));
        for nonsense in ["-1", "soon", "", "1.5"] {
            assert_eq!(after(nonsense), None, "{nonsense}");
        }
    }
}
