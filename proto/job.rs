//! Signed work: jobs, their cancellation, and the endorsement of a script. A job binds everything
//! that decides what runs, where, when and under which policy; nothing beside it is believed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    bytes::{Base64, Hash},
    envelope::Envelope,
    policy::Limits,
};

/// The longest time between a job's `issued_at` and `expires_at`, in days.
pub const MAX_VALIDITY_DAYS: i64 = 7;

/// Payload of type `application/vnd.jtnt.job.v1+json`, signed by the job role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// `[A-Za-z0-9_-]{1,64}`, never used twice.
    pub job_id: String,
    /// The one agent it is for.
    pub agent_id: String,
    /// The root under which it was signed.
    pub root_id: String,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// It does not start before.
    pub not_before: Timestamp,
    /// It does not start from then on; at most [`MAX_VALIDITY_DAYS`] after `issued_at`.
    pub expires_at: Timestamp,
    /// The oldest policy it may run under.
    #[serde(default)]
    pub min_policy_version: u64,
    /// The oldest root it may run under.
    #[serde(default)]
    pub min_root_version: u64,
    /// Which lane of the queue it waits in.
    #[serde(default)]
    pub priority: Priority,
    /// Whether it may be started again when it is not known whether it ran.
    #[serde(default)]
    pub idempotent: bool,
    /// Whether output is streamed to the hub while it runs.
    #[serde(default)]
    pub stream_output: bool,
    /// What to do.
    #[serde(flatten)]
    pub work: Work,
    /// Limits of this job, within those of the policy.
    #[serde(default)]
    pub limits: Limits,
    /// Secrets the job names, sealed to this agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SealedSecret>,
}

/// Lanes of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// In order of arrival.
    #[default]
    Normal,
    /// Before every normal one.
    High,
}

/// What a job does: `"type"` and `"command"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "command", rename_all = "lowercase")]
pub enum Work {
    /// Run a native program.
    Exec(Exec),
    /// Run a script.
    Script(Script),
    /// Write an artifact to a file.
    Download(Download),
    /// Read a file into an artifact.
    Upload(Upload),
}

/// A program and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Absolute path.
    pub path: String,
    /// Arguments after the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment beyond the agent's clean one.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User; one of the job's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
}

/// A script and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Absolute path of the interpreter.
    pub interpreter: String,
    /// The script's bytes, fetched as an artifact.
    pub content: Artifact,
    /// Arguments after the script.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment beyond the agent's clean one.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User; one of the job's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// A [`ScriptEndorsement`] for rules that admit by signer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endorsement: Option<Envelope>,
}

/// An artifact to put into a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Download {
    /// What to fetch.
    pub artifact: Artifact,
    /// Absolute path of the file.
    pub dest: String,
    /// Permission bits, at most 0o777; 0o600 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// User that writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
}

/// A file to put into an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upload {
    /// Absolute path of the file.
    pub path: String,
    /// The artifact's name, `[A-Za-z0-9._-]{1,64}`.
    pub name: String,
    /// User that reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
}

/// Content, by what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// SHA-256 of all bytes.
    pub sha256: Hash,
    /// Their number.
    pub size: u64,
}

/// A secret for one job, readable by one agent: HPKE base mode (RFC 9180) with
/// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305; `info` is
/// `jtnt-secret/v1 LF agent_id LF job_id LF name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedSecret {
    /// Name under which the job finds it.
    pub name: String,
    /// How it reaches the job.
    pub delivery: SecretDelivery,
    /// Encapsulated key, then ciphertext.
    pub sealed: Base64,
}

/// The most secrets of one job.
pub const MAX_SECRETS: usize = 16;
/// The most that one measures, sealed.
pub const MAX_SEALED_BYTES: usize = 64 * 1024;

impl SealedSecret {
    /// What a secret is bound to, so that it opens nowhere else.
    #[must_use]
    pub fn info(agent_id: &str, job_id: &str, name: &str) -> Vec<u8> {
        format!("jtnt-secret/v1\n{agent_id}\n{job_id}\n{name}").into_bytes()
    }

    /// Whether a name can be part of a variable's name.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let letters = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        (1..=64).contains(&name.len()) && name.bytes().all(letters)
    }

    /// The variable that tells a job where its secret is.
    #[must_use]
    pub fn variable(&self) -> String {
        let end = match self.delivery {
            SecretDelivery::Fd => "FD",
            SecretDelivery::File => "FILE",
        };
        format!("JTNT_SECRET_{}_{end}", self.name.to_ascii_uppercase())
    }
}

/// How a secret reaches a job: never by argument or environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretDelivery {
    /// An open descriptor whose number is in `JTNT_SECRET_<NAME>_FD`.
    Fd,
    /// A file only the job can read, whose path is in `JTNT_SECRET_<NAME>_FILE`.
    File,
}

/// Payload of type `application/vnd.jtnt.cancel.v1+json`, signed by the job role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// The job to cancel.
    pub job_id: String,
    /// The agent that has it.
    pub agent_id: String,
    /// The root under which it was signed.
    pub root_id: String,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// Void from then on.
    pub expires_at: Timestamp,
    /// For people; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Payload of type `application/vnd.jtnt.script.v1+json`, signed by the script role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptEndorsement {
    /// For people.
    pub name: String,
    /// The root under which it was signed.
    pub root_id: String,
    /// The script's bytes.
    pub sha256: Hash,
    /// The only interpreter it was written for.
    pub interpreter: String,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// Void from then on.
    pub expires_at: Timestamp,
}

impl Work {
    /// The type's name as metrics, audit and commands show it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Script(_) => "script",
            Self::Download(_) => "download",
            Self::Upload(_) => "upload",
        }
    }

    /// All of it in a line for people: words as a shell would need them, so that it is seen where
    /// each begins and ends, and not more than [`MAX_LINE_CHARS`].
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = match self {
            Self::Exec(exec) => words([&exec.path], &exec.args),
            Self::Script(script) => {
                let content = format!("sha256:{}", script.content.sha256);
                words([&script.interpreter, &content], &script.args)
            }
            Self::Download(download) => download.dest.clone(),
            Self::Upload(upload) => upload.path.clone(),
        };
        if let Some((end, _)) = line.char_indices().nth(MAX_LINE_CHARS) {
            line.truncate(end);
            line.push_str("...");
        }
        line
    }
}

/// The longest [`Work::line`], without the dots that follow a cut.
pub const MAX_LINE_CHARS: usize = 2048;

fn words<const N: usize>(first: [&String; N], rest: &[String]) -> String {
    first.into_iter().chain(rest).map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "%+,-./:=@_".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_bounded_line() {
        let exec = |args: Vec<String>| {
            let (path, env) = ("/bin/echo".into(), BTreeMap::new());
            Work::Exec(Exec { path, args, env, cwd: None, run_as: None }).line()
        };
        let args = ["a", "b c", "", "it's", "--x=1"].map(str::to_owned);
        assert_eq!(exec(args.into()), r"/bin/echo a 'b c' '' 'it'\''s' --x=1");
        assert_eq!(exec(vec!["é".repeat(9999)]).chars().count(), MAX_LINE_CHARS + 3);
    }

    #[test]
    fn a_script_is_its_interpreter_and_its_hash() {
        let script = Script {
            interpreter: "/bin/sh".into(),
            content: Artifact { sha256: Hash([0xab; 32]), size: 1 },
            args: vec!["two words".into()],
            env: BTreeMap::new(),
            cwd: None,
            run_as: None,
            endorsement: None,
        };
        let line = format!("/bin/sh sha256:{} 'two words'", "ab".repeat(32));
        assert_eq!(Work::Script(script).line(), line);
    }
}
