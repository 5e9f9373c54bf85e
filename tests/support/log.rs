//! What a process writes to standard error: the last lines of it, to wait for and to show.

use std::collections::VecDeque;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use super::{
    fault::{Fault, Res},
    wait::PATIENCE,
};

/// Lines that are kept.
const KEPT: usize = 4096;
/// Lines that are shown when a wait was in vain.
const SHOWN: usize = 40;

/// The lines of a process, as they come.
#[derive(Debug, Clone)]
pub(crate) struct Log(watch::Receiver<Lines>);

#[derive(Debug, Default)]
struct Lines {
    /// Lines that were dropped before the first that is kept.
    dropped: usize,
    kept: VecDeque<String>,
}

impl Lines {
    fn push(&mut self, line: String) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back(line);
    }

    fn since(&self, mark: usize) -> impl Iterator<Item = &str> {
        self.kept.iter().skip(mark.saturating_sub(self.dropped)).map(String::as_str)
    }
}

impl Log {
    /// Reads `stream` in a task of `tasks`, until it ends.
    pub(crate) fn of(
        stream: impl AsyncRead + Unpin + Send + 'static,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (lines, log) = watch::channel(Lines::default());
        tasks.spawn(async move {
            let mut reader = BufReader::new(stream).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                lines.send_modify(|lines| lines.push(line));
            }
        });
        Self(log)
    }

    /// Where the log stands, to look only at what comes after.
    pub(crate) fn mark(&self) -> usize {
        let lines = self.0.borrow();
        lines.dropped + lines.kept.len()
    }

    /// The first line after `mark` that `pick` takes something from, written or still to come.
    pub(crate) async fn find<T>(
        &self,
        what: &str,
        mark: usize,
        pick: impl Fn(&str) -> Option<T>,
    ) -> Res<T> {
        let mut log = self.0.clone();
        let mut found = None;
        let waited = log.wait_for(|lines| {
            found = lines.since(mark).find_map(&pick);
            found.is_some()
        });
        let why = match timeout(PATIENCE, waited).await {
            Ok(Ok(_)) => "",
            Ok(Err(_)) => "the process closed its log",
            Err(_) => "nobody wrote it in time",
        };
        found.ok_or_else(|| Fault::new(format!("{what}: {why}; last lines:\n{}", self.tail())))
    }

    /// The last lines, for messages.
    pub(crate) fn tail(&self) -> String {
        let lines = self.0.borrow();
        let skip = lines.kept.len().saturating_sub(SHOWN);
        lines.kept.iter().skip(skip).map(|line| format!("  | {line}\n")).collect()
    }
}
