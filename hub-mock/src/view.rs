//! What the control port, the subcommands and the library show of jobs and agents.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jtnt_proto::{
    hub::{HeartbeatRequest, HostFacts, JobResult, JobStatus, Output},
    job::{Artifact, Job as Signed},
    key::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    state::{Agent, Job, Standing},
    witness::SeenLog,
};

/// A job and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub job_id: String,
    /// Whom it is delivered to.
    pub agent_id: String,
    /// `queued running ok failed timeout cancelled interrupted indeterminate rejected`.
    pub state: String,
    /// What it is to do, in a line; empty where that cannot be read.
    #[serde(default)]
    pub command: String,
    /// Whether nothing more is expected.
    pub ended: bool,
    /// Whether the agent has it for good.
    pub acknowledged: bool,
    /// When it came.
    pub enqueued_at: Timestamp,
    /// The last status.
    pub status: Option<JobStatus>,
    /// The result of the last attempt.
    pub result: Option<JobResult>,
    /// What the agent uploaded for it.
    pub artifacts: BTreeMap<String, Artifact>,
}

impl JobView {
    pub(crate) fn of(job: &Job) -> Self {
        Self {
            job_id: job.job_id.clone(),
            agent_id: job.agent_id.clone(),
            state: job.state().to_owned(),
            command: command(&job.envelope.payload.0),
            ended: job.has_ended(),
            acknowledged: job.acknowledged,
            enqueued_at: job.enqueued_at,
            status: job.status.clone(),
            result: job.results.values().next_back().map(|r| r.result.clone()),
            artifacts: job.artifacts.clone(),
        }
    }

    /// How many bytes it wrote to both streams, as its result says.
    pub(crate) fn written(&self) -> u64 {
        let outputs = self.result.iter().flat_map(|r| [&r.stdout, &r.stderr]).flatten();
        outputs.map(|output| output.total_bytes).sum()
    }

    /// The documented object of the subcommands: eight keys, null for what is not known.
    #[must_use]
    pub fn summary(&self) -> JobSummary {
        let result = self.result.as_ref();
        let rejection = self.status.as_ref().and_then(|s| s.reason.clone());
        JobSummary {
            job_id: self.job_id.clone(),
            state: self.state.clone(),
            exit_code: result.and_then(|r| r.exit_code),
            stdout: result.and_then(|r| r.stdout.as_ref()).map(text),
            stderr: result.and_then(|r| r.stderr.as_ref()).map(text),
            duration_ms: result.map(|r| r.duration_ms),
            enforcement: result.map(|r| r.enforcement.clone()),
            reason: result.map_or(rejection, |r| r.reason.clone()),
        }
    }
}

/// A job in eight keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Its id.
    pub job_id: String,
    /// Its state.
    pub state: String,
    /// Exit code, where the process returned one.
    pub exit_code: Option<i32>,
    /// Standard output as text.
    pub stdout: Option<String>,
    /// Standard error as text.
    pub stderr: Option<String>,
    /// Wall time.
    pub duration_ms: Option<u64>,
    /// What the operating system enforced.
    pub enforcement: Option<String>,
    /// Stable reason of anything but `ok`.
    pub reason: Option<String>,
}

/// What a signed job is to do. Bad ones are queued, too: agents have to refuse them.
fn command(payload: &[u8]) -> String {
    let job = serde_json::from_slice::<Signed>(payload);
    job.map(|job| job.work.line()).unwrap_or_default()
}

/// An output as text.
fn text(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.head.0).into_owned();
    if let Some(tail) = &output.tail {
        text.push_str(&String::from_utf8_lossy(&tail.0));
    }
    text
}

/// How many bytes of an output are not here.
pub(crate) fn dropped(output: &Output) -> u64 {
    let kept = output.head.0.len() + output.tail.as_ref().map_or(0, |tail| tail.0.len());
    output.total_bytes.saturating_sub(u64::try_from(kept).unwrap_or(u64::MAX))
}

/// An enrolled agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentView {
    /// Its id.
    pub agent_id: String,
    /// Its machine.
    pub host: HostFacts,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
    /// Its certificates, oldest first.
    pub certificates: Vec<CertificateView>,
    /// When its last heartbeat came, since the hub started.
    pub last_seen: Option<Timestamp>,
    /// What it said.
    pub heartbeat: Option<HeartbeatRequest>,
    /// Jobs that have not ended.
    pub open_jobs: usize,
    /// What secrets for it are sealed to.
    pub seal_key: Option<jtnt_proto::bytes::Base64>,
    /// The key that signs its audit log.
    pub audit_key: PublicKey,
    /// Its audit logs as the hub has seen them, by their id.
    #[serde(default)]
    pub logs: BTreeMap<String, SeenLog>,
}

/// A certificate the hub issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Lower hex.
    pub serial: String,
    /// Void from then on.
    pub not_after: Timestamp,
    /// Whether it still counts.
    pub standing: Standing,
    /// Number of the authority that issued it.
    #[serde(default)]
    pub authority: u32,
    /// Whether the agent has come with it.
    #[serde(default)]
    pub used: bool,
}

impl AgentView {
    /// The authority of the certificate that its last heartbeat came with; where none came since the
    /// hub started, of the newest that it has come with.
    #[must_use]
    pub fn authority(&self) -> Option<u32> {
        let said = self.heartbeat.as_ref().map(|said| &said.certificate_serial);
        let mut newest = self.certificates.iter().rev();
        let certificate = match said {
            Some(serial) => newest.find(|c| c.serial == *serial),
            None => newest.find(|c| c.used),
        };
        certificate.map(|c| c.authority)
    }

    pub(crate) fn of(
        id: &str,
        agent: &Agent,
        heartbeat: Option<&(Timestamp, HeartbeatRequest)>,
    ) -> Self {
        let certificate = |c: &crate::state::Certificate| CertificateView {
            serial: c.serial.clone(),
            not_after: c.not_after,
            standing: c.standing,
            authority: c.authority,
            used: c.used,
        };
        Self {
            agent_id: id.to_owned(),
            host: agent.host.clone(),
            enrolled_at: agent.enrolled_at,
            certificates: agent.certificates.iter().map(certificate).collect(),
            last_seen: heartbeat.map(|(at, _)| *at),
            heartbeat: heartbeat.map(|(_, said)| said.clone()),
            open_jobs: agent.open.len(),
            seal_key: agent.seal_key.clone(),
            audit_key: agent.audit_key,
            logs: agent.logs.clone(),
        }
    }
}
