//! Jobs.

use jiff::Timestamp;
use jtnt_proto::{admin::v1 as pb, bytes::to_base64};
use serde::Serialize;

use super::{
    escape::clean,
    json::{seconds, text, time},
    table::{Table, Tone, toned},
    time as human,
};

/// The JSON of one job.
#[derive(Debug, Serialize)]
pub(crate) struct Job<'a> {
    job_id: &'a str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    policy_version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforcement: Option<&'a str>,
    delivered: bool,
    attempt: u32,
    stdout_bytes: u64,
    stderr_bytes: u64,
    /// What the agent has of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_kept_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_kept_bytes: Option<u64>,
    /// What follows the result.
    output_pending_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dropped: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

/// The JSON of `jobs list`.
#[derive(Debug, Serialize)]
pub(crate) struct List<'a> {
    pub(crate) jobs: Vec<Job<'a>>,
}

/// The JSON of `jobs cancel`.
#[derive(Debug, Serialize)]
pub(crate) struct Cancelled<'a> {
    pub(crate) job_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<&'static str>,
    /// When the request came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<&'static str>,
}

/// What a request to call a job off has done.
pub(crate) fn cancelled(id: &str, c: pb::CancelJobResponse) -> String {
    let done = match (c.before(), c.state()) {
        (pb::JobState::Queued, pb::JobState::Cancelled) => "it waited, and will not start",
        (_, pb::JobState::Running) => "told to end",
        (pb::JobState::Cancelled, pb::JobState::Cancelled) => "has ended already (cancelled)",
        (_, state) => self::state(state).unwrap_or("unknown"),
    };
    format!("job {}: {done}\n", clean(id))
}

/// The JSON of one piece of `jobs logs`: `data` where the bytes are text, else `data_base64`.
#[derive(Debug, Serialize)]
pub(crate) struct Chunk<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'static str>,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

impl<'a> From<&'a pb::ReadLogsResponse> for Chunk<'a> {
    fn from(c: &'a pb::ReadLogsResponse) -> Self {
        let data = std::str::from_utf8(&c.data).ok();
        let stream = match c.stream() {
            pb::Stream::Unspecified => None,
            pb::Stream::Stdout => Some("stdout"),
            pb::Stream::Stderr => Some("stderr"),
        };
        let data_base64 = data.is_none().then(|| to_base64(&c.data));
        Self { stream, offset: c.offset, data, data_base64 }
    }
}

impl<'a> From<&'a pb::Job> for Job<'a> {
    fn from(j: &'a pb::Job) -> Self {
        Self {
            job_id: &j.job_id,
            kind: text(&j.r#type),
            state: state(j.state()),
            command: text(&j.command),
            user: text(&j.user),
            received_at: time(j.received_at.as_ref()),
            started_at: time(j.started_at.as_ref()),
            finished_at: time(j.finished_at.as_ref()),
            duration: seconds(j.duration.as_ref()),
            exit_code: j.exit_code,
            signal: j.signal,
            reason: text(&j.reason),
            message: text(&j.message),
            rule: text(&j.rule),
            policy_version: j.policy_version,
            enforcement: text(&j.enforcement),
            delivered: j.delivered,
            attempt: j.attempt,
            stdout_bytes: j.stdout_bytes,
            stderr_bytes: j.stderr_bytes,
            stdout_kept_bytes: j.stdout_kept_bytes,
            stderr_kept_bytes: j.stderr_kept_bytes,
            output_pending_bytes: j.output_pending_bytes,
            output_dropped: text(&j.output_dropped),
            expires_at: time(j.expires_at.as_ref()),
        }
    }
}

/// A state's name.
pub(crate) fn state(state: pb::JobState) -> Option<&'static str> {
    match state {
        pb::JobState::Unspecified => None,
        pb::JobState::Queued => Some("queued"),
        pb::JobState::Running => Some("running"),
        pb::JobState::Ok => Some("ok"),
        pb::JobState::Failed => Some("failed"),
        pb::JobState::Timeout => Some("timeout"),
        pb::JobState::Cancelled => Some("cancelled"),
        pb::JobState::Interrupted => Some("interrupted"),
        pb::JobState::Indeterminate => Some("indeterminate"),
        pb::JobState::Rejected => Some("rejected"),
    }
}

fn tone(state: pb::JobState) -> Tone {
    match state {
        pb::JobState::Ok => Tone::Good,
        pb::JobState::Unspecified | pb::JobState::Queued | pb::JobState::Running => Tone::Plain,
        pb::JobState::Cancelled | pb::JobState::Interrupted => Tone::Warn,
        pb::JobState::Failed
        | pb::JobState::Timeout
        | pb::JobState::Indeterminate
        | pb::JobState::Rejected => Tone::Bad,
    }
}

/// How a job ended, in a word.
fn ending(j: &Job<'_>) -> String {
    match (j.exit_code, j.signal, j.reason) {
        (_, Some(signal), _) => format!("signal {signal}"),
        (Some(code), None, _) => format!("exit {code}"),
        (None, None, Some(reason)) => reason.to_owned(),
        (None, None, None) => "-".to_owned(),
    }
}

pub(crate) fn list(jobs: &[pb::Job], now: Timestamp, color: bool) -> String {
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let mut table = Table::new(&[
        "JOB",
        "TYPE",
        "STATE",
        "ENDED BY",
        "TOOK",
        "RECEIVED",
        "HUB HAS IT",
        "COMMAND",
    ]);
    for job in jobs {
        let view = Job::from(job);
        table.row([
            view.job_id.into(),
            view.kind.unwrap_or("-").into(),
            toned(view.state.unwrap_or("unknown"), tone(job.state())),
            ending(&view).into(),
            view.duration.map_or_else(|| "-".to_owned(), human::duration).into(),
            human::when_or_dash(view.received_at, now).into(),
            (if view.delivered { "yes" } else { "no" }).into(),
            view.command.unwrap_or("-").into(),
        ]);
    }
    table.render(color)
}

pub(crate) fn show(job: &pb::Job, now: Timestamp, color: bool) -> String {
    let view = Job::from(job);
    let mut table = Table::bare();
    table.pair("Job", view.job_id);
    table.pair("State", toned(view.state.unwrap_or("unknown"), tone(job.state())));
    table.pair_if("Type", view.kind.unwrap_or_default());
    table.pair_if("Command", view.command.unwrap_or_default());
    table.pair_if("User", view.user.unwrap_or_default());
    if view.attempt > 1 {
        table.pair("Attempt", view.attempt.to_string());
    }
    table.pair("Ended by", ending(&view));
    table.pair_if("Reason", view.reason.unwrap_or_default());
    table.pair_if("Message", view.message.unwrap_or_default());
    for (name, at) in [
        ("Received", view.received_at),
        ("Started", view.started_at),
        ("Finished", view.finished_at),
        ("Expires", view.expires_at),
    ] {
        if let Some(at) = at {
            table.pair(name, human::when(at, now));
        }
    }
    if let Some(took) = view.duration {
        table.pair("Took", human::duration(took));
    }
    if view.policy_version > 0 {
        let rule = view.rule.map(|rule| format!(", rule {rule}")).unwrap_or_default();
        table.pair("Policy", format!("version {}{rule}", view.policy_version));
    }
    table.pair_if("Enforcement", view.enforcement.unwrap_or_default());
    let out = output(job.state(), view.stdout_bytes, view.stdout_kept_bytes);
    let err = output(job.state(), view.stderr_bytes, view.stderr_kept_bytes);
    table.pair("Output", format!("{out} stdout, {err} stderr"));
    if let Some(why) = view.output_dropped {
        let text = format!("of it the hub gets no more than its size ({why})");
        table.pair("", toned(text, Tone::Warn));
    }
    let has = match view.output_pending_bytes {
        _ if view.delivered => "yes".to_owned(),
        0 => "no".to_owned(),
        n => format!("not yet; {} of output go after the result", human::bytes(n)),
    };
    table.pair("Hub has it", has);
    table.render(color)
}

/// How much a stream has, and how much of it is still here.
fn output(state: pb::JobState, all: u64, kept: Option<u64>) -> String {
    match kept {
        Some(kept) if state == pb::JobState::Running => format!("{} so far", human::bytes(kept)),
        Some(0) if all > 0 => format!("{} (cleaned here)", human::bytes(all)),
        // Of a job whose end nobody wrote down.
        Some(kept) if kept > all => human::bytes(kept),
        Some(kept) if kept < all => {
            format!("{} ({} kept here)", human::bytes(all), human::bytes(kept))
        }
        _ => human::bytes(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_tells_what_is_still_here() {
        use pb::JobState::{Ok, Running};
        assert_eq!(output(Running, 0, Some(7)), "7 B so far");
        assert_eq!(output(Ok, 7, Some(7)), "7 B");
        assert_eq!(output(Ok, 4096, Some(1024)), "4.0 KiB (1.0 KiB kept here)");
        assert_eq!(output(Ok, 7, Some(0)), "7 B (cleaned here)");
        assert_eq!(output(Ok, 0, Some(0)), "0 B");
        assert_eq!(output(pb::JobState::Indeterminate, 0, Some(9)), "9 B");
        assert_eq!(output(Ok, 7, None), "7 B");
    }

    #[test]
    fn output_that_the_hub_has_not_whole_is_marked() {
        let job = pb::Job { output_pending_bytes: 300_000, ..pb::Job::default() };
        let shown = show(&job, Timestamp::UNIX_EPOCH, false);
        assert!(shown.contains("not yet; 293.0 KiB of output go after the result"), "{shown}");
        let output_dropped = "SPOOL_FULL".to_owned();
        let job = pb::Job { delivered: true, output_dropped, ..pb::Job::default() };
        let shown = show(&job, Timestamp::UNIX_EPOCH, false);
        assert!(shown.contains("no more than its size (SPOOL_FULL)"), "{shown}");
    }

    #[test]
    fn calling_off_says_what_has_happened() {
        use pb::JobState::{Cancelled, Queued, Running};
        for (before, state, said) in [
            (Queued, Cancelled, "job j: it waited, and will not start\n"),
            (Running, Running, "job j: told to end\n"),
            // It was taken to a worker meanwhile.
            (Queued, Running, "job j: told to end\n"),
            (Cancelled, Cancelled, "job j: has ended already (cancelled)\n"),
            (Running, Cancelled, "job j: cancelled\n"),
        ] {
            let answer = pb::CancelJobResponse { state: state.into(), before: before.into() };
            assert_eq!(cancelled("j", answer), said);
        }
    }
}
