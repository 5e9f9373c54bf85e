//! How long to wait after the hub did not do it: a random part of a bound that doubles, and never
//! less than it asked for.

use std::time::Duration;

use super::HubError;
use crate::runtime::entropy::{Entropy, fraction};

const BASE: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub struct Retry {
    failures: u32,
}

impl Retry {
    /// The next failure is the first.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure, and after `wanted` in any case.
    pub fn wait(&mut self, wanted: Duration, entropy: &dyn Entropy) -> Duration {
        let bound = BASE.saturating_mul(1 << self.failures.min(10)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        wanted + bound.mul_f64(fraction(entropy))
    }
}

/// How long the hub wants to be left alone, or cannot be reached anyway.
#[must_use]
pub const fn wanted(error: &HubError) -> Duration {
    match error {
        HubError::BreakerOpen(rest) | HubError::Refused { retry_after: Some(rest), .. } => *rest,
        HubError::Refused { .. }
        | HubError::Unreachable(_)
        | HubError::Deadline(_)
        | HubError::BadAnswer(_) => Duration::ZERO,
    }
}

/// Whether the hub will never take this, however often it is sent. What is wrong with the
/// credentials is not the document's fault and will be mended.
#[must_use]
pub const fn is_final(error: &HubError) -> bool {
    matches!(error, HubError::Refused { status: 400 | 404 | 409 | 410 | 413 | 415 | 422, .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::entropy::SeededEntropy;

    #[test]
    fn waits_grow_to_a_bound_and_respect_what_was_asked() {
        let entropy = SeededEntropy::new(7);
        let mut retry = Retry::default();
        for n in 0..20 {
            let wait = retry.wait(Duration::ZERO, &*entropy);
            assert!(wait <= MOST.min(BASE * (1 << n.min(10))), "{n}: {wait:?}");
        }
        let open = HubError::BreakerOpen(Duration::from_secs(100));
        assert!(retry.wait(wanted(&open), &*entropy) >= Duration::from_secs(100));
    }
}
