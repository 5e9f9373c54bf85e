//! The hub's only look at the calendar, so that there is one place to find it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Now.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// `span` from now, or the end of time.
pub(crate) fn after(span: Duration) -> Timestamp {
    shift(now(), i64::try_from(span.as_secs()).unwrap_or(i64::MAX))
}

/// `at` moved by `seconds`; stays where the calendar ends.
pub(crate) fn shift(at: Timestamp, seconds: i64) -> Timestamp {
    let end = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(end)
}

/// Whole seconds since 1970, 0 before.
pub(crate) fn unix_seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or(0)
}
