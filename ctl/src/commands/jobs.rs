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
    let request = pb::ReadLogsRequest { job_id, follow };
    let mut stream = session.call(&what, client.read_logs(request)).await.map_err(&advise)?;
    let mut harmless = [escape::Stream::default(), escape::Stream::default()];
    loop {
        let next = if follow {
            wait(&what, &mut stream).await
        } else {
            session.next(&what, &mut stream).await
        };
        let Some(chunk) = next.map_err(&advise)? else { break };
        if session.json {
            json::item(session, &view::Chunk::from(&chunk))?;
        } else {
            print(session, &chunk, &mut harmless)?;
        }
    }
    let [mut out, mut err] = harmless;
    session.io.print(out.finish().as_bytes())?;
    session.io.complain(err.finish().as_bytes())?;
    Ok(Exit::Done)
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
