//! When the client certificate is to be renewed. First match wins: somebody asked, its authority was
//! dropped, the hub's window, a short life, thirty days before its end.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::health::SHORT_LIFE;

const DAY: i64 = 24 * 60 * 60;
const VERY_SHORT_LIFE: i64 = 10 * DAY;
const BEFORE_END: i64 = 30 * DAY;
const TOO_SOON: i64 = 5 * 60;
const FIRST_WAIT: Duration = Duration::from_secs(60);
const LAST_WAIT: Duration = Duration::from_secs(3600);
const LEAST_WAIT: Duration = Duration::from_secs(5);
const MOST_BETWEEN_LOOKS: Duration = Duration::from_secs(300);

/// What the rule looks at.
#[derive(Debug, Clone, Copy)]
pub struct Certificate {
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
    /// When we got it, where that is known.
    pub received_at: Option<Timestamp>,
    /// The moment picked, once, in the window that the hub suggested for it.
    pub picked_in_window: Option<Timestamp>,
    /// When the agent last renewed by itself.
    pub last_renewal: Option<Timestamp>,
    /// The root of roles no longer names its authority.
    pub authority_dropped: bool,
}

impl Certificate {
    /// How long we have it: hubs date the beginning back, for clocks that are late.
    #[must_use]
    pub fn life(&self) -> SignedDuration {
        let received = self.received_at.filter(|at| *at <= self.not_after);
        let from = received.map_or(self.not_before, |at| at.max(self.not_before));
        from.duration_until(self.not_after).max(SignedDuration::ZERO)
    }
}

/// Which rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// An operator or the hub wants it now.
    Forced,
    /// Its authority no longer counts.
    AuthorityDropped,
    /// The hub suggested a window.
    HubWindow,
    /// It lives less than 45 days.
    ShortLived,
    /// Thirty days before its end.
    ThirtyDays,
}

/// Who wants it renewed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nobody.
    Nobody,
    /// The hub, or an operator: not within a third of a life after the last renewal.
    Someone,
    /// An operator who means it.
    Force,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// From then on it is to be renewed.
    pub renew_at: Timestamp,
    /// The rule.
    pub rule: Rule,
    /// The rule in words.
    pub why: String,
}

/// When to renew.
#[must_use]
pub fn plan(certificate: &Certificate, asked: Asked, now: Timestamp) -> Plan {
    let Certificate { not_before, not_after, .. } = *certificate;
    let life = certificate.life().as_secs();
    let (renew_at, rule, why) = if certificate.authority_dropped && asked != Asked::Force {
        let why = "the root of roles no longer names the authority that issued it";
        (now, Rule::AuthorityDropped, why.to_owned())
    } else if asked != Asked::Nobody {
        (now, Rule::Forced, "it was asked for".to_owned())
    } else if let Some(picked) = certificate.picked_in_window {
        // However late that is, there is time for more than one try.
        let latest = later(not_after, -(life / 10));
        (picked.min(latest), Rule::HubWindow, "the hub suggested a window".to_owned())
    } else if life < SHORT_LIFE {
        let received = certificate.received_at.filter(|at| *at <= not_after).unwrap_or(not_before);
        let (part, words) =
            if life < VERY_SHORT_LIFE { (life / 2, "half") } else { (life * 2 / 3, "two thirds") };
        let why = format!("it lives {}: renewed after {words} of that", span(life));
        (later(received, part), Rule::ShortLived, why)
    } else {
        let why = "30 days before it expires".to_owned();
        (later(not_after, -BEFORE_END), Rule::ThirtyDays, why)
    };
    // No renewal brings another certificate of a dropped authority, so that is no loop.
    let is_urgent = asked == Asked::Force || rule == Rule::AuthorityDropped;
    // A hub that hands out certificates that are due at once must not keep us renewing.
    // What came after its end tells of a clock that was wrong.
    let last = certificate.last_renewal.filter(|last| *last <= not_after);
    match last.map(|last| later(last, life / 3)) {
        Some(earliest) if earliest > renew_at && !is_urgent => {
            let why = format!("{why}, but not within a third of its life after the last renewal");
            Plan { renew_at: earliest, rule, why }
        }
        _ => Plan { renew_at, rule, why },
    }
}

/// Whether to act on a plan now. What has weeks left waits for the daily check (`daily`: it is being
/// made), which may be missed for a day.
#[must_use]
pub fn is_due(plan: &Plan, daily: bool, now: Timestamp) -> bool {
    let patience = if plan.rule == Rule::ThirtyDays && !daily { DAY } else { 0 };
    later(plan.renew_at, patience) <= now
}

/// Where in the hub's window to renew: `drawn` from 0 to 1, once for each certificate. A window that
/// is none, or lies outside of the certificate's life, says nothing.
#[must_use]
pub fn pick(
    (start, end): (Timestamp, Timestamp),
    (not_before, not_after): (Timestamp, Timestamp),
    drawn: f64,
) -> Option<Timestamp> {
    let sound = not_before <= start && start <= end && end < not_after;
    let span = start.duration_until(end);
    sound.then(|| start.saturating_add(span.mul_f64(drawn.clamp(0.0, 1.0))).unwrap_or(start))
}

/// Whether a certificate that ends at `offered` would strand a machine whose own ends at `current`.
#[must_use]
pub fn strands(offered: Timestamp, current: Timestamp, now: Timestamp) -> bool {
    offered < current && offered < later(now, TOO_SOON)
}

/// How long to wait after so many failures in a row: a minute, then twice as long each time, at most
/// an hour and at most a thirtieth of the certificate's life; `drawn` from 0 to 1 spreads a fleet.
#[must_use]
pub fn wait_after(failures: u32, life: SignedDuration, drawn: f64) -> Duration {
    let life = Duration::try_from(life).unwrap_or_default();
    let most = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LAST_WAIT);
    let most = most.min((life / 30).max(LEAST_WAIT));
    most.mul_f64(0.5 + drawn.clamp(0.0, 1.0) / 2.0)
}

/// How often to look whether it is due. Timers stand still while a machine sleeps.
#[must_use]
pub fn look_every(life: SignedDuration) -> Duration {
    let life = Duration::try_from(life).unwrap_or_default();
    (life / 60).clamp(LEAST_WAIT, MOST_BETWEEN_LOOKS)
}

fn span(seconds: i64) -> String {
    match seconds {
        DAY.. => format!("{} days", seconds / DAY),
        3600.. => format!("{} hours", seconds / 3600),
        _ => format!("{} minutes", seconds / 60),
    }
}

fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn of_days(days: i64) -> Certificate {
        let not_before = at("2026-01-01T00:00:00Z");
        Certificate {
            not_before,
            not_after: later(not_before, days * DAY),
            received_at: None,
            picked_in_window: None,
            last_renewal: None,
            authority_dropped: false,
        }
    }

    fn planned(certificate: &Certificate) -> (Rule, String) {
        let plan = plan(certificate, Asked::Nobody, at("2026-01-02T00:00:00Z"));
        (plan.rule, plan.renew_at.to_string())
    }

    #[test]
    fn a_year_is_renewed_thirty_days_before_its_end() {
        assert_eq!(planned(&of_days(365)), (Rule::ThirtyDays, "2026-12-02T00:00:00Z".into()));
        assert_eq!(planned(&of_days(45)).0, Rule::ThirtyDays, "45 days is not short");
    }

    #[test]
    fn a_short_life_is_renewed_after_two_thirds_a_very_short_one_after_half() {
        assert_eq!(planned(&of_days(30)), (Rule::ShortLived, "2026-01-21T00:00:00Z".into()));
        assert_eq!(planned(&of_days(10)).1, "2026-01-07T16:00:00Z");
        assert_eq!(planned(&of_days(8)).1, "2026-01-05T00:00:00Z");
    }

    #[test]
    fn one_that_ends_at_once_takes_no_better_ones_place() {
        let now = at("2026-01-01T00:00:00Z");
        let ends = |offered, current| strands(later(now, offered), later(now, current), now);
        assert!(ends(2, 3600) && ends(299, 300));
        assert!(!ends(300, 3600), "lifetimes may be shortened");
        assert!(!ends(40, 39) && !ends(40, -1), "any is better than what ends before");
    }

    #[test]
    fn the_hubs_window_comes_first_and_a_request_before_it() {
        let in_window = |picked: &str, days| {
            let picked_in_window = Some(at(picked));
            Certificate { picked_in_window, ..of_days(days) }
        };
        let certificate = in_window("2026-02-03T00:00:00Z", 365);
        assert_eq!(planned(&certificate), (Rule::HubWindow, "2026-02-03T00:00:00Z".into()));
        // The last tenth of a life is for further tries.
        let late = planned(&in_window("2026-01-10T23:59:00Z", 10));
        assert_eq!(late, (Rule::HubWindow, "2026-01-10T00:00:00Z".into()));
        assert_eq!(plan(&certificate, Asked::Force, Timestamp::UNIX_EPOCH).rule, Rule::Forced);
    }

    #[test]
    fn one_of_a_dropped_authority_is_renewed_at_once_whenever_it_came() {
        let certificate = Certificate { authority_dropped: true, ..of_days(365) };
        let now = at("2026-01-02T00:00:00Z");
        let planned = |certificate: &Certificate| plan(certificate, Asked::Nobody, now);
        assert_eq!(planned(&certificate).rule, Rule::AuthorityDropped);
        assert!(is_due(&planned(&certificate), false, now));
        let last_renewal = Some(at("2026-01-01T00:00:00Z"));
        assert!(is_due(&planned(&Certificate { last_renewal, ..certificate }), false, now));
    }

    #[test]
    fn a_clock_that_was_wrong_once_puts_nothing_off_for_ever() {
        let absurd = Some(at("9998-01-01T00:00:00Z"));
        let certificate = Certificate { last_renewal: absurd, received_at: absurd, ..of_days(30) };
        assert!(planned(&certificate).1.as_str() <= "2026-01-31", "{:?}", planned(&certificate));
    }

    #[test]
    fn renewals_keep_a_third_of_a_life_between_them() {
        let last_renewal = Some(at("2026-01-20T00:00:00Z"));
        let certificate = Certificate { last_renewal, ..of_days(30) };
        assert_eq!(planned(&certificate).1, "2026-01-30T00:00:00Z");
        assert_eq!(
            plan(&certificate, Asked::Force, Timestamp::UNIX_EPOCH).renew_at,
            Timestamp::UNIX_EPOCH
        );
    }

    #[test]
    fn what_was_dated_back_lives_no_longer_for_that() {
        let received = at("2026-01-01T00:05:00Z");
        let not_after = later(received, 600);
        let certificate = Certificate {
            not_before: at("2026-01-01T00:00:00Z"),
            not_after,
            received_at: Some(received),
            picked_in_window: None,
            last_renewal: Some(received),
            authority_dropped: false,
        };
        let planned = plan(&certificate, Asked::Nobody, received);
        assert_eq!(planned.renew_at, later(received, 300));
        let asked = plan(&certificate, Asked::Someone, received);
        assert_eq!(asked.renew_at, later(received, 200));
    }

    #[test]
    fn whoever_asks_waits_for_a_third_of_a_life_unless_it_is_meant() {
        let last_renewal = Some(at("2026-01-01T00:00:00Z"));
        let certificate = Certificate { last_renewal, ..of_days(30) };
        let now = at("2026-01-02T00:00:00Z");
        let planned = plan(&certificate, Asked::Someone, now);
        assert_eq!(planned.renew_at.to_string(), "2026-01-11T00:00:00Z");
        assert!(!is_due(&planned, true, now));
        assert!(is_due(&plan(&certificate, Asked::Force, now), false, now));
    }

    #[test]
    fn what_has_weeks_left_waits_for_the_daily_check_and_no_longer_than_a_day() {
        let planned = plan(&of_days(365), Asked::Nobody, Timestamp::UNIX_EPOCH);
        let after = |seconds| later(planned.renew_at, seconds);
        assert!(is_due(&planned, true, after(0)) && !is_due(&planned, true, after(-1)));
        assert!(!is_due(&planned, false, after(DAY - 1)) && is_due(&planned, false, after(DAY)));
        let short = plan(&of_days(8), Asked::Nobody, Timestamp::UNIX_EPOCH);
        assert!(is_due(&short, false, short.renew_at));
    }

    #[test]
    fn a_window_counts_only_within_the_certificates_life() {
        let life = (at("2026-01-01T00:00:00Z"), at("2026-01-31T00:00:00Z"));
        let window = (at("2026-01-10T00:00:00Z"), at("2026-01-20T00:00:00Z"));
        let picked = |window, drawn| pick(window, life, drawn).map(|at| at.to_string());
        assert_eq!(picked(window, 0.5), Some("2026-01-15T00:00:00Z".to_owned()));
        assert_eq!(picked(window, 7.0), Some("2026-01-20T00:00:00Z".to_owned()));
        assert_eq!(picked((window.1, window.0), 0.5), None);
        assert_eq!(picked((window.0, life.1), 0.5), None);
        assert_eq!(picked((Timestamp::MIN, window.1), 0.5), None);
    }

    /// A hub that is away now and then, a clock that jumps, and an agent that looks.
    #[derive(Debug)]
    struct World {
        now: Timestamp,
        certificate: Certificate,
        renewals: Vec<Timestamp>,
        failures: u32,
        not_before_retry: Timestamp,
    }

    impl World {
        fn look(&mut self, life: i64, daily: bool, reachable: bool) {
            let planned = plan(&self.certificate, Asked::Nobody, self.now);
            if !is_due(&planned, daily, self.now) || self.now < self.not_before_retry {
                return;
            }
            if !reachable {
                self.failures += 1;
                let wait = wait_after(self.failures, SignedDuration::from_secs(life), 1.0);
                self.not_before_retry = self.now.saturating_add(wait).unwrap();
                return;
            }
            self.failures = 0;
            self.renewals.push(self.now);
            self.certificate = Certificate {
                not_before: self.now,
                not_after: later(self.now, life),
                received_at: Some(self.now),
                picked_in_window: None,
                last_renewal: Some(self.now),
                authority_dropped: false,
            };
        }
    }

    proptest::proptest! {
        #[test]
        fn no_certificate_expires_under_a_hub_that_is_there_and_none_is_renewed_in_a_loop(
            // From ten minutes to ten years, each doubling as likely as another.
            doublings in 0..19_u32, part in 0..600_i64,
            // Of each tenth of a life: whether the hub is there, and how far the clock jumps.
            tenths in proptest::collection::vec((proptest::bool::weighted(0.5), 0..50_i64), 60),
        ) {
            let life = (600 + part) << doublings;
            let start = at("2026-01-01T00:00:00Z");
            let certificate = Certificate {
                not_before: start,
                not_after: later(start, life),
                received_at: None,
                picked_in_window: None,
                last_renewal: None,
                authority_dropped: false,
            };
            let mut world = World {
                now: start, certificate, renewals: vec![], failures: 0, not_before_retry: start,
            };
            let look = i64::try_from(look_every(SignedDuration::from_secs(life)).as_secs()).unwrap();
            // Many looks change nothing; for long lives fewer are made than an agent makes.
            let step = look.max(life / 3000);
            let mut there_for = 0;
            for (reachable, jump) in tenths {
                let end = later(world.now, life / 10);
                while world.now < end {
                    let day = world.now.as_second() / DAY;
                    world.now = later(world.now, step);
                    let daily = world.now.as_second() / DAY != day;
                    there_for = if reachable { there_for + step } else { 0 };
                    world.look(life, daily, reachable);
                    let over = world.now >= world.certificate.not_after;
                    // Within the last third of its life it is always due, but for the daily check.
                    let long = there_for > life / 3 + 2 * DAY.min(life / 10);
                    proptest::prop_assert!(!(over && long), "{world:?}");
                }
                // The clock is set: timers and certificates know nothing of it.
                world.now = later(world.now, life / 1000 * jump);
            }
            for pair in world.renewals.windows(2) {
                let between = pair[0].duration_until(pair[1]).as_secs();
                proptest::prop_assert!(between >= life / 3, "{between} s of {life} s");
            }
        }
    }
}
