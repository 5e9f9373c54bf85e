//! JSON as scripts get it: RFC 3339 times, durations in seconds, absent fields absent.

use jiff::Timestamp;
use serde::Serialize;

use super::escape::clean_json;
use crate::{
    Exit, Failure,
    run::{Outcome, Session},
};

/// Prints one object, laid out for reading.
pub(crate) fn object(session: &mut Session<'_>, value: &impl Serialize) -> Outcome<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| unprintable(&error))?;
    Ok(session.io.print(format!("{}\n", clean_json(text)).as_bytes())?)
}

/// Prints one item of a stream on a line of its own.
pub(crate) fn item(session: &mut Session<'_>, value: &impl Serialize) -> Outcome<()> {
    let text = serde_json::to_string(value).map_err(|error| unprintable(&error))?;
    Ok(session.io.print(format!("{}\n", clean_json(text)).as_bytes())?)
}

fn unprintable(error: &serde_json::Error) -> Failure {
    Failure::new(Exit::Io, "write the answer as JSON", error.to_string())
}

/// A time of the wire format; absent when it is out of any calendar.
pub(crate) fn time(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok())
}

/// A duration in seconds.
pub(crate) fn seconds(duration: Option<&prost_types::Duration>) -> Option<f64> {
    duration.map(|d| {
        #[expect(clippy::cast_precision_loss, reason = "whole seconds beyond 2^53 do not occur")]
        let whole = d.seconds as f64;
        whole + f64::from(d.nanos) / 1e9
    })
}

/// Empty text is absent.
pub(crate) fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
