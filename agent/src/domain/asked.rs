//! What a job asks of the policy, and nothing else of it: no value of its environment, no secret,
//! no content. Two jobs that ask the same are the same here.

use jtnt_proto::{
    bytes::Hash,
    job::{Artifact, Download, Exec, Job, Script, Upload, Work},
    key::KeyId,
    policy::Limits,
};
use serde::{Deserialize, Serialize};

/// A request as the policy sees it. What is kept of it is JSON: fields are added, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// What is to be done.
    #[serde(flatten)]
    pub action: Action,
    /// User that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// Names of the environment it sets, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Limits it asks for.
    #[serde(default, skip_serializing_if = "none_asked")]
    pub limits: Limits,
}

/// The kinds of work, each with what rules look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Action {
    /// Run a program.
    Exec {
        /// Its path.
        path: String,
        /// Its arguments.
        args: Vec<String>,
    },
    /// Run a script.
    Script {
        /// Path of the interpreter.
        interpreter: String,
        /// Hash of the script.
        sha256: Hash,
        /// Arguments after the script.
        args: Vec<String>,
        /// Keys whose endorsement of it was verified.
        signers: Vec<KeyId>,
    },
    /// Write a file.
    Download {
        /// Its path.
        dest: String,
    },
    /// Read a file.
    Upload {
        /// Its path.
        path: String,
    },
}

impl Asked {
    /// What this job asks; `signers` vouch for its script.
    #[must_use]
    pub fn of(job: &Job, signers: &[KeyId]) -> Self {
        let nothing = std::collections::BTreeMap::new();
        let (action, run_as, env) = match &job.work {
            Work::Exec(exec) => {
                let (path, args) = (exec.path.clone(), exec.args.clone());
                (Action::Exec { path, args }, &exec.run_as, &exec.env)
            }
            Work::Script(script) => {
                let action = Action::Script {
                    interpreter: script.interpreter.clone(),
                    sha256: script.content.sha256,
                    args: script.args.clone(),
                    signers: signers.to_vec(),
                };
                (action, &script.run_as, &script.env)
            }
            Work::Download(download) => {
                let dest = download.dest.clone();
                (Action::Download { dest }, &download.run_as, &nothing)
            }
            Work::Upload(upload) => {
                let path = upload.path.clone();
                (Action::Upload { path }, &upload.run_as, &nothing)
            }
        };
        let env = env.keys().cloned().collect();
        Self { action, run_as: run_as.clone(), env, limits: job.limits }
    }

    /// Work that asks this: what no rule looks at is empty.
    #[must_use]
    pub fn work(&self) -> Work {
        let run_as = self.run_as.clone();
        let env = self.env.iter().map(|name| (name.clone(), String::new())).collect();
        match self.action.clone() {
            Action::Exec { path, args } => Work::Exec(Exec { path, args, env, cwd: None, run_as }),
            Action::Script { interpreter, sha256, args, signers: _ } => Work::Script(Script {
                interpreter,
                content: Artifact { sha256, size: 0 },
                args,
                env,
                cwd: None,
                run_as,
                endorsement: None,
            }),
            Action::Download { dest } => {
                let artifact = Artifact { sha256: Hash::of(&[]), size: 0 };
                Work::Download(Download { artifact, dest, mode: None, run_as })
            }
            Action::Upload { path } => Work::Upload(Upload { path, name: String::new(), run_as }),
        }
    }

    /// Keys that vouch for its script.
    #[must_use]
    pub fn signers(&self) -> &[KeyId] {
        match &self.action {
            Action::Script { signers, .. } => signers,
            Action::Exec { .. } | Action::Download { .. } | Action::Upload { .. } => &[],
        }
    }
}

fn none_asked(limits: &Limits) -> bool {
    *limits == Limits::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_of_the_environment_and_no_secret_is_kept() {
        let job: Job = serde_json::from_value(serde_json::json!({
            "job_id": "j", "agent_id": "a", "root_id": "r",
            "issued_at": "2026-01-01T00:00:00Z", "not_before": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z",
            "type": "exec",
            "command": {"path": "/usr/bin/id", "args": ["-u"], "env": {"SITE": "canary"}, "run_as": "x"},
            "secrets": [{"name": "S", "delivery": "fd", "sealed": "Y2FuYXJ5"}],
        }))
        .unwrap();
        let kept = serde_json::to_value(Asked::of(&job, &[])).unwrap();
        let expected = serde_json::json!({
            "type": "exec", "path": "/usr/bin/id", "args": ["-u"], "run_as": "x", "env": ["SITE"],
        });
        assert_eq!(kept, expected);
        assert_eq!(serde_json::from_value::<Asked>(kept).unwrap(), Asked::of(&job, &[]));
    }

    #[test]
    fn work_that_is_made_of_it_asks_the_same() {
        let artifact = serde_json::json!({"sha256": Hash([7; 32]), "size": 9});
        let env = serde_json::json!({"B": "1", "A": "2"});
        for (kind, command) in [
            ("exec", serde_json::json!({"path": "/a", "args": ["b"], "env": env, "run_as": "u"})),
            (
                "script",
                serde_json::json!({
                    "interpreter": "/bin/sh", "content": artifact, "args": ["c"], "env": env,
                }),
            ),
            ("download", serde_json::json!({"artifact": artifact, "dest": "/d", "run_as": "u"})),
            ("upload", serde_json::json!({"path": "/u", "name": "n"})),
        ] {
            let mut job: Job = serde_json::from_value(serde_json::json!({
                "job_id": "j", "agent_id": "a", "root_id": "r",
                "issued_at": "2026-01-01T00:00:00Z", "not_before": "2026-01-01T00:00:00Z",
                "expires_at": "2026-01-02T00:00:00Z", "limits": {"pids": 9},
                "type": kind, "command": command,
            }))
            .unwrap();
            let signers = if kind == "script" {
                vec![KeyId::parse(&"ab".repeat(32)).unwrap()]
            } else {
                vec![]
            };
            let asked = Asked::of(&job, &signers);
            assert_eq!(asked.work().kind(), kind);
            job.work = asked.work();
            assert_eq!(Asked::of(&job, asked.signers()), asked);
        }
    }
}
