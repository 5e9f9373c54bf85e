//! How a call that changes something ended: the line in the audit log that follows the one which
//! came before its effect, and names it. The caller has its answer once the line is durable.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use jtnt_proto::audit;
use tokio::{runtime::Handle, time::Instant};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;

use crate::{
    audit::{Audit, Record},
    runtime::tasks::{Class, Tasks},
};

/// Of what the caller was told.
const MAX_MESSAGE: usize = 512;

/// A call under way. One that nobody waits for any more is recorded as that.
#[derive(Debug)]
pub(super) struct Outcome {
    /// `None` once it was written.
    record: Option<Record>,
    began: Instant,
    audit: Audit,
    tasks: Tasks,
}

impl Outcome {
    /// Of the call that the line `seq` says has begun.
    pub(super) fn of(begun: Record, seq: u64, audit: Audit, tasks: Tasks) -> Self {
        let record = begun.detail("phase", "ended").detail("began", seq);
        Self { record: Some(record), began: Instant::now(), audit, tasks }
    }

    /// Records how the call ended: now where the answer's head tells it, else with the last of the
    /// answer's body.
    pub(super) async fn of_answer(mut self, answer: Response<Body>) -> Response<Body> {
        if let Some(status) = Status::from_header_map(answer.headers()) {
            self.write(&status).await;
            return answer;
        }
        let (head, body) = answer.into_parts();
        let frames = stream::unfold((Some(body), self), |(body, outcome)| async move {
            let mut body = body.filter(|body| !body.is_end_stream())?;
            let mut outcome = outcome;
            let frame = body.frame().await?;
            match &frame {
                Ok(frame) => {
                    if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                        outcome.write(&status).await;
                    }
                }
                Err(status) => outcome.write(status).await,
            }
            Some((frame, (Some(body), outcome)))
        });
        let frames: Frames = Box::pin(frames);
        Response::from_parts(head, Body::new(StreamBody::new(frames)))
    }

    async fn write(&mut self, status: &Status) {
        let Some(record) = self.take(status) else { return };
        if let Err(error) = self.audit.append(record).await {
            tracing::error!(%error, "the outcome of an admin call is not in the audit log");
        }
    }

    fn take(&mut self, status: &Status) -> Option<Record> {
        let took = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut record = self.record.take()?.detail("duration_ms", took);
        record.status = Some(ended(status.code()));
        if status.code() != Code::Ok {
            let message: String = status.message().chars().take(MAX_MESSAGE).collect();
            record =
                record.detail("code", format!("{:?}", status.code())).detail("message", message);
            if let Some(info) = status.get_details_error_info() {
                record = record.detail("reason", info.reason);
            }
        }
        Some(record)
    }
}

type Frames = Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, Status>> + Send>>;

impl Drop for Outcome {
    fn drop(&mut self) {
        let left = Status::cancelled("the caller left before the answer");
        // Without a runtime the process ends, and the line that it began is all there is.
        if let (Some(record), Ok(_)) = (self.take(&left), Handle::try_current()) {
            let audit = self.audit.clone();
            self.tasks.spawn("admin outcome", Class::OneShot, async move {
                if let Err(error) = audit.append(record).await {
                    tracing::error!(%error, "an admin call without an end in the audit log");
                }
            });
        }
    }
}

const fn ended(code: Code) -> audit::Status {
    match code {
        Code::Ok => audit::Status::Success,
        Code::DeadlineExceeded => audit::Status::Timeout,
        Code::Cancelled => audit::Status::Cancelled,
        Code::PermissionDenied | Code::Unauthenticated => audit::Status::Denied,
        Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => audit::Status::Error,
    }
}
