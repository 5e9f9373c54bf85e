//! How long to wait before the next try: exponential growth with full jitter, as data.
//!
//! Full jitter draws from the whole span below the ceiling, so that a fleet which lost its hub in
//! one moment does not come back in one moment.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A ceiling that doubles with each failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

/// What of a backoff outlives the process; absent when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Failures in a row.
    pub failures: u32,
    /// No try before this.
    pub not_before: Timestamp,
}

impl Backoff {
    /// Waits below `base` after the first failure, never `max` or more after any.
    #[must_use]
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// Goes on where another process stopped.
    #[must_use]
    pub const fn resumed(self, failures: u32) -> Self {
        Self { failures, ..self }
    }

    /// Failures in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure and tells how long to wait. `fraction` is drawn from `0.0..1.0`.
    pub fn next(&mut self, fraction: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.ceiling().mul_f64(fraction.clamp(0.0, 1.0))
    }

    /// All is well again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The span that the last wait was drawn from.
    #[must_use]
    pub fn ceiling(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_ceiling_doubles_up_to_the_longest() {
        let mut backoff = Backoff::new(seconds(1), seconds(10));
        let waits: Vec<_> = (0..6).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn success_starts_over_and_a_restart_does_not() {
        let mut backoff = Backoff::new(seconds(1), seconds(60)).resumed(3);
        assert_eq!(backoff.next(1.0), seconds(8));
        backoff.reset();
        assert_eq!(backoff.next(1.0), seconds(1));
    }

    proptest! {
        #[test]
        fn no_wait_passes_its_ceiling_however_often_it_failed(
            base in 1_u64..100, max in 1_u64..10_000, fraction in -1.0..2.0_f64, n in any::<u32>(),
        ) {
            let mut backoff = Backoff::new(seconds(base), seconds(max)).resumed(n);
            let wait = backoff.next(fraction);
            prop_assert!(wait <= backoff.ceiling() && wait <= seconds(max));
        }
    }
}
