//! What a job asks of the policy, and nothing else of it: no value of its environment, no secret,
//! no content. Two jobs that ask the same are the same here.

use jtnt_proto::{
    bytes::Hash,
    job::{Job, Work},
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
}
