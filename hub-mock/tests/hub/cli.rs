//! The operator's commands, as processes, with an agent that does as it is told.

use std::{
    fs::File,
    process::{Output, Stdio},
};

use http::Method;
use jtnt_hub_mock::{Handle, Hub};
use jtnt_proto::{
    bytes::{Base64, Hash},
    hub::{JobsResponse, Output as Stream},
    job::{Job, Work},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::agent::{Agent, Ask, result};

async fn run(hub: &Handle, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jtnt-hub-mock"));
    command.arg("--dir").arg(hub.dir()).args(args).kill_on_drop(true).output().await.unwrap()
}

/// Takes one job, says `hi`, and ends with `exit_code`.
async fn obey(hub: &Handle, agent: &Agent, exit_code: i32) -> Job {
    let answer: JobsResponse = agent.get(hub, "/api/v1/jobs?wait=60").await.json();
    let job: Job = jtnt_proto::json::from_slice(&answer.jobs[0].envelope.payload.0).unwrap();
    let mut said = result(&job.job_id);
    if let Work::Upload(upload) = &job.work {
        let to = format!("/api/v1/artifacts/{}/{}", job.job_id, upload.name);
        let to = format!("{to}?offset=0&sha256={}", Hash::of(b"remote"));
        agent.ask(hub, Ask::raw(Method::PUT, &to, "remote")).await.unwrap();
    }
    if exit_code != 0 {
        said.outcome = jtnt_proto::hub::Outcome::Failed;
    }
    said.exit_code = Some(exit_code);
    said.stdout =
        Some(Stream { head: Base64(b"hi\n".to_vec()), total_bytes: 3, ..Stream::default() });
    agent.post(hub, &format!("/api/v1/jobs/{}/result", job.job_id), &said).await;
    job
}

#[tokio::test]
async fn a_job_that_is_waited_for_prints_its_output_and_tells_by_its_exit_code() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let exec = ["job", "exec", "--wait", "--timeout", "9", "--env", "A=b", "--", "/bin/echo", "hi"];
    let (out, job) = tokio::join!(run(&hub, &exec), obey(&hub, &agent, 0));
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(0), b"hi\n".as_slice()));
    assert_eq!(job.limits.timeout_seconds, Some(9));
    let Work::Exec(work) = job.work else { panic!("{:?}", job.work) };
    assert_eq!(
        (work.path.as_str(), work.args, work.env["A"].as_str()),
        ("/bin/echo", vec!["hi".into()], "b")
    );

    let (out, _) = tokio::join!(run(&hub, &exec), obey(&hub, &agent, 3));
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("exit code 3"));
}

#[tokio::test]
async fn json_is_one_object_with_null_for_what_is_not_known() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let out = run(&hub, &["job", "exec", "--output", "json", "--", "/bin/true"]).await;
    let early: Value = serde_json::from_slice(&out.stdout).unwrap();
    let id = early["job_id"].as_str().unwrap();
    let unknown = json!({ "job_id": id, "state": "queued", "exit_code": null, "stdout": null,
        "stderr": null, "duration_ms": null, "enforcement": null, "reason": null });
    assert_eq!(early, unknown);
    obey(&hub, &agent, 0).await;
    let out = run(&hub, &["job", "show", id, "--output", "json"]).await;
    let known = json!({ "job_id": id, "state": "ok", "exit_code": 0, "stdout": "hi\n",
        "stderr": null, "duration_ms": 5, "enforcement": "none", "reason": null });
    assert_eq!(serde_json::from_slice::<Value>(&out.stdout).unwrap(), known);
}

#[tokio::test]
async fn files_go_there_and_come_back() {
    let hub = Hub::builder().start().await.unwrap();
    let agent = Agent::enrol(&hub, 1).await;
    let (local, saved) = (hub.ca_file(), hub.dir().join("saved"));
    let (local, saved) = (local.to_str().unwrap(), saved.to_str().unwrap());
    let download = ["job", "download", "--file", local, "--dest", "/x", "--mode", "0644", "--wait"];
    let (out, job) = tokio::join!(run(&hub, &download), obey(&hub, &agent, 0));
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let Work::Download(work) = job.work else { panic!("{:?}", job.work) };
    assert_eq!(hub.artifact(work.artifact.sha256).unwrap(), std::fs::read(local).unwrap());
    assert_eq!(work.mode, Some(0o644));

    let upload = ["job", "upload", "--path", "/x", "--save", saved, "--wait"];
    let (out, _) = tokio::join!(run(&hub, &upload), obey(&hub, &agent, 0));
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_eq!(std::fs::read(saved).unwrap(), b"remote");
}

#[tokio::test]
async fn a_policy_never_goes_back_and_says_what_to_write() {
    let hub = Hub::builder().start().await.unwrap();
    let file = hub.dir().join("policy.json");
    let out = run(&hub, &["policy", "template"]).await;
    File::create(&file).and_then(|mut f| std::io::Write::write_all(&mut f, &out.stdout)).unwrap();
    let push = ["policy", "push", file.to_str().unwrap()];
    assert_eq!(run(&hub, &push).await.status.code(), Some(0));
    let out = run(&hub, &push).await;
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("Write \"version\": 2"));
}

#[tokio::test]
async fn a_folder_has_one_hub() {
    let hub = Hub::builder().start().await.unwrap();
    let out = run(&hub, &["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]).await;
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("another hub runs in"), "{out:?}");
}

#[tokio::test]
async fn a_folder_that_no_hub_made_is_told_with_the_command_that_makes_one() {
    let dir = tempfile::tempdir().unwrap();
    for folder in [dir.path().to_owned(), dir.path().join("none")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jtnt-hub-mock"));
        let out = command.arg("--dir").arg(&folder).arg("agents").output().await.unwrap();
        assert_eq!(out.status.code(), Some(6), "{out:?}");
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(said.contains(&format!("serve --dir {}", folder.display())), "{said}");
    }
}

/// What a command says of standard output that is `to`, with its exit code.
async fn into(hub: &Handle, args: &[&str], to: Stdio) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jtnt-hub-mock"));
    let command = command.arg("--dir").arg(hub.dir()).args(args).stdout(to).stderr(Stdio::piped());
    let out = command.kill_on_drop(true).spawn().unwrap().wait_with_output().await.unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[tokio::test]
async fn output_that_nobody_takes_ends_a_command_without_a_panic() {
    let hub = Hub::builder().start().await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let serve = ["--dir", other.path().to_str().unwrap(), "serve"];
    let serve = [&serve[..], &["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]].concat();
    for args in [&["token"][..], &["agents", "--output", "json"], &["policy", "template"]] {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        assert_eq!(into(&hub, args, write.into()).await, (Some(0), String::new()), "{args:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, said) = into(&hub, args, full.into()).await;
        assert_eq!(code, Some(6), "{said}");
        // Whoever asked for JSON gets errors in JSON.
        let begin = match serde_json::from_str::<Value>(&said) {
            Ok(error) => {
                assert_eq!(error["error"]["reason"], "IO", "{said}");
                assert!(args.contains(&"json"), "{said}");
                format!("jtnt-hub-mock: {}", error["error"]["message"].as_str().unwrap())
            }
            Err(_) => said,
        };
        assert!(begin.starts_with("jtnt-hub-mock: cannot write the output: "), "{begin}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_jtnt-hub-mock"));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let command = command.args(&serve).stdout(full).stderr(Stdio::piped()).kill_on_drop(true);
    let out = command.spawn().unwrap().wait_with_output().await.unwrap();
    assert_eq!(out.status.code(), Some(6), "a hub whose token nobody got: {out:?}");
}
