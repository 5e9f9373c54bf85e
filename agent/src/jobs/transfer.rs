//! Transfers: a process of the job touches the file (see `shim`), and this one speaks with the hub.

use std::{os::unix::net::UnixStream, sync::Arc};

use jtnt_proto::{
    hub::Outcome,
    job::{Download, Work},
};

use super::{
    download,
    runner::{Context, Ended},
    upload,
    work::{self, Ready},
};
use crate::{
    domain::{ids::JobId, job::Entry},
    gate::{Destination, Source},
    platform::sandbox::Plan,
    shim::{Carried, Fault, Order, Prepared, Snag, Target, Things, Transfer, Unstarted, clear_up},
};

/// Permissions of a file whose job names none.
const DEFAULT_MODE: u32 = 0o600;

/// A transfer whose process waits for its word.
#[derive(Debug)]
pub(super) struct Load {
    prepared: Prepared,
    line: tokio::net::UnixStream,
    /// Of a download.
    to: Option<Destination>,
}

/// Gets a download ready.
pub(super) async fn into(context: &Arc<Context>, asked: &Download, to: Destination) -> Ready {
    let artifact = asked.artifact;
    if let Some(most) = context.limits.file_bytes.filter(|most| artifact.size > *most) {
        let size = artifact.size;
        let message = format!("{size} bytes; limits.file_bytes is {most}");
        return Ready::Never(Box::new(Ended::failed("TOO_LARGE", message)));
    }
    let target = Target {
        part: part_name(&context.attempt.job_id()),
        name: to.name.clone(),
        mode: asked.mode.unwrap_or(DEFAULT_MODE),
        artifact,
        disown: context.identity.lease.is_some(),
    };
    let order = order(context, to.folder(), &to.plan, Transfer::Download(target));
    prepare(context, order, Snag::Write, Held::Folder(to)).await
}

/// Gets an upload ready.
pub(super) async fn from(context: &Arc<Context>, from: Source) -> Ready {
    let order = order(context, &from.canonical, &from.plan, Transfer::Upload);
    prepare(context, order, Snag::Read, Held::File(from)).await
}

fn order(context: &Context, path: &str, plan: &Plan, transfer: Transfer) -> Order {
    Order { transfer: Some(transfer), ..work::order(context, path, plan) }
}

/// What was opened to be asked about.
enum Held {
    Folder(Destination),
    File(Source),
}

async fn prepare(context: &Arc<Context>, order: Order, fault: Snag, held: Held) -> Ready {
    let never = |ended| Ready::Never(Box::new(ended));
    let broken = |error: std::io::Error| never(Ended::failed("CANNOT_START", error.to_string()));
    let pair = UnixStream::pair().and_then(|(ours, theirs)| {
        ours.set_nonblocking(true)?;
        Ok((tokio::net::UnixStream::from_std(ours)?, theirs))
    });
    let (line, theirs) = match pair {
        Ok(pair) => pair,
        Err(error) => return broken(error),
    };
    let (launcher, attempt) = (context.core.deps.launcher.clone(), context.attempt.clone());
    let prepared = tokio::task::spawn_blocking(move || {
        let file = match &held {
            Held::Folder(to) => &to.dir,
            Held::File(from) => &from.file,
        };
        let things = Things { line: Some(&theirs), ..Things::only(file) };
        let prepared = launcher.prepare(&order, things).inspect_err(|_| attempt.forget());
        (prepared, held)
    });
    match prepared.await {
        Ok((Ok(prepared), held)) => {
            let to = match held {
                Held::Folder(to) => Some(to),
                Held::File(_) => None,
            };
            Ready::Transfer(Box::new(Load { prepared, line, to }))
        }
        Ok((Err(error), _)) => never(unstarted(error, fault)),
        Err(error) => broken(std::io::Error::other(error)),
    }
}

/// Lets it begin, and moves the bytes; `None` when the agent stops first, which is no end of the
/// job: nothing of it is done then, and it begins anew.
pub(super) async fn run(
    context: &Context,
    entry: &mut Entry,
    what: &Work,
    load: Load,
) -> Option<Ended> {
    let Load { prepared, line, to } = load;
    let id = entry.job_id.clone();
    let began = context.core.deps.clock.uptime();
    let relay = async {
        match what {
            Work::Download(asked) => download::relay(&context.core, asked.artifact, line).await,
            Work::Upload(asked) => upload::relay(context, &id, asked, line).await,
            Work::Exec(_) | Work::Script(_) => Err(Ended::nothing_opened()),
        }
    };
    let kept = work::run(context, entry, prepared);
    tokio::pin!(kept);
    let (ended, broken) = tokio::select! {
        // Its process has more to say than that the line broke.
        biased;
        ended = &mut kept => (ended?, None),
        relayed = relay => (kept.await?, relayed.err()),
    };
    if ended.outcome == Outcome::Ok && matches!(what, Work::Upload(_)) {
        let took = context.core.deps.clock.uptime().saturating_sub(began);
        context.core.deps.metrics.upload_duration.observe(took.as_secs_f64());
    }
    if let (Outcome::Indeterminate, Some(to)) = (ended.outcome, to) {
        clear(to, id, context.identity.lease.as_ref().map(|lease| lease.uid)).await;
    }
    Some(broken.filter(|_| ended.is_cut()).unwrap_or(ended))
}

/// Why its process did not begin: what its user does not reach is a matter of the file.
fn unstarted(error: Unstarted, fault: Snag) -> Ended {
    let reason = match error.fault {
        Fault::Unreachable => fault.reason(),
        Fault::Cwd | Fault::Start => error.reason(),
    };
    Ended::failed(reason, error.message)
}

/// The last word of a transfer's process, if it had one.
pub(super) fn ended(carried: Carried, entry: &Entry) -> Ended {
    match carried {
        Ok(artifact) => Ended { artifact: Some(artifact), ..Ended::of(Outcome::Ok) },
        Err(why) => {
            let user = entry.user.as_deref().unwrap_or("nobody");
            let message = match why.fault {
                Snag::Write | Snag::Read => format!("{}, as user {user}: {why}", entry.command),
                Snag::Cut | Snag::Mismatch | Snag::Changed => why.to_string(),
            };
            Ended::failed(why.reason(), message)
        }
    }
}

fn part_name(id: &str) -> String {
    format!(".jtnt-{id}.part")
}

/// Clears up after a job that did not come to its end, and whose shim is no more. `number`: that of a
/// user of its own.
pub(super) async fn clear(to: Destination, id: JobId, number: Option<u32>) {
    let part = part_name(id.as_str());
    let clear = move || clear_up(&to.dir, &part, &to.name, number);
    let cleared = tokio::task::spawn_blocking(clear).await;
    if let Err(error) = cleared.map_err(std::io::Error::other).and_then(|cleared| cleared) {
        tracing::warn!(%error, job_id = %id, "a half download stays behind");
    }
}
