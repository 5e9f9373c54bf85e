//! The log: JSON or text to standard error, with a level that can be changed while it runs.
//!
//! Secrets never get here: types that hold one have no `Debug` that shows it, and libraries that
//! would print headers at `debug` are only heard from `warn` on, those that warn about peers from
//! `error` on.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};
use serde::Serialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, Registry, filter::Targets, fmt, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

/// Whose lines follow the level; everybody else is heard from [`OTHERS`] on.
const OWN: &str = "jtnt";
const OTHERS: LevelFilter = LevelFilter::WARN;
/// What warns of each thing a peer does wrong, which any local user can make it do without end.
/// What matters of it the agent says itself. Each stands for all names that begin like it.
const PEERS: [&str; 6] = ["h2", "hyper", "tonic", "tower", "rustls", "tokio_rustls"];

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Its name in the configuration and in the admin API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The level of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    const fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }

    fn targets(self) -> Targets {
        let own = self.filter();
        // Whoever looks for a fault wants to hear them, and does not do so for long.
        let peers = if self >= Self::Debug { OTHERS } else { LevelFilter::ERROR };
        Targets::new()
            .with_target(OWN, own)
            .with_targets(PEERS.map(|name| (name, peers)))
            .with_default(own.min(OTHERS))
    }
}

/// For whom the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Steers the log.
#[derive(Debug, Clone)]
pub struct LogLevel {
    current: tokio::sync::watch::Sender<Level>,
    filter: reload::Handle<Targets, Registry>,
}

impl LogLevel {
    /// The level now.
    #[must_use]
    pub fn get(&self) -> Level {
        *self.current.borrow()
    }

    /// Changes it; returns the one before.
    #[expect(clippy::must_use_candidate, reason = "most callers only want the change")]
    pub fn set(&self, level: Level) -> Level {
        // It fails only when the log is gone, and then nobody could be told.
        let _heard = self.filter.reload(level.targets());
        self.current.send_replace(level)
    }

    /// A level that steers no log, for commands that work without a daemon.
    #[must_use]
    pub fn detached(level: Level) -> Self {
        Self::with_layer(level).0
    }

    fn with_layer(level: Level) -> (Self, reload::Layer<Targets, Registry>) {
        let (layer, filter) = reload::Layer::new(level.targets());
        (Self { current: tokio::sync::watch::Sender::new(level), filter }, layer)
    }
}

/// Starts the process's log. Only the first call in a process has an effect.
#[must_use]
pub fn init(level: Level, format: Format) -> LogLevel {
    let (handle, filter) = LogLevel::with_layer(level);
    // What cannot be written cannot be told either.
    let out = fmt::layer().with_writer(|| Patient(io::stderr())).log_internal_errors(false);
    let out = match format {
        Format::Human => out.with_target(false).with_ansi(false).boxed(),
        Format::Json => out.json().flatten_event(true).boxed(),
    };
    if Registry::default().with(filter).with(out).try_init().is_err() {
        tracing::debug!("the log was started before");
    }
    handle
}

/// Writes to standard error, but does not wait for whoever reads there: a line that would have to
/// wait is lost. An agent goes on without its log.
struct Patient<W>(W);

/// What a pipe that can be written to takes without waiting: POSIX, `PIPE_BUF`.
const AT_ONCE: usize = 4096;

static LOST: AtomicU64 = AtomicU64::new(0);

impl<W: Write + AsFd> Patient<W> {
    fn whole(&mut self, line: &[u8]) -> bool {
        line.chunks(AT_ONCE).all(|part| takes(&self.0) && self.0.write_all(part).is_ok())
    }
}

impl<W: Write + AsFd> Write for Patient<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let lost = LOST.swap(0, Ordering::Relaxed);
        let told =
            lost == 0 || self.whole(format!("{lost} lines of this log were lost\n").as_bytes());
        let lost = if told { 0 } else { lost };
        let whole = told && self.whole(line);
        LOST.fetch_add(lost + u64::from(!whole), Ordering::Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether something can be written there at once.
fn takes(to: &impl AsFd) -> bool {
    let mut asked = [PollFd::new(to, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut asked, Some(&now)).is_ok_and(|_| asked[0].revents().contains(PollFlags::OUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        use std::io::Read as _;
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = Patient(writer);
        let line = [b'x'; 1000];
        for _ in 0..200 {
            assert_eq!(log.write(&line).unwrap(), line.len());
        }
        let mut some = vec![0; 60_000];
        reader.read_exact(&mut some).unwrap();
        log.write_all(b"again\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with(" lines of this log were lost\nagain\n"), "{rest}");
    }

    #[test]
    fn levels_have_names() {
        for level in Level::ALL {
            assert_eq!(Level::parse(level.name()), Some(level));
        }
        assert_eq!(Level::parse("loud"), None);
    }

    #[test]
    fn a_change_tells_the_level_before() {
        let log = LogLevel::detached(Level::Info);
        assert_eq!(log.set(Level::Debug), Level::Info);
        assert_eq!(log.get(), Level::Debug);
    }

    #[test]
    fn libraries_are_not_heard_below_warn() {
        let targets = Level::Trace.targets();
        assert!(targets.would_enable("jtnt_agent::jobs", &tracing::Level::TRACE));
        assert!(!targets.would_enable("h2::proto", &tracing::Level::INFO));
        assert!(targets.would_enable("h2::proto", &tracing::Level::WARN));
    }

    #[test]
    fn peers_cannot_fill_the_log_by_what_libraries_say_of_them() {
        use tracing::Level as At;
        for target in ["h2::proto::streams", "hyper::proto", "hyper_util", "tonic", "rustls::conn"]
        {
            for level in [Level::Error, Level::Warn, Level::Info] {
                assert!(!level.targets().would_enable(target, &At::WARN), "{target}");
                assert!(level.targets().would_enable(target, &At::ERROR), "{target}");
            }
            assert!(Level::Debug.targets().would_enable(target, &At::WARN), "{target}");
        }
        assert!(Level::Info.targets().would_enable("redb", &At::WARN), "no peer has a say there");
    }
}
