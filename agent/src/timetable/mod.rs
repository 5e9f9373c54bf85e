//! What is done once a day at a local time: the first instant at or after it, on days of 23 and 25
//! hours too, and as soon as the machine is back when it slept or was off.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use jiff::{
    Timestamp,
    civil::{Date, Time},
    tz::TimeZone,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::schedule::{next, splay},
    runtime::clock::SharedClock,
    store::Journal,
};

/// The wall clock may jump, and timers stand still while the machine sleeps.
const LOOK: Duration = Duration::from_mins(5);

/// One daily task.
pub struct Daily {
    /// Names it in the log and in the journal.
    pub name: &'static str,
    /// Local time.
    pub at: Time,
    /// It is put off by less than this, always the same for an agent.
    pub splay: Duration,
    /// The task itself. What goes wrong it says itself.
    pub work: Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>,
}

impl fmt::Debug for Daily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daily").field("name", &self.name).field("at", &self.at).finish()
    }
}

/// What the timetable works with.
#[derive(Debug)]
pub struct Deps {
    /// Spreads a fleet.
    pub agent_id: String,
    /// Remembers the last date of each task.
    pub journal: Journal,
    /// Time.
    pub clock: SharedClock,
    /// Whose days and hours.
    pub zone: TimeZone,
}

/// Does each task once a local date, until `stop`.
pub async fn run(deps: Deps, tasks: Vec<Daily>, stop: CancellationToken) {
    loop {
        let wait = tokio::select! {
            wait = deps.round(&tasks) => wait,
            () = stop.cancelled() => return,
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Deps {
    /// Does what is due; returns when to look again.
    async fn round(&self, tasks: &[Daily]) -> Duration {
        let mut soonest = LOOK;
        for task in tasks {
            let now = self.clock.now();
            self.forget_the_future(task, now).await;
            let (date, due) = self.due(task, now);
            if due > now {
                let left = Duration::try_from(now.duration_until(due)).unwrap_or(LOOK);
                soonest = soonest.min(left);
                continue;
            }
            tracing::info!(task = task.name, "daily task");
            (task.work)().await;
            self.remember(task, date).await;
        }
        soonest
    }

    fn due(&self, task: &Daily, now: Timestamp) -> (Date, Timestamp) {
        let (date, at) = next(now, self.last(task), task.at, &self.zone);
        (date, at.saturating_add(splay(&self.agent_id, task.splay)).unwrap_or(at))
    }

    fn last(&self, task: &Daily) -> Option<Date> {
        let stored = self.journal.cursor(&cursor(task)).ok().flatten()?;
        std::str::from_utf8(&stored).ok()?.parse().ok()
    }

    /// A clock that was far ahead has left a date that would put the task off until then.
    async fn forget_the_future(&self, task: &Daily, now: Timestamp) {
        let today = now.to_zoned_datetime(self.zone.clone()).date();
        if self.last(task).is_some_and(|last| last > today) {
            self.remember(task, today).await;
        }
    }

    async fn remember(&self, task: &Daily, date: Date) {
        if let Err(error) =
            self.journal.set_cursor(&cursor(task), date.to_string().into_bytes()).await
        {
            tracing::warn!(%error, task = task.name, "it may be done a second time today");
        }
    }
}

fn cursor(task: &Daily) -> String {
    format!("daily-{}", task.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock::FixedClock;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    fn counting(name: &'static str) -> (Daily, Arc<AtomicU32>) {
        let count = Arc::new(AtomicU32::new(0));
        let own = Arc::clone(&count);
        let work = Box::new(move || -> Pin<Box<dyn Future<Output = ()> + Send>> {
            own.fetch_add(1, Ordering::SeqCst);
            Box::pin(std::future::ready(()))
        });
        let at = Time::constant(3, 0, 0, 0);
        (Daily { name, at, splay: Duration::from_secs(1), work }, count)
    }

    /// How often the task was done after a look at each of the times.
    async fn through(dir: &std::path::Path, times: &[&str]) -> Vec<u32> {
        let clock = FixedClock::at(times[0]);
        let shared: SharedClock = Arc::<FixedClock>::clone(&clock);
        let journal = Journal::open(&dir.join("j.redb"), Arc::clone(&shared)).unwrap();
        let (task, count) = counting("test");
        let (tasks, agent_id) = ([task], "a".to_owned());
        let deps = Deps { agent_id, journal, clock: shared, zone: TimeZone::UTC };
        let mut seen = Vec::new();
        for time in times {
            clock.jump_to(time);
            let wait = deps.round(&tasks).await;
            assert!(wait <= LOOK);
            seen.push(count.load(Ordering::SeqCst));
        }
        seen
    }

    #[tokio::test]
    async fn a_task_is_done_once_a_date_and_after_a_sleep() {
        let dir = tempfile::tempdir().unwrap();
        let times = [
            "2026-01-02T02:59:00Z", // the first start: what was missed yesterday is not made up
            "2026-01-02T03:00:01Z",
            "2026-01-02T12:00:00Z",
            "2026-01-03T09:00:00Z", // it slept through 03:00
            "2026-01-03T02:00:00Z", // the clock was set back
            "2026-01-04T03:00:01Z",
        ];
        assert_eq!(through(dir.path(), &times).await, [0, 1, 1, 2, 2, 3]);
        // Another process remembers; and a clock that was years ahead costs a day.
        assert_eq!(through(dir.path(), &["2026-01-04T23:00:00Z"]).await, [0]);
        let wild = ["2031-01-01T04:00:00Z", "2026-01-05T04:00:00Z", "2026-01-06T04:00:00Z"];
        assert_eq!(through(dir.path(), &wild).await, [1, 1, 2]);
    }
}
