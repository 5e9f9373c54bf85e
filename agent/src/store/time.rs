//! Time that what has expired cannot escape: the later of the clock and a persisted mark.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{Journal, StoreError};
use crate::runtime::clock::{Clock, SharedClock};

/// The cursor that holds the mark, as text of RFC 3339.
const CURSOR: &str = "time-mark";

/// The time by which expiry is judged.
///
/// The mark is the latest time this agent has good reason to believe in: what it judged by before
/// the last stop, and every `issued_at` under a verified signature. It goes on with the time
/// since boot, so a clock that is set back, or a battery that died, revives nothing.
#[derive(Debug, Clone)]
pub struct TrustedTime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    journal: Journal,
    clock: SharedClock,
    mark: Mutex<Mark>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Timestamp,
    /// Time since boot when the mark was true.
    uptime: Duration,
}

impl Mark {
    /// Where the mark stands at `uptime`.
    fn advanced(self, uptime: Duration) -> Timestamp {
        let elapsed = SignedDuration::try_from(uptime.saturating_sub(self.uptime));
        elapsed.ok().and_then(|elapsed| self.at.checked_add(elapsed).ok()).unwrap_or(Timestamp::MAX)
    }
}

impl TrustedTime {
    /// Reads the mark. The clock raises it at once, so that a clock set back later in this run
    /// is noticed too.
    ///
    /// # Errors
    /// When the database cannot be read, or holds no time there.
    pub fn load(journal: Journal, clock: SharedClock) -> Result<Self, StoreError> {
        let stored = journal.cursor(CURSOR)?.map(|raw| parse(&raw)).transpose()?;
        let at = stored.map_or_else(|| clock.now(), |stored| stored.max(clock.now()));
        let mark = Mutex::new(Mark { at, uptime: clock.uptime() });
        Ok(Self { inner: Arc::new(Inner { journal, clock, mark }) })
    }

    /// The later of the clock and the mark, which goes on with the time since boot.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.mark().advanced(self.inner.clock.uptime()).max(self.inner.clock.now())
    }

    /// Moves the mark up to a verified `issued_at`, and never down. There is no bound on the way
    /// up: only a key of a role can move it, and an agent whose clock is years behind must follow.
    pub fn observe(&self, issued_at: Timestamp) {
        let uptime = self.inner.clock.uptime();
        let mut mark = self.mark();
        if issued_at > mark.advanced(uptime) {
            *mark = Mark { at: issued_at, uptime };
        }
    }

    /// Makes the mark durable; called every few minutes and at the end.
    ///
    /// # Errors
    /// When it could not be made durable.
    pub async fn save(&self) -> Result<(), StoreError> {
        let now = self.now();
        self.observe(now);
        self.inner.journal.set_cursor(CURSOR, now.to_string().into_bytes()).await
    }

    /// Puts the stored mark back to the clock: for root, while no agent runs, after a wild clock
    /// has driven the mark into the future or the mark itself was damaged.
    ///
    /// # Errors
    /// When it could not be made durable; the mark stays then.
    pub async fn reset(journal: &Journal, clock: &dyn Clock) -> Result<(), StoreError> {
        journal.set_cursor(CURSOR, clock.now().to_string().into_bytes()).await
    }

    fn mark(&self) -> std::sync::MutexGuard<'_, Mark> {
        self.inner.mark.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(raw: &[u8]) -> Result<Timestamp, StoreError> {
    std::str::from_utf8(raw).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        StoreError("its mark of time cannot be read; type: jtnt-agent clock reset".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock::FixedClock;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    struct Fixture {
        dir: tempfile::TempDir,
        clock: Arc<FixedClock>,
    }

    impl Fixture {
        fn new() -> Self {
            let clock = FixedClock::at("2026-06-01T12:00:00Z");
            Self { dir: tempfile::tempdir().unwrap(), clock }
        }

        fn load(&self) -> TrustedTime {
            let clock: SharedClock = Arc::<FixedClock>::clone(&self.clock);
            let journal = Journal::open(&self.dir.path().join("j"), Arc::clone(&clock)).unwrap();
            TrustedTime::load(journal, clock).unwrap()
        }
    }

    #[tokio::test]
    async fn a_clock_set_back_revives_nothing() {
        let fixture = Fixture::new();
        let time = fixture.load();
        fixture.clock.advance(HOUR);
        fixture.clock.jump_to("2020-01-01T00:00:00Z");
        assert_eq!(time.now(), at("2026-06-01T13:00:00Z"));
        fixture.clock.advance(HOUR);
        assert_eq!(time.now(), at("2026-06-01T14:00:00Z"), "it goes on with the time since boot");
    }

    #[tokio::test]
    async fn a_verified_time_raises_the_mark_and_never_lowers_it() {
        let fixture = Fixture::new();
        let time = fixture.load();
        time.observe(at("2026-06-03T00:00:00Z"));
        time.observe(at("2026-06-02T00:00:00Z"));
        assert_eq!(time.now(), at("2026-06-03T00:00:00Z"));
        fixture.clock.jump_to("2026-06-04T00:00:00Z");
        assert_eq!(time.now(), at("2026-06-04T00:00:00Z"), "the clock is later again");
    }

    #[tokio::test]
    async fn the_mark_outlives_a_restart_with_a_dead_battery() {
        let fixture = Fixture::new();
        let time = fixture.load();
        time.observe(at("2026-06-03T00:00:00Z"));
        time.save().await.unwrap();
        drop(time);
        fixture.clock.jump_to("1970-01-01T00:00:10Z");
        assert_eq!(fixture.load().now(), at("2026-06-03T00:00:00Z"));
    }

    #[tokio::test]
    async fn reset_believes_the_clock_again_and_for_good() {
        let fixture = Fixture::new();
        let time = fixture.load();
        time.observe(at("2099-01-01T00:00:00Z"));
        time.save().await.unwrap();
        TrustedTime::reset(&time.inner.journal, &*fixture.clock).await.unwrap();
        drop(time);
        assert_eq!(fixture.load().now(), at("2026-06-01T12:00:00Z"));
    }

    #[tokio::test]
    async fn a_mark_that_is_no_time_is_an_error_that_says_what_to_type() {
        let fixture = Fixture::new();
        let clock: SharedClock = Arc::<FixedClock>::clone(&fixture.clock);
        let path = fixture.dir.path().join("j");
        let journal = Journal::open(&path, Arc::clone(&clock)).unwrap();
        journal.set_cursor(CURSOR, b"soon".to_vec()).await.unwrap();
        let load = || TrustedTime::load(journal.clone(), Arc::clone(&clock));
        let refused = load().unwrap_err().to_string();
        assert!(refused.contains("jtnt-agent clock reset"), "{refused}");
        TrustedTime::reset(&journal, &*fixture.clock).await.unwrap();
        load().unwrap();
    }
}
