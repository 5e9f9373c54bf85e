//! The log: JSON or text to standard error, with a level that can be changed while it runs.
//!
//! Secrets never get here: types that hold one have no `Debug` that shows it, and libraries that
//! would print headers at `debug` are only heard from `warn` on, those that warn about peers from
//! `error` on.

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
    let out = fmt::layer().with_writer(std::io::stderr);
    let out = match format {
        Format::Human => out.with_target(false).with_ansi(false).boxed(),
        Format::Json => out.json().flatten_event(true).boxed(),
    };
    if Registry::default().with(filter).with(out).try_init().is_err() {
        tracing::debug!("the log was started before");
    }
    handle
}

#[cfg(test)]
mod tests {
    use super::*;

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
