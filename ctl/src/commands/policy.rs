//! `policy`.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use jtnt_proto::{admin::v1 as pb, bytes::Hash};
use tonic::transport::Channel;

use super::{diff, lint, show};
use crate::{
    Exit, Failure,
    cli::{Access, Policy, With},
    output::policy as view,
    run::{Outcome, Session},
};

type Client = pb::policy_service_client::PolicyServiceClient<Channel>;

/// The largest script that is read to be hashed.
const MAX_SCRIPT_BYTES: u64 = 64 * 1024 * 1024;

pub(super) async fn run(session: &mut Session<'_>, command: Policy) -> Outcome {
    match command {
        Policy::Lint { file } => lint::run(session, &file),
        Policy::Diff { file } => diff::run(session, &file).await,
        Policy::Learn { job } => learn(session, job).await,
        Policy::Show => policy_show(session).await,
        Policy::Refresh => refresh(session).await,
        Policy::CheckExec { command, with } => exec(session, command, with).await,
        Policy::CheckScript { command, interpreter, signers, with } => {
            let (file, args) = named(command)?;
            let script = Script::read(Path::new(&file), interpreter)?;
            let With { env, run_as } = with;
            let request = pb::CheckScriptRequest {
                interpreter: script.interpreter,
                sha256: script.sha256.to_string(),
                args,
                env: env.into_iter().collect(),
                run_as: run_as.unwrap_or_default(),
                signers,
            };
            let mut client = client(session)?;
            let request = session.ask(request);
            let answer = session.call("check a script", client.check_script(request)).await?;
            decide(session, answer.decision)
        }
        Policy::CheckFile { access, path, run_as } => {
            let access = match access {
                Access::Read => pb::FileAccess::Read,
                Access::Write => pb::FileAccess::Write,
            };
            let run_as = run_as.unwrap_or_default();
            let mut client = client(session)?;
            let request = session.ask(pb::CheckFileRequest { access: access.into(), path, run_as });
            let answer = session.call("check a transfer", client.check_file(request)).await?;
            decide(session, answer.decision)
        }
    }
}

fn client(session: &Session<'_>) -> Result<Client, Failure> {
    session.channel().map(Client::new)
}

async fn policy_show(session: &mut Session<'_>) -> Outcome {
    let mut client = client(session)?;
    let request = session.ask(pb::GetPolicyRequest {});
    let answer = session.call("show the policy", client.get_policy(request)).await?;
    let now = (session.io.now)();
    show(session, &view::Shown::from(&answer), |color| view::show(&answer, now, color))?;
    Ok(Exit::Done)
}

async fn refresh(session: &mut Session<'_>) -> Outcome {
    let mut client = client(session)?;
    let request = session.ask(pb::RefreshPolicyRequest {});
    let answer = session.call("refresh the policy", client.refresh_policy(request)).await?;
    let (version, changed) = (answer.version, answer.changed);
    show(session, &view::Refreshed { version, changed }, |_| match (version, changed) {
        (0, _) => "the hub has no policy for this agent\n".to_owned(),
        (_, true) => format!("version {version} is in force now\n"),
        (_, false) => format!("version {version} is the newest already\n"),
    })?;
    Ok(Exit::Done)
}

async fn learn(session: &mut Session<'_>, job_id: String) -> Outcome {
    let what = format!("learn from job {job_id}");
    let mut client = client(session)?;
    let request = session.ask(pb::LearnPolicyRequest { job_id });
    let answer = session.call(&what, client.learn_policy(request)).await?;
    show(session, &view::Learned::from(&answer), |_| view::rules_alone(&answer))?;
    if !session.json {
        // Beside the rules, which are to be put into a file.
        session.io.complain(view::notes(&answer).as_bytes())?;
    }
    Ok(if answer.complete { Exit::Done } else { Exit::Incomplete })
}

/// What is asked about, and its arguments. Silently, options of ours among these would be the
/// program's, and the answer one about something else.
fn named(command: Vec<String>) -> Result<(String, Vec<String>), Failure> {
    const OURS: &[&str] =
        &["-o", "--output", "--socket", "--env", "--run-as", "--interpreter", "--signer"];
    let mut command = command.into_iter();
    let path = command.next().unwrap_or_default();
    let args: Vec<String> = command.collect();
    let mistaken = args.iter().find(|arg| OURS.contains(&arg.as_str()));
    if let Some(flag) = mistaken
        && !std::env::args_os().any(|word| word == "--")
    {
        let why = format!(
            "{flag} stands after {path}: put it before that, or write `--` before {path} if it is \
             one of its arguments"
        );
        return Err(Failure::new(Exit::Usage, "check a program", why));
    }
    Ok((path, args))
}

async fn exec(session: &mut Session<'_>, command: Vec<String>, with: With) -> Outcome {
    let (path, args) = named(command)?;
    let With { env, run_as } = with;
    let env = env.into_iter().collect();
    let run_as = run_as.unwrap_or_default();
    let mut client = client(session)?;
    let request = session.ask(pb::CheckExecRequest { path, args, env, run_as });
    let answer = session.call("check a program", client.check_exec(request)).await?;
    decide(session, answer.decision)
}

fn decide(session: &mut Session<'_>, decision: Option<pb::Decision>) -> Outcome {
    let decision = decision.ok_or_else(|| {
        Failure::new(Exit::Io, "check the policy", "the daemon sent an empty answer")
    })?;
    let json = view::Decision::from(&decision);
    show(session, &json, |color| view::decision(&decision, color))?;
    Ok(Exit::of(decision.allowed))
}

struct Script {
    interpreter: String,
    sha256: Hash,
}

impl Script {
    /// Reads a script as the caller, whose file it is; the daemon opens nothing for it.
    fn read(path: &Path, interpreter: Option<String>) -> Result<Self, Failure> {
        let bytes = read(path, MAX_SCRIPT_BYTES)?;
        let interpreter = interpreter.or_else(|| shebang(&bytes)).ok_or_else(|| {
            let what = format!("check {}", path.display());
            Failure::new(Exit::Usage, what, "it has no #! line that names its interpreter")
                .advise("name it with --interpreter PATH")
        })?;
        Ok(Self { interpreter, sha256: Hash::of(&bytes) })
    }
}

/// A whole file, if it is not larger than `max`.
pub(super) fn read(path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let file = File::open(path).map_err(|error| Failure::file("read", path, &error))?;
    all_of(file, path, max)
}

/// All there is to read, if it is not more than `max`; `path` is its name.
pub(super) fn all_of(from: impl Read, path: &Path, max: u64) -> Result<Vec<u8>, Failure> {
    let fault = |error| Failure::file("read", path, &error);
    let mut bytes = Vec::new();
    from.take(max + 1).read_to_end(&mut bytes).map_err(fault)?;
    if u64::try_from(bytes.len()).is_ok_and(|n| n <= max) {
        return Ok(bytes);
    }
    let why = format!("it is larger than {max} bytes");
    Err(Failure::new(Exit::Usage, format!("read {}", PathBuf::from(path).display()), why))
}

/// The absolute path after `#!`.
fn shebang(script: &[u8]) -> Option<String> {
    let line = script.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let path = std::str::from_utf8(line).ok()?.split_whitespace().next()?;
    path.starts_with('/').then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::shebang;

    #[test]
    fn the_interpreter_stands_after_the_shebang() {
        assert_eq!(shebang(b"#!/bin/sh -e\nls\n").as_deref(), Some("/bin/sh"));
        assert_eq!(shebang(b"#! /usr/bin/python3").as_deref(), Some("/usr/bin/python3"));
        for bad in [&b"ls\n"[..], b"#!", b"#!sh\n", b"#!\xff/x\n"] {
            assert_eq!(shebang(bad), None);
        }
    }
}
