//! Programs and scripts: what they are started with, and their supervision to the end.

use std::{collections::BTreeMap, io, os::fd::AsRawFd as _, sync::Arc, time::Duration};

use jtnt_proto::{
    hub::{JobStatusState, Outcome},
    job::{Exec, Script},
};
use tokio::time::{sleep, timeout};

use super::{
    core::Core,
    download,
    output::{Sink, Stream, pump},
    report::Report,
    runner::{Context, Ended},
};
use crate::{
    domain::job::{Entry, State},
    gate::Program,
    platform::process::{self, Exit, JOB_VARIABLE, Launch, LaunchError, Leader, Running},
};

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a pipe may stay open after the group was killed: somebody left the session with it.
const DRAIN: Duration = Duration::from_secs(1);
/// A job that is shorter than this is over before the hub would hear that it runs.
const NEWS_AFTER: Duration = Duration::from_millis(250);
/// A job that is shorter than this is over before the journal would know its process. If the agent
/// dies meanwhile, the next start finds the process by its environment, as it must for one that was
/// started a moment before.
const RECORD_AFTER: Duration = Duration::from_millis(25);

pub(super) fn of_exec(context: &Context, entry: &Entry, exec: &Exec, program: Program) -> Launch {
    Launch {
        program: program.file,
        copy: program.copy,
        argv0: program.canonical,
        args: exec.args.clone(),
        env: environment(context, entry, &exec.env),
        cwd: exec.cwd.clone().unwrap_or_else(|| "/".to_owned()),
        account: context.identity.account.clone(),
        keep: None,
        file_bytes: context.file_bytes,
    }
}

/// Fetches the script into memory that nobody can change. The interpreter reads it by its
/// descriptor, so no folder of the agent's has to be opened for the job's user.
pub(super) async fn of_script(
    context: &Arc<Context>,
    entry: &Entry,
    script: &Script,
    program: Program,
) -> Result<Launch, Ended> {
    let fetch = async {
        let content = download::fetch(context, script.content).await?;
        process::sealed("jtnt-script", &content)
            .map_err(|e| Ended::failed("SCRIPT_COPY", format!("no memory for the script: {e}")))
    };
    let copy = tokio::select! {
        copy = fetch => copy?,
        () = sleep(context.timeout) => return Err(Ended::timed_out(context.timeout)),
        () = context.live.cancel.cancelled() => return Err(Ended::cancelled()),
        () = context.stop.cancelled() => return Err(Ended::stopped()),
    };
    let mut args = vec![format!("/proc/self/fd/{}", copy.as_raw_fd())];
    args.extend(script.args.iter().cloned());
    Ok(Launch {
        program: program.file,
        copy: program.copy,
        argv0: program.canonical,
        args,
        env: environment(context, entry, &script.env),
        cwd: script.cwd.clone().unwrap_or_else(|| "/".to_owned()),
        account: context.identity.account.clone(),
        keep: Some(copy),
        file_bytes: context.file_bytes,
    })
}

/// Nothing of the agent's own environment; what the policy let the job ask for goes on top.
fn environment(
    context: &Context,
    entry: &Entry,
    asked: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let account = &context.identity.account;
    let home = account.home.to_string_lossy().into_owned();
    let base = [
        ("PATH", PATH.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("HOME", home),
        ("USER", account.name.clone()),
        ("LOGNAME", account.name.clone()),
    ];
    let mut env: BTreeMap<_, _> = base.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    env.extend(asked.clone());
    env.insert(JOB_VARIABLE.to_owned(), entry.job_id.to_string());
    env
}

/// Starts a process and stays with it to its end.
pub(super) async fn run(context: &Arc<Context>, entry: &mut Entry, launch: Launch) -> Ended {
    let launcher = Arc::clone(&context.core.deps.launcher);
    let launched = tokio::task::spawn_blocking(move || launcher.launch(launch)).await;
    let running = match launched {
        Ok(Ok(running)) => running,
        Ok(Err(error)) => return Ended::failed(reason_of(&error), error.to_string()),
        Err(error) => return Ended::failed("CANNOT_START", error.to_string()),
    };
    let dir = context.core.job_dir(&entry.job_id);
    let sinks = [Stream::Stdout, Stream::Stderr].map(|s| Sink::new(&dir, s, context.output_bytes));
    let [stdout, stderr] = &sinks;
    let mut ended =
        supervise(context, entry, running, [Arc::clone(stdout), Arc::clone(stderr)]).await;
    let finish = move || sinks.map(|sink| Sink::finish(&sink));
    if let Ok([(out_bytes, out), (err_bytes, err)]) = tokio::task::spawn_blocking(finish).await {
        (entry.stdout_bytes, entry.stderr_bytes) = (out_bytes, err_bytes);
        (ended.stdout, ended.stderr) = (out, err);
    }
    ended
}

const fn reason_of(error: &LaunchError) -> &'static str {
    match error {
        LaunchError::Unreachable { .. } => "PROGRAM_UNREACHABLE",
        LaunchError::Cwd { .. } => "CWD_UNAVAILABLE",
        LaunchError::Start { .. } => "CANNOT_START",
    }
}

type Sinks = [Arc<std::sync::Mutex<Sink>>; 2];

async fn supervise(
    context: &Context,
    entry: &mut Entry,
    running: Running,
    [stdout, stderr]: Sinks,
) -> Ended {
    let Running { process, stdout: out, stderr: err, mut leader } = running;
    entry.state = State::Running;
    entry.process = Some(process);
    let readers = async {
        let (out, err) = tokio::join!(
            pump(out, stdout, context.output.clone()),
            pump(err, stderr, context.output.clone()),
        );
        for error in [out, err].into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "a job's output was cut short");
        }
    };
    tokio::pin!(readers);
    let mut drained = false;
    let why = {
        let end = until_end(context, entry, &leader);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut readers, if !drained => drained = true,
                why = &mut end => break why,
            }
        }
    };
    if !matches!(why, Why::Ended) {
        leader.terminate();
        let grace = timeout(context.core.config.grace, leader.ended());
        tokio::pin!(grace);
        loop {
            tokio::select! {
                () = &mut readers, if !drained => drained = true,
                _in_time = &mut grace => break,
            }
        }
    }
    let exit = leader.reap();
    if !drained && timeout(DRAIN, &mut readers).await.is_err() {
        tracing::warn!(job_id = %entry.job_id, "somebody beyond the job's session holds its output");
    }
    conclusion(context, why, exit)
}

/// Why supervision came to its end.
#[derive(Debug)]
enum Why {
    Ended,
    Timeout,
    Cancelled,
    Stopped,
    CannotRecord(String),
    Lost(io::Error),
}

/// Waits for the first of all that can end a job. Meanwhile makes it durable which process it is:
/// one that nobody could find after a crash must not go on.
async fn until_end(context: &Context, entry: &Entry, leader: &Leader) -> Why {
    let recorded = context.core.deps.journal.update(entry.clone());
    let ended = async {
        match leader.ended().await {
            Ok(()) => Why::Ended,
            Err(error) => Why::Lost(error),
        }
    };
    let outside = async {
        tokio::select! {
            () = sleep(context.timeout) => Why::Timeout,
            () = context.live.cancel.cancelled() => Why::Cancelled,
            () = context.stop.cancelled() => Why::Stopped,
        }
    };
    let first = async {
        tokio::select! {
            why = ended => why,
            why = outside => why,
            never = news(&context.core, entry) => match never {},
        }
    };
    tokio::pin!(first);
    tokio::pin!(recorded);
    tokio::select! {
        why = &mut first => return why,
        () = sleep(RECORD_AFTER) => {}
    }
    // From here on the record is awaited, or it could arrive after the record of the end.
    tokio::select! {
        why = &mut first => match recorded.await {
            Ok(()) => why,
            Err(error) => Why::CannotRecord(error.to_string()),
        },
        recorded = &mut recorded => match recorded {
            Ok(()) => first.await,
            Err(error) => Why::CannotRecord(error.to_string()),
        },
    }
}

async fn news(core: &Core, entry: &Entry) -> std::convert::Infallible {
    sleep(NEWS_AFTER).await;
    core.report(Report::of(entry, JobStatusState::Running, core.deps.clock.now()));
    std::future::pending().await
}

fn conclusion(context: &Context, why: Why, exit: io::Result<Exit>) -> Ended {
    let exit = match exit {
        Ok(exit) => exit,
        Err(error) => return Ended::because(Outcome::Indeterminate, "NO_EXIT", error.to_string()),
    };
    let ended = match why {
        Why::Ended => by_itself(exit),
        Why::Timeout => Ended::timed_out(context.timeout),
        Why::Cancelled => Ended::cancelled(),
        Why::Stopped => Ended::stopped(),
        Why::CannotRecord(error) => Ended::failed(
            crate::domain::job::Reject::CannotRecord.name(),
            format!("ended at once, since it could not be recorded that it runs: {error}"),
        ),
        Why::Lost(error) => Ended::failed("SUPERVISION_LOST", error.to_string()),
    };
    Ended { exit_code: exit.code, signal: exit.signal, ..ended }
}

fn by_itself(exit: Exit) -> Ended {
    match (exit.code, exit.signal) {
        (Some(0), _) => Ended::of(Outcome::Ok),
        (Some(code), _) => Ended::failed("EXIT_CODE", format!("exit code {code}")),
        (None, Some(signal)) => Ended::failed("SIGNAL", format!("ended by signal {signal}")),
        (None, None) => Ended::failed("NO_EXIT", "ended without exit code or signal"),
    }
}
