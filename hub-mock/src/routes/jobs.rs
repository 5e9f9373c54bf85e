//! `GET /api/v1/jobs` and what agents report of jobs: leases, statuses, results.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, Query, State},
};
use bytes::Bytes;
use http::StatusCode;
use jtnt_proto::{
    bytes::Hash,
    hub::{
        JobResult, JobStatus, JobsResponse, LeasedJob, MAX_INLINE_OUTPUT_BYTES, MAX_LEASED_JOBS,
        MAX_POLL_SECONDS, Output, ResultResponse,
    },
};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    bounded,
    caller::{Caller, read},
    problem::Refusal,
};
use crate::{
    clock,
    faults::{Fault, Kind},
    hub::{Core, Inner, Shared},
    state::{Event, Job, Reported},
};

static NO_LABELS: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
/// More runs of one job than this are an error of the agent.
const MAX_ATTEMPTS: u32 = 100;

/// The query of a poll.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Poll {
    #[serde(default)]
    wait: u64,
}

pub(super) async fn poll(
    State(core): State<Shared>,
    caller: Caller,
    fault: Option<Fault>,
    query: Result<Query<Poll>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<JobsResponse>, Refusal> {
    let Query(Poll { wait }) = query.map_err(|e| Refusal::unprocessable("QUERY", e.body_text()))?;
    if wait > MAX_POLL_SECONDS {
        let why = format!("a poll waits for at most {MAX_POLL_SECONDS} seconds");
        return Err(Refusal::unprocessable("WAIT", why));
    }
    if let Some(answer) = fault.and_then(|f| spoiled(&core, &caller.agent_id, f)) {
        return Ok(Json(answer));
    }
    let end = Instant::now() + Duration::from_secs(wait);
    let mut woken = core.woken(&caller.agent_id);
    loop {
        woken.borrow_and_update();
        let (answer, next) = core.lease(&caller.agent_id);
        let empty = answer.jobs.is_empty() && answer.cancels.is_empty();
        if !empty || Instant::now() >= end {
            return Ok(Json(answer));
        }
        tokio::select! {
            _ = woken.changed() => {}
            () = tokio::time::sleep_until(next.map_or(end, |next| next.min(end))) => {}
            () = core.stop.cancelled() => return Ok(Json(answer)),
        }
    }
}

/// What a poll answers under a fault that concerns documents.
fn spoiled(core: &Core, agent_id: &str, fault: Fault) -> Option<JobsResponse> {
    let lend = |job_id: &str, envelope| LeasedJob {
        job_id: job_id.to_owned(),
        lease_expires_at: clock::after(core.settings.lease),
        envelope,
    };
    let jobs: Vec<LeasedJob> = match (fault.kind, fault.document) {
        (Kind::Expired, Some(document)) => {
            let named = serde_json::from_slice::<serde_json::Value>(&document.payload.0).ok()?;
            vec![lend(named.get("job_id")?.as_str()?, document)]
        }
        (Kind::Replay, _) => {
            let inner = core.lock();
            let theirs = |job: &&Job| job.agent_id == agent_id && job.acknowledged;
            let jobs = inner.state.jobs.values().filter(theirs).take(MAX_LEASED_JOBS);
            jobs.map(|job| lend(&job.job_id, job.envelope.clone())).collect()
        }
        _ => return None,
    };
    Some(JobsResponse { jobs, cancels: Vec::new() })
}

pub(super) async fn status(
    State(core): State<Shared>,
    caller: Caller,
    Path(job_id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, Refusal> {
    let status: JobStatus = read(&body)?;
    attempt_counts(status.attempt)?;
    bounded([&status.reason, &status.message, &status.rule].into_iter().flatten(), &NO_LABELS)?;
    let mut inner = core.lock();
    let job = owned(&inner, &caller, &job_id)?;
    // A late or repeated status changes nothing: what is known is newer.
    let known = job.has_ended() || job.status.as_ref().is_some_and(|s| *s == status);
    if !known {
        core.record(&mut inner, Event::JobReported { job_id: job_id.clone(), status });
        Core::release(&mut inner, &caller.agent_id, &job_id);
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn result(
    State(core): State<Shared>,
    caller: Caller,
    Path(job_id): Path<String>,
    body: Bytes,
) -> Result<Json<ResultResponse>, Refusal> {
    let result: JobResult = read(&body)?;
    checked(&result, &job_id)?;
    let sha256 = Hash::of(&body);
    let (seq, duplicate) = {
        let mut inner = core.lock();
        let job = owned(&inner, &caller, &job_id)?;
        let known = job.results.get(&result.attempt);
        let duplicate = known.is_some_and(|known| known.sha256 == sha256);
        if known.is_some() && !duplicate {
            let why = format!("attempt {} of {job_id} has another result", result.attempt);
            return Err(Refusal::conflict("RESULT_CONFLICT", why));
        }
        if job.state() == "rejected" {
            let why = format!("{job_id} was rejected by this agent; it cannot have run");
            return Err(Refusal::conflict("JOB_REJECTED", why));
        }
        let seq = if duplicate {
            core.last_event()
        } else {
            let reported = Box::new(Reported { sha256, at: clock::now(), result });
            core.record(&mut inner, Event::JobEnded { job_id: job_id.clone(), reported })
        };
        Core::release(&mut inner, &caller.agent_id, &job_id);
        (seq, duplicate)
    };
    // The agent forgets its copy once this is answered.
    core.durable(seq).await?;
    Ok(Json(ResultResponse { duplicate }))
}

/// A job of this agent. Another agent's is as unknown as none.
pub(super) fn owned<'a>(inner: &'a Inner, caller: &Caller, id: &str) -> Result<&'a Job, Refusal> {
    let job = inner.state.jobs.get(id).filter(|job| job.agent_id == caller.agent_id);
    job.ok_or_else(|| Refusal::not_found("JOB_UNKNOWN", "this agent was given no such job"))
}

pub(super) fn attempt_counts(attempt: u32) -> Result<(), Refusal> {
    if (1..=MAX_ATTEMPTS).contains(&attempt) {
        return Ok(());
    }
    let why = format!("attempts count from 1 to {MAX_ATTEMPTS}");
    Err(Refusal::unprocessable("ATTEMPT", why))
}

fn checked(result: &JobResult, job_id: &str) -> Result<(), Refusal> {
    attempt_counts(result.attempt)?;
    if result.job_id != job_id {
        return Err(Refusal::unprocessable("JOB_MISMATCH", "job_id is not the one of the path"));
    }
    let optional = [&result.reason, &result.message, &result.user, &result.rule];
    let texts = optional.into_iter().flatten().chain([&result.enforcement]);
    bounded(texts, &NO_LABELS)?;
    for output in [&result.stdout, &result.stderr].into_iter().flatten() {
        output_counts(output)?;
    }
    Ok(())
}

fn output_counts(output: &Output) -> Result<(), Refusal> {
    let kept = output.head.0.len() + output.tail.as_ref().map_or(0, |t| t.0.len());
    let total = usize::try_from(output.total_bytes).unwrap_or(usize::MAX);
    if kept > MAX_INLINE_OUTPUT_BYTES || kept > total {
        let why = format!("an output keeps at most {MAX_INLINE_OUTPUT_BYTES} of its own bytes");
        return Err(Refusal::unprocessable("OUTPUT", why));
    }
    let whole = output.tail.is_none() && output.head.0.len() == total;
    if whole && output.sha256.is_some_and(|h| h != Hash::of(&output.head.0)) {
        let why = "sha256 is not the one of the output that was sent";
        return Err(Refusal::unprocessable("OUTPUT_HASH", why));
    }
    Ok(())
}
