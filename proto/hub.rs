//! The hub's REST API, version 1: what both sides put into bodies. Requests are checked strictly
//! by the hub; of answers the agent ignores fields it does not know, since nothing that is not
//! signed can make it act.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    bytes::{Base64, Hash},
    envelope::Envelope,
    key::PublicKey,
};

/// The largest JSON body either side accepts, in bytes.
pub const MAX_BODY_BYTES: usize = 4 << 20;
/// The longest a poll may wait, in seconds.
pub const MAX_POLL_SECONDS: u64 = 60;
/// The most jobs one poll answers.
pub const MAX_LEASED_JOBS: usize = 64;
/// The most bytes of each stream that stand in a result.
pub const MAX_INLINE_OUTPUT_BYTES: usize = 256 * 1024;
/// The most bytes of one piece of live output.
pub const MAX_CHUNK_BYTES: usize = 64 * 1024;

/// `POST /api/v1/enroll`. The only request without a client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// One-time token.
    pub token: String,
    /// PKCS#10 request, PEM, whose common name is the agent id.
    pub csr: String,
    /// The first audit key.
    pub audit_key: PublicKey,
    /// [`crate::identity::agent_id`] of that key.
    pub agent_id: String,
    /// The lines of the agent's audit log by which others took the place of that key, raw, the oldest
    /// first (`key_rotated`; [`crate::audit_keys::rotated`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_rotations: Vec<String>,
    /// The signature of the key in force over [`crate::identity::enroll_proof_message`].
    pub proof: Base64,
    /// X25519 public key that secrets are sealed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_key: Option<Base64>,
    /// The machine.
    pub host: HostFacts,
    /// Labels of the agent's local configuration.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What an agent says of its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// Name of the host.
    pub hostname: String,
    /// `linux`, `macos`, `windows`.
    pub os: String,
    /// `x86_64`, `aarch64`, ...
    pub arch: String,
    /// Kernel release.
    pub kernel: String,
    /// SHA-256 of the machine id; tells clones apart without naming the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id_sha256: Option<Hash>,
    /// Version of the agent.
    pub agent_version: String,
}

/// Answer to an enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollResponse {
    /// The id that was asked for.
    pub agent_id: String,
    /// Certificate and intermediates, PEM, leaf first.
    pub certificate: String,
    /// Certificate authorities, PEM; only those that the root names are kept.
    pub ca_bundle: String,
    /// The hub's clock.
    pub hub_time: Timestamp,
}

/// `POST /api/v1/heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// Whose; must be the certificate's.
    pub agent_id: String,
    /// Version of the agent.
    pub version: String,
    /// `ok`, or what an operator must look at: `needs_reenroll`, `policy_expired`, `degraded`, ...
    pub state: String,
    /// Changes with every boot of the machine.
    pub boot_id: String,
    /// Since the agent started.
    pub uptime_seconds: u64,
    /// Root of roles in force.
    pub root_version: u64,
    /// How the root came: `pinned` or `trusted_hub`.
    pub root_source: String,
    /// Policy in force; 0 without one.
    pub policy_version: u64,
    /// Serial of the client certificate, lower hex.
    pub certificate_serial: String,
    /// Its end.
    pub certificate_expires_at: Timestamp,
    /// What the operating system can enforce: `full`, `partial[...]` or `none`.
    pub enforcement: String,
    /// Work in hand.
    pub jobs: JobCounts,
    /// The audit log's head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditHead>,
    /// Labels of the agent's local configuration.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Work in an agent's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobCounts {
    /// Accepted, not started.
    pub queued: u64,
    /// Started, not ended.
    pub running: u64,
    /// Ended, not delivered.
    pub pending: u64,
}

/// Where an audit log stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditHead {
    /// Names the log; a new one after a restore.
    pub log_id: String,
    /// Lines so far.
    pub size: u64,
    /// Leaf hash of the last line.
    pub head: Hash,
    /// C2SP signed note over `size` and the Merkle root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// Size of the last checkpoint that the hub cosigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_size: Option<u64>,
    /// RFC 6962 consistency proof from `old_size` to `size`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proof: Vec<Hash>,
    /// The newest lines by which audit keys gave way to others, raw, the oldest first: at most
    /// [`MAX_KEY_ROTATIONS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_rotations: Vec<String>,
}

/// Rotations of the audit key that a heartbeat tells of.
pub const MAX_KEY_ROTATIONS: usize = 4;

/// Why a witness does not cosign a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuditRefusal {
    /// It is no note of this log by this agent's key, or does not fit the head.
    BadCheckpoint,
    /// The log has fewer lines than were seen.
    Shrunk,
    /// The lines that were seen are not its beginning.
    Forked,
    /// Another log took its place, and nothing shows why. For hubs' lists; no answer says so.
    Replaced,
}

impl AuditRefusal {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadCheckpoint => "BAD_CHECKPOINT",
            Self::Shrunk => "SHRUNK",
            Self::Forked => "FORKED",
            Self::Replaced => "REPLACED",
        }
    }

    /// For people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::BadCheckpoint => "it does not take the checkpoint for this agent's",
            Self::Shrunk => "it has seen more lines than there are",
            Self::Forked => "it has seen other lines than there are",
            Self::Replaced => "another log took its place",
        }
    }
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatResponse {
    /// The hub's clock.
    pub hub_time: Timestamp,
    /// What is worth fetching now.
    #[serde(default)]
    pub hints: Hints,
    /// The line of a C2SP note by which the hub cosigns the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<String>,
    /// How many lines the hub has seen, where the proof does not begin there: the next one should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witnessed_size: Option<u64>,
    /// Why it does not cosign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_refusal: Option<AuditRefusal>,
    /// Serial of the client certificate that the hub saw, lower hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_serial: Option<String>,
    /// The agent's own last checkpoint, when its log has shrunk or forked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<String>,
}

/// Hints make an agent ask sooner. They decide nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a hint of its own on the wire")]
pub struct Hints {
    /// Newest policy version.
    pub policy_version: Option<u64>,
    /// Newest root version.
    pub root_version: Option<u64>,
    /// Jobs wait.
    pub jobs: bool,
    /// Cancels wait.
    pub cancels: bool,
    /// A manifest newer than the agent's version exists.
    pub update: bool,
    /// The certificate should be renewed now.
    pub renew: bool,
}

/// `GET /api/v1/jobs?wait=S`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JobsResponse {
    /// Leased to this agent; at most [`MAX_LEASED_JOBS`].
    #[serde(default)]
    pub jobs: Vec<LeasedJob>,
    /// Signed cancels; sent again until the job has ended.
    #[serde(default)]
    pub cancels: Vec<Envelope>,
}

/// A job lent to an agent. Given again unless its status is reported in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedJob {
    /// The signed job's id. Unsigned, so only good to report a job whose signature fails.
    pub job_id: String,
    /// End of the lease.
    pub lease_expires_at: Timestamp,
    /// The job.
    pub envelope: Envelope,
}

/// `POST /api/v1/jobs/{id}/status`. Idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobStatus {
    /// Which run of the job, from 1.
    pub attempt: u32,
    /// What became of it.
    pub state: JobStatusState,
    /// Stable reason of a rejection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<u64>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// States that end a lease or tell of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatusState {
    /// Durably taken; the lease ends.
    Accepted,
    /// Refused for good.
    Rejected,
    /// Started.
    Running,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Exit code 0, or a transfer that was done.
    Ok,
    /// Another exit code, a signal, or a transfer that was not done.
    Failed,
    /// Ended by its timeout.
    Timeout,
    /// Called off.
    Cancelled,
    /// The machine went down while it ran.
    Interrupted,
    /// It may have run; nobody can tell.
    Indeterminate,
}

/// `POST /api/v1/jobs/{id}/result`. Idempotent by (job id, attempt, SHA-256 of the body); the
/// agent sends the very bytes of its result file each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobResult {
    /// The job.
    pub job_id: String,
    /// Which run, from 1.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Exit code, where the process returned one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Stable reason of anything but `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Start, where it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// End.
    pub finished_at: Timestamp,
    /// Wall time by a clock that does not jump.
    pub duration_ms: u64,
    /// Standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Output>,
    /// Standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Output>,
    /// What an upload or a download moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<crate::job::Artifact>,
    /// Whom it ran as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What the operating system enforced: `full`, `partial[...]` or `none`.
    pub enforcement: String,
    /// The policy that allowed it.
    pub policy_version: u64,
    /// The rule that allowed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// One output stream: bytes as they were, first and last parts kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// The first bytes.
    pub head: Base64,
    /// The last bytes, when some between were dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Base64>,
    /// All bytes that were written.
    pub total_bytes: u64,
    /// SHA-256 of all bytes that were written.
    pub sha256: Option<Hash>,
    /// What is kept of it beyond this, in order: artifacts of the job that follow the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<OutputPart>,
    /// Why the agent has left out what it had kept: `SPOOL_FULL`, `SPOOL_OLD`, `LOST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
}

/// A part of an output that is too large for the result, and follows it as an artifact of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputPart {
    /// The artifact's name.
    pub name: String,
    /// Where in the stream its first byte stands.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

/// `PUT /api/v1/jobs/{id}/output`: output of a job that says `stream_output`, as it comes. A hub
/// takes a piece at its place or beyond: bytes between were not kept. What it has already it leaves
/// alone, so a piece may be sent again. No data at all asks where to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputChunk {
    /// Which run of the job, from 1.
    pub attempt: u32,
    /// Which stream.
    pub stream: OutputStream,
    /// Where in it the first byte of `data` stands.
    pub offset: u64,
    /// At most [`MAX_CHUNK_BYTES`].
    pub data: Base64,
    /// Nothing comes after it.
    #[serde(default)]
    pub end: bool,
}

/// The streams of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Answer to a piece of live output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputState {
    /// Where in the stream the hub expects the next byte.
    pub received: u64,
}

/// Answer to a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultResponse {
    /// Whether the hub already had it.
    pub duplicate: bool,
}

/// `POST /api/v1/certificates/renew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// PKCS#10 request of the new key, PEM.
    pub csr: String,
    /// Serial of the certificate it replaces, lower hex.
    pub serial: String,
    /// When it was asked.
    pub at: Timestamp,
    /// The audit key's signature over [`crate::identity::renew_proof_message`].
    pub proof: Base64,
}

/// Answer to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewResponse {
    /// Certificate and intermediates, PEM, leaf first.
    pub certificate: String,
    /// Certificate authorities, PEM; only those that the root names are kept.
    pub ca_bundle: String,
    /// When the hub would like the next renewal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Its start.
    pub start: Timestamp,
    /// Its end.
    pub end: Timestamp,
}

/// Answer to `PUT /api/v1/audit/{log_id}?from=SEQ`.
///
/// The body (`application/x-ndjson`) is raw lines of the log, each with its newline, from number `from`
/// on, which must be what comes after those that the hub holds (409 otherwise, with this answer); an
/// empty body asks where to go on. The hub stores them before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLines {
    /// Number of the next line that the hub does not hold.
    pub next: u64,
}

/// Answer to `PUT /api/v1/artifacts/{job_id}/{name}?offset=N[&sha256=HEX]`.
///
/// An empty body at offset 0 asks where to go on; a body is appended at `offset`, which must be
/// what the hub has (409 otherwise, with this answer); an empty body with `sha256` ends the upload
/// (422 when the whole does not have that hash, and the upload starts over).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadState {
    /// Bytes the hub has.
    pub received: u64,
    /// Whether the upload has ended.
    pub complete: bool,
}

/// RFC 9457 problem details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `about:blank`, or a URI that names the problem.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The status code.
    pub status: u16,
    /// What is wrong and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Stable reason, `UPPER_SNAKE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The default of [`Problem::kind`].
#[must_use]
pub fn about_blank() -> String {
    "about:blank".to_owned()
}
