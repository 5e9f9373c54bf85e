//! The policy: fetched, verified, never older than before, kept for the next start.
//!
//! A document takes effect in a fixed order: it is judged and compiled, the change is in the audit
//! log, the file is durable, and only then is it published to those who ask it. An expired policy
//! stays in force, since it is the one that denies. A newer root of roles is followed here too, as
//! it decides which policies count.

mod candidate;
mod judge;
mod keeper;
mod roots;
mod stored;

use std::{collections::BTreeMap, fmt, future::Future, path::PathBuf, pin::Pin, sync::Arc};

use jiff::Timestamp;
use jtnt_proto::envelope::Envelope;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use candidate::{NoCandidate, candidate};
pub use keeper::Keeper;
pub use stored::document;

use crate::{
    audit::Audit,
    gate::{InForce, PolicyWatch},
    runtime::entropy::SharedEntropy,
    store::time::TrustedTime,
    telemetry::metrics::Metrics,
    trust::Keyring,
};

/// How many may wait for an answer to [`PolicyKeeper::refresh`].
const ASKERS: usize = 8;

/// Labels of the agent's local configuration.
pub type Labels = BTreeMap<String, String>;

/// What the keeper works with; all of it is handed in.
#[derive(Debug)]
pub struct Config {
    /// Where `policy/` and `trust/` are.
    pub data_dir: PathBuf,
    /// Whom a policy must be for.
    pub agent_id: String,
    /// What else it may ask for; changes when the configuration is read again.
    pub labels: watch::Receiver<Labels>,
    /// The root in force; `None` while the agent is not enrolled.
    pub keyring: watch::Receiver<Option<Keyring>>,
    /// Where documents come from.
    pub source: Source,
    /// By which expiry is judged.
    pub time: TrustedTime,
    /// Where every change is recorded first.
    pub audit: Audit,
    /// For jitter.
    pub entropy: SharedEntropy,
    /// Shows version and expiry.
    pub metrics: Metrics,
}

/// The hub, as far as the keeper needs it.
pub struct Source {
    /// The newest policy, unless it is the one of this ETag.
    pub policy: Box<dyn Fn(Option<String>) -> Answer<Offer, NoNewer> + Send + Sync>,
    /// This version of the root, if there is one yet.
    pub root: Box<dyn Fn(u64) -> Answer<Option<Vec<u8>>> + Send + Sync>,
    /// Takes a root that was verified and is on disk already.
    pub adopt_root: Box<dyn Fn(Keyring) + Send + Sync>,
}

/// An answer, or why there is none, for people.
pub type Answer<T, E = String> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// Why there is no newer policy to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoNewer {
    /// Stable, `UPPER_SNAKE`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl NoNewer {
    /// The hub gave no answer, or was not asked.
    #[must_use]
    pub const fn hub(message: String) -> Self {
        Self { reason: "HUB_UNAVAILABLE", message }
    }
}

impl From<String> for NoNewer {
    fn from(message: String) -> Self {
        Self { reason: "NO_NEWER_POLICY", message }
    }
}

/// What the hub has.
#[derive(Debug, Clone)]
pub enum Offer {
    /// No policy at all.
    Nothing,
    /// The one of the ETag.
    Same,
    /// Another one, and its ETag.
    Policy(Box<Envelope>, String),
}

/// What others may ask of the policy's keeper.
#[derive(Debug, Clone)]
pub struct PolicyKeeper {
    asks: mpsc::Sender<oneshot::Sender<Outcome>>,
    hints: Arc<Notify>,
    newest_root: Arc<watch::Sender<u64>>,
    standing: watch::Receiver<Standing>,
}

/// Version in force, and whether it changed; or why not.
type Outcome = Result<(u64, bool), NoNewer>;

/// How the last attempts went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// When the hub last told what it has.
    pub checked_at: Option<Timestamp>,
    /// What is wrong now, if anything: no answer, or a policy that was refused.
    pub last_error: Option<String>,
}

/// The keeper, its handle, and the policy to watch. [`Keeper::begin`] comes before anything that
/// asks the policy, [`Keeper::run`] is the task.
#[must_use]
pub fn keeper(config: Config) -> (Keeper, PolicyKeeper, PolicyWatch) {
    let (asks, asked) = mpsc::channel(ASKERS);
    let (publish, policy) = watch::channel(None::<Arc<InForce>>);
    let (tell, standing) = watch::channel(Standing::default());
    let (hints, newest_root) = (Arc::new(Notify::new()), Arc::new(watch::channel(0).0));
    let inbox =
        keeper::Inbox { asked, hints: Arc::clone(&hints), newest_root: newest_root.subscribe() };
    let handle = PolicyKeeper { asks, hints, newest_root, standing };
    (Keeper::new(config, inbox, publish, tell), handle, policy)
}

impl PolicyKeeper {
    /// Asks the hub for a newer policy now; returns the version in force and whether it changed.
    ///
    /// # Errors
    /// Why there is no newer one to be had.
    pub async fn refresh(&self) -> Result<(u64, bool), NoNewer> {
        let (reply, answer) = oneshot::channel();
        self.asks.try_send(reply).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => "others wait for the same; try again".to_owned(),
            mpsc::error::TrySendError::Closed(_) => ended(),
        })?;
        answer.await.map_err(|_closed| ended())?
    }

    /// Asks for it soon, without waiting: what hints of the hub lead to. Hints in a row count as
    /// one, and there is at most one try in 5 seconds.
    pub fn poke(&self) {
        self.hints.notify_one();
    }

    /// The hub hints at a root of roles; one that is newer is fetched, with the policy after it.
    pub fn poke_root(&self, version: u64) {
        let newer = self.newest_root.send_if_modified(|newest| {
            let newer = version > *newest;
            *newest = version.max(*newest);
            newer
        });
        if newer {
            self.hints.notify_one();
        }
    }

    /// How the last attempts went.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }
}

fn ended() -> String {
    "the agent is stopping".to_owned()
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
