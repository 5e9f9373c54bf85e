//! The output of a job: as it comes, and, where it is too large for a result, from the artifacts
//! that follow it.

use std::collections::BTreeMap;

use jtnt_proto::{
    bytes::Base64,
    hub::{Output, OutputPart, OutputStream},
};

use super::{Desk, output::Live};
use crate::{control::Pieces, error::HubError, view::JobView};

/// How long a request waits for news, in seconds.
const WAIT_SECONDS: u64 = 20;
/// How often what an agent still owes after a job's end is waited for.
const LAST_ROUNDS: u32 = 3;
/// What is put together in memory of one stream.
const MAX_WHOLE_BYTES: u64 = 64 << 20;

/// Prints output as it comes, until the job has ended; returns how many bytes of each stream that
/// were.
pub(super) async fn follow(
    desk: &Desk<'_>,
    id: &str,
) -> Result<BTreeMap<OutputStream, u64>, HubError> {
    let (mut from, mut rounds, mut written) = (0, 0, None);
    let (mut printed, mut live) = (BTreeMap::new(), Live::default());
    let mut open = vec![OutputStream::Stdout, OutputStream::Stderr];
    let all = |printed: &BTreeMap<_, u64>| printed.values().sum::<u64>();
    while !open.is_empty()
        && rounds < LAST_ROUNDS
        && written.is_none_or(|written| all(&printed) < written)
    {
        let ended = written.is_some();
        let query = format!("from={from}&wait={WAIT_SECONDS}&ended={ended}");
        let at = format!("/control/v1/jobs/{id}/output?{query}");
        let Pieces { pieces, next, total } = desk.client.get(&at).await?;
        rounds += u32::from(ended && pieces.is_empty());
        (from, written) = (next, total);
        for piece in pieces {
            *printed.entry(piece.stream).or_default() += piece.data.0.len() as u64;
            if piece.end {
                open.retain(|open| *open != piece.stream);
            }
            live.show(desk.output, piece)?;
        }
    }
    live.end(desk.output)?;
    Ok(printed)
}

/// The job with all that was kept of its output, where the agent sent more than a result holds.
pub(super) async fn whole(desk: &Desk<'_>, mut job: JobView) -> Result<JobView, HubError> {
    let outputs = job.result.iter().flat_map(|r| [r.stdout.as_ref(), r.stderr.as_ref()]).flatten();
    let names: Vec<_> = outputs.flat_map(|o| &o.parts).map(|part| part.name.clone()).collect();
    if names.is_empty() {
        return Ok(job);
    }
    let names = names.join(",");
    for _ in 0..LAST_ROUNDS {
        let at = format!("/control/v1/jobs/{}?wait={WAIT_SECONDS}&artifacts={names}", job.job_id);
        job = desk.client.get(&at).await?;
        if names.split(',').all(|name| job.artifacts.contains_key(name)) {
            break;
        }
    }
    with_parts(desk, job).await
}

/// The job with those parts of its output that are there.
pub(super) async fn with_parts(desk: &Desk<'_>, mut job: JobView) -> Result<JobView, HubError> {
    let Some(mut result) = job.result.take() else { return Ok(job) };
    for output in [&mut result.stdout, &mut result.stderr].into_iter().flatten() {
        put_together(desk, &job, output).await?;
    }
    job.result = Some(result);
    Ok(job)
}

async fn put_together(desk: &Desk<'_>, job: &JobView, output: &mut Output) -> Result<(), HubError> {
    let (head, tail) = match output.parts.as_slice() {
        [head] if head.offset == 0 => (head, None),
        [head, tail] if head.offset == 0 => (head, Some(tail)),
        _ => return Ok(()),
    };
    if head.size > MAX_WHOLE_BYTES {
        return Ok(());
    }
    let Some(first) = fetch(desk, job, head).await? else { return Ok(()) };
    let last = match tail {
        None => None,
        Some(tail) => match fetch(desk, job, tail).await? {
            None => return Ok(()),
            last => last,
        },
    };
    (output.head, output.tail) = (Base64(first), last.map(Base64));
    Ok(())
}

async fn fetch(
    desk: &Desk<'_>,
    job: &JobView,
    part: &OutputPart,
) -> Result<Option<Vec<u8>>, HubError> {
    let Some(artifact) = job.artifacts.get(&part.name).filter(|a| a.size == part.size) else {
        return Ok(None);
    };
    let at = format!("/control/v1/artifacts/{}", artifact.sha256);
    let body = http_body_util::Full::<bytes::Bytes>::default();
    desk.client.send(http::Method::GET, &at, body).await.map(|bytes| Some(bytes.to_vec()))
}
