//! What the hub knows, and the events that change it. Every change is an event, every event is a
//! line of the journal, and reading the lines again gives the same state: that is all there is to
//! surviving a restart.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use jtnt_proto::{
    bytes::{Base64, Hash},
    envelope::Envelope,
    hub::{HostFacts, JobResult, JobStatus, JobStatusState, Outcome},
    job::Artifact,
    key::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::witness::{MAX_LOGS, SeenLog, Trouble};

/// Ended jobs that are remembered; the oldest are forgotten first.
const MAX_ENDED_JOBS: usize = 100_000;
/// Policies that are remembered, for the `replay` fault.
const MAX_POLICIES: usize = 16;
/// Certificates that are remembered of one agent.
const MAX_CERTIFICATES: usize = 64;

/// Everything that survives a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// By SHA-256 of the token.
    pub(crate) tokens: BTreeMap<Hash, Token>,
    /// By agent id.
    pub(crate) agents: BTreeMap<String, Agent>,
    /// By job id.
    pub(crate) jobs: BTreeMap<String, Job>,
    /// Ended jobs, oldest first.
    pub(crate) ended: VecDeque<String>,
    /// Number of the next job.
    pub(crate) next: u64,
    /// Oldest first.
    pub(crate) policies: VecDeque<Published>,
    /// By version.
    pub(crate) roots: BTreeMap<u64, Envelope>,
    /// What a renewal does to the certificate before.
    pub(crate) old_certificates: OldCertificates,
}

/// An enrolment token.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Void from then on.
    pub(crate) expires_at: Timestamp,
    /// The agent that used it.
    pub(crate) used_by: Option<String>,
}

/// An enrolled agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Agent {
    /// The first audit key.
    /// The audit key in force.
    pub(crate) audit_key: PublicKey,
    /// Those that it took the place of, the first first.
    #[serde(default)]
    pub(crate) past_keys: Vec<PublicKey>,
    /// Key that secrets are sealed to.
    pub(crate) seal_key: Option<Base64>,
    /// Its machine.
    pub(crate) host: HostFacts,
    /// Its own labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// When.
    pub(crate) enrolled_at: Timestamp,
    /// Oldest first.
    pub(crate) certificates: VecDeque<Certificate>,
    /// Jobs that have not ended, by their number.
    pub(crate) open: BTreeMap<u64, String>,
    /// Audit logs that were seen, by their id.
    #[serde(default)]
    pub(crate) logs: BTreeMap<String, SeenLog>,
}

/// A certificate the hub issued.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Certificate {
    /// Lower hex.
    pub(crate) serial: String,
    /// PEM.
    pub(crate) pem: String,
    /// Void from then on.
    pub(crate) not_after: Timestamp,
    /// Whether it still counts.
    pub(crate) standing: Standing,
    /// Of the request that it answers.
    #[serde(default)]
    pub(crate) csr: Option<Hash>,
    /// Whether an agent has come with it.
    #[serde(default)]
    pub(crate) used: bool,
    /// Number of the authority that issued it.
    #[serde(default = "first")]
    pub(crate) authority: u32,
}

const fn first() -> u32 {
    1
}

/// Whether a certificate counts, whatever its dates say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It counts.
    Good,
    /// Treated as if its time were over.
    Expired,
    /// A newer one counts.
    Replaced,
    /// Called back.
    Revoked,
}

/// What a renewal does to the certificate before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OldCertificates {
    /// It lives until its own end.
    #[default]
    OldStays,
    /// Only the newer one counts from then on.
    OldDies,
}

/// A published policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Published {
    /// What its payload says, unverified.
    pub(crate) version: u64,
    /// The document.
    pub(crate) envelope: Envelope,
}

/// A job in the hub's hands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Its id.
    pub(crate) job_id: String,
    /// Whom it is delivered to.
    pub(crate) agent_id: String,
    /// Its number; jobs are delivered in this order.
    pub(crate) number: u64,
    /// The document.
    pub(crate) envelope: Envelope,
    /// When it came.
    pub(crate) enqueued_at: Timestamp,
    /// Whether the agent has it for good.
    pub(crate) acknowledged: bool,
    /// The last status.
    pub(crate) status: Option<JobStatus>,
    /// By attempt.
    pub(crate) results: BTreeMap<u32, Reported>,
    /// Its signed cancellation.
    pub(crate) cancel: Option<Envelope>,
    /// What the agent uploaded for it, by name.
    pub(crate) artifacts: BTreeMap<String, Artifact>,
}

/// A result, as it came.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reported {
    /// SHA-256 of the body.
    pub(crate) sha256: Hash,
    /// When.
    pub(crate) at: Timestamp,
    /// What it says.
    pub(crate) result: JobResult,
}

/// A change.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    TokenMade { hash: Hash, expires_at: Timestamp },
    Enrolled { token: Hash, agent_id: String, agent: Box<Agent> },
    CertificateIssued { agent_id: String, certificate: Certificate },
    CertificateUsed { agent_id: String, serial: String },
    CertificateJudged { agent_id: String, serial: String, standing: Standing },
    OldCertificatesSet { rule: OldCertificates },
    RootPublished { version: u64, envelope: Envelope },
    PolicyPublished { version: u64, envelope: Envelope },
    JobEnqueued { job_id: String, agent_id: String, envelope: Envelope, at: Timestamp },
    JobReported { job_id: String, status: JobStatus },
    JobEnded { job_id: String, reported: Box<Reported> },
    CancelSent { job_id: String, envelope: Envelope },
    ArtifactStored { job_id: String, name: String, artifact: Artifact },
    AuditKeyRotated { agent_id: String, key: PublicKey },
    LogSeen { agent_id: String, log_id: String, seen: SeenLog },
    LogInTrouble { agent_id: String, log_id: String, trouble: Trouble },
}

impl Agent {
    /// Every audit key that it has had, the one in force last.
    pub(crate) fn audit_keys(&self) -> Vec<PublicKey> {
        self.past_keys.iter().copied().chain([self.audit_key]).collect()
    }
}

impl State {
    /// Makes `event` true. Total: an event about something unknown changes nothing, so a journal
    /// can always be read to its end.
    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::TokenMade { hash, expires_at } => {
                self.tokens.insert(hash, Token { expires_at, used_by: None });
            }
            Event::Enrolled { token, agent_id, mut agent } => {
                if let Some(token) = self.tokens.get_mut(&token) {
                    token.used_by = Some(agent_id.clone());
                }
                if let Some(before) = self.agents.remove(&agent_id) {
                    agent.open = before.open;
                    agent.logs = before.logs;
                }
                self.agents.insert(agent_id, *agent);
            }
            Event::CertificateIssued { agent_id, certificate } => {
                self.renewed(&agent_id, certificate);
            }
            Event::CertificateUsed { agent_id, serial } => {
                if let Some(certificate) = self.certificate_mut(&agent_id, &serial) {
                    certificate.used = true;
                }
            }
            Event::CertificateJudged { agent_id, serial, standing } => {
                if let Some(certificate) = self.certificate_mut(&agent_id, &serial) {
                    certificate.standing = standing;
                }
            }
            Event::OldCertificatesSet { rule } => self.old_certificates = rule,
            Event::RootPublished { version, envelope } => {
                self.roots.insert(version, envelope);
            }
            Event::PolicyPublished { version, envelope } => {
                self.policies.push_back(Published { version, envelope });
                if self.policies.len() > MAX_POLICIES {
                    self.policies.pop_front();
                }
            }
            Event::JobEnqueued { job_id, agent_id, envelope, at } => {
                self.enqueued(job_id, agent_id, envelope, at);
            }
            Event::JobReported { job_id, status } => self.reported(&job_id, status),
            Event::JobEnded { job_id, reported } => self.ended(&job_id, *reported),
            Event::CancelSent { job_id, envelope } => {
                if let Some(job) = self.jobs.get_mut(&job_id) {
                    job.cancel = Some(envelope);
                }
            }
            Event::AuditKeyRotated { agent_id, key } => self.rotated(&agent_id, key),
            Event::LogSeen { agent_id, log_id, seen } => self.saw(&agent_id, log_id, seen),
            Event::LogInTrouble { agent_id, log_id, trouble } => {
                self.in_trouble(&agent_id, &log_id, trouble);
            }
            Event::ArtifactStored { job_id, name, artifact } => {
                if let Some(job) = self.jobs.get_mut(&job_id) {
                    job.artifacts.insert(name, artifact);
                }
            }
        }
    }

    fn rotated(&mut self, agent_id: &str, key: PublicKey) {
        if let Some(agent) = self.agents.get_mut(agent_id) {
            agent.past_keys.push(std::mem::replace(&mut agent.audit_key, key));
        }
    }

    fn in_trouble(&mut self, agent_id: &str, log_id: &str, trouble: Trouble) {
        let agent = self.agents.get_mut(agent_id);
        if let Some(seen) = agent.and_then(|agent| agent.logs.get_mut(log_id)) {
            seen.trouble = Some(trouble);
        }
    }

    /// The agent with `serial` among its certificates, with that certificate.
    pub(crate) fn certificate(&self, agent_id: &str, serial: &str) -> Option<&Certificate> {
        self.agents.get(agent_id)?.certificates.iter().find(|c| c.serial == serial)
    }

    fn certificate_mut(&mut self, agent_id: &str, serial: &str) -> Option<&mut Certificate> {
        let agent = self.agents.get_mut(agent_id)?;
        agent.certificates.iter_mut().find(|c| c.serial == serial)
    }

    fn saw(&mut self, agent_id: &str, log_id: String, seen: SeenLog) {
        let logs = self.agents.get_mut(agent_id).map(|agent| &mut agent.logs);
        if let Some(logs) = logs
            && (logs.len() < MAX_LOGS || logs.contains_key(&log_id))
        {
            logs.insert(log_id, seen);
        }
    }

    /// Jobs of `agent_id` that have not ended, in order.
    pub(crate) fn open_jobs<'a>(&'a self, agent_id: &str) -> impl Iterator<Item = &'a Job> {
        let open = self.agents.get(agent_id).map(|a| a.open.values());
        open.into_iter().flatten().filter_map(|id| self.jobs.get(id))
    }

    /// The newest root's version.
    pub(crate) fn root_version(&self) -> u64 {
        self.roots.keys().next_back().copied().unwrap_or(0)
    }

    fn renewed(&mut self, agent_id: &str, certificate: Certificate) {
        let old = self.old_certificates;
        let Some(agent) = self.agents.get_mut(agent_id) else { return };
        if old == OldCertificates::OldDies {
            for before in &mut agent.certificates {
                if before.standing == Standing::Good {
                    before.standing = Standing::Replaced;
                }
            }
        }
        agent.certificates.push_back(certificate);
        if agent.certificates.len() > MAX_CERTIFICATES {
            agent.certificates.pop_front();
        }
    }

    fn enqueued(&mut self, job_id: String, agent_id: String, envelope: Envelope, at: Timestamp) {
        let number = self.next;
        self.next += 1;
        if let Some(agent) = self.agents.get_mut(&agent_id) {
            agent.open.insert(number, job_id.clone());
        }
        let job = Job {
            job_id: job_id.clone(),
            agent_id,
            number,
            envelope,
            enqueued_at: at,
            acknowledged: false,
            status: None,
            results: BTreeMap::new(),
            cancel: None,
            artifacts: BTreeMap::new(),
        };
        self.jobs.insert(job_id, job);
    }

    fn reported(&mut self, job_id: &str, status: JobStatus) {
        let Some(job) = self.jobs.get_mut(job_id) else { return };
        let rejected = status.state == JobStatusState::Rejected;
        job.acknowledged = true;
        job.status = Some(status);
        if rejected {
            self.close(job_id);
        }
    }

    fn ended(&mut self, job_id: &str, reported: Reported) {
        let Some(job) = self.jobs.get_mut(job_id) else { return };
        job.acknowledged = true;
        job.results.insert(reported.result.attempt, reported);
        self.close(job_id);
    }

    fn close(&mut self, job_id: &str) {
        let Some(job) = self.jobs.get(job_id) else { return };
        let agent = self.agents.get_mut(&job.agent_id);
        if agent.is_some_and(|agent| agent.open.remove(&job.number).is_some()) {
            self.ended.push_back(job_id.to_owned());
        }
        if self.ended.len() > MAX_ENDED_JOBS
            && let Some(oldest) = self.ended.pop_front()
        {
            self.jobs.remove(&oldest);
        }
    }
}

impl Job {
    /// The state's name in the project's vocabulary.
    pub(crate) fn state(&self) -> &'static str {
        if let Some(last) = self.results.values().next_back() {
            return match last.result.outcome {
                Outcome::Ok => "ok",
                Outcome::Failed => "failed",
                Outcome::Timeout => "timeout",
                Outcome::Cancelled => "cancelled",
                Outcome::Interrupted => "interrupted",
                Outcome::Indeterminate => "indeterminate",
            };
        }
        match self.status.as_ref().map(|s| s.state) {
            Some(JobStatusState::Rejected) => "rejected",
            Some(JobStatusState::Running) => "running",
            Some(JobStatusState::Accepted) | None => "queued",
        }
    }

    /// Whether nothing more is expected.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(self.state(), "queued" | "running")
    }
}
