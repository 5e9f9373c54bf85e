//! `job`: sign work, hand it in, and see what became of it.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use futures_util::TryStreamExt as _;
use http::Method;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use jtnt_proto::{
    bytes::Hash,
    hub::{Output, OutputStream},
    job::{Artifact, Download, Exec, Job, Script, SealedSecret, SecretDelivery, Upload, Work},
    policy::Limits,
};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::{self, File},
    io::{AsyncReadExt as _, AsyncWriteExt as _},
};
use tokio_util::io::ReaderStream;

use super::{
    Desk, Verdict,
    args::{JobCommand, JobOptions},
    output::table,
    watch,
};
use crate::{
    control::{CurrentPolicy, Enqueue},
    error::HubError,
    operator::Operator,
    routes::uploads::CHUNK_BYTES,
    view::{AgentView, JobView, dropped},
};

/// Uploads are stored under this name, there is only one a job.
const UPLOAD_NAME: &str = "file";

pub(super) async fn run(desk: &Desk<'_>, command: JobCommand) -> Result<Verdict, HubError> {
    match command {
        JobCommand::Exec { options, env, command } => {
            let mut command = command.into_iter();
            let work = Work::Exec(Exec {
                path: command.next().unwrap_or_default(),
                args: command.collect(),
                env: env.into_iter().collect(),
                cwd: options.cwd.clone(),
                run_as: options.run_as.clone(),
            });
            submit(desk, options, work, None).await
        }
        JobCommand::Script { options, interpreter, env, endorse, file, args } => {
            let env = env.into_iter().collect();
            let work = script(desk, &options, (interpreter, env, args), (&file, endorse)).await?;
            submit(desk, options, work, None).await
        }
        JobCommand::Download { options, file, dest, mode } => {
            let artifact = send_file(desk, &file).await?;
            let run_as = options.run_as.clone();
            let work = Work::Download(Download { artifact, dest, mode, run_as });
            submit(desk, options, work, None).await
        }
        JobCommand::Upload { options, path, save } => {
            let (name, run_as) = (UPLOAD_NAME.to_owned(), options.run_as.clone());
            let work = Work::Upload(Upload { path, name, run_as });
            submit(desk, options, work, save).await
        }
        JobCommand::Show { id } => {
            let job = get(desk, &id, 0).await?;
            show(desk, &watch::with_parts(desk, job).await?)
        }
        JobCommand::List { agent } => list(desk, agent).await,
        JobCommand::Cancel { id, reason } => cancel(desk, &id, reason).await,
    }
}

async fn script(
    desk: &Desk<'_>,
    options: &JobOptions,
    (interpreter, env, args): (String, BTreeMap<String, String>, Vec<String>),
    (file, endorse): (&Path, bool),
) -> Result<Work, HubError> {
    let content = send_file(desk, file).await?;
    let endorsement = if endorse {
        let bytes = fs::read(file).await.map_err(HubError::file(file))?;
        let name = file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Some(desk.operator()?.endorse(&name, &bytes, &interpreter))
    } else {
        None
    };
    let run_as = options.run_as.clone();
    let cwd = options.cwd.clone();
    Ok(Work::Script(Script { interpreter, content, args, env, cwd, run_as, endorsement }))
}

async fn submit(
    desk: &Desk<'_>,
    options: JobOptions,
    work: Work,
    save: Option<PathBuf>,
) -> Result<Verdict, HubError> {
    let agent_id = desk.client.agent(options.agent.clone()).await?;
    let operator = desk.operator()?;
    let mut job = operator.job(&agent_id, work)?;
    job.limits = limits(&options)?;
    job.stream_output = options.stream && matches!(job.work, Work::Exec(_) | Work::Script(_));
    // Whoever publishes a policy and then signs a job means the job to meet that policy.
    let current: CurrentPolicy = desk.client.get("/control/v1/policy").await?;
    job.min_policy_version = current.version;
    job.secrets = secrets(desk, &job, &options).await?;
    let wish = Enqueue { agent_id, envelope: operator.sign_job(&job) };
    let taken: JobView = desk.client.post("/control/v1/jobs", &wish).await?;
    if options.wait || options.stream {
        desk.output.note(&format!("{}; it goes on if this is interrupted", taken.job_id));
    } else {
        return desk.output.show(&taken.summary(), || format!("{}\n", taken.job_id));
    }
    let mut seen = taken;
    if job.stream_output {
        let printed = watch::follow(desk, &seen.job_id).await?;
        seen = until_end(desk, seen).await?;
        return streamed(desk, &seen, &printed);
    }
    seen = until_end(desk, seen).await?;
    seen = watch::whole(desk, seen).await?;
    if let (Some(save), "ok") = (save, seen.state.as_str()) {
        let artifact = seen.artifacts.get(UPLOAD_NAME).ok_or_else(|| {
            HubError::refused("NO_ARTIFACT", "the job succeeded, but nothing was uploaded")
        })?;
        fetch_file(desk, artifact, &save).await?;
    }
    outcome(desk, &seen)
}

async fn until_end(desk: &Desk<'_>, mut job: JobView) -> Result<JobView, HubError> {
    while !job.ended {
        job = get(desk, &job.job_id, 30).await?;
    }
    Ok(job)
}

/// What the job asks for, as its signer would write it.
fn limits(options: &JobOptions) -> Result<Limits, HubError> {
    let refused = |why: String| HubError::refused("LIMIT", why);
    let mut asked = serde_json::Map::new();
    for (name, number) in &options.limits {
        let number: u64 = number.parse().map_err(|e| refused(format!("{name}={number}: {e}")))?;
        asked.insert(name.clone(), number.into());
    }
    let limits: Limits =
        serde_json::from_value(asked.into()).map_err(|e| refused(e.to_string()))?;
    let limits = Limits { timeout_seconds: options.timeout.or(limits.timeout_seconds), ..limits };
    limits.check().map_err(refused)?;
    Ok(limits)
}

/// Reads and seals what the job shall know.
async fn secrets(
    desk: &Desk<'_>,
    job: &Job,
    options: &JobOptions,
) -> Result<Vec<SealedSecret>, HubError> {
    let by_fd = options.secrets.iter().map(|secret| (secret, SecretDelivery::Fd));
    let by_file = options.secret_files.iter().map(|secret| (secret, SecretDelivery::File));
    let all: Vec<_> = by_fd.chain(by_file).collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let agents: Vec<AgentView> = desk.client.get("/control/v1/agents").await?;
    let agent = agents.into_iter().find(|agent| agent.agent_id == job.agent_id);
    let key = agent.and_then(|agent| agent.seal_key).ok_or_else(|| {
        HubError::refused("NO_SEAL_KEY", "the agent has told no key for secrets; enrol it again")
    })?;
    let mut sealed = Vec::new();
    for ((name, file), delivery) in all {
        let file = Path::new(file);
        let secret = fs::read(file).await.map_err(HubError::file(file))?;
        sealed.push(Operator::seal(job, (name, delivery), &key, &secret)?);
    }
    Ok(sealed)
}

/// The job's own output, as if it had run here.
fn outcome(desk: &Desk<'_>, job: &JobView) -> Result<Verdict, HubError> {
    let summary = job.summary();
    if desk.output.is_json() {
        desk.output.json(&summary)?;
    } else {
        let result = job.result.as_ref();
        for part in result.and_then(|r| r.stdout.as_ref()).map(kept).unwrap_or_default() {
            desk.output.content(part)?;
        }
        if let Some(stderr) = summary.stderr.as_deref().filter(|s| !s.is_empty()) {
            desk.output.note(stderr.trim_end_matches('\n'));
        }
        let streams = [
            ("stdout", result.and_then(|r| r.stdout.as_ref())),
            ("stderr", result.and_then(|r| r.stderr.as_ref())),
        ];
        for (name, stream) in streams {
            match stream.map_or(0, dropped) {
                0 => {}
                n => desk
                    .output
                    .note(&format!("{name}: {n} bytes between its beginning and end are not here")),
            }
        }
        if summary.state != "ok" {
            desk.output.fault(&ending(job));
        }
    }
    Ok(if summary.state == "ok" { Verdict::Yes } else { Verdict::No })
}

/// The bytes of an output that are here, in order.
fn kept(output: &Output) -> Vec<&[u8]> {
    let tail = output.tail.as_ref().map(|tail| tail.0.as_slice());
    [Some(output.head.0.as_slice()), tail].into_iter().flatten().collect()
}

/// The end of a job whose output was printed already.
fn streamed(
    desk: &Desk<'_>,
    job: &JobView,
    printed: &BTreeMap<OutputStream, u64>,
) -> Result<Verdict, HubError> {
    let summary = job.summary();
    if desk.output.is_json() {
        desk.output.json(&summary)?;
    }
    let result = job.result.as_ref();
    let streams = [
        (OutputStream::Stdout, "stdout", result.and_then(|r| r.stdout.as_ref())),
        (OutputStream::Stderr, "stderr", result.and_then(|r| r.stderr.as_ref())),
    ];
    for (stream, name, output) in streams {
        let printed = printed.get(&stream).copied().unwrap_or(0);
        let missing = output.map_or(0, |o| o.total_bytes).saturating_sub(printed);
        if missing > 0 {
            desk.output.note(&format!("{name}: {missing} bytes of it did not come"));
        }
    }
    if summary.state == "ok" {
        return Ok(Verdict::Yes);
    }
    if !desk.output.is_json() {
        desk.output.fault(&ending(job));
    }
    Ok(Verdict::No)
}

/// How a job that is not ok ended, in one line.
fn ending(job: &JobView) -> String {
    let summary = job.summary();
    let message = job.result.as_ref().and_then(|r| r.message.as_deref());
    let message = message.or(job.status.as_ref().and_then(|s| s.message.as_deref()));
    let mut text = format!("{}: {}", summary.job_id, summary.state);
    if let Some(code) = summary.exit_code {
        text.push_str(&format!(", exit code {code}"));
    }
    // That it ended with an exit code has been said.
    if summary.reason.as_deref() == Some("EXIT_CODE") {
        return text;
    }
    for part in [summary.reason.as_deref(), message].into_iter().flatten() {
        text.push_str(", ");
        text.push_str(part);
    }
    text
}

async fn get(desk: &Desk<'_>, id: &str, wait: u64) -> Result<JobView, HubError> {
    desk.client.get(&format!("/control/v1/jobs/{id}?wait={wait}")).await
}

fn show(desk: &Desk<'_>, job: &JobView) -> Result<Verdict, HubError> {
    let summary = job.summary();
    desk.output.show(&summary, || {
        let mut text = format!("{}\nagent {}\n", ending(job), job.agent_id);
        for (name, stream) in [("stdout", &summary.stdout), ("stderr", &summary.stderr)] {
            if let Some(stream) = stream.as_ref().filter(|s| !s.is_empty()) {
                text.push_str(&format!("--- {name}\n{stream}"));
            }
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    })
}

async fn list(desk: &Desk<'_>, agent: Option<String>) -> Result<Verdict, HubError> {
    let query = agent.map_or_else(String::new, |a| format!("?agent={a}"));
    let jobs: Vec<JobView> = desk.client.get(&format!("/control/v1/jobs{query}")).await?;
    let summaries: Vec<_> = jobs.iter().map(JobView::summary).collect();
    desk.output.show(&summaries, || {
        let row = |job: &JobView| {
            let summary = job.summary();
            let took = summary.duration_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
            // Nobody reads nanoseconds; the JSON has them.
            let at = job.enqueued_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
            let reason = summary.reason.unwrap_or_else(|| "-".to_owned());
            let command = cut(&job.command);
            [summary.job_id, summary.state, at, took, job.agent_id.clone(), reason, command].into()
        };
        let rows: Vec<_> = jobs.iter().map(row).collect();
        table(&["JOB", "STATE", "ENQUEUED", "TOOK", "AGENT", "REASON", "COMMAND"], &rows)
    })
}

/// A command as a list has room for it.
fn cut(command: &str) -> String {
    const MOST: usize = 80;
    let line = command.replace(['\n', '\t'], " ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

async fn cancel(desk: &Desk<'_>, id: &str, reason: Option<String>) -> Result<Verdict, HubError> {
    let job = get(desk, id, 0).await?;
    let envelope = desk.operator()?.cancel(id, &job.agent_id, reason.as_deref());
    let job: JobView =
        desk.client.post(&format!("/control/v1/jobs/{id}/cancel"), &envelope).await?;
    desk.output.show(&job.summary(), || format!("{id} is to be cancelled\n"))
}

/// Hashes a file, then streams it to the hub.
async fn send_file(desk: &Desk<'_>, path: &Path) -> Result<Artifact, HubError> {
    let failed = |e| HubError::file(path)(e);
    let sha256 = hash_file(path).await.map_err(failed)?;
    let file = File::open(path).await.map_err(failed)?;
    let frames = ReaderStream::with_capacity(file, CHUNK_BYTES).map_ok(Frame::data);
    let at = format!("/control/v1/artifacts/{sha256}");
    let answer = desk.client.send(Method::PUT, &at, StreamBody::new(frames)).await?;
    serde_json::from_slice(&answer).map_err(|e| HubError::damaged("the hub's answer", e))
}

async fn hash_file(path: &Path) -> io::Result<Hash> {
    let mut file = File::open(path).await?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        let n = file.read(&mut buffer).await?;
        if n == 0 {
            return Ok(Hash(hash.finalize().into()));
        }
        hash.update(buffer.get(..n).unwrap_or_default());
    }
}

/// Streams an artifact into a new file that takes its name only when the hash is right.
async fn fetch_file(desk: &Desk<'_>, artifact: &Artifact, save: &Path) -> Result<(), HubError> {
    let at = format!("/control/v1/artifacts/{}", artifact.sha256);
    let answer = desk.client.open_answer(Method::GET, &at, Full::<bytes::Bytes>::default()).await?;
    let mut body = answer.into_body().into_data_stream();
    let mut temporary = save.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = PathBuf::from(temporary);
    let failed = |e| HubError::file(&temporary)(e);
    let mut file = File::create(&temporary).await.map_err(failed)?;
    let mut hash = Sha256::new();
    while let Some(chunk) = body.try_next().await.map_err(|e| failed(io::Error::other(e)))? {
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.sync_all().await.map_err(failed)?;
    if Hash(hash.finalize().into()) != artifact.sha256 {
        return Err(HubError::damaged("the artifact", "its hash is not the one of the upload"));
    }
    fs::rename(&temporary, save).await.map_err(HubError::file(save))
}
