//! How many connections a user may have, and how fast it may make them: counted before a byte is
//! read, so that nobody keeps the others out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Connections of all users together.
const MAX_OPEN: usize = 128;
/// Of these, what only root may take.
const RESERVED_FOR_ROOT: usize = 32;
/// Connections of one user.
const MAX_OPEN_EACH: usize = 32;
/// New connections of one user: so many at once, and so many a second after that.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 100.0;

#[derive(Debug, Default)]
pub(super) struct Slots {
    users: Arc<Mutex<BTreeMap<u32, User>>>,
}

#[derive(Debug)]
struct User {
    open: usize,
    tokens: f64,
    /// Since boot.
    filled: Duration,
}

/// A connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    uid: u32,
    users: Arc<Mutex<BTreeMap<u32, User>>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = users.get_mut(&self.uid) {
            user.open = user.open.saturating_sub(1);
        }
    }
}

impl Slots {
    /// A place for one more connection of `uid`, if there is one. `uptime` is since boot.
    pub(super) fn take(&self, uid: u32, uptime: Duration) -> Option<Slot> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        for user in users.values_mut() {
            let idle = uptime.saturating_sub(user.filled).as_secs_f64();
            user.tokens = idle.mul_add(PER_SECOND, user.tokens).min(BURST);
            user.filled = uptime;
        }
        users.retain(|own, user| *own == uid || user.open > 0 || user.tokens < BURST);
        let open: usize = users.values().map(|user| user.open).sum();
        let most = if uid == 0 { MAX_OPEN } else { MAX_OPEN - RESERVED_FOR_ROOT };
        let fresh = User { open: 0, tokens: BURST, filled: uptime };
        let user = users.entry(uid).or_insert(fresh);
        if open >= most || user.open >= MAX_OPEN_EACH || user.tokens < 1.0 {
            return None;
        }
        user.open += 1;
        user.tokens -= 1.0;
        Some(Slot { uid, users: Arc::clone(&self.users) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    #[test]
    fn one_user_has_so_many_and_gets_them_back() {
        let slots = Slots::default();
        let mut held: Vec<_> = (0..MAX_OPEN_EACH).map(|_| slots.take(7, START).unwrap()).collect();
        assert!(slots.take(7, START).is_none());
        assert!(slots.take(8, START).is_some(), "another user is not kept out");
        held.pop();
        assert!(slots.take(7, START).is_some());
    }

    #[test]
    fn all_users_together_leave_room_for_root() {
        let slots = Slots::default();
        let mut held = Vec::new();
        for uid in 1..=20 {
            held.extend(std::iter::from_fn(|| slots.take(uid, START)));
        }
        assert_eq!(held.len(), MAX_OPEN - RESERVED_FOR_ROOT);
        held.extend(std::iter::from_fn(|| slots.take(0, START)));
        assert_eq!(held.len(), MAX_OPEN);
    }

    #[test]
    fn who_knocks_too_fast_waits() {
        let slots = Slots::default();
        let knocks = (0..1000).filter(|_| slots.take(7, START).is_some()).count();
        assert_eq!(knocks, 200);
        let later = START + Duration::from_millis(100);
        assert_eq!((0..1000).filter(|_| slots.take(7, later).is_some()).count(), 10);
    }

    #[test]
    fn users_that_went_are_forgotten() {
        let slots = Slots::default();
        for uid in 0..5000 {
            drop(slots.take(uid, START + Duration::from_secs(u64::from(uid) * 10)));
        }
        assert!(slots.users.lock().unwrap().len() <= 2);
    }
}
