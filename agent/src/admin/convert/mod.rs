//! From the agent's types to the API's, a file a concept. Nothing is decided here.

mod agent;
mod job;
mod policy;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub(super) use agent::{health, mode_word, probe_step, require_word, status};
pub(super) use job::{job, state, wanted_state};
pub(super) use policy::{comparison, decision, learned};

pub(super) fn time(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

pub(super) fn duration(span: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0) }
}

fn signed(span: SignedDuration) -> prost_types::Duration {
    prost_types::Duration { seconds: span.as_secs(), nanos: span.subsec_nanos() }
}
