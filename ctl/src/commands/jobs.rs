//! `jobs`.

use jtnt_proto::admin::v1 as pb;
use tonic::transport::Channel;

use super::show;
use crate::{
    Exit, Failure,
    cli::{Jobs, State},
    output::{escape, job as view, json},
    run::{Outcome, Session, wait},
};

type Client = pb::job_service_client::JobServiceClient<Channel>;

impl From<State> for pb::JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Ok => Self::Ok,
            State::Failed => Self::Failed,
            State::Timeout => Self::Timeout,
            State::Cancelled => Self::Cancelled,
            State::Interrupted => Self::Interrupted,
            State::Indeterminate => Self::Indeterminate,
            State::Rejected => Self::Rejected,
        }
    }
}

pub(super) async fn run(session: &mut Session<'_>, command: Jobs) -> Outcome {
    let client = Client::new(session.channel()?);
    let advise = |failure: Failure| match failure.exit {
        Exit::No => failure.advise("`jtntctl jobs list` shows the jobs this agent knows"),
        Exit::Done
        | Exit::Usage
        | Exit::Unreachable
        | Exit::Denied
        | Exit::Incomplete
        | Exit::Io => failure,
    };
    match command {
        Jobs::List { recent, state } => list(session, client, recent, state).await,
        Jobs::Show { id } => {
            let what = format!("show job {id}");
            let answer = get(session, client, what.clone(), id).await.map_err(advise)?;
            let job = answer
                .job
                .ok_or_else(|| Failure::new(Exit::Io, what, "the daemon sent an empty answer"))?;
            let now = (session.io.now)();
            show(session, &view::Job::from(&job), |color| view::show(&job, now, color))?;
            Ok(Exit::Done)
        }
        Jobs::Logs { id, follow } => logs(session, client, id, follow, advise).await,
        Jobs::Cancel { id } => cancel(session, client, id, advise).await,
    }
}

async fn list(
    session: &mut Session<'_>,
    mut client: Client,
    recent: u32,
    state: Option<State>,
) -> Outcome {
    let state = state.map_or(pb::JobState::Unspecified, pb::JobState::from).into();
    let request = session.ask(pb::ListJobsRequest { limit: recent, state });
    let answer = session.call("list jobs", client.list_jobs(request)).await?;
    let now = (session.io.now)();
    let json = view::List { jobs: answer.jobs.iter().map(view::Job::from).collect() };
    show(session, &json, |color| view::list(&answer.jobs, now, color))?;
    Ok(Exit::Done)
}

async fn get(
    session: &Session<'_>,
    mut client: Client,
    what: String,
    job_id: String,
) -> Result<pb::GetJobResponse, Failure> {
    let request = session.ask(pb::GetJobRequest { job_id });
    session.call(&what, client.get_job(request)).await
}

async fn logs(
    session: &mut Session<'_>,
    mut client: Client,
    job_id: String,
    follow: bool,
    advise: impl Fn(Failure) -> Failure,
) -> Outcome {
    let what = format!("read the output of job {job_id}");
    let request = pb::ReadLogsRequest { job_id: job_id.clone(), follow };
    let mut stream = session.call(&what, client.read_logs(request)).await.map_err(&advise)?;
    let mut kept = Kept::default();
    let mut harmless = [escape::Stream::default(), escape::Stream::default()];
    loop {
        let next = if follow {
            wait(&what, &mut stream).await
        } else {
            session.next(&what, &mut stream).await
        };
        let Some(chunk) = next.map_err(&advise)? else { break };
        kept.add(&chunk);
        if session.json {
            json::item(session, &view::Chunk::from(&chunk))?;
        } else {
            print(session, &chunk, &mut harmless)?;
        }
    }
    let [mut out, mut err] = harmless;
    session.io.print(out.finish().as_bytes())?;
    session.io.complain(err.finish().as_bytes())?;
    let answer = get(session, client, what, job_id).await.map_err(&advise)?;
    for (reason, message) in answer.job.iter().flat_map(|job| kept.missing(job)) {
        note(session, reason, &message)?;
    }
    Ok(Exit::Done)
}

/// Said beside an answer, not instead of it.
fn note(session: &mut Session<'_>, reason: &str, message: &str) -> Outcome<()> {
    let text = if session.json {
        format!("{}\n", serde_json::json!({ "note": { "reason": reason, "message": message } }))
    } else {
        format!("note: {message}\n")
    };
    Ok(session.io.complain(text.as_bytes())?)
}

/// Bytes of either stream that came.
#[derive(Default)]
struct Kept {
    stdout: u64,
    stderr: u64,
}

impl Kept {
    fn add(&mut self, chunk: &pb::ReadLogsResponse) {
        let stream = match chunk.stream() {
            pb::Stream::Stderr => &mut self.stderr,
            pb::Stream::Stdout | pb::Stream::Unspecified => &mut self.stdout,
        };
        *stream += chunk.data.len() as u64;
    }

    /// What the job wrote and is not here, as reason and message; a job that has not ended is
    /// still counted.
    fn missing(&self, job: &pb::Job) -> Vec<(&'static str, String)> {
        if matches!(job.state(), pb::JobState::Queued | pb::JobState::Running) {
            return Vec::new();
        }
        let wrote = job.stdout_bytes + job.stderr_bytes;
        if wrote > 0 && self.stdout + self.stderr == 0 {
            let why = if job.delivered {
                "were cleaned once the hub had the result"
            } else {
                "could not be kept"
            };
            return vec![("OUTPUT_GONE", format!("the job wrote {wrote} bytes, which {why}"))];
        }
        let streams =
            [("stdout", self.stdout, job.stdout_bytes), ("stderr", self.stderr, job.stderr_bytes)];
        let cut = streams.into_iter().filter(|(_, kept, wrote)| kept < wrote);
        cut.map(|(name, kept, wrote)| {
            let text = format!("{name}: {kept} of {wrote} bytes kept; the middle was cut");
            ("OUTPUT_CUT", text)
        })
        .collect()
    }
}

/// Bytes as they are for a file or a pipe; made harmless for a terminal.
fn print(
    session: &mut Session<'_>,
    chunk: &pb::ReadLogsResponse,
    [out, err]: &mut [escape::Stream; 2],
) -> Outcome<()> {
    let io = &mut *session.io;
    match (chunk.stream() == pb::Stream::Stderr, io.out_is_terminal, io.err_is_terminal) {
        (false, false, _) => io.print(&chunk.data)?,
        (false, true, _) => io.print(out.push(&chunk.data).as_bytes())?,
        (true, _, false) => io.complain(&chunk.data)?,
        (true, _, true) => io.complain(err.push(&chunk.data).as_bytes())?,
    }
    Ok(())
}

async fn cancel(
    session: &mut Session<'_>,
    mut client: Client,
    id: String,
    advise: impl Fn(Failure) -> Failure,
) -> Outcome {
    let what = format!("cancel job {id}");
    let request = session.ask(pb::CancelJobRequest { job_id: id.clone() });
    let answer = session.call(&what, client.cancel_job(request)).await.map_err(advise)?;
    let (state, before) = (view::state(answer.state()), view::state(answer.before()));
    let json = view::Cancelled { job_id: &id, state, before };
    show(session, &json, |_| view::cancelled(&id, answer))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kept: [u64; 2], wrote: [u64; 2], delivered: bool, state: pb::JobState) -> String {
        let [stdout_bytes, stderr_bytes] = wrote;
        let job = pb::Job {
            stdout_bytes,
            stderr_bytes,
            delivered,
            state: state.into(),
            ..pb::Job::default()
        };
        let [stdout, stderr] = kept;
        let said = Kept { stdout, stderr }.missing(&job);
        said.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn what_a_job_wrote_and_is_not_here_is_told() {
        let ok = pb::JobState::Ok;
        assert_eq!(said([3, 0], [3, 0], true, ok), "");
        assert_eq!(said([0, 0], [0, 0], true, ok), "");
        assert_eq!(said([3, 1], [9, 1], true, ok), "stdout: 3 of 9 bytes kept; the middle was cut");
        assert!(said([0, 0], [9, 1], true, ok).contains("wrote 10 bytes, which were cleaned"));
        assert!(said([0, 0], [9, 1], false, ok).contains("could not be kept"));
        assert_eq!(said([3, 0], [9, 0], false, pb::JobState::Running), "");
    }
}
