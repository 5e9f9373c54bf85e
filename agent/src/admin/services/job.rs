//! `JobService`.

use std::{collections::VecDeque, time::Duration};

use futures_util::stream;
use jtnt_proto::admin::v1::{self as pb, JobState, job_service_server::JobService};
use tokio::{sync::broadcast, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::{Answer, Deps, Many, while_running};
use crate::{
    admin::{convert, error, guard::caller_of},
    domain::{ids::JobId, job::Entry},
    jobs::{CancelError, Jobs, Stream},
    store::Journal,
};

/// How often the output of a running job is looked at for who follows it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Bytes in one message of a log.
const CHUNK_BYTES: usize = 64 * 1024;

pub(super) struct Job(pub(super) Deps);

impl Job {
    fn journal(&self) -> &Journal {
        &self.0.overview.sources().journal
    }

    pub(super) fn find(&self, id: &str) -> Result<(JobId, Entry), Status> {
        let id = JobId::try_from(id).map_err(|e| error::invalid(format!("{id:?}: {e}")))?;
        let found = self.journal().get(&id).map_err(error::store)?;
        let entry = found.ok_or_else(|| {
            let why =
                format!("no job {id} in the journal; `jtntctl jobs list` shows what there is");
            error::not_found("UNKNOWN_JOB", why)
        })?;
        Ok((id, entry))
    }
}

#[tonic::async_trait]
impl JobService for Job {
    type ReadLogsStream = Many<pb::ReadLogsResponse>;
    type WatchJobsStream = Many<pb::WatchJobsResponse>;

    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Answer<pb::ListJobsResponse> {
        let pb::ListJobsRequest { limit, state } = request.into_inner();
        let wanted = JobState::try_from(state)
            .map_err(|e| error::invalid(format!("job state {state}: {e}")))?;
        let limit = match usize::try_from(limit).unwrap_or(MAX_PAGE) {
            0 => DEFAULT_PAGE,
            limit => limit.min(MAX_PAGE),
        };
        let keep = |state| convert::wanted_state(wanted, state);
        let found = self.journal().recent(limit, &keep).map_err(error::store)?;
        let jobs = found.iter().map(convert::job).collect();
        Ok(Response::new(pb::ListJobsResponse { jobs }))
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Answer<pb::GetJobResponse> {
        let (id, entry) = self.find(&request.into_inner().job_id)?;
        let [out, err] = self.0.jobs.kept_output(&id).await.map_err(error::store)?;
        let job = pb::Job {
            stdout_kept_bytes: Some(out),
            stderr_kept_bytes: Some(err),
            ..convert::job(&entry)
        };
        Ok(Response::new(pb::GetJobResponse { job: Some(job) }))
    }

    async fn read_logs(
        &self,
        request: Request<pb::ReadLogsRequest>,
    ) -> Answer<Self::ReadLogsStream> {
        let pb::ReadLogsRequest { job_id, follow } = request.into_inner();
        let (id, _) = self.find(&job_id)?;
        let end = if follow { self.0.jobs.end_of(&id) } else { None };
        let log = Log { jobs: self.0.jobs.clone(), id, end, next: [0, 0], turn: 0, idle: 0 };
        let all = stream::try_unfold(log, |mut log| async move {
            Ok(log.next().await?.map(|part| (part, log)))
        });
        Ok(Response::new(while_running(&self.0, all)))
    }

    async fn cancel_job(
        &self,
        request: Request<pb::CancelJobRequest>,
    ) -> Answer<pb::CancelJobResponse> {
        let caller = caller_of(&request);
        let (id, entry) = self.find(&request.into_inner().job_id)?;
        let before = convert::state(entry.state).into();
        let state = self.0.jobs.cancel(&id, caller).await.map_err(|refused| {
            let (code, reason) = match &refused {
                CancelError::Unknown(_) => (Code::NotFound, "UNKNOWN_JOB"),
                CancelError::Ended(..) => (Code::FailedPrecondition, "JOB_ENDED"),
                CancelError::Store(_) => (Code::Internal, "JOURNAL"),
            };
            error::status(code, reason, refused.to_string())
        })?;
        Ok(Response::new(pb::CancelJobResponse { state: convert::state(state).into(), before }))
    }

    async fn watch_jobs(&self, _: Request<pb::WatchJobsRequest>) -> Answer<Self::WatchJobsStream> {
        // Changes are heard before the list is read, so that none is missed in between.
        let changes = self.journal().changes();
        let mut first = self.journal().recent(DEFAULT_PAGE, &|_| true).map_err(error::store)?;
        first.reverse();
        let state = (VecDeque::from(first), changes);
        let all = stream::try_unfold(state, |(mut first, mut changes)| async {
            let entry = match first.pop_front() {
                Some(entry) => entry,
                None => match changes.recv().await {
                    Ok(entry) => entry,
                    Err(broadcast::error::RecvError::Closed) => return Ok(None),
                    Err(broadcast::error::RecvError::Lagged(lost)) => {
                        let why = format!("too slow a reader: {lost} changes were lost; ask again");
                        return Err(error::status(Code::DataLoss, "LAGGED", why));
                    }
                },
            };
            let job = Some(convert::job(&entry));
            Ok(Some((pb::WatchJobsResponse { job }, (first, changes))))
        });
        Ok(Response::new(while_running(&self.0, all)))
    }
}

const STREAMS: [(Stream, pb::Stream); 2] =
    [(Stream::Stdout, pb::Stream::Stdout), (Stream::Stderr, pb::Stream::Stderr)];

/// Where a reader of a job's output stands.
struct Log {
    jobs: Jobs,
    id: JobId,
    /// Cancelled at the end of a job that runs; `None` when there is nothing to wait for.
    end: Option<CancellationToken>,
    next: [u64; 2],
    turn: usize,
    /// Streams in a row that had nothing.
    idle: usize,
}

impl Log {
    async fn next(&mut self) -> Result<Option<pb::ReadLogsResponse>, Status> {
        loop {
            if self.idle >= STREAMS.len() {
                let Some(end) = &self.end else { return Ok(None) };
                // Somebody else writes the output, so it is looked at again, as `tail -f` does.
                if timeout(LOOK_AGAIN, end.cancelled()).await.is_ok() {
                    // What it wrote at the end is read once more.
                    self.end = None;
                }
                self.idle = 0;
            }
            let turn = self.turn % STREAMS.len();
            let (Some((stream, name)), Some(at)) = (STREAMS.get(turn), self.next.get_mut(turn))
            else {
                return Ok(None);
            };
            let read = self.jobs.read_output(&self.id, *stream, *at, CHUNK_BYTES).await;
            let part = read.map_err(error::store)?;
            if part.data.is_empty() {
                self.turn += 1;
                self.idle += 1;
                continue;
            }
            self.idle = 0;
            let offset = part.offset;
            *at = offset + part.data.len() as u64;
            let (stream, data) = (i32::from(*name), part.data);
            return Ok(Some(pb::ReadLogsResponse { stream, data, offset }));
        }
    }
}
