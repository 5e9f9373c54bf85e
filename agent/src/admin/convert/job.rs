//! Jobs.

use std::time::Duration;

use jtnt_proto::{
    admin::v1::{self as pb, JobState},
    hub::Outcome,
};

use super::{duration, time};
use crate::domain::job::{Entry, State};

pub(in crate::admin) fn state(state: State) -> JobState {
    match state {
        State::Queued => JobState::Queued,
        State::Starting | State::Running => JobState::Running,
        State::Finished(Outcome::Ok) => JobState::Ok,
        State::Finished(Outcome::Failed) => JobState::Failed,
        State::Finished(Outcome::Timeout) => JobState::Timeout,
        State::Finished(Outcome::Cancelled) => JobState::Cancelled,
        State::Finished(Outcome::Interrupted) => JobState::Interrupted,
        State::Finished(Outcome::Indeterminate) => JobState::Indeterminate,
        State::Rejected => JobState::Rejected,
    }
}

/// Whether a list for `wanted` has jobs in this state; `Unspecified` wants all.
pub(in crate::admin) fn wanted_state(wanted: JobState, found: State) -> bool {
    wanted == JobState::Unspecified || wanted == state(found)
}

pub(in crate::admin) fn job(entry: &Entry) -> pb::Job {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    pb::Job {
        job_id: entry.job_id.to_string(),
        r#type: entry.kind.clone(),
        state: state(entry.state).into(),
        command: entry.command.clone(),
        user: text(&entry.user),
        received_at: Some(time(entry.received_at)),
        started_at: entry.started_at.map(time),
        finished_at: entry.finished_at.map(time),
        duration: entry.duration_ms.map(|ms| duration(Duration::from_millis(ms))),
        exit_code: entry.exit_code,
        signal: entry.signal,
        reason: text(&entry.reason),
        message: text(&entry.message),
        rule: text(&entry.rule),
        policy_version: entry.policy_version,
        enforcement: text(&entry.enforcement),
        delivered: entry.delivered,
        attempt: entry.attempt,
        stdout_bytes: entry.stdout_bytes,
        stderr_bytes: entry.stderr_bytes,
        expires_at: Some(time(entry.expires_at)),
        stdout_kept_bytes: None,
        stderr_kept_bytes: None,
        output_pending_bytes: entry.bytes_to_follow(),
        output_dropped: text(&entry.dropped),
    }
}
