//! Which jobs wait and which run: one lock, so that a job is never in between. Two lanes, bounded;
//! the high lane goes first, but not for ever.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jtnt_proto::{audit::Caller, job::Priority};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::domain::{ids::JobId, job::Entry};

/// After this many of the high lane in a row, one of the normal lane gets its turn.
const HIGH_IN_A_ROW: u32 = 16;

/// A job that waits.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) entry: Entry,
    pub(super) priority: Priority,
}

/// What others hold of a job that runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    /// Calls it off.
    pub(super) cancel: CancellationToken,
    /// Who did, and why.
    pub(super) by: std::sync::Arc<Mutex<CalledOff>>,
    /// Cancelled at the end.
    pub(super) end: CancellationToken,
}

/// Who called a job off, where it was somebody on this machine, and why, where that was said.
#[derive(Debug, Clone, Default)]
pub(super) struct CalledOff {
    pub(super) caller: Option<Caller>,
    pub(super) reason: Option<String>,
}

impl Live {
    pub(super) fn called_off(&self) -> CalledOff {
        self.by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The runner's side of a [`Live`].
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) item: Item,
    pub(super) live: Live,
}

/// What a call to cancel met.
#[derive(Debug)]
pub(super) enum Found {
    /// It waited, and does no more.
    Waiting(Box<Item>),
    /// It runs, and was told.
    Running,
    /// Neither.
    Nowhere,
}

#[derive(Debug)]
pub(super) struct Board {
    inner: Mutex<Inner>,
    capacity: usize,
    /// A job came, or one ended.
    pub(super) moved: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    high: VecDeque<Item>,
    normal: VecDeque<Item>,
    high_in_a_row: u32,
    running: BTreeMap<JobId, Live>,
    /// Those of `running` whose work is over and whose end is being recorded.
    over: BTreeSet<JobId>,
}

impl Board {
    pub(super) fn new(capacity: usize) -> Self {
        Self { inner: Mutex::default(), capacity, moved: Notify::new() }
    }

    /// How many more may wait.
    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.lock().waiting())
    }

    /// Takes a job that was accepted. Never refuses: who accepts asks for [`Self::room`] first, and
    /// a job that the journal holds must not be lost.
    pub(super) fn push(&self, item: Item) {
        let mut inner = self.lock();
        match item.priority {
            Priority::High => inner.high.push_back(item),
            Priority::Normal => inner.normal.push_back(item),
        }
        drop(inner);
        self.moved.notify_waiters();
    }

    /// Moves the next job from waiting to running.
    pub(super) fn take(&self) -> Option<Grant> {
        let mut inner = self.lock();
        let item = inner.next()?;
        Some(inner.grant(item))
    }

    /// Takes a job that runs already. It has its place, however many there are.
    pub(super) fn adopt(&self, item: Item) -> Grant {
        self.lock().grant(item)
    }

    /// Gives the place of a job whose work is over to the next one. What is left to do for it waits
    /// for the disk, as fast as the disk allows.
    pub(super) fn vacate(&self, id: &JobId) {
        let mut inner = self.lock();
        if inner.running.contains_key(id) {
            inner.over.insert(id.clone());
        }
        drop(inner);
        self.moved.notify_waiters();
    }

    /// Forgets a job that ran.
    pub(super) fn end(&self, id: &JobId) {
        let mut inner = self.lock();
        if let Some(live) = inner.running.remove(id) {
            live.end.cancel();
        }
        inner.over.remove(id);
        drop(inner);
        self.moved.notify_waiters();
    }

    /// Takes a job out of the queue, or tells its runner.
    pub(super) fn cancel(&self, id: &JobId, by: CalledOff) -> Found {
        let mut inner = self.lock();
        if let Some(item) = inner.remove(id) {
            return Found::Waiting(Box::new(item));
        }
        let Some(live) = inner.running.get(id) else { return Found::Nowhere };
        *live.by.lock().unwrap_or_else(PoisonError::into_inner) = by;
        live.cancel.cancel();
        Found::Running
    }

    /// Whether the job waits or runs here.
    pub(super) fn holds(&self, id: &JobId) -> bool {
        let inner = self.lock();
        let waits = |lane: &VecDeque<Item>| lane.iter().any(|item| item.entry.job_id == *id);
        inner.running.contains_key(id) || waits(&inner.high) || waits(&inner.normal)
    }

    /// Cancelled when a job that runs has ended.
    pub(super) fn end_of(&self, id: &JobId) -> Option<CancellationToken> {
        self.lock().running.get(id).map(|live| live.end.clone())
    }

    /// Jobs that wait, and jobs that run.
    pub(super) fn counts(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.waiting(), inner.running.len() - inner.over.len())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn waiting(&self) -> usize {
        self.high.len() + self.normal.len()
    }

    fn grant(&mut self, item: Item) -> Grant {
        let live = Live::default();
        self.running.insert(item.entry.job_id.clone(), live.clone());
        Grant { item, live }
    }

    fn next(&mut self) -> Option<Item> {
        let normal_first = self.high_in_a_row >= HIGH_IN_A_ROW && !self.normal.is_empty();
        if !normal_first && let Some(item) = self.high.pop_front() {
            self.high_in_a_row += 1;
            return Some(item);
        }
        self.high_in_a_row = 0;
        self.normal.pop_front()
    }

    fn remove(&mut self, id: &JobId) -> Option<Item> {
        [&mut self.high, &mut self.normal].into_iter().find_map(|lane| {
            let at = lane.iter().position(|item| item.entry.job_id == *id)?;
            lane.remove(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::fixture::entry;

    fn board(jobs: &[(&str, Priority)]) -> Board {
        let board = Board::new(8);
        for (id, priority) in jobs {
            board.push(Item { entry: entry(id), priority: *priority });
        }
        board
    }

    fn order(board: &Board) -> Vec<String> {
        std::iter::from_fn(|| board.take()).map(|g| g.item.entry.job_id.to_string()).collect()
    }

    #[test]
    fn the_high_lane_goes_first_and_each_lane_in_order() {
        let (high, normal) = (Priority::High, Priority::Normal);
        let board = board(&[("a", normal), ("b", high), ("c", normal), ("d", high)]);
        assert_eq!(order(&board), ["b", "d", "a", "c"]);
    }

    #[test]
    fn the_high_lane_does_not_starve_the_other() {
        let mut jobs = vec![("slow", Priority::Normal)];
        jobs.extend([("fast", Priority::High); 20]);
        let order = order(&board(&jobs));
        assert_eq!(order.iter().position(|id| id == "slow"), Some(16));
    }

    #[test]
    fn what_is_cancelled_is_found_where_it_is() {
        let board = board(&[("runs", Priority::Normal), ("waits", Priority::Normal)]);
        let grant = board.take().unwrap();
        let id = |text: &str| JobId::try_from(text).unwrap();
        assert!(matches!(board.cancel(&id("waits"), CalledOff::default()), Found::Waiting(_)));
        assert!(matches!(board.cancel(&id("runs"), CalledOff::default()), Found::Running));
        assert!(grant.live.cancel.is_cancelled());
        board.end(&id("runs"));
        assert!(matches!(board.cancel(&id("runs"), CalledOff::default()), Found::Nowhere));
        assert_eq!(board.counts(), (0, 0));
    }

    #[test]
    fn a_job_whose_work_is_over_takes_no_place_and_is_still_held() {
        let board = board(&[("a", Priority::Normal)]);
        let grant = board.take().unwrap();
        let id = grant.item.entry.job_id;
        assert_eq!(board.counts(), (0, 1));
        board.vacate(&id);
        assert_eq!((board.counts(), board.holds(&id)), ((0, 0), true));
        board.end(&id);
        assert!(!board.holds(&id));
        board.vacate(&id);
        assert_eq!(board.counts(), (0, 0), "nobody's place is given away twice");
    }

    #[test]
    fn room_shrinks_with_what_waits_and_not_with_what_runs() {
        let board = board(&[("a", Priority::Normal), ("b", Priority::High)]);
        assert_eq!(board.room(), 6);
        let _grant = board.take().unwrap();
        assert_eq!(board.room(), 7);
    }
}
