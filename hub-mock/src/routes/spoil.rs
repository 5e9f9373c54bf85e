//! The faults at work: answers that are late, cut, wrong, or none at all.

use std::{convert::Infallible, io, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use jtnt_proto::hub::MAX_BODY_BYTES;
use serde_json::{Value, json};

use super::problem::Refusal;
use crate::{
    clock,
    faults::{Fault, Kind},
    hub::{Core, Shared},
};

const SKEW_SECONDS: i64 = 86_400;
const SLOW_PIECES: usize = 16;
const OVERSIZED_CHUNKS: usize = 2 * (MAX_BODY_BYTES >> 16);

/// Marks a response that must not be sent: the connection is closed instead.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HangUp;

/// Whether a kind ends in silence, so that the record cannot wait for an answer.
pub(super) const fn leaves_no_answer(kind: Kind) -> bool {
    matches!(kind, Kind::Refuse | Kind::Hang)
}

/// Silence: at once, or after a long wait.
pub(super) async fn silence(core: &Shared, kind: Kind) -> Response {
    if kind == Kind::Hang {
        tokio::select! {
            () = core.faults.cleared() => {}
            () = core.stop.cancelled() => {}
        }
    }
    hang_up()
}

/// Answers a request as `fault` wants it.
pub(super) async fn answer(core: &Core, fault: &Fault, request: Request, next: Next) -> Response {
    match fault.kind {
        Kind::InternalError => {
            let why = "a fault was set on this route";
            return Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "FAULT", why).into_response();
        }
        Kind::TooMany => {
            let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "FAULT", "try again later");
            return refusal.retry_after(1).into_response();
        }
        Kind::Redirect => {
            let to = [(header::LOCATION, "/elsewhere")];
            return (StatusCode::TEMPORARY_REDIRECT, to).into_response();
        }
        Kind::Refuse
        | Kind::Hang
        | Kind::Slow
        | Kind::Cut
        | Kind::Garbage
        | Kind::Oversized
        | Kind::WrongShape
        | Kind::WrongSignature
        | Kind::Expired
        | Kind::Replay
        | Kind::OtherAgent
        | Kind::NotForClients
        | Kind::NotYetValid
        | Kind::Stranger
        | Kind::Disordered
        | Kind::LongChain
        | Kind::ClockSkew => {}
    }
    let honest = next.run(request).await;
    match fault.kind {
        Kind::Slow => slow(honest, core.settings.slow_pause),
        Kind::Cut => cut(honest),
        Kind::Garbage => json_bytes((0..=255).cycle().take(1024).collect::<Vec<u8>>()),
        Kind::Oversized => oversized(),
        Kind::WrongShape => axum::Json(json!({ "shape": ["wrong"] })).into_response(),
        Kind::WrongSignature => rewrite(honest, &turn_signatures).await,
        Kind::ClockSkew => skew(rewrite(honest, &skew_hub_time).await),
        // The handlers of documents and certificates saw the fault themselves.
        Kind::Expired
        | Kind::Replay
        | Kind::OtherAgent
        | Kind::NotForClients
        | Kind::NotYetValid
        | Kind::Stranger
        | Kind::Disordered
        | Kind::LongChain => honest,
        Kind::InternalError | Kind::TooMany | Kind::Redirect | Kind::Refuse | Kind::Hang => honest,
    }
}

fn hang_up() -> Response {
    let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
    response.extensions_mut().insert(HangUp);
    response
}

fn json_bytes(body: impl Into<Body>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, body.into()).into_response()
}

fn slow(response: Response, pause: Duration) -> Response {
    let (parts, body) = response.into_parts();
    let drip = body.into_data_stream().flat_map(move |chunk| {
        let pieces: Vec<_> = match chunk {
            Ok(bytes) => {
                let size = bytes.len().div_ceil(SLOW_PIECES).max(1);
                bytes.chunks(size).map(|p| Ok(Bytes::copy_from_slice(p))).collect()
            }
            Err(e) => vec![Err(e)],
        };
        stream::iter(pieces).then(move |piece| async move {
            tokio::time::sleep(pause).await;
            piece
        })
    });
    Response::from_parts(parts, Body::from_stream(drip))
}

/// Half of the body, under a head that announced all of it.
fn cut(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let announced = parts.headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|v| v.to_str().ok()?.parse().ok());
    let Some(length) = announced.or(body.size_hint().exact()).filter(|n| *n > 1) else {
        return hang_up();
    };
    parts.headers.insert(header::CONTENT_LENGTH, length.into());
    let left = usize::try_from(length / 2).unwrap_or(usize::MAX);
    let half = stream::unfold((body.into_data_stream(), left), first_bytes);
    Response::from_parts(parts, Body::from_stream(half))
}

type Cutting = (BodyDataStream, usize);

async fn first_bytes((mut body, left): Cutting) -> Option<(io::Result<Bytes>, Cutting)> {
    if left == 0 {
        // Once unready, so that what came before is flushed; then the connection breaks.
        tokio::task::yield_now().await;
        return Some((Err(io::Error::other("cut by a fault")), (body, 0)));
    }
    let mut chunk = body.next().await?.ok()?;
    chunk.truncate(left);
    let left = left - chunk.len();
    Some((Ok(chunk), (body, left)))
}

fn oversized() -> Response {
    let padding = Bytes::from(vec![b' '; 1 << 16]);
    let chunks =
        stream::iter((0..OVERSIZED_CHUNKS).map(move |_| Ok::<_, Infallible>(padding.clone())));
    json_bytes(Body::from_stream(chunks))
}

/// Rewrites a JSON answer; leaves any other as it is.
async fn rewrite(response: Response, change: &(dyn Fn(&mut Value) + Sync)) -> Response {
    let (mut parts, body) = response.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    if !kind.is_some_and(|k| k.ends_with("json")) {
        return Response::from_parts(parts, body);
    }
    let Ok(body) = body.collect().await else { return hang_up() };
    let bytes = body.to_bytes();
    let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    change(&mut value);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(value.to_string()))
}

/// Turns one bit of every signature, wherever it stands, and of a certificate's.
fn turn_signatures(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match (key.as_str(), value) {
                    ("sig", Value::String(sig)) => turn(sig),
                    ("certificate", Value::String(pem)) => turn_pem(pem),
                    (_, value) => turn_signatures(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(turn_signatures),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn turn(base64: &mut String) {
    if let Ok(mut raw) = STANDARD.decode(base64.as_bytes()) {
        if let Some(last) = raw.last_mut() {
            *last ^= 1;
        }
        *base64 = STANDARD.encode(raw);
    }
}

fn turn_pem(pem: &mut String) {
    let mut body: String = pem.lines().filter(|l| !l.starts_with("-----")).map(str::trim).collect();
    turn(&mut body);
    *pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
}

fn skew_hub_time(value: &mut Value) {
    if let Some(at) = value.get_mut("hub_time") {
        *at = Value::from(clock::shift(clock::now(), SKEW_SECONDS).to_string());
    }
}

fn skew(mut response: Response) -> Response {
    let then = clock::shift(clock::now(), SKEW_SECONDS);
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&then);
    if let Ok(Ok(date)) = date.map(|d| HeaderValue::from_str(&d)) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}
