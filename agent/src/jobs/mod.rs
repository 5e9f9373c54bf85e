//! A job, from the hub to its result: intake, queue, runner, results. One way; each step is
//! durable before its effect, so a crash at any point neither runs a job twice nor loses one.

mod board;
mod cache;
mod cancels;
mod core;
mod download;
mod follow;
mod intake;
mod keep;
mod permit;
mod recovery;
mod refuse;
mod rehearse;
mod report;
mod results;
mod runner;
mod stream;
mod transfer;
mod upload;
mod users;
mod work;

use std::sync::{Arc, atomic::AtomicU64};

use jtnt_proto::audit::Caller;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use self::{
    board::{CalledOff, Found},
    core::Core,
    runner::Ended,
};
pub use self::{
    cache::{CacheStatus, Cleaned},
    core::{Config, Deps, Refresh},
    rehearse::{Change, Comparison, Tally},
    users::fault_of_user,
};
pub use crate::shim::{Part, Stream};
use crate::{
    domain::{
        ids::JobId,
        job::{Entry, State},
        seen::Seen,
    },
    shim,
    store::StoreError,
};

/// What others may ask of the jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs {
    core: Arc<Core>,
}

/// The work itself, to be run by one task of the agent.
#[derive(Debug)]
pub struct Work {
    core: Arc<Core>,
    reports: mpsc::Receiver<report::Report>,
}

/// Why a job was not called off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CancelError {
    /// No such job.
    #[error("no job {0} in the journal")]
    Unknown(JobId),
    /// It has ended.
    #[error("job {0} has ended already ({1})")]
    Ended(JobId, &'static str),
    /// The journal or the audit log does not answer.
    #[error("{0}")]
    Store(String),
}

impl From<StoreError> for CancelError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// Why nothing can be learned from a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeenError {
    /// It has not ended.
    #[error("job {0} has not ended; wait for its end, see `jtntctl jobs show {0}`")]
    NotEnded(JobId),
    /// Nobody watched it.
    #[error(
        "job {0} was not monitored, so nobody watched what it opened; publish a policy with \
         \"mode\": \"monitor\" and \"require_enforcement\": \"partial\", run it again, and learn \
         from that run"
    )]
    NotMonitored(JobId),
    /// Its files are gone.
    #[error(
        "what was seen of job {0} is not here any more, or it never began; run it again under a \
         policy with \"mode\": \"monitor\""
    )]
    NotKept(JobId),
    /// They cannot be read.
    #[error("{0}")]
    Store(String),
}

impl Jobs {
    /// A handle, and the work that somebody must run.
    #[must_use]
    pub fn build(deps: Deps, config: Config) -> (Self, Work) {
        let (sender, reports) = mpsc::channel(report::QUEUE);
        let core = Arc::new(Core {
            board: board::Board::new(config.queue),
            pool: users::Pool::new(config.uid_range.clone()),
            deps,
            config,
            cancels: cancels::Cancels::default(),
            throttle: refuse::Throttle::default(),
            window: results::Window::default(),
            reports: sender,
            pending_bytes: AtomicU64::new(0),
            crowded: Notify::new(),
            follow_up: Notify::new(),
            poke: Notify::new(),
            caught_up: tokio::sync::Mutex::default(),
        });
        (Self { core: Arc::clone(&core) }, Work { core, reports })
    }

    /// Calls a job off; returns its state after the request was taken. The call is audited by
    /// whoever takes it, the end of the job here.
    ///
    /// # Errors
    /// As [`CancelError`].
    pub async fn cancel(&self, id: &JobId, caller: Option<Caller>) -> Result<State, CancelError> {
        let by = CalledOff { caller: caller.clone(), reason: None };
        match self.core.board.cancel(id, by) {
            Found::Waiting(item) => {
                self.core.conclude(item.entry, Ended::cancelled(), caller).await?;
            }
            Found::Running => return Ok(State::Running),
            Found::Nowhere => {}
        }
        match self.core.deps.journal.get(id)? {
            None => Err(CancelError::Unknown(id.clone())),
            Some(Entry { state: State::Finished(jtnt_proto::hub::Outcome::Cancelled), .. }) => {
                Ok(State::Finished(jtnt_proto::hub::Outcome::Cancelled))
            }
            Some(entry) if entry.state.is_terminal() => {
                Err(CancelError::Ended(id.clone(), entry.state.word()))
            }
            Some(entry) => Ok(entry.state),
        }
    }

    /// Asks the hub for jobs at once.
    pub fn poke(&self) {
        self.core.poke.notify_one();
    }

    /// How many bytes of standard output and standard error of a job are here.
    ///
    /// # Errors
    /// When nobody can look.
    pub async fn kept_output(&self, id: &JobId) -> Result<[u64; 2], StoreError> {
        let dir = self.core.job_dir(id);
        let look = move || [Stream::Stdout, Stream::Stderr].map(|stream| shim::kept(&dir, stream));
        tokio::task::spawn_blocking(look).await.map_err(|e| StoreError(e.to_string()))
    }

    /// Reads at most `max` bytes of a job's output from `offset` on. Where bytes were dropped,
    /// [`Part::offset`] is where it goes on; an empty part is the end of what there is.
    ///
    /// # Errors
    /// When journal or files cannot be read.
    pub async fn read_output(
        &self,
        id: &JobId,
        stream: Stream,
        offset: u64,
        max: usize,
    ) -> Result<Part, StoreError> {
        self.core.read_output(id, stream, offset, max).await
    }

    /// What was seen of a monitored job, by its record.
    ///
    /// # Errors
    /// As [`SeenError`].
    pub async fn seen(&self, entry: &Entry) -> Result<Seen, SeenError> {
        let id = || entry.job_id.clone();
        if !entry.state.is_terminal() {
            return Err(SeenError::NotEnded(id()));
        }
        if !entry.monitored {
            return Err(SeenError::NotMonitored(id()));
        }
        let attempt = work::attempt_of(&self.core, entry);
        let read = tokio::task::spawn_blocking(move || attempt.seen()).await;
        let seen = read.map_err(|e| SeenError::Store(e.to_string()))?;
        seen.map_err(|e| SeenError::Store(e.to_string()))?.ok_or_else(|| SeenError::NotKept(id()))
    }

    /// Cancelled at the end of a job that runs; `None` for one that does not.
    #[must_use]
    pub fn end_of(&self, id: &JobId) -> Option<CancellationToken> {
        self.core.board.end_of(id)
    }

    /// What waits for the hub, and what could go.
    ///
    /// # Errors
    /// When journal or files cannot be read.
    pub async fn cache_status(&self) -> Result<CacheStatus, StoreError> {
        let core = Arc::clone(&self.core);
        let status = tokio::task::spawn_blocking(move || core.cache_status()).await;
        status.map_err(|e| StoreError(e.to_string()))?
    }

    /// Removes the output of jobs whose result the hub has. Their records stay.
    ///
    /// # Errors
    /// When journal or files cannot be read, or a file cannot be removed.
    pub async fn cache_clean(&self) -> Result<Cleaned, StoreError> {
        let core = Arc::clone(&self.core);
        let cleaned = tokio::task::spawn_blocking(move || core.cache_clean()).await;
        cleaned.map_err(|e| StoreError(e.to_string()))?
    }
}

impl Work {
    /// Recovers what was under way, then takes, runs and reports jobs until `shutdown`. Programs go
    /// on then, and transfers are cut short, to begin anew; each is a task of its own, which the
    /// drain waits for.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { core, reports } = self;
        if let Err(error) = recovery::recover(&core).await {
            tracing::error!(%error, "the journal cannot be recovered; no job runs");
            return;
        }
        tokio::join!(
            intake::run(Arc::clone(&core), shutdown.clone()),
            runner::run(Arc::clone(&core), shutdown.clone()),
            results::run(Arc::clone(&core), shutdown.clone()),
            follow::run(Arc::clone(&core), shutdown.clone()),
            cache::run(Arc::clone(&core), shutdown.clone()),
            report::run(core, reports, shutdown),
        );
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
