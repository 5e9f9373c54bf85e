//! When the client certificate is to be renewed. First match wins: somebody asked, the hub's
//! window, a short life, thirty days before its end.

use jiff::{SignedDuration, Timestamp};

use super::health::SHORT_LIFE;

const DAY: i64 = 24 * 60 * 60;
const VERY_SHORT_LIFE: i64 = 10 * DAY;
const BEFORE_END: i64 = 30 * DAY;

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
}

/// Which rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// An operator or the hub wants it now.
    Forced,
    /// The hub suggested a window.
    HubWindow,
    /// It lives less than 45 days.
    ShortLived,
    /// Thirty days before its end.
    ThirtyDays,
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

/// When to renew. `forced`: somebody asked now.
#[must_use]
pub fn plan(certificate: &Certificate, forced: bool, now: Timestamp) -> Plan {
    let Certificate { not_before, not_after, .. } = *certificate;
    if forced {
        let why = "it was asked for".to_owned();
        return Plan { renew_at: now, rule: Rule::Forced, why };
    }
    let life = not_before.duration_until(not_after).as_secs().max(0);
    let (renew_at, rule, why) = if let Some(picked) = certificate.picked_in_window {
        (picked, Rule::HubWindow, "the hub suggested a window".to_owned())
    } else if life < SHORT_LIFE {
        let received = certificate.received_at.unwrap_or(not_before);
        let (part, words) =
            if life < VERY_SHORT_LIFE { (life / 2, "half") } else { (life * 2 / 3, "two thirds") };
        let why = format!("it lives {} days: renewed after {words} of them", life / DAY);
        (later(received, part), Rule::ShortLived, why)
    } else {
        let why = "30 days before it expires".to_owned();
        (later(not_after, -BEFORE_END), Rule::ThirtyDays, why)
    };
    // A hub that hands out certificates that are due at once must not keep us renewing.
    match certificate.last_renewal.map(|last| later(last, life / 3)) {
        Some(earliest) if earliest > renew_at => {
            let why = format!("{why}, but not within a third of its life after the last renewal");
            Plan { renew_at: earliest, rule, why }
        }
        _ => Plan { renew_at, rule, why },
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
        }
    }

    fn planned(certificate: &Certificate) -> (Rule, String) {
        let plan = plan(certificate, false, at("2026-01-02T00:00:00Z"));
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
    fn the_hubs_window_comes_first_and_a_request_before_it() {
        let picked = Some(at("2026-02-03T00:00:00Z"));
        let certificate = Certificate { picked_in_window: picked, ..of_days(8) };
        assert_eq!(planned(&certificate), (Rule::HubWindow, "2026-02-03T00:00:00Z".into()));
        assert_eq!(plan(&certificate, true, Timestamp::UNIX_EPOCH).rule, Rule::Forced);
    }

    #[test]
    fn renewals_keep_a_third_of_a_life_between_them() {
        let last_renewal = Some(at("2026-01-20T00:00:00Z"));
        let certificate = Certificate { last_renewal, ..of_days(30) };
        assert_eq!(planned(&certificate).1, "2026-01-30T00:00:00Z");
        assert_eq!(plan(&certificate, true, Timestamp::UNIX_EPOCH).renew_at, Timestamp::UNIX_EPOCH);
    }
}
