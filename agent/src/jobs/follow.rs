//! Output that is too large for its result goes up after it, as artifacts of the job that can be
//! resumed. Ends of jobs come first: none of this is begun while one of them waits for the hub.

use std::{fs::File, io, sync::Arc, time::Duration};

use jtnt_proto::hub::OutputPart;
use tokio_util::sync::CancellationToken;

use super::{
    core::Core,
    retry::{Retry, is_final, wanted},
    runner::Flag,
    upload::{Stopped, append, hash_of},
};
use crate::{
    domain::job::{Dropped, Entry},
    hub::{HubClient, HubError, UploadPart},
    store::StoreError,
};

/// How often what waits is looked for, though nobody said that there is something.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Why a part of an output is not at the hub.
#[derive(Debug, thiserror::Error)]
enum Unsent {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("its file: {0}")]
    File(#[from] io::Error),
    #[error("the hub has more of it than there is")]
    Other,
}

/// Sends what follows, one piece after another, until the agent stops.
pub(super) async fn run(core: Arc<Core>, shutdown: CancellationToken) {
    let mut retry = Retry::default();
    loop {
        let round = async {
            let pause = round(&core, &mut retry).await.unwrap_or_else(|error| {
                tracing::error!(%error, "what output waits for the hub cannot be read");
                LOOK_AGAIN
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = core.follow_up.notified() => {}
            }
        };
        tokio::select! {
            () = round => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Sends what waits; returns how long to wait before the next time.
async fn round(core: &Core, retry: &mut Retry) -> Result<Duration, StoreError> {
    let mut link = core.deps.link.clone();
    let Some(hub) = link.wait_for(Option::is_some).await.ok().and_then(|hub| hub.clone()) else {
        return Ok(LOOK_AGAIN);
    };
    loop {
        core.window.idle().await;
        let waiting = core.deps.journal.undelivered()?;
        let waiting: Vec<_> = waiting.into_iter().filter(|entry| entry.reported).collect();
        if waiting.is_empty() {
            return Ok(LOOK_AGAIN);
        }
        let mut failed: Option<Duration> = None;
        for entry in waiting {
            core.window.idle().await;
            match send_all(core, &hub, entry).await? {
                None => retry.succeeded(),
                Some(pause) => failed = Some(failed.unwrap_or_default().max(pause)),
            }
        }
        if let Some(pause) = failed {
            return Ok(retry.wait(pause, &*core.deps.entropy));
        }
    }
}

/// Sends all that follows one result; returns what to wait where that must be tried again.
async fn send_all(
    core: &Core,
    hub: &HubClient,
    mut entry: Entry,
) -> Result<Option<Duration>, StoreError> {
    while let Some(part) = entry.parts.first() {
        let why = match send(core, hub, &entry, part).await {
            Ok(()) => {
                core.fewer_pending(part.size);
                entry.parts.remove(0);
                core.deps.journal.note(entry.clone()).await?;
                continue;
            }
            Err(Unsent::Hub(error)) if !is_final(&error) => {
                tracing::debug!(%error, job_id = %entry.job_id, "output of a job waits");
                return Ok(Some(wanted(&error)));
            }
            Err(Unsent::Hub(error)) => {
                tracing::warn!(%error, job_id = %entry.job_id, "the hub takes no more output of a job");
                Dropped::Refused
            }
            Err(unsent) => {
                tracing::warn!(%unsent, job_id = %entry.job_id, "output of a job cannot be sent");
                Dropped::Lost
            }
        };
        return core.drop_output(entry, why).await.map(|()| None);
    }
    core.delivered(entry).await?;
    core.show();
    Ok(None)
}

async fn send(
    core: &Core,
    hub: &HubClient,
    entry: &Entry,
    part: &OutputPart,
) -> Result<(), Unsent> {
    let (path, size) = (core.job_dir(&entry.job_id).join(&part.name), part.size);
    let stop = Flag::default();
    let seen = stop.seen_by();
    let open = move || {
        let file = File::open(path)?;
        let sha256 = hash_of(&file, size, &seen)?;
        Ok::<_, io::Error>((file, sha256))
    };
    let (file, sha256) = tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??;
    match append(hub, &entry.job_id, &part.name, &file, size).await {
        Ok(()) => {}
        // Where it stands will be asked the next time.
        Err(Stopped::Elsewhere) => {
            return Err(HubError::BadAnswer("it is at another place".to_owned()).into());
        }
        Err(Stopped::Hub(error)) => return Err(error.into()),
        Err(Stopped::Ended(_)) => return Err(Unsent::Other),
    }
    let state = hub.upload(&entry.job_id, &part.name, UploadPart::Finish { size, sha256 }).await?;
    if state.complete {
        return Ok(());
    }
    Err(HubError::BadAnswer("an upload that ended is not complete".to_owned()).into())
}
