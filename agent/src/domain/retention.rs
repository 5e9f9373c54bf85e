//! How long audit lines stay on this machine, and which may go at all: none that nobody else can
//! vouch for.

use jiff::SignedDuration;
use serde::Serialize;

/// What a profile asks for. Sources: PCI DSS 4.0, 10.5.1; 45 CFR 164.316(b)(2)(i).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// As configured.
    Default,
    /// Three months at hand, twelve at the hub.
    Pci,
    /// The same at hand, six years at the hub.
    Hipaa,
}

/// Who gets every line, besides the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Collector {
    /// The hub.
    Hub,
    /// systemd's journal.
    Journald,
    /// The local syslog.
    Syslog,
}

/// The least that pci and hipaa keep at hand.
const AT_HAND: u32 = 90;

/// What is kept, and what may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    days: u32,
    at_hub: bool,
}

impl Default for Retention {
    /// The operations guide's 30 days.
    fn default() -> Self {
        Self { days: 30, at_hub: false }
    }
}

impl Retention {
    /// Of a profile and the days that are configured, if any.
    #[must_use]
    pub fn of(profile: Profile, days: u32) -> Self {
        match profile {
            Profile::Default => Self { days, at_hub: false },
            Profile::Pci | Profile::Hipaa => Self { days: days.max(AT_HAND), at_hub: true },
        }
    }

    /// Whether the hub must hold what goes.
    #[must_use]
    pub const fn at_hub(self) -> bool {
        self.at_hub
    }

    /// Days on this machine.
    #[must_use]
    pub fn days(self) -> SignedDuration {
        SignedDuration::from_hours(24 * i64::from(self.days))
    }

    /// How many lines, from the first, may go once they are old enough: those that a witness has seen
    /// and, where the hub is to keep them for longer, those that it holds.
    #[must_use]
    pub fn sure(self, witnessed: u64, held: u64) -> u64 {
        if self.at_hub { witnessed.min(held) } else { witnessed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_keep_more_and_let_nothing_go_that_the_hub_does_not_hold() {
        let default = Retention::of(Profile::Default, 30);
        assert_eq!((default.days().as_hours(), default.sure(7, 0)), (720, 7));
        for profile in [Profile::Pci, Profile::Hipaa] {
            assert_eq!(Retention::of(profile, 30).days().as_hours(), 90 * 24);
            assert_eq!(Retention::of(profile, 400).days().as_hours(), 400 * 24);
            let strict = Retention::of(profile, 30);
            assert_eq!((strict.sure(7, 0), strict.sure(7, 5), strict.sure(5, 7)), (0, 5, 5));
        }
    }
}
