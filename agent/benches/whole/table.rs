//! The table, printed row by row as it comes.

use std::time::Duration;

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    seen: String,
    goal: Option<(String, bool)>,
    limit: String,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, seen: String) -> Self {
        Self { what: what.into(), seen, goal: None, limit: String::new() }
    }

    /// What was to be reached, and whether it was.
    pub(crate) fn goal(mut self, goal: &str, reached: bool) -> Self {
        self.goal = Some((goal.to_owned(), reached));
        self
    }

    /// What this machine can do at best, measured now.
    pub(crate) fn limit(mut self, limit: impl Into<String>) -> Self {
        self.limit = limit.into();
        self
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    begun: bool,
}

impl Table {
    #[expect(clippy::print_stdout, reason = "the table is what the benchmark is for")]
    pub(crate) fn show(&mut self, row: &Row) {
        let line = |what: &str, seen: &str, goal: &str, word: &str, limit: &str| {
            println!("{what:<38} {seen:>14}  {goal:>10}  {word:<4}  {limit}");
        };
        if !self.begun {
            self.begun = true;
            line("what", "measured", "goal", "", "this machine's limit");
        }
        let (goal, word) = match &row.goal {
            Some((goal, true)) => (goal.as_str(), "ok"),
            Some((goal, false)) => (goal.as_str(), "OVER"),
            None => ("", ""),
        };
        line(&row.what, &row.seen, goal, word, &row.limit);
    }
}

pub(crate) fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

pub(crate) fn mb(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

pub(crate) fn mib(kib: u64) -> String {
    format!("{:.2} MiB", kib as f64 / 1024.0)
}

/// The value that `percent` of all do not exceed.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(at).copied().unwrap_or_default()
}
