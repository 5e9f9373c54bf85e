//! Forwards the audit log, line by line and byte by byte as it was signed: to the hub, which holds it
//! for longer than this machine does, and to the machine's own journal or syslog.
//!
//! Nothing here decides what may run. Whoever takes lines may be slow, away or full; the log does not
//! wait for it, but files that the hub must hold are not pruned before it does.

mod local;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

pub use local::{Local, to_local};

use crate::{
    audit::{Audit, Head, query::Follow},
    hub::{
        HubClient, HubError, Link,
        retry::{Retry, is_final, wanted},
    },
    runtime::entropy::Entropy,
    telemetry::metrics::Metrics,
};

/// The hub's name in configuration and metric.
const HUB: &str = "hub";
/// Lines of the last moment go together.
const GATHER: Duration = Duration::from_secs(1);
/// After an answer that another try will not change.
const REFUSED: Duration = Duration::from_secs(300);

/// What forwarding works with.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The log.
    pub audit: Audit,
    /// Spreads retries.
    pub entropy: Arc<dyn Entropy>,
    /// How far each is.
    pub metrics: Metrics,
}

/// Why lines were not forwarded.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("{0}")]
    Log(String),
}

/// Forwards to whatever hub the link gives, until the stop.
pub async fn to_hub(deps: Deps, mut link: Link, stop: CancellationToken) {
    deps.metrics.show_forwarded(HUB, false, None);
    let all = async {
        let (mut retry, mut told) = (Retry::default(), None);
        loop {
            let Some(hub) = link.borrow_and_update().clone() else {
                if link.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let ended = tokio::select! {
                ended = ship(&deps, &hub, &mut retry) => ended,
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Err(fault) = ended else {
                sleep(GATHER).await;
                continue;
            };
            deps.metrics.show_forwarded(HUB, false, None);
            let why = Some(fault.to_string());
            if why != told {
                tracing::warn!(%fault, "audit lines are not forwarded to the hub; it is tried again");
                told = why;
            }
            let pause = match &fault {
                // A line by a new key, or of a new log, may come before the heartbeat that tells of it.
                Fault::Hub(HubError::Refused { status: 422, .. }) => {
                    retry.wait(GATHER, &*deps.entropy)
                }
                Fault::Hub(error) if is_final(error) => REFUSED,
                Fault::Hub(error) => retry.wait(wanted(error), &*deps.entropy),
                Fault::Log(_) => retry.wait(GATHER, &*deps.entropy),
            };
            // Another certificate may change the answer.
            tokio::select! {
                () = sleep(pause) => {}
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = all => {}
        () = stop.cancelled() => {}
    }
}

/// Sends what the hub does not hold, and goes on with what comes; ends when another log begins, or
/// when the hub wants it from elsewhere.
async fn ship(deps: &Deps, hub: &HubClient, retry: &mut Retry) -> Result<(), Fault> {
    let mut head = deps.audit.watch();
    let log_id = head.borrow_and_update().log_id.clone();
    let mut next = hub.audit_lines(&log_id, 0, Bytes::new()).await?.next;
    let size = head.borrow().size;
    if next > size {
        return Err(Fault::Log(format!(
            "the hub says that it holds {next} lines, and {size} are all"
        )));
    }
    deps.audit.held(log_id.clone(), next).await;
    deps.metrics.show_forwarded(HUB, true, Some(next));
    let (first, mut follow) = follow(deps.audit.dir().to_owned(), next).await?;
    if first > next && next > 0 {
        return Err(Fault::Log(format!(
            "the hub wants line {next}, and the first here is {first}"
        )));
    }
    next = first;
    loop {
        let (back, lines) = read(follow).await?;
        follow = back;
        if head.borrow_and_update().log_id != log_id {
            return Ok(());
        }
        if lines.is_empty() {
            if grown(&mut head, next).await.is_err() {
                return Ok(());
            }
            continue;
        }
        let sent = lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat());
        let state = hub.audit_lines(&log_id, next, sent.collect::<Vec<_>>().into()).await?;
        next += lines.len() as u64;
        if state.next != next {
            return Ok(());
        }
        retry.succeeded();
        deps.audit.held(log_id.clone(), next).await;
        deps.metrics.show_forwarded(HUB, true, Some(next));
        sleep(GATHER).await;
    }
}

/// Waits until there is a line of this number.
async fn grown(head: &mut watch::Receiver<Head>, next: u64) -> Result<(), watch::error::RecvError> {
    let log_id = head.borrow().log_id.clone();
    head.wait_for(|head| head.size > next || head.log_id != log_id).await.map(drop)
}

async fn follow(dir: PathBuf, next: u64) -> Result<(u64, Follow), Fault> {
    on_disk(move || Follow::from(&dir, next)).await
}

async fn read(mut follow: Follow) -> Result<(Follow, Vec<Vec<u8>>), Fault> {
    on_disk(move || {
        let lines = follow.next()?;
        Ok((follow, lines))
    })
    .await
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| Fault::Log(e.to_string()))?;
    done.map_err(|e| Fault::Log(format!("the audit log cannot be read: {e}")))
}
