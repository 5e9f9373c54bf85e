//! Whom a job runs as. A job that names nobody gets a user of its own, which no other job has while
//! it runs; whoever cannot be had is an error, never somebody else.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::platform::{
    account::Account,
    sweep::{Swept, end_all_of, runs_anything},
};

/// Numbers for users of a job's own.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    range: RangeInclusive<u32>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    used: BTreeSet<u32>,
    last: Option<u32>,
}

/// A number that nobody else has until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) uid: u32,
    /// Of the same pool.
    nobody: u32,
    inner: Arc<Mutex<Inner>>,
    /// Something that does not end runs as it.
    lost: AtomicBool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.lost.load(Ordering::Relaxed) {
            return;
        }
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).used.remove(&self.uid);
    }
}

impl Pool {
    pub(super) fn new(range: RangeInclusive<u32>) -> Self {
        Self { range, inner: Arc::default() }
    }

    /// The last number of the range is no job's: see [`end_all_of`].
    const fn nobody(&self) -> u32 {
        *self.range.end()
    }

    /// Ends everything that runs as a user of this pool. Blocks.
    pub(super) fn end(&self, uid: u32) -> Swept {
        end_all_of(uid, self.nobody())
    }

    /// Whether a name that the journal has is a number of this pool.
    pub(super) fn number(&self, user: &str) -> Option<u32> {
        user.parse().ok().filter(|uid| self.range.contains(uid))
    }

    /// The number of a job that runs already.
    fn adopt(&self, uid: u32) -> Lease {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).used.insert(uid);
        let (nobody, inner) = (self.nobody(), Arc::clone(&self.inner));
        Lease { uid, nobody, inner, lost: AtomicBool::new(false) }
    }

    /// Goes on after this number, which an earlier run of the agent gave last.
    pub(super) fn go_on_after(&self, uid: u32) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).last = Some(uid);
    }

    /// The next free number after the last that was given, so that one rests before it comes back.
    fn lease(&self) -> Option<Lease> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let after = inner.last.map_or(*self.range.start(), |last| last.saturating_add(1));
        let jobs = *self.range.start()..self.nobody();
        let round = jobs.clone().skip_while(|uid| *uid < after).chain(jobs);
        // After a crash of the agent something may still run as a number that this process never
        // gave.
        let free = |uid: &u32| !inner.used.contains(uid) && !runs_anything(*uid);
        let uid = round.into_iter().find(free)?;
        inner.used.insert(uid);
        inner.last = Some(uid);
        let (nobody, inner) = (self.nobody(), Arc::clone(&self.inner));
        Some(Lease { uid, nobody, inner, lost: AtomicBool::new(false) })
    }
}

/// A user, and what keeps it the job's own.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) account: Account,
    pub(super) lease: Option<Lease>,
}

impl Identity {
    /// Ends what still runs as a user of the job's own. Blocks. What does not end keeps its number:
    /// no other job may meet it.
    pub(super) fn sweep(&self) -> Swept {
        let Some(lease) = &self.lease else { return Swept { ended: 0, clean: true } };
        let swept = end_all_of(lease.uid, lease.nobody);
        lease.lost.store(!swept.clean, Ordering::Relaxed);
        swept
    }
}

/// Why a job has no user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoUser {
    #[error("this machine has no user {0}; create it, or name another in run_as")]
    Unknown(String),
    #[error("the user database does not answer for {0}: {1}")]
    Database(String, String),
    #[error("user {0} has root's id; a rule must say \"run_as\": \"root\" by that name")]
    Root(String),
    #[error("the agent runs as {own} and cannot run jobs as {wanted}; run the agent as root")]
    NotRoot { own: String, wanted: String },
    #[error("every user id of job_uid_range is in use; widen it in the config")]
    Exhausted,
}

impl NoUser {
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "USER_UNKNOWN",
            Self::Database(..) => "USER_DATABASE",
            Self::Root(_) => "USER_IS_ROOT",
            Self::NotRoot { .. } => "USER_UNAVAILABLE",
            Self::Exhausted => "NO_FREE_USER",
        }
    }
}

/// The user of a job that runs already, as the journal has it.
pub(super) fn of_running(user: &str, pool: &Pool) -> Identity {
    let Some(uid) = pool.number(user) else {
        return Identity { account: Account::own(), lease: None };
    };
    Identity { account: Account::numbered(uid), lease: Some(pool.adopt(uid)) }
}

/// Finds the user that the policy decided on. Asks the user database, so it blocks.
pub(super) fn identify(run_as: Option<&str>, pool: &Pool) -> Result<Identity, NoUser> {
    let own = Account::own();
    let Some(name) = run_as else {
        if own.uid != 0 {
            return Ok(Identity { account: own, lease: None });
        }
        let lease = pool.lease().ok_or(NoUser::Exhausted)?;
        return Ok(Identity { account: Account::numbered(lease.uid), lease: Some(lease) });
    };
    Ok(Identity { account: named(name, own)?, lease: None })
}

/// Why a job of this user would fail, if it would. Asks the user database, so it blocks.
#[must_use]
pub fn fault_of_user(name: &str) -> Option<String> {
    let none = named(name, Account::own()).err()?;
    Some(format!("{none} ({})", none.reason()))
}

fn named(name: &str, own: Account) -> Result<Account, NoUser> {
    let found = Account::named(name)
        .map_err(|e| NoUser::Database(name.to_owned(), e.to_string()))?
        .ok_or_else(|| NoUser::Unknown(name.to_owned()))?;
    if own.uid != 0 && found.uid != own.uid {
        return Err(NoUser::NotRoot { own: own.name, wanted: name.to_owned() });
    }
    // An agent that is root would otherwise run it with its own rights under another name.
    if found.uid == 0 && name != "root" {
        return Err(NoUser::Root(name.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_cannot_be_had_is_told_beforehand() {
        let fault = fault_of_user("no-such-user-here").unwrap();
        assert!(fault.ends_with("(USER_UNKNOWN)"), "{fault}");
        assert_eq!(fault_of_user(&Account::own().name), None);
    }

    #[test]
    fn no_two_jobs_share_a_user_and_a_number_rests() {
        let pool = Pool::new(10..=13);
        let first = pool.lease().unwrap();
        let second = pool.lease().unwrap();
        assert_eq!((first.uid, second.uid), (10, 11));
        drop(first);
        let third = pool.lease().unwrap();
        assert_eq!(third.uid, 12, "10 rests first");
        let fourth = pool.lease().unwrap();
        assert_eq!(fourth.uid, 10);
        assert!(pool.lease().is_none(), "none is shared");
    }

    #[test]
    fn after_a_restart_numbers_go_on() {
        let pool = Pool::new(10..=13);
        pool.go_on_after(11);
        let running = pool.adopt(10);
        assert_eq!(pool.lease().unwrap().uid, 12);
        assert_eq!(pool.lease().unwrap().uid, 11, "10 runs");
        drop(running);
        assert_eq!(pool.lease().unwrap().uid, 12);
    }

    #[test]
    fn an_unknown_user_is_nobody_else() {
        let pool = Pool::new(61184..=61190);
        let refused = identify(Some("no-such-user-here"), &pool).unwrap_err();
        assert_eq!(refused.reason(), "USER_UNKNOWN");
    }

    #[test]
    fn a_job_that_names_nobody_never_gets_roots_rights() {
        let pool = Pool::new(61184..=61190);
        let identity = identify(None, &pool).unwrap();
        let account = identity.account;
        if Account::own().uid == 0 {
            assert_eq!((account.uid, account.gid, account.groups.len()), (61184, 61184, 0));
        } else {
            assert_eq!(account, Account::own());
        }
    }
}
