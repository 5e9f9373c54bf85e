//! After a start: what the journal says was under way is brought to an end or goes on. Nothing
//! runs twice unless the job allows it, and nothing is forgotten.

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jtnt_proto::{
    hub::{JobResult, Outcome},
    job::Priority,
    json,
};
use tokio::time::timeout;

use super::{
    board::Item,
    core::Core,
    permit::{self, Opened},
    results::{MAX_RESULT_BYTES, executed},
    runner::{self, Ended, verified},
    transfer, work,
};
use crate::{
    domain::{
        ids::JobId,
        job::{Entry, State},
        recovery::{self, Found, Step},
    },
    platform::sweep,
    runtime::durable,
    shim::{Exit, Left, Shim, Snag},
    store::StoreError,
};

/// Among so many of the newest jobs is the one that began last.
const NEWEST: usize = 64;
/// How long a shim without an agent may take to see that.
const WORDLESS: Duration = Duration::from_secs(1);

/// Goes through what had not ended.
pub(super) async fn recover(core: &Arc<Core>) -> Result<(), StoreError> {
    for dir in [core.deps.state_dir.join("jobs"), core.pending_dir()] {
        durable::create_dir(&dir, 0o700)
            .map_err(|e| StoreError(format!("{}: {e}", dir.display())))?;
    }
    tidy(core)?;
    // What jobs have left behind belongs to their numbers, so those rest for as long as they can.
    let newest = core.deps.journal.recent(NEWEST, &|_| true)?;
    let last = newest.iter().filter(|e| e.started_at.is_some()).max_by_key(|e| e.started_at);
    let user = last.and_then(|e| e.user.as_deref());
    if let Some(uid) = user.and_then(|user| core.pool.number(user)) {
        core.pool.go_on_after(uid);
    }
    for entry in core.deps.journal.unfinished()? {
        match entry.state {
            State::Queued => wait_again(core, entry),
            State::Starting | State::Running => resolve(core, entry).await?,
            State::Finished(_) | State::Rejected => {}
        }
    }
    core.show();
    Ok(())
}

/// Keys, time, policy and cancels are asked again when its turn comes.
pub(super) fn wait_again(core: &Core, entry: Entry) {
    let priority = verified(core, &entry).map_or(Priority::Normal, |(_, job)| job.get().priority);
    core.board.push(Item { entry, priority });
}

async fn resolve(core: &Arc<Core>, entry: Entry) -> Result<(), StoreError> {
    if let Some(result) = stored(core, &entry) {
        return adopt(core, entry, &result).await;
    }
    let (found, kept) = look(core, &entry).await;
    // No shim was left to clear up after it.
    if entry.kind == "download" && matches!(found, Found::Begun | Found::OtherBoot) {
        remove_part(core, &entry).await;
    }
    let idempotent = verified(core, &entry).is_ok_and(|(_, job)| job.get().idempotent);
    let step = recovery::step(found, idempotent, entry.attempt);
    tracing::info!(job_id = %entry.job_id, ?found, next = ?step, "a job was under way when the agent ended");
    match (step, kept) {
        (Step::Attach, Kept::Shim(shim)) => {
            runner::resume(core, entry, shim);
            Ok(())
        }
        (Step::Conclude, Kept::Exit(exit)) => conclude(core, entry, *exit).await,
        (Step::Start, _) => again(core, entry).await,
        (Step::Repeat, _) => {
            end_rest(core, &entry).await;
            wait_again(core, next_run(core, entry).await?);
            Ok(())
        }
        (Step::Interrupted, _) => {
            let message = "the machine went down while the job ran";
            give_up(core, entry, Ended::because(Outcome::Interrupted, "MACHINE_DOWN", message))
                .await
        }
        (Step::Indeterminate | Step::Attach | Step::Conclude, _) => {
            end_rest(core, &entry).await;
            let message = "the agent ended while the job ran; nobody can tell how far it came";
            give_up(core, entry, Ended::because(Outcome::Indeterminate, "AGENT_ENDED", message))
                .await
        }
    }
}

/// The last word about a run, whose files have no more to say.
async fn give_up(core: &Core, entry: Entry, ended: Ended) -> Result<(), StoreError> {
    let attempt = work::attempt_of(core, &entry);
    core.conclude(entry, ended, None).await?;
    attempt.forget();
    Ok(())
}

/// What comes with some of the things that may be found.
enum Kept {
    Shim(Shim),
    Exit(Box<Exit>),
    Nothing,
}

/// Looks for a job by its files.
async fn look(core: &Core, entry: &Entry) -> (Found, Kept) {
    let attempt = work::attempt_of(core, entry);
    // What cannot be read of one job keeps no other from being recovered: it may have run.
    let left = || {
        attempt.left().unwrap_or_else(|error| {
            tracing::error!(%error, job_id = %entry.job_id, "how a job ended cannot be read");
            Left::Started
        })
    };
    let ended = |exit: Box<Exit>| {
        let cut = matches!(&exit.carried, Some(Err(why)) if why.fault == Snag::Cut);
        (if cut { Found::Cut } else { Found::Ended }, Kept::Exit(exit))
    };
    let process = entry.process.as_ref();
    if !process.is_some_and(|p| sweep::boot_id().is_ok_and(|now| now == p.boot_id)) {
        return match left() {
            // It ended before the machine did.
            Left::Exit(exit) => ended(exit),
            Left::Started | Left::Nothing => (Found::OtherBoot, Kept::Nothing),
        };
    }
    let shim = Shim::find(attempt.clone()).unwrap_or_else(|error| {
        tracing::error!(%error, job_id = %entry.job_id, "who keeps a job cannot be told");
        None
    });
    let begun = left() != Left::Nothing;
    if let Some(shim) = shim {
        // One that waits for a word which no agent will give it ends by itself. One that had the
        // word is about to begin.
        if begun || timeout(WORDLESS, shim.ended()).await.is_err() {
            return (Found::Kept, Kept::Shim(shim));
        }
    }
    match left() {
        Left::Exit(exit) => ended(exit),
        Left::Started => (Found::Begun, Kept::Nothing),
        Left::Nothing => (Found::Nothing, Kept::Nothing),
    }
}

/// Has a job that was cut short wait for another run, if it may; gives it back to be queued.
pub(super) async fn repeat(core: &Core, entry: Entry) -> Result<Option<Entry>, StoreError> {
    if recovery::step(Found::Cut, false, entry.attempt) != Step::Repeat {
        return Ok(None);
    }
    next_run(core, entry).await.map(Some)
}

/// Queued, as another run; of the one before only output is left.
async fn next_run(core: &Core, mut entry: Entry) -> Result<Entry, StoreError> {
    let before = work::attempt_of(core, &entry);
    entry.attempt += 1;
    (entry.state, entry.process, entry.started_at) = (State::Queued, None, None);
    core.deps.journal.update(entry.clone()).await?;
    before.forget();
    Ok(entry)
}

/// Waits once more; keys, time and policy are asked again before it starts.
async fn again(core: &Arc<Core>, mut entry: Entry) -> Result<(), StoreError> {
    (entry.state, entry.process, entry.started_at) = (State::Queued, None, None);
    core.deps.journal.update(entry.clone()).await?;
    wait_again(core, entry);
    Ok(())
}

/// The end of a job that nobody took over.
async fn conclude(core: &Core, mut entry: Entry, exit: Exit) -> Result<(), StoreError> {
    let own = work::attempt_of(core, &entry);
    let (exit, outputs) = tokio::task::spawn_blocking(move || {
        let outputs = work::outputs(own.dir(), &exit);
        (exit, outputs)
    })
    .await
    .map_err(|error| StoreError(error.to_string()))?;
    end_rest(core, &entry).await;
    let cancelled = core.cancels.is_cancelled(&entry.job_id, core.deps.time.now());
    let ended = work::of_exit(&mut entry, exit, outputs, cancelled);
    give_up(core, entry, ended).await
}

/// Ends what is left of a job: by its process and name, and by a user of its own, which finds also
/// what has cleared its environment.
async fn end_rest(core: &Core, entry: &Entry) {
    let (process, id) = (entry.process.clone(), entry.job_id.clone());
    let uid = entry.user.as_deref().and_then(|user| core.pool.number(user));
    let pool = core.pool.clone();
    let end = move || {
        let by_name = sweep::kill_leftovers(process.as_ref(), id.as_str());
        by_name + uid.map_or(0, |uid| pool.end(uid).ended)
    };
    match tokio::task::spawn_blocking(end).await {
        Ok(0) => {}
        Ok(ended) => tracing::warn!(job_id = %entry.job_id, ended, "processes of a job were left"),
        Err(error) => tracing::error!(%error, job_id = %entry.job_id, "a job was not swept"),
    }
}

/// What a download had fetched goes, where the policy of now still lets the job write there.
pub(super) async fn remove_part(core: &Core, entry: &Entry) {
    let Ok((keyring, job)) = verified(core, entry) else { return };
    let (gate, now, id) = (core.deps.gate.clone(), core.deps.time.now(), entry.job_id.clone());
    let ask = move || permit::ask(&gate, &keyring, job.get(), now).opened;
    match tokio::task::spawn_blocking(ask).await {
        Ok(Some(Opened::Destination(to))) => {
            let number = entry.user.as_deref().and_then(|user| core.pool.number(user));
            transfer::clear(to, id, number).await;
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, job_id = %id, "a half download stays behind"),
    }
}

/// A result that was stored when the journal could not say so any more.
fn stored(core: &Core, entry: &Entry) -> Option<(JobResult, Vec<u8>)> {
    let body = durable::read(&core.result_file(entry), MAX_RESULT_BYTES).ok()?;
    let result: JobResult = json::from_slice(&body).ok()?;
    let own = result.job_id == entry.job_id.as_str() && result.attempt == entry.attempt;
    own.then_some((result, body))
}

async fn adopt(
    core: &Core,
    mut entry: Entry,
    (result, body): &(JobResult, Vec<u8>),
) -> Result<(), StoreError> {
    entry.state = State::Finished(result.outcome);
    entry.finished_at = Some(result.finished_at);
    entry.duration_ms = Some(result.duration_ms);
    (entry.exit_code, entry.signal) = (result.exit_code, result.signal);
    (entry.reason, entry.message) = (result.reason.clone(), result.message.clone());
    entry.stdout_bytes = result.stdout.as_ref().map_or(0, |out| out.total_bytes);
    entry.stderr_bytes = result.stderr.as_ref().map_or(0, |out| out.total_bytes);
    entry.result_sha256 = Some(jtnt_proto::bytes::Hash::of(body));
    let outputs = [&result.stdout, &result.stderr].into_iter().flatten();
    entry.parts = outputs.flat_map(|output| output.parts.clone()).collect();
    // Perhaps a second line about the same end; one too many is better than none.
    core.log(executed(&entry, result.outcome).detail("recovered", true)).await;
    core.deps.journal.update(entry).await
}

/// Removes results that were delivered, and counts what waits.
fn tidy(core: &Core) -> Result<(), StoreError> {
    let dir = core.pending_dir();
    let unreadable = |e: std::io::Error| StoreError(format!("{}: {e}", dir.display()));
    let mut bytes = 0;
    for file in fs::read_dir(&dir).map_err(unreadable)? {
        let file = file.map_err(unreadable)?;
        let name = file.file_name();
        let id = name.to_str().and_then(|n| n.split('.').next()).map(JobId::try_from);
        let entry = match id {
            Some(Ok(id)) => core.deps.journal.get(&id)?,
            _ => None,
        };
        match entry {
            Some(entry) if entry.delivered || entry.reported => {
                fs::remove_file(file.path()).map_err(unreadable)?;
            }
            Some(_) => bytes += file.metadata().map_or(0, |meta| meta.len()),
            None => tracing::warn!(file = ?name, "a result of no job in the journal stays unsent"),
        }
    }
    core.pending_bytes.store(bytes, Ordering::Relaxed);
    Ok(())
}
