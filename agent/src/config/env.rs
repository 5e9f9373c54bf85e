//! The only reader of the environment. What is read here never changes while the agent runs.

use std::{path::PathBuf, time::Duration};

use super::DEFAULT_PATH;

/// What the environment says.
#[derive(Clone, Default)]
pub struct Environment {
    /// `JTNT_CONFIG`, or the default path.
    pub config: PathBuf,
    /// `NOTIFY_SOCKET`: where the service manager wants to hear of us.
    pub notify_socket: Option<String>,
    /// Half of `WATCHDOG_USEC`: how often it wants to hear.
    pub watchdog: Option<Duration>,
    /// `JTNT_ENROLL_TOKEN`.
    pub enroll_token: Option<String>,
}

// Written by hand: the token is a secret.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads it.
    #[must_use]
    pub fn read() -> Self {
        let own = std::process::id().to_string();
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == own);
        let watchdog = variable("WATCHDOG_USEC").filter(|_| ours).and_then(|t| t.parse().ok());
        Self {
            config: variable("JTNT_CONFIG").map_or_else(|| DEFAULT_PATH.into(), PathBuf::from),
            notify_socket: variable("NOTIFY_SOCKET"),
            watchdog: watchdog.map(|us: u64| Duration::from_micros(us / 2)),
            enroll_token: variable("JTNT_ENROLL_TOKEN"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}
