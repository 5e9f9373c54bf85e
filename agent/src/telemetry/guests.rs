//! Connections of an endpoint, at most so many: whoever was silent the longest makes room for
//! whoever comes, so that idle connections of one user keep nobody out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Who is there.
#[derive(Debug, Clone)]
pub(super) struct Guests {
    slots: Arc<Semaphore>,
    list: Arc<Mutex<List>>,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    /// By when they were last heard of, the longest silent first.
    open: BTreeMap<u64, CancellationToken>,
}

/// One connection, on the list until it is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Guests,
    turn: Mutex<u64>,
    leave: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl Guests {
    pub(super) fn new(most: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(most)), list: Arc::default() }
    }

    /// Lets one in, and has another leave first where all places are taken. `None` only if the
    /// places were closed, which nobody does.
    pub(super) async fn enter(&self) -> Option<Guest> {
        let slots = Arc::clone(&self.slots);
        let slot = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_full) => {
                self.with(|list| {
                    if let Some((_, longest_silent)) = list.open.pop_first() {
                        longest_silent.cancel();
                    }
                });
                slots.acquire_owned().await.ok()?
            }
        };
        let leave = CancellationToken::new();
        let turn = self.with(|list| list.add(leave.clone()));
        Some(Guest { guests: self.clone(), turn: Mutex::new(turn), leave, _slot: slot })
    }

    fn with<T>(&self, work: impl FnOnce(&mut List) -> T) -> T {
        work(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl List {
    fn add(&mut self, leave: CancellationToken) -> u64 {
        self.next += 1;
        self.open.insert(self.next, leave);
        self.next
    }
}

impl Guest {
    /// It was heard of, and now others have been silent for longer.
    pub(super) fn heard(&self) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.guests.with(|list| {
            // Whoever was told to leave stays off the list.
            if let Some(leave) = list.open.remove(&turn) {
                *turn = list.add(leave);
            }
        });
    }

    /// Returns when it is to leave.
    pub(super) async fn told_to_leave(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let turn = *self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.guests.with(|list| list.open.remove(&turn));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_silent_makes_room_and_nobody_else() {
        let guests = Guests::new(2);
        let first = guests.enter().await.unwrap();
        let second = guests.enter().await.unwrap();
        first.heard();
        let leaves = async {
            second.told_to_leave().await;
            assert!(!first.leave.is_cancelled());
            assert_eq!(guests.slots.available_permits(), 0, "who comes waits for the place");
            // What it still says does not bring it back.
            second.heard();
            drop(second);
        };
        let (third, ()) = tokio::join!(guests.enter(), leaves);
        let third = third.unwrap();
        assert_eq!(guests.with(|list| list.open.len()), 2);
        drop((first, third));
        assert_eq!(guests.with(|list| list.open.len()), 0);
        assert_eq!(guests.slots.available_permits(), 2);
    }
}
