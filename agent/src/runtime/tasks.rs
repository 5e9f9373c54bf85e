//! The only place that spawns. Every task has a name and a class; none outlives the agent unseen.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// What the end of a task means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The agent cannot do without it: its end, by return or panic, stops the agent.
    Essential,
    /// It may end when its work is done.
    OneShot,
}

/// Spawns, names and joins.
#[derive(Debug, Clone)]
pub struct Tasks {
    shutdown: CancellationToken,
    set: Arc<Mutex<Names>>,
    ended: mpsc::Sender<&'static str>,
}

#[derive(Debug, Default)]
struct Names {
    set: JoinSet<&'static str>,
    running: Vec<&'static str>,
}

/// Tells which essential task ended.
#[derive(Debug)]
pub struct Essential(mpsc::Receiver<&'static str>);

impl Essential {
    /// The name of the first essential task to end while the agent was not shutting down.
    pub async fn ended(&mut self) -> &'static str {
        match self.0.recv().await {
            Some(name) => name,
            None => std::future::pending().await,
        }
    }
}

impl Tasks {
    /// A set of no tasks, and the news of essential ones.
    #[must_use]
    pub fn new() -> (Self, Essential) {
        let (ended, rx) = mpsc::channel(1);
        (Self { shutdown: CancellationToken::new(), set: Arc::default(), ended }, Essential(rx))
    }

    /// Cancelled when the agent shuts down; every task watches it.
    #[must_use]
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Runs `work` under `name`.
    pub fn spawn<F>(&self, name: &'static str, class: Class, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (shutdown, ended) = (self.shutdown.clone(), self.ended.clone());
        let watched = async move {
            let outcome = std::panic::AssertUnwindSafe(work).catch_unwind().await;
            if outcome.is_err() {
                tracing::error!(task = name, "task panicked");
            }
            let lost = class == Class::Essential && !shutdown.is_cancelled();
            if lost && ended.try_send(name).is_err() {
                tracing::error!(task = name, "a second essential task ended");
            }
            name
        };
        let mut names = self.lock();
        while let Some(done) = names.set.try_join_next() {
            names.forget(done.ok());
        }
        names.running.push(name);
        names.set.spawn(watched);
    }

    /// Asks every task to end and waits at most `bound`; returns the names of those that did not.
    pub async fn drain(&self, bound: Duration) -> Vec<&'static str> {
        self.shutdown.cancel();
        let mut names = std::mem::take(&mut *self.lock());
        let all = async {
            while let Some(done) = names.set.join_next().await {
                names.forget(done.ok());
            }
        };
        if timeout(bound, all).await.is_ok() {
            return Vec::new();
        }
        names.set.abort_all();
        names.running
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Names> {
        self.set.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Names {
    fn forget(&mut self, name: Option<&'static str>) {
        if let Some(at) = self.running.iter().position(|n| Some(*n) == name) {
            self.running.swap_remove(at);
        }
    }
}

/// Runs a blocking loop on a thread of its own, for what must fsync without holding up the rest.
///
/// The thread ends when its work does: give it a channel whose senders go away.
///
/// # Errors
/// When the system has no thread to give.
pub fn thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(512 * 1024).spawn(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_an_essential_task_is_told() {
        let (tasks, mut essential) = Tasks::new();
        tasks.spawn("heart", Class::Essential, async { panic!("stopped") });
        assert_eq!(essential.ended().await, "heart");
    }

    #[tokio::test(start_paused = true)]
    async fn drain_names_what_does_not_end() {
        let (tasks, _essential) = Tasks::new();
        let token = tasks.shutdown();
        tasks.spawn("polite", Class::Essential, async move { token.cancelled().await });
        tasks.spawn("deaf", Class::OneShot, std::future::pending());
        assert_eq!(tasks.drain(Duration::from_secs(5)).await, ["deaf"]);
    }

    #[tokio::test]
    async fn a_clean_drain_leaves_nobody() {
        let (tasks, _essential) = Tasks::new();
        tasks.spawn("short", Class::OneShot, async {});
        assert!(tasks.drain(Duration::from_secs(5)).await.is_empty());
    }
}
