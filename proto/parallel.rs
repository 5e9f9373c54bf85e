//! One piece of work for each of many things, by several threads, and the results in the order of
//! the things: checking signatures needs no order, but what follows from them does.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError, mpsc::sync_channel},
    thread::{self, Builder},
};

/// So many things a thread takes at once: few, so that none works on long after the others.
const AT_ONCE: usize = 16;

/// Does `work` on all `things` with so many threads, and gives each result to `take`, in order, while
/// the others are still at work. All threads are gone when it returns.
pub(crate) fn in_order<'a, T: Sync, R: Send>(
    threads: NonZeroUsize,
    things: &'a [T],
    work: impl Fn(&'a T) -> R + Sync,
    mut take: impl FnMut(R),
) {
    if threads.get() == 1 || things.len() <= AT_ONCE {
        return things.iter().map(work).for_each(take);
    }
    let (tasks, results): (Vec<_>, Vec<_>) = things
        .chunks(AT_ONCE)
        .map(|part| {
            let (done, result) = sync_channel(1);
            ((part, done), result)
        })
        .unzip();
    let tasks = Mutex::new(tasks.into_iter());
    let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let help = || {
        while let Some((part, done)) = next() {
            let results: Vec<R> = part.iter().map(&work).collect();
            if done.send(results).is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        let wanted = threads.get().min(results.len());
        let begin = |_: &usize| Builder::new().spawn_scoped(scope, help).is_ok();
        // A system that is short of threads makes it slower, and no more than that.
        if (0..wanted).take_while(begin).count() < wanted {
            help();
        }
        // One that is missing was lost to a panic, which goes on where the scope ends.
        results.iter().filter_map(|result| result.recv().ok()).flatten().for_each(&mut take);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_threads() {
        for (threads, things) in [(1, 100), (2, 0), (2, 16), (2, 17), (3, 1000), (64, 100)] {
            let all: Vec<u64> = (0..things).collect();
            let mut seen = Vec::new();
            in_order(threads.try_into().unwrap(), &all, |n| n * 2, |n| seen.push(n));
            assert_eq!(seen, (0..things).map(|n| n * 2).collect::<Vec<_>>(), "{threads} {things}");
        }
    }

    #[test]
    fn a_panic_is_not_lost() {
        let all: Vec<u64> = (0..100).collect();
        let ran = std::panic::catch_unwind(|| {
            in_order(2.try_into().unwrap(), &all, |n| assert_ne!(*n, 50), drop);
        });
        assert!(ran.is_err());
    }
}
