//! Lines about what others send, bounded: after so many in a minute the rest is only counted, by
//! reason, and one line tells of it when the minute is over. Nobody fills a disk by being refused.

use std::{collections::BTreeMap, time::Duration};

const WINDOW: Duration = Duration::from_mins(1);

/// Counts the lines of one kind.
#[derive(Debug)]
pub struct Flood<R> {
    /// Lines in a minute.
    most: u32,
    since: Duration,
    written: u32,
    held_back: BTreeMap<R, u64>,
}

impl<R: Ord> Flood<R> {
    /// At most `most` lines a minute, and one more about the rest.
    #[must_use]
    pub const fn of(most: u32) -> Self {
        Self { most, since: Duration::ZERO, written: 0, held_back: BTreeMap::new() }
    }

    /// Whether one more line may be written at this time since boot; counts it if not.
    pub fn allows(&mut self, uptime: Duration, reason: R) -> bool {
        if uptime.saturating_sub(self.since) >= WINDOW && self.held_back.is_empty() {
            (self.since, self.written) = (uptime, 0);
        }
        if self.written < self.most {
            self.written += 1;
            return true;
        }
        *self.held_back.entry(reason).or_default() += 1;
        false
    }

    /// How many of each reason were not written, once their minute is over; told once.
    pub fn due(&mut self, uptime: Duration) -> BTreeMap<R, u64> {
        if uptime.saturating_sub(self.since) < WINDOW || self.held_back.is_empty() {
            return BTreeMap::new();
        }
        self.take(uptime)
    }

    /// The same before that, since there will be no later.
    pub fn take(&mut self, uptime: Duration) -> BTreeMap<R, u64> {
        (self.since, self.written) = (uptime, 0);
        std::mem::take(&mut self.held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_flood_is_so_many_lines_a_minute_and_one_more() {
        let mut flood = Flood::of(10);
        assert_eq!((0..1000).filter(|_| flood.allows(at(100), "forged")).count(), 10);
        assert!(!flood.allows(at(101), "late"));
        assert!(flood.due(at(159)).is_empty());
        assert_eq!(flood.due(at(160)), [("forged", 990), ("late", 1)].into());
        assert!(flood.due(at(300)).is_empty(), "told once");
        assert!(flood.allows(at(161), "late"));
    }

    #[test]
    fn what_is_few_is_written_for_ever() {
        let mut flood = Flood::of(10);
        assert!((0..1000).all(|n| flood.allows(at(n * 10), "late")));
        assert!(flood.due(at(100_000)).is_empty());
    }

    #[test]
    fn the_count_of_a_minute_that_is_over_is_not_lost_when_more_comes_before_it_is_told() {
        let mut flood = Flood::of(1);
        assert!(flood.allows(at(0), "late"));
        assert!(!flood.allows(at(1), "late"));
        assert!(!flood.allows(at(90), "late"), "it is told of first");
        assert_eq!(flood.due(at(90)), [("late", 2)].into());
        assert!(flood.allows(at(91), "late"));
    }

    #[test]
    fn at_the_end_the_rest_is_told_early() {
        let mut flood = Flood::of(0);
        assert!(!flood.allows(at(100), "late"));
        assert_eq!(flood.take(at(101)), [("late", 1)].into());
        assert!(flood.take(at(102)).is_empty());
    }
}
