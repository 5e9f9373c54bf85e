//! "Daily at 03:00", taken literally: the first instant at or after 03:00, once a local date, on
//! days of 23 and of 25 hours too.

use std::time::Duration;

use jiff::{
    Timestamp,
    civil::{Date, Time},
    tz::{AmbiguousOffset, TimeZone},
};

/// When the work of `date` is due.
#[must_use]
pub fn due_on(date: Date, time: Time, zone: &TimeZone) -> Timestamp {
    let local = zone.to_ambiguous_timestamp(date.to_datetime(time));
    let gap = matches!(local.offset(), AmbiguousOffset::Gap { .. });
    let Ok(at) = local.compatible() else {
        return Timestamp::MAX; // beyond the calendar: never
    };
    if !gap {
        return at; // in a fold: the earlier of the two
    }
    // The clock jumps over the time: the instant of the jump is the first at or after it.
    // `preceding` looks strictly before, and `at` may be that instant itself.
    let after = at.saturating_add(Duration::from_nanos(1)).unwrap_or(at);
    zone.preceding(after).next().map_or(at, |jump| jump.timestamp())
}

/// The next date whose work is to be done, and when. It may be in the past: the agent was off.
#[must_use]
pub fn next(now: Timestamp, last: Option<Date>, time: Time, zone: &TimeZone) -> (Date, Timestamp) {
    let today = now.to_zoned_datetime(zone.clone()).date();
    let done = last.is_some_and(|last| last >= today);
    let date = if done { today.tomorrow().unwrap_or(today) } else { today };
    (date, due_on(date, time, zone))
}

/// A delay below `span` that is always the same for an agent, so that a fleet does not act at once.
#[must_use]
pub fn splay(agent_id: &str, span: Duration) -> Duration {
    let hash = agent_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Duration::from_secs(hash % span.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::{date, time};

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn an_ordinary_day_is_as_written() {
        let due = due_on(date(2026, 1, 15), time(3, 0, 0, 0), &berlin());
        assert_eq!(due, at("2026-01-15T02:00:00Z"));
    }

    #[test]
    fn a_time_the_clock_jumps_over_is_due_at_the_jump() {
        // 02:00 becomes 03:00 on 2026-03-29.
        for (h, m) in [(2, 0), (2, 30), (3, 0)] {
            let due = due_on(date(2026, 3, 29), time(h, m, 0, 0), &berlin());
            assert_eq!(due, at("2026-03-29T01:00:00Z"), "{h}:{m}");
        }
    }

    #[test]
    fn a_time_that_comes_twice_is_due_the_first_time_and_once() {
        // 03:00 becomes 02:00 on 2026-10-25.
        let half = time(2, 30, 0, 0);
        let due = due_on(date(2026, 10, 25), half, &berlin());
        assert_eq!(due, at("2026-10-25T00:30:00Z"));
        let second = at("2026-10-25T01:30:00Z");
        let (day, _) = next(second, Some(date(2026, 10, 25)), half, &berlin());
        assert_eq!(day, date(2026, 10, 26));
    }

    #[test]
    fn a_missed_day_is_made_up_for_and_a_done_day_is_not() {
        let three = time(3, 0, 0, 0);
        let noon = at("2026-01-15T11:00:00Z");
        let (day, due) = next(noon, Some(date(2026, 1, 12)), three, &berlin());
        assert!(day == date(2026, 1, 15) && due < noon);
        let (day, due) = next(noon, Some(date(2026, 1, 15)), three, &berlin());
        assert!(day == date(2026, 1, 16) && due == at("2026-01-16T02:00:00Z"));
    }

    #[test]
    fn a_clock_that_was_ahead_delays_by_a_day_at_most() {
        let noon = at("2026-01-15T11:00:00Z");
        let (day, _) = next(noon, Some(date(2031, 1, 1)), time(3, 0, 0, 0), &berlin());
        assert_eq!(day, date(2026, 1, 16));
    }

    #[test]
    fn splay_is_steady_and_bounded() {
        let span = Duration::from_secs(600);
        assert_eq!(splay("a", span), splay("a", span));
        assert_ne!(splay("a", span), splay("b", span));
        assert!((0..100).all(|n| splay(&n.to_string(), span) < span));
    }
}
