//! The circuit breaker: after some failures in a row nothing is sent for a minute, then one probe
//! decides. Time is an argument; who asks holds a [`Permit`] and says how it went.

use std::time::Duration;

/// How long an open breaker lets nothing through.
pub const OPEN_FOR: Duration = Duration::from_mins(1);

/// What is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// One probe.
    HalfOpen,
}

impl State {
    /// The word in metrics and status.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// How a request that was let through went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The hub answered, if only to say no: it is there.
    Answered,
    /// It did not, or not as a hub does.
    Failed,
    /// Nobody waited for the end.
    Abandoned,
}

/// Leave to send one request. Of an earlier era it counts no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    era: u64,
}

/// The breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    threshold: u32,
    era: u64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed { failures: u32 },
    Open { until: Duration },
    HalfOpen { probing: bool },
}

impl Breaker {
    /// Closed; opens after `threshold` failures in a row.
    #[must_use]
    pub const fn new(threshold: u32) -> Self {
        Self { threshold, era: 0, phase: Phase::Closed { failures: 0 } }
    }

    /// What is let through at `now`, a time since boot.
    #[must_use]
    pub const fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Lets one probe through at once, however long it was to rest: somebody has reason to think
    /// that the hub is there.
    pub const fn try_now(&mut self) {
        if let Phase::Open { .. } = self.phase {
            self.phase = Phase::HalfOpen { probing: false };
        }
    }

    /// How long nothing is let through from `now` on; nothing when it is not open.
    #[must_use]
    pub fn rest(&self, now: Duration) -> Option<Duration> {
        match self.phase {
            Phase::Open { until } => Some(until.saturating_sub(now)),
            Phase::Closed { .. } | Phase::HalfOpen { .. } => None,
        }
    }

    /// Asks to send a request.
    ///
    /// # Errors
    /// When nothing is let through: how long to wait. Zero means that a probe is under way.
    pub fn admit(&mut self, now: Duration) -> Result<Permit, Duration> {
        match self.phase {
            Phase::Closed { .. } => {}
            Phase::Open { until } if now < until => return Err(until - now),
            Phase::HalfOpen { probing: true } => return Err(Duration::ZERO),
            Phase::Open { .. } | Phase::HalfOpen { probing: false } => {
                self.enter(Phase::HalfOpen { probing: true });
            }
        }
        Ok(Permit { era: self.era })
    }

    /// Says how the request went.
    pub fn record(&mut self, permit: Permit, verdict: Verdict, now: Duration) {
        if permit.era != self.era {
            return;
        }
        match (verdict, self.phase) {
            (Verdict::Answered, _) => self.phase = Phase::Closed { failures: 0 },
            (Verdict::Failed, Phase::Closed { failures }) if failures + 1 < self.threshold => {
                self.phase = Phase::Closed { failures: failures + 1 };
            }
            (Verdict::Failed, _) => self.enter(Phase::Open { until: now + OPEN_FOR }),
            (Verdict::Abandoned, Phase::HalfOpen { .. }) => {
                self.enter(Phase::HalfOpen { probing: false });
            }
            (Verdict::Abandoned, Phase::Closed { .. } | Phase::Open { .. }) => {}
        }
    }

    /// A new phase: what was let through before is no evidence about it.
    const fn enter(&mut self, phase: Phase) {
        self.era += 1;
        self.phase = phase;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::new(3);
        for _ in 0..3 {
            let permit = breaker.admit(at(0)).unwrap();
            breaker.record(permit, Verdict::Failed, at(0));
        }
        breaker
    }

    #[test]
    fn it_opens_after_so_many_failures_in_a_row() {
        let mut breaker = Breaker::new(3);
        for verdict in [Verdict::Failed, Verdict::Failed, Verdict::Answered, Verdict::Failed] {
            let permit = breaker.admit(at(0)).unwrap();
            breaker.record(permit, verdict, at(0));
            assert_eq!(breaker.state(), State::Closed);
        }
        assert_eq!(opened().state(), State::Open);
    }

    #[test]
    fn it_stays_open_for_a_minute_and_says_how_long() {
        let mut breaker = opened();
        assert_eq!(breaker.admit(at(20)), Err(at(40)));
        assert_eq!((breaker.rest(at(20)), breaker.rest(at(61))), (Some(at(40)), Some(at(0))));
        assert!(breaker.admit(at(59)).is_err());
        assert!(breaker.admit(at(60)).is_ok());
        assert_eq!(breaker.state(), State::HalfOpen);
        assert_eq!(breaker.rest(at(60)), None);
    }

    #[test]
    fn who_knows_better_need_not_wait() {
        let mut breaker = opened();
        breaker.try_now();
        assert_eq!(breaker.state(), State::HalfOpen);
        let probe = breaker.admit(at(1)).unwrap();
        breaker.try_now();
        assert!(breaker.admit(at(1)).is_err(), "one probe is enough");
        breaker.record(probe, Verdict::Answered, at(1));
        breaker.try_now();
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn one_probe_decides() {
        for (verdict, then) in [(Verdict::Answered, State::Closed), (Verdict::Failed, State::Open)]
        {
            let mut breaker = opened();
            let probe = breaker.admit(at(60)).unwrap();
            assert_eq!(breaker.admit(at(61)), Err(Duration::ZERO), "only one");
            breaker.record(probe, verdict, at(62));
            assert_eq!(breaker.state(), then);
        }
    }

    #[test]
    fn a_probe_that_nobody_waits_for_makes_room_for_another() {
        let mut breaker = opened();
        let probe = breaker.admit(at(60)).unwrap();
        breaker.record(probe, Verdict::Abandoned, at(61));
        let second = breaker.admit(at(61)).unwrap();
        breaker.record(probe, Verdict::Answered, at(62));
        assert_eq!(breaker.state(), State::HalfOpen, "the first probe counts no more");
        breaker.record(second, Verdict::Answered, at(62));
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn what_was_sent_before_it_opened_does_not_close_it() {
        let mut breaker = Breaker::new(1);
        let (slow, quick) = (breaker.admit(at(0)).unwrap(), breaker.admit(at(0)).unwrap());
        breaker.record(quick, Verdict::Failed, at(1));
        breaker.record(slow, Verdict::Answered, at(2));
        assert_eq!(breaker.state(), State::Open);
    }

    proptest! {
        /// Against a model that keeps the whole history: one request at a time, so that every
        /// verdict is about the present phase.
        #[test]
        fn it_is_open_exactly_when_the_history_says_so(
            steps in prop::collection::vec((0_u64..90, any::<bool>()), 0..60),
        ) {
            let mut breaker = Breaker::new(3);
            let (mut now, mut in_a_row, mut opened_at) = (0, 0, None::<u64>);
            for (pause, works) in steps {
                now += pause;
                let blocked = opened_at.is_some_and(|t| now < t + 60);
                let asked = breaker.admit(at(now));
                prop_assert_eq!(asked.is_err(), blocked);
                let Ok(permit) = asked else { continue };
                breaker.record(permit, if works { Verdict::Answered } else { Verdict::Failed }, at(now));
                if works {
                    (in_a_row, opened_at) = (0, None);
                } else {
                    in_a_row += 1;
                    if in_a_row >= 3 || opened_at.is_some() {
                        opened_at = Some(now);
                    }
                }
            }
        }
    }
}
