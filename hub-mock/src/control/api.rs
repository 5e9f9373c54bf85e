//! The operations of the control port. Bodies are the types below, answers are views.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use jtnt_proto::{bytes::Hash, envelope::Envelope, hub::OutputChunk, job::Artifact};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use crate::{
    authorities::{AuthorityView, Step},
    clock,
    error::HubError,
    faults::{Fault, Kind, Route},
    handle,
    hub::{Shared, unknown_job},
    record::{Filter, Recorded},
    routes::{artifacts, caller::read, problem::Refusal, streams},
    state::{Event, OldCertificates, Standing, State as HubState},
    view::{AgentView, JobView},
};

/// The longest a request for a job waits for its end, in seconds.
const MAX_WAIT_SECONDS: u64 = 60;
/// Jobs in one list.
const MAX_LISTED: usize = 1000;

/// A new token.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewToken {
    /// To hand to one agent.
    pub(crate) token: String,
    /// Void from then on.
    pub(crate) expires_at: Timestamp,
}

/// How long a new token lives.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenWish {
    /// The hub's default when absent.
    pub(crate) life_seconds: Option<u64>,
}

/// A signed job and whom to give it to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Enqueue {
    pub(crate) agent_id: String,
    pub(crate) envelope: Envelope,
}

/// A step from one authority to the next.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Turn {
    pub(crate) step: Step,
}

/// What to do with an agent's certificates.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Judge {
    pub(crate) agent_id: String,
    pub(crate) standing: Standing,
}

/// The rule about certificates that were replaced.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) rule: OldCertificates,
}

/// What was published.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) version: u64,
}

/// The newest policy, if any.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CurrentPolicy {
    pub(crate) version: u64,
    pub(crate) envelope: Option<Envelope>,
}

pub(super) async fn make_token(
    State(core): State<Shared>,
    body: Bytes,
) -> Result<Json<NewToken>, Refusal> {
    let wish: TokenWish = if body.is_empty() { TokenWish::default() } else { read(&body)? };
    let life = wish.life_seconds.map(Duration::from_secs);
    let expires_at = clock::after(life.unwrap_or(core.settings.token_life));
    let (token, seq) = core.make_token(life)?;
    core.durable(seq).await?;
    Ok(Json(NewToken { token, expires_at }))
}

pub(super) async fn agents(State(core): State<Shared>) -> Json<Vec<AgentView>> {
    Json(core.agents())
}

/// The witness's key, as other implementations of signed notes take it.
pub(super) async fn witness(State(core): State<Shared>) -> Json<String> {
    Json(core.witness.vkey())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    agent: Option<String>,
}

pub(super) async fn jobs(
    State(core): State<Shared>,
    Query(which): Query<Which>,
) -> Json<Vec<JobView>> {
    let inner = core.lock();
    let theirs = |j: &&crate::state::Job| which.agent.as_ref().is_none_or(|a| *a == j.agent_id);
    let mut jobs: Vec<_> = inner.state.jobs.values().filter(theirs).collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(job.number));
    Json(jobs.into_iter().take(MAX_LISTED).map(JobView::of).collect())
}

pub(super) async fn enqueue(
    State(core): State<Shared>,
    body: Bytes,
) -> Result<(StatusCode, Json<JobView>), Refusal> {
    let Enqueue { agent_id, envelope } = read(&body)?;
    let id = core.enqueue(&agent_id, envelope).await?;
    let job = core.job(&id).ok_or_else(|| unknown_job(&id))?;
    Ok((StatusCode::CREATED, Json(job)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Patience {
    #[serde(default)]
    wait: u64,
    /// Names of artifacts that are waited for, too.
    #[serde(default)]
    artifacts: String,
}

pub(super) async fn job(
    State(core): State<Shared>,
    Path(id): Path<String>,
    Query(Patience { wait, artifacts }): Query<Patience>,
) -> Result<Json<JobView>, Refusal> {
    let now = core.job(&id).ok_or_else(|| unknown_job(&id))?;
    if wait == 0 {
        return Ok(Json(now));
    }
    let there = |job: &&crate::state::Job| {
        let mut names = artifacts.split(',').filter(|name| !name.is_empty());
        job.has_ended() && names.all(|name| job.artifacts.contains_key(name))
    };
    let ended = |state: &HubState| state.jobs.get(&id).filter(there).map(JobView::of);
    let patience = Duration::from_secs(wait.min(MAX_WAIT_SECONDS));
    let end = tokio::select! {
        end = timeout(patience, core.await_state(ended)) => end.ok(),
        () = core.stop.cancelled() => None,
    };
    Ok(Json(end.or_else(|| core.job(&id)).unwrap_or(now)))
}

/// Live output from some piece on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pieces {
    /// In the order in which they came.
    pub(crate) pieces: Vec<OutputChunk>,
    /// To ask with the next time.
    pub(crate) next: usize,
    /// Once the job has ended: how many bytes it wrote.
    pub(crate) total: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    #[serde(default)]
    from: usize,
    #[serde(default)]
    wait: u64,
    /// That the job has ended is no news.
    #[serde(default)]
    ended: bool,
}

pub(super) async fn output(
    State(core): State<Shared>,
    Path(id): Path<String>,
    Query(From { from, wait, ended }): Query<From>,
) -> Result<Json<Pieces>, Refusal> {
    let path = streams::file(&core.settings.dir, &id);
    let mut came = core.streams.watch();
    let end = Instant::now() + Duration::from_secs(wait.min(MAX_WAIT_SECONDS));
    loop {
        let job = core.job(&id).ok_or_else(|| unknown_job(&id))?;
        came.borrow_and_update();
        let pieces = core.streams.pieces(&path, from).await.map_err(HubError::file(&path))?;
        let news = !pieces.is_empty() || (job.ended && !ended);
        if news || Instant::now() >= end || core.stop.is_cancelled() {
            let next = from + pieces.len();
            return Ok(Json(Pieces { pieces, next, total: job.ended.then(|| job.written()) }));
        }
        let over = |state: &HubState| {
            state.jobs.get(&id).filter(|job| job.has_ended() && !ended).map(|_| ())
        };
        tokio::select! {
            _ = came.changed() => {}
            () = core.await_state(over) => {}
            () = tokio::time::sleep_until(end) => {}
            () = core.stop.cancelled() => {}
        }
    }
}

pub(super) async fn cancel(
    State(core): State<Shared>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<JobView>, Refusal> {
    core.cancel(&id, read(&body)?).await?;
    core.job(&id).map(Json).ok_or_else(|| unknown_job(&id).into())
}

pub(super) async fn artifact(
    State(core): State<Shared>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    artifacts::serve(&core, hash(&sha256)?, &headers).await
}

pub(super) async fn put_artifact(
    State(core): State<Shared>,
    Path(sha256): Path<String>,
    body: Body,
) -> Result<Json<Artifact>, Refusal> {
    let (expected, failed) = (hash(&sha256)?, |e: std::io::Error| {
        Refusal::new(StatusCode::BAD_REQUEST, "BODY_CUT", format!("the upload broke off: {e}"))
    });
    let path = core.settings.dir.join("uploads").join(format!("{expected}.part"));
    let mut upload = core.uploads.take(path.clone()).await.map_err(failed)?;
    upload.discard().await.map_err(failed)?;
    let room = artifacts::MAX_ARTIFACT_BYTES;
    upload.append(body.into_data_stream(), room).await.map_err(failed)?;
    if upload.hash() != expected {
        upload.discard().await.map_err(failed)?;
        let why = format!("what came does not have the hash {expected}");
        return Err(Refusal::unprocessable("HASH_MISMATCH", why));
    }
    let kept = upload.keep(&artifacts::folder(&core)).await.map_err(failed)?;
    core.uploads.forget(&path);
    Ok(Json(kept))
}

pub(super) async fn policy(State(core): State<Shared>) -> Json<CurrentPolicy> {
    let inner = core.lock();
    let newest = inner.state.policies.back();
    Json(CurrentPolicy {
        version: newest.map_or(0, |p| p.version),
        envelope: newest.map(|p| p.envelope.clone()),
    })
}

pub(super) async fn publish_policy(
    State(core): State<Shared>,
    body: Bytes,
) -> Result<Json<Version>, Refusal> {
    Ok(Json(Version { version: core.publish_policy(read(&body)?).await? }))
}

pub(super) async fn publish_root(
    State(core): State<Shared>,
    body: Bytes,
) -> Result<Json<Version>, Refusal> {
    Ok(Json(Version { version: core.publish_root(read(&body)?).await? }))
}

pub(super) async fn authorities(State(core): State<Shared>) -> Json<Vec<AuthorityView>> {
    Json(core.authorities.views())
}

pub(super) async fn turn(
    State(core): State<Shared>,
    body: Bytes,
) -> Result<Json<Vec<AuthorityView>>, Refusal> {
    let Turn { step } = read(&body)?;
    handle::turn(&core, step).await?;
    Ok(Json(core.authorities.views()))
}

pub(super) async fn judge(State(core): State<Shared>, body: Bytes) -> Result<StatusCode, Refusal> {
    let Judge { agent_id, standing } = read(&body)?;
    handle::judge(&core, &agent_id, standing).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn rule(State(core): State<Shared>, body: Bytes) -> Result<StatusCode, Refusal> {
    let Rule { rule } = read(&body)?;
    let seq = core.record(&mut core.lock(), Event::OldCertificatesSet { rule });
    core.durable(seq).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn faults(State(core): State<Shared>) -> Json<Vec<Fault>> {
    Json(core.faults.list())
}

pub(super) async fn fault(State(core): State<Shared>, body: Bytes) -> Result<StatusCode, Refusal> {
    let fault: Fault = read(&body)?;
    let signed = matches!(fault.route, Route::Policy | Route::Jobs | Route::Root);
    if fault.kind == Kind::Expired && signed && fault.document.is_none() {
        let why = "the server cannot sign; hand in an expired document with the fault";
        return Err(Refusal::unprocessable("DOCUMENT", why));
    }
    core.faults.set(fault)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn clear_faults(State(core): State<Shared>) -> StatusCode {
    core.faults.clear();
    StatusCode::NO_CONTENT
}

pub(super) async fn requests(
    State(core): State<Shared>,
    Query(filter): Query<Filter>,
) -> Json<Vec<Recorded>> {
    Json(core.recorder.list(&filter))
}

fn hash(text: &str) -> Result<Hash, HubError> {
    Hash::parse(text)
        .ok_or_else(|| HubError::refused("HASH", "an artifact is named by 64 lower hex digits"))
}
