//! The one place that reads a clock.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;

/// Civil time, and time since boot that goes on while the machine sleeps.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Wall clock. It may jump.
    fn now(&self) -> Timestamp;

    /// Since boot, suspend included. It never goes back.
    fn uptime(&self) -> Duration;
}

/// A clock to hand around.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn uptime(&self) -> Duration {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
    }
}

/// A clock that stands where a test puts it.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct FixedClock(std::sync::Mutex<(Timestamp, Duration)>);

#[cfg(test)]
impl FixedClock {
    pub(crate) fn at(text: &str) -> Arc<Self> {
        let now = text.parse().expect("a timestamp");
        Arc::new(Self(std::sync::Mutex::new((now, Duration::from_secs(1000)))))
    }

    pub(crate) fn advance(&self, by: Duration) {
        let mut at = self.0.lock().unwrap();
        at.0 += jiff::SignedDuration::try_from(by).unwrap();
        at.1 += by;
    }

    pub(crate) fn jump_to(&self, text: &str) {
        self.0.lock().unwrap().0 = text.parse().unwrap();
    }
}

#[cfg(test)]
impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        self.0.lock().unwrap().0
    }

    fn uptime(&self) -> Duration {
        self.0.lock().unwrap().1
    }
}
