//! Output that a job's signer wants to see while the job runs, sent to the hub piece by piece. It
//! is for people who watch: what the hub must have is in the result, which waits for none of this.

use std::{sync::Arc, time::Duration};

use jtnt_proto::{
    bytes::Base64,
    hub::{MAX_CHUNK_BYTES, OutputChunk, OutputStream},
};
use tokio_util::sync::CancellationToken;

use super::{core::Core, runner::Context};
use crate::{
    domain::ids::JobId,
    hub::{
        HubClient, HubError,
        retry::{Retry, is_final, wanted},
    },
    runtime::tasks::Class,
    shim::Stream,
    store::StoreError,
};

/// How often what came is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long after the job's end its last words are still sent.
const PATIENCE: Duration = Duration::from_secs(60);

/// One stream on its way.
#[derive(Debug)]
struct Feed {
    attempt: u32,
    stream: Stream,
    /// Where to go on; the hub knows where nobody here does.
    at: Option<u64>,
}

/// Why nothing more was sent.
#[derive(Debug, thiserror::Error)]
enum Stuck {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the hub does not count what it was sent")]
    Behind,
}

/// Sends what job `id` writes, until some time after its end; `from` is where the hub stands, if
/// that is known.
pub(super) fn begin(context: &Context, id: JobId, attempt: u32, from: Option<u64>) {
    let core = Arc::clone(&context.core);
    let (end, stop) = (context.live.end.clone(), context.stop.clone());
    context.core.deps.tasks.spawn("job-stream", Class::OneShot, async move {
        let mut feeds =
            [Stream::Stdout, Stream::Stderr].map(|stream| Feed { attempt, stream, at: from });
        let all = async {
            if follow(&core, &id, &mut feeds, &end).await {
                let rest = last_words(&core, &id, &mut feeds);
                if tokio::time::timeout(PATIENCE, rest).await.is_err() {
                    tracing::warn!(job_id = %id, "the hub did not take all of a job's live output");
                }
            }
        };
        tokio::select! {
            () = all => {}
            () = stop.cancelled() => {}
        }
    });
}

/// Sends what comes while the job runs; whether the hub wants the rest.
async fn follow(core: &Core, id: &JobId, feeds: &mut [Feed; 2], end: &CancellationToken) -> bool {
    let mut retry = Retry::default();
    while !end.is_cancelled() {
        let round = async {
            let Some(pause) = round(core, id, feeds, false, &mut retry).await else { return false };
            tokio::time::sleep(pause).await;
            true
        };
        let wanted = tokio::select! {
            wanted = round => wanted,
            () = end.cancelled() => true,
        };
        if !wanted {
            return false;
        }
    }
    true
}

/// Sends what is left once the job has ended.
async fn last_words(core: &Core, id: &JobId, feeds: &mut [Feed; 2]) {
    let mut retry = Retry::default();
    while let Some(pause) = round(core, id, feeds, true, &mut retry).await
        && !pause.is_zero()
    {
        tokio::time::sleep(pause).await;
    }
}

/// Sends all there is for now; returns how long to wait before the next time (no time at all once
/// everything was said), or nothing where the hub wants no more of it.
async fn round(
    core: &Core,
    id: &JobId,
    feeds: &mut [Feed; 2],
    ended: bool,
    retry: &mut Retry,
) -> Option<Duration> {
    let mut link = core.deps.link.clone();
    let hub = link.wait_for(Option::is_some).await.ok().and_then(|hub| hub.clone())?;
    for feed in feeds {
        match feed.send(core, &hub, id, ended).await {
            Ok(()) => retry.succeeded(),
            Err(Stuck::Hub(error)) if is_final(&error) => {
                tracing::warn!(%error, job_id = %id, "the hub takes no live output of a job");
                return None;
            }
            Err(stuck) => {
                tracing::debug!(%stuck, job_id = %id, "live output of a job waits");
                let pause = match &stuck {
                    Stuck::Hub(error) => wanted(error),
                    Stuck::Store(_) | Stuck::Behind => Duration::ZERO,
                };
                return Some(retry.wait(pause, &*core.deps.entropy).max(LOOK_EVERY));
            }
        }
    }
    Some(if ended { Duration::ZERO } else { LOOK_EVERY })
}

impl Feed {
    /// Sends what there is of one stream.
    async fn send(
        &mut self,
        core: &Core,
        hub: &HubClient,
        id: &JobId,
        ended: bool,
    ) -> Result<(), Stuck> {
        loop {
            let Some(at) = self.at else {
                self.tell(hub, id, 0, Vec::new(), false).await?;
                continue;
            };
            let part = core.read_output(id, self.stream, at, MAX_CHUNK_BYTES).await?;
            if part.data.is_empty() {
                if ended {
                    self.tell(hub, id, at, part.data, true).await?;
                }
                return Ok(());
            }
            let end = part.offset + part.data.len() as u64;
            self.tell(hub, id, part.offset, part.data, false).await?;
            if self.at.is_some_and(|at| at < end) {
                return Err(Stuck::Behind);
            }
        }
    }

    async fn tell(
        &mut self,
        hub: &HubClient,
        id: &JobId,
        offset: u64,
        data: Vec<u8>,
        end: bool,
    ) -> Result<(), HubError> {
        let stream = match self.stream {
            Stream::Stdout => OutputStream::Stdout,
            Stream::Stderr => OutputStream::Stderr,
        };
        let attempt = self.attempt;
        // Whatever becomes of this request, the hub knows best.
        let _before = self.at.take();
        let chunk = OutputChunk { attempt, stream, offset, data: Base64(data), end };
        self.at = Some(hub.job_output(id, &chunk).await?.received);
        Ok(())
    }
}
