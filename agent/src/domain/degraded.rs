//! What the agent promises and does not hold for now: what of it the audit log is to be told, and
//! when. Each change is a line, but for one that comes and goes: then a line a minute says so, or
//! a hub could write as many as it likes.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

/// Between two lines about the same.
const GAP: Duration = Duration::from_mins(1);

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Lines are durable.
    AuditLog,
    /// The journal takes records of jobs.
    Journal,
    /// The system holds jobs to the policy.
    Sandbox,
    /// The hub cosigns the audit log.
    Witness,
}

impl What {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::AuditLog, Self::Journal, Self::Sandbox, Self::Witness];

    /// What it is called where it does not hold, as `status` has it, too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AuditLog => "AUDIT_NOT_WRITABLE",
            Self::Journal => "JOURNAL_NOT_WRITABLE",
            Self::Sandbox => "ENFORCEMENT",
            Self::Witness => "AUDIT_NOT_WITNESSED",
        }
    }

    /// The part that it is about.
    #[must_use]
    pub const fn object(self) -> &'static str {
        match self {
            Self::AuditLog => "audit log",
            Self::Journal => "journal",
            Self::Sandbox => "sandbox",
            Self::Witness => "witness",
        }
    }

    /// No line can say that there are no lines: it waits for the end and tells of both.
    const fn waits(self) -> bool {
        match self {
            Self::AuditLog => true,
            Self::Journal | Self::Sandbox | Self::Witness => false,
        }
    }
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Of this.
    pub what: What,
    /// Whether it holds, once this is written.
    pub holds: bool,
    /// Why it does not, or did not.
    pub why: String,
    /// Since when it does not, or did not.
    pub since: Timestamp,
    /// How often it changed since the last line.
    pub changes: u64,
}

#[derive(Debug)]
struct Standing {
    broken: bool,
    why: String,
    since: Timestamp,
    changes: u64,
    told: Option<Duration>,
}

/// How the promises stand.
#[derive(Debug, Default)]
pub struct Degraded(BTreeMap<What, Standing>);

impl Degraded {
    /// Takes a look: `why` it does not hold, if so. Times: of the wall, for people.
    pub fn see(&mut self, what: What, why: Option<String>, now: Timestamp) {
        let broken = why.is_some();
        let Some(standing) = self.0.get_mut(&what) else {
            if let Some(why) = why {
                let first = Standing { broken, why, since: now, changes: 1, told: None };
                self.0.insert(what, first);
            }
            return;
        };
        // A reason of another wording is no news of a log that nobody can write.
        let other = !what.waits() && why.as_ref().is_some_and(|why| *why != standing.why);
        if broken == standing.broken && !other {
            return;
        }
        if broken && !standing.broken && standing.changes == 0 {
            standing.since = now;
        }
        standing.broken = broken;
        standing.changes += 1;
        if let Some(why) = why {
            standing.why = why;
        }
    }

    /// What is to be written at this time since boot; the same again until [`Self::told`].
    #[must_use]
    pub fn due(&self, uptime: Duration) -> Vec<News> {
        let rested = |s: &Standing| s.told.is_none_or(|at| uptime.saturating_sub(at) >= GAP);
        let due = self.0.iter().filter(|(what, s)| s.changes > 0 && (what.waits() || rested(s)));
        due.map(|(what, s)| News {
            what: *what,
            holds: what.waits() || !s.broken,
            why: s.why.clone(),
            since: s.since,
            changes: s.changes,
        })
        .collect()
    }

    /// These news are durable.
    pub fn told(&mut self, news: &News, uptime: Duration) {
        if let Some(standing) = self.0.get_mut(&news.what) {
            standing.broken = !news.holds;
            standing.changes = standing.changes.saturating_sub(news.changes);
            standing.told = Some(uptime);
        }
    }

    /// Whether there is something to look at again, without being told to.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.values().any(|standing| standing.changes > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn why(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_change_is_told_once_and_its_end_as_well() {
        let mut degraded = Degraded::default();
        degraded.see(What::Witness, None, wall(1));
        assert!(degraded.due(at(1)).is_empty());
        degraded.see(What::Witness, why("SHRUNK"), wall(2));
        let [news] = &degraded.due(at(2))[..] else { panic!("{degraded:?}") };
        assert_eq!((news.holds, news.why.as_str(), news.since), (false, "SHRUNK", wall(2)));
        degraded.told(news, at(2));
        degraded.see(What::Witness, why("SHRUNK"), wall(3));
        assert!(degraded.due(at(300)).is_empty() && !degraded.is_open());
        degraded.see(What::Witness, why("FORKED"), wall(300));
        let [news] = &degraded.due(at(300))[..] else { panic!("{degraded:?}") };
        assert_eq!((news.holds, news.why.as_str(), news.since), (false, "FORKED", wall(2)));
        degraded.told(news, at(300));
        degraded.see(What::Witness, None, wall(400));
        let [news] = &degraded.due(at(400))[..] else { panic!("{degraded:?}") };
        assert_eq!((news.holds, news.why.as_str(), news.since), (true, "FORKED", wall(2)));
    }

    #[test]
    fn what_comes_and_goes_is_a_line_a_minute() {
        let mut degraded = Degraded::default();
        let mut lines = Vec::new();
        for second in 0..600 {
            let now = wall(second.try_into().unwrap());
            degraded.see(What::Witness, why("SHRUNK").filter(|_| second % 2 == 0), now);
            for news in degraded.due(at(second)) {
                degraded.told(&news, at(second));
                lines.push(news);
            }
        }
        assert_eq!(lines.len(), 10);
        assert_eq!(lines.iter().map(|news| news.changes).sum::<u64>(), 541);
    }

    #[test]
    fn a_log_that_takes_no_lines_is_told_of_by_the_first_that_it_takes() {
        let mut degraded = Degraded::default();
        degraded.see(What::AuditLog, why("no space"), wall(2));
        degraded.see(What::AuditLog, why("no space, again"), wall(7));
        let [news] = &degraded.due(at(7))[..] else { panic!("{degraded:?}") };
        assert!(news.holds, "the line itself shows it");
        assert_eq!((news.since, news.changes), (wall(2), 1));
        // It was taken, and the next look sees that it holds.
        degraded.told(news, at(7));
        degraded.see(What::AuditLog, None, wall(8));
        assert!(degraded.due(at(8)).is_empty() && !degraded.is_open());
        // Another line was taken first.
        degraded.see(What::AuditLog, why("read-only"), wall(9));
        degraded.see(What::AuditLog, None, wall(10));
        let [news] = &degraded.due(at(10))[..] else { panic!("{degraded:?}") };
        assert_eq!((news.holds, news.why.as_str(), news.changes), (true, "read-only", 2));
    }
}
