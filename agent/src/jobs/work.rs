//! Programs and scripts: what they are started with, and their supervision to the end.

use std::{collections::BTreeMap, fs::File, io, path::Path, sync::Arc, time::Duration};

use jtnt_proto::{
    hub::{JobStatusState, Outcome, Output},
    job::{Job, Script, SealedSecret, SecretDelivery, Work},
};
use tokio::time::{sleep, timeout};

use super::{
    core::Core,
    download,
    permit::Opened,
    report::Report,
    runner::{Context, Ended},
    transfer::{self, Load},
};
use crate::{
    domain::job::{Entry, Reject, State},
    gate::Program,
    platform::{
        process::{self, JOB_VARIABLE},
        sandbox::Plan,
    },
    shim::{
        self, Attempt, Cause, Exit, Left, Order, Prepared, Secret, Shim, Stream, Things, Unstarted,
    },
};

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// A shim that has not ended its job so long after it should have is ended itself.
const OVERDUE: Duration = Duration::from_secs(30);
/// A job that is shorter than this is over before the hub would hear that it runs.
const NEWS_AFTER: Duration = Duration::from_millis(250);
/// A job that is shorter than this is over before the journal would know its process. If the agent
/// dies meanwhile, the next start finds the job by its files all the same.
const RECORD_AFTER: Duration = Duration::from_millis(25);

/// Everything that a job needs is at hand. Nothing of it has begun.
#[derive(Debug)]
pub(super) enum Ready {
    /// A program, or a script's interpreter, waits for its word.
    Program(Box<Prepared>),
    /// So does whoever reads or writes a file.
    Transfer(Box<Load>),
    /// It cannot begin.
    Never(Box<Ended>),
    /// The agent stops.
    Stopped,
}

/// Gets everything ready. Dropped meanwhile, nothing of it stays.
pub(super) async fn ready(context: &Arc<Context>, job: &Job, opened: Option<Opened>) -> Ready {
    let secrets = match secrets(context, job) {
        Ok(secrets) => secrets,
        Err(why) => return Ready::Never(Box::new(Ended::failed("SECRET", why))),
    };
    match (&job.work, opened) {
        (Work::Exec(exec), Some(Opened::Program(program))) => {
            let order = told(context, &program, (&exec.args, &exec.env, exec.cwd.as_deref()));
            prepare(context, order, program, None, secrets).await
        }
        (Work::Script(script), Some(Opened::Program(program))) => {
            let fetched = tokio::select! {
                fetched = fetch(context, script) => fetched,
                () = sleep(context.timeout) => Err(Ended::timed_out(context.timeout)),
                () = context.live.cancel.cancelled() => Err(Ended::cancelled()),
                () = context.stop.cancelled() => return Ready::Stopped,
            };
            let parts = (&script.args[..], &script.env, script.cwd.as_deref());
            match fetched {
                Ok(copy) => {
                    let order = told(context, &program, parts);
                    prepare(context, order, program, Some(copy), secrets).await
                }
                Err(ended) => Ready::Never(Box::new(ended)),
            }
        }
        (Work::Download(asked), Some(Opened::Destination(to))) => {
            transfer::into(context, asked, to).await
        }
        (Work::Upload(_), Some(Opened::Source(from))) => transfer::from(context, from).await,
        _ => Ready::Never(Box::new(Ended::nothing_opened())),
    }
}

/// Fetches a script into memory that nobody can change.
async fn fetch(context: &Arc<Context>, script: &Script) -> Result<File, Ended> {
    let content = download::fetch(&context.core, script.content).await?;
    process::sealed("jtnt-script", &content)
        .map_err(|e| Ended::failed("SCRIPT_COPY", format!("no memory for the script: {e}")))
}

/// Opens the job's secrets, each into memory that nobody can change and that no list of files
/// names.
fn secrets(context: &Context, job: &Job) -> Result<Vec<(Secret, File)>, String> {
    if job.secrets.is_empty() {
        return Ok(Vec::new());
    }
    let Some(key) = context.core.deps.seal.borrow().clone() else {
        return Err("this agent has no key for secrets; enrol it again".to_owned());
    };
    let ids = (context.core.deps.agent_id.as_str(), job.job_id.as_str());
    let open = |sealed: &SealedSecret| {
        let file = process::sealed("jtnt-secret", &key.open(ids, sealed)?);
        let file = file.map_err(|e| format!("no memory for a secret: {e}"))?;
        let as_file = sealed.delivery == SecretDelivery::File;
        Ok((Secret { name: sealed.name.clone(), variable: sealed.variable(), as_file }, file))
    };
    job.secrets.iter().map(open).collect()
}

async fn prepare(
    context: &Context,
    mut order: Order,
    program: Program,
    script: Option<File>,
    secrets: Vec<(Secret, File)>,
) -> Ready {
    let (launcher, attempt) = (context.core.deps.launcher.clone(), context.attempt.clone());
    let (named, files): (Vec<_>, Vec<_>) = secrets.into_iter().unzip();
    order.secrets = named;
    let prepared = tokio::task::spawn_blocking(move || {
        let things = Things {
            copy: program.copy.as_ref(),
            script: script.as_ref(),
            secrets: &files,
            ..Things::only(&program.file)
        };
        let prepared = launcher.prepare(&order, things);
        prepared.inspect_err(|_| attempt.forget())
    });
    match prepared.await {
        Ok(Ok(prepared)) => Ready::Program(Box::new(prepared)),
        Ok(Err(unstarted)) => {
            Ready::Never(Box::new(Ended::failed(unstarted.reason(), unstarted.message)))
        }
        Err(error) => Ready::Never(Box::new(Ended::failed("CANNOT_START", error.to_string()))),
    }
}

/// What a program is to be told.
fn told(
    context: &Context,
    program: &Program,
    (args, env, cwd): (&[String], &BTreeMap<String, String>, Option<&str>),
) -> Order {
    Order {
        args: args.to_vec(),
        env: environment(context, env),
        cwd: cwd.unwrap_or("/").to_owned(),
        watch: context.watch.clone(),
        ..order(context, &program.canonical, &program.plan)
    }
}

/// What holds for every job.
pub(super) fn order(context: &Context, path: &str, plan: &Plan) -> Order {
    Order {
        attempt: context.attempt.clone(),
        argv0: path.to_owned(),
        args: Vec::new(),
        env: BTreeMap::new(),
        cwd: "/".to_owned(),
        account: context.identity.account.clone(),
        file_bytes: context.limits.file_bytes,
        plan: Plan { limits: context.limits, ..plan.clone() },
        output_bytes: context.output_bytes,
        secrets: Vec::new(),
        watch: None,
        transfer: None,
        timeout: context.timeout,
        grace: context.core.config.grace,
    }
}

/// Nothing of the agent's own environment; what the policy let the job ask for goes on top.
fn environment(context: &Context, asked: &BTreeMap<String, String>) -> BTreeMap<String, String> {
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
    env.insert(JOB_VARIABLE.to_owned(), context.attempt.job_id());
    env
}

/// Lets a program begin and stays with it to its end; `None` when the agent stops first, which is
/// no end of the job.
pub(super) async fn run(context: &Context, entry: &mut Entry, prepared: Prepared) -> Option<Ended> {
    match prepared.go() {
        Ok(shim) => supervise(context, entry, shim).await,
        Err(error) => {
            let unstarted = Unstarted::gone(&error);
            Some(Ended::failed(unstarted.reason(), unstarted.message))
        }
    }
}

/// Where the files of this run are.
pub(super) fn attempt_of(core: &Core, entry: &Entry) -> Attempt {
    Attempt::new(core.job_dir(&entry.job_id), entry.attempt)
}

/// Stays with a job that runs; `None` when the agent stops first.
pub(super) async fn supervise(context: &Context, entry: &mut Entry, shim: Shim) -> Option<Ended> {
    entry.state = State::Running;
    entry.process = Some(shim.process().clone());
    let why = until_end(context, entry, &shim).await;
    match why {
        Why::Ended => {}
        Why::Stopped => return None,
        Why::Cancelled | Why::CannotRecord(_) => shim.terminate(),
        Why::Overdue => shim.kill(),
    }
    let patience = context.core.config.grace + OVERDUE;
    if !matches!(timeout(patience, shim.ended()).await, Ok(Ok(()))) {
        shim.kill();
    }
    let attempt = context.attempt.clone();
    let read = tokio::task::spawn_blocking(move || {
        let left = match (attempt.left(), shim.told()) {
            (Ok(Left::Started) | Err(_), Some(exit)) => Ok(Left::Exit(Box::new(exit))),
            (left, _) => left,
        };
        let outputs = match &left {
            Ok(Left::Exit(exit)) => outputs(attempt.dir(), exit),
            _ => [None, None],
        };
        (left, outputs)
    });
    let (left, outputs) = match read.await {
        Ok(read) => read,
        Err(error) => (Err(io::Error::other(error)), [None, None]),
    };
    Some(conclusion(entry, why, left, outputs))
}

/// Both outputs as a result carries them. Blocks.
pub(super) fn outputs(dir: &Path, exit: &Exit) -> [Option<Output>; 2] {
    [(Stream::Stdout, exit.stdout), (Stream::Stderr, exit.stderr)]
        .map(|(stream, kept)| Some(shim::output(dir, stream, kept?)))
}

/// Why the wait for a job's end was over.
#[derive(Debug)]
pub(super) enum Why {
    Ended,
    Cancelled,
    Stopped,
    CannotRecord(String),
    /// Its shim should have ended it long ago.
    Overdue,
}

/// Waits for the first of all that can end a job. Meanwhile makes it durable which process it is.
async fn until_end(context: &Context, entry: &Entry, shim: &Shim) -> Why {
    let recorded = context.core.deps.journal.update(entry.clone());
    let first = async {
        tokio::select! {
            ended = shim.ended() => match ended {
                Ok(()) => Why::Ended,
                Err(_cannot_be_told) => Why::Overdue,
            },
            () = sleep(context.timeout.saturating_add(context.core.config.grace + OVERDUE)) => Why::Overdue,
            () = context.live.cancel.cancelled() => Why::Cancelled,
            () = context.stop.cancelled() => Why::Stopped,
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

fn conclusion(
    entry: &mut Entry,
    why: Why,
    left: io::Result<Left>,
    outputs: [Option<Output>; 2],
) -> Ended {
    let ended = match left {
        Ok(Left::Exit(exit)) => of_exit(entry, *exit, outputs, matches!(why, Why::Cancelled)),
        Ok(Left::Nothing) => Ended::failed("CANNOT_START", "its shim ended before it began"),
        Ok(Left::Started) => {
            lost("its shim ended without a word; nobody can tell how far the job came")
        }
        Err(error) => lost(&format!("how it ended cannot be read: {error}")),
    };
    match why {
        Why::CannotRecord(error) => Ended {
            outcome: Outcome::Failed,
            reason: Some(Reject::CannotRecord.name()),
            message: Some(format!(
                "ended at once, since it could not be recorded that it runs: {error}"
            )),
            ..ended
        },
        Why::Ended | Why::Cancelled | Why::Stopped | Why::Overdue => ended,
    }
}

fn lost(message: &str) -> Ended {
    Ended::because(Outcome::Indeterminate, "SHIM_LOST", message)
}

/// What an exit means, and what the journal keeps of it. `cancelled`: that is why it was told to
/// end, if it was.
pub(super) fn of_exit(
    entry: &mut Entry,
    exit: Exit,
    [stdout, stderr]: [Option<Output>; 2],
    cancelled: bool,
) -> Ended {
    entry.duration_ms = Some(u64::try_from(exit.duration.as_millis()).unwrap_or(u64::MAX));
    entry.stdout_bytes = exit.stdout.map_or(0, |kept| kept.total);
    entry.stderr_bytes = exit.stderr.map_or(0, |kept| kept.total);
    // Whatever else came, the file is where it belongs then.
    let told = exit.carried.filter(|told| told.is_ok() || exit.cause == Cause::Ended);
    if let Some(told) = told {
        return transfer::ended(told, entry);
    }
    let ended = match exit.cause {
        Cause::Ended if exit.out_of_memory && exit.code != Some(0) => {
            let message = "the kernel ended a process of it, since the job used more memory than \
                           limits.memory_bytes allows";
            Ended::failed("OUT_OF_MEMORY", message)
        }
        Cause::Ended => by_itself(exit.code, exit.signal),
        Cause::Timeout => Ended::timed_out(exit.timeout),
        Cause::Terminated if cancelled => Ended::cancelled(),
        Cause::Terminated => {
            let message = "its shim was told to end it, but not by a cancel: by a shutdown of the \
                           machine, or by hand";
            Ended::because(Outcome::Interrupted, "TERMINATED", message)
        }
        Cause::Unstarted(unstarted) => Ended::failed(unstarted.reason(), unstarted.message),
        Cause::Lost(error) => Ended::failed("SUPERVISION_LOST", error),
    };
    Ended { exit_code: exit.code, signal: exit.signal, stdout, stderr, ..ended }
}

fn by_itself(code: Option<i32>, signal: Option<i32>) -> Ended {
    match (code, signal) {
        (Some(0), _) => Ended::of(Outcome::Ok),
        (Some(code), _) => Ended::failed("EXIT_CODE", format!("exit code {code}")),
        (None, Some(signal)) => Ended::failed("SIGNAL", format!("ended by signal {signal}")),
        (None, None) => Ended::failed("NO_EXIT", "ended without exit code or signal"),
    }
}
