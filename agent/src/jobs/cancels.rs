//! Cancels that came before their job. The hub sends a cancel until its job has ended, so memory
//! is enough.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;

use crate::domain::ids::JobId;

/// More than these push out the one that ends first.
const MAX_REMEMBERED: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Cancels(Mutex<BTreeMap<JobId, Timestamp>>);

impl Cancels {
    pub(super) fn remember(&self, id: JobId, until: Timestamp, now: Timestamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, end| *end > now);
        known.insert(id, until);
        if known.len() > MAX_REMEMBERED {
            let first = known.iter().min_by_key(|(_, end)| **end).map(|(id, _)| id.clone());
            first.and_then(|id| known.remove(&id));
        }
    }

    pub(super) fn is_cancelled(&self, id: &JobId, now: Timestamp) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(id).is_some_and(|end| *end > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_cancel_is_remembered_until_it_ends() {
        let cancels = Cancels::default();
        let id = JobId::try_from("j").unwrap();
        cancels.remember(id.clone(), at(10), at(0));
        assert!(cancels.is_cancelled(&id, at(9)));
        assert!(!cancels.is_cancelled(&id, at(10)));
    }

    #[test]
    fn memory_is_bounded() {
        let cancels = Cancels::default();
        for n in 0..MAX_REMEMBERED + 5 {
            let id = JobId::try_from(format!("j{n}")).unwrap();
            cancels.remember(id, at(100 + i64::try_from(n).unwrap()), at(0));
        }
        assert_eq!(cancels.0.lock().unwrap().len(), MAX_REMEMBERED);
        assert!(!cancels.is_cancelled(&JobId::try_from("j0").unwrap(), at(0)));
    }
}
