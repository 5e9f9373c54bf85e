//! The audit log's line: one JSON object, chained to the line before it and signed.
//!
//! A line ends in `,"signature":"<88 characters>"}`. The signature is over [`DOMAIN`] and the
//! bytes before that suffix; `prev` is the RFC 6962 leaf hash of the line before, without its
//! newline. Readers check bytes as they stand and never serialise again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    bytes::{Hash, from_base64, to_base64},
    json,
    key::PublicKey,
    merkle::Frontier,
};

/// What is signed begins with this, so that the audit key signs nothing else by accident.
pub const DOMAIN: &[u8] = b"jtnt-audit/v1\n";
/// The longest line a log may hold, in bytes. A longer record is cut before it is signed.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// `prev` of the first line.
pub const ZERO: Hash = Hash([0; 32]);

const OPEN: &str = ",\"signature\":\"";
const CLOSE: &str = "\"}";
const SIGNATURE_CHARS: usize = 88;
const SUFFIX_BYTES: usize = OPEN.len() + SIGNATURE_CHARS + CLOSE.len();

/// What a line says happened. Text in the log, so that a reader of an older version shows events
/// it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The log begins; `details` holds `log_id`, `public_key` and, when known, `hub_key`.
    Genesis,
    /// The agent started.
    Startup,
    /// The agent stopped on request.
    Shutdown,
    /// The agent enrolled, or tried to.
    Enrollment,
    /// A job is about to run.
    JobStarted,
    /// A job ended.
    JobExecuted,
    /// A job was refused before policy was asked; `details.reason` says why.
    JobRejected,
    /// A policy took effect.
    PolicyChanged,
    /// A policy forbade something; `details.rule` names the rule.
    PolicyViolation,
    /// A certificate was replaced.
    CertRotated,
    /// The agent was updated, or an update was undone.
    UpdateApplied,
    /// A new root of roles took effect.
    RootChanged,
    /// Somebody called an admin method that changes something.
    AdminCall,
    /// Somebody read the log through the agent.
    LogRead,
    /// Strangers were refused at the admin socket; one line a minute a user.
    Refused,
    /// The configuration was read again.
    ConfigChanged,
    /// The audit key was replaced; by the old key, `details.acceptance` by the new.
    KeyRotated,
    /// A day's file begins; `details.previous` names the file before.
    DayOpen,
    /// A day's file ends.
    DayClose,
    /// Torn bytes at the end of the log were set aside.
    Recovered,
    /// Old files are about to be removed; `details.files` lists them.
    Prune,
    /// Something the agent promises does not hold for now; `details.what` says what.
    Degraded,
    /// Output that was kept for the hub is gone; `details.reason` says why.
    OutputDropped,
}

impl Event {
    /// Every name, as a reader may ask for it, in the order in which they stand above.
    pub const NAMES: [&'static str; 23] = [
        "genesis",
        "startup",
        "shutdown",
        "enrollment",
        "job_started",
        "job_executed",
        "job_rejected",
        "policy_changed",
        "policy_violation",
        "cert_rotated",
        "update_applied",
        "root_changed",
        "admin_call",
        "log_read",
        "refused",
        "config_changed",
        "key_rotated",
        "day_open",
        "day_close",
        "recovered",
        "prune",
        "degraded",
        "output_dropped",
    ];

    /// Whether a witness should see it at once, and not with the next heartbeat: who may do what has
    /// changed, or somebody tried what he may not.
    #[must_use]
    pub const fn is_urgent(self) -> bool {
        match self {
            Self::Enrollment
            | Self::JobRejected
            | Self::PolicyChanged
            | Self::PolicyViolation
            | Self::CertRotated
            | Self::UpdateApplied
            | Self::RootChanged
            | Self::AdminCall
            | Self::Refused
            | Self::ConfigChanged
            | Self::KeyRotated
            | Self::Recovered
            | Self::Prune
            | Self::Degraded => true,
            Self::Genesis
            | Self::Startup
            | Self::Shutdown
            | Self::JobStarted
            | Self::JobExecuted
            | Self::LogRead
            | Self::DayOpen
            | Self::DayClose
            | Self::OutputDropped => false,
        }
    }

    /// The name in the log.
    #[must_use]
    pub fn name(self) -> String {
        self.text().to_owned()
    }

    /// The same, for who only compares it.
    pub(crate) fn text(self) -> &'static str {
        Self::NAMES.get(self as usize).copied().unwrap_or_default()
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was done.
    Success,
    /// It failed.
    Error,
    /// It took longer than allowed.
    Timeout,
    /// It was forbidden.
    Denied,
    /// It was called off.
    Cancelled,
}

/// Who asked for something over the admin API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// User id of the peer, where the transport tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Process id of the peer, where the transport tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The peer's name: user name, or subject alternative name over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A line without its signature, in the order of its keys. Absent fields are absent, never null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When it was written.
    pub timestamp: Timestamp,
    /// Always `audit`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An [`Event`] by name.
    pub event: String,
    /// Whose log it is.
    pub agent_id: String,
    /// The job it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// Program and arguments, or the admin method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A [`Status`] by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Whom the job ran as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<u64>,
    /// Who asked, for admin calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// Where the request came from: `hub`, `local` or `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What was acted on: a file, a certificate's serial, a policy's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What else is known.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub details: Map<String, Value>,
    /// 0, 1, 2, ... over all days; never reset.
    pub seq: u64,
    /// Base64 of the leaf hash of the line before; [`ZERO`] for the first.
    pub prev: String,
}

/// The RFC 6962 leaf hash of a line: SHA-256(0x00 || line without LF).
#[must_use]
pub fn leaf_hash(line: &[u8]) -> Hash {
    Hash(Sha256::new().chain_update([0]).chain_update(line).finalize().into())
}

/// The tree over all lines before this one, as the first line of a day tells it.
#[must_use]
pub fn frontier_of(line: &Line) -> Option<Frontier> {
    let told = line.details.get("frontier")?.as_array()?;
    let peaks: Option<Vec<_>> =
        told.iter().map(|peak| from_base64(peak.as_str()?).map(Hash)).collect();
    Frontier::of(line.seq, peaks?)
}

/// A tree as the details of a day's first line hold it: what a file needs to be checked without
/// those before it.
#[must_use]
pub fn frontier_details(frontier: &Frontier) -> Value {
    frontier.peaks().iter().map(|peak| to_base64(&peak.0)).collect()
}

/// `prev` as it stands in a line.
#[must_use]
pub fn prev_text(hash: Hash) -> String {
    to_base64(&hash.0)
}

/// Serialises and signs. Returns the line without LF.
///
/// # Errors
/// Only if `details` cannot be serialised.
pub fn seal(
    line: &Line,
    sign: impl FnOnce(&[u8]) -> [u8; 64],
) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = DOMAIN.to_vec();
    serde_json::to_writer(&mut out, line)?;
    out.pop(); // the closing brace comes back after the signature
    let signature = sign(&out);
    out.drain(..DOMAIN.len());
    out.extend_from_slice(OPEN.as_bytes());
    out.extend_from_slice(to_base64(&signature).as_bytes());
    out.extend_from_slice(CLOSE.as_bytes());
    Ok(out)
}

/// A line as it was read, its signature not yet checked.
#[derive(Debug, Clone)]
pub struct SealedLine<'a> {
    /// All bytes without LF.
    pub raw: &'a [u8],
    /// What they say.
    pub line: Line,
    seal: Seal<'a>,
}

/// A line's signature, and the bytes it is over.
#[derive(Debug, Clone)]
pub(crate) struct Seal<'a> {
    signed: &'a [u8],
    signature: [u8; 64],
}

/// Why bytes are not a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// Longer than [`MAX_LINE_BYTES`].
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// It does not end in a signature.
    #[error("no signature at its end")]
    NoSignature,
    /// It is no JSON object with the fields of a line.
    #[error("not an audit line: {0}")]
    Shape(String),
}

impl<'a> Seal<'a> {
    /// Cuts it off the end of a line, of which nothing else is read.
    pub(crate) fn of(raw: &'a [u8]) -> Result<Self, LineFault> {
        if raw.len() > MAX_LINE_BYTES {
            return Err(LineFault::TooLong);
        }
        let at = raw.len().checked_sub(SUFFIX_BYTES).ok_or(LineFault::NoSignature)?;
        let (signed, suffix) = raw.split_at(at);
        let signature = std::str::from_utf8(suffix)
            .ok()
            .and_then(|s| s.strip_prefix(OPEN)?.strip_suffix(CLOSE))
            .and_then(from_base64)
            .ok_or(LineFault::NoSignature)?;
        Ok(Self { signed, signature })
    }

    /// Whether `key` made it.
    pub(crate) fn is_by(&self, key: &PublicKey) -> bool {
        key.verifies(&[DOMAIN, self.signed].concat(), &self.signature)
    }
}

impl<'a> SealedLine<'a> {
    /// Takes a line apart.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(raw: &'a [u8]) -> Result<Self, LineFault> {
        let seal = Seal::of(raw)?;
        let line = json::from_slice(raw).map_err(|e| LineFault::Shape(e.to_string()))?;
        Ok(Self { raw, line, seal })
    }

    /// Whether `key` signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.seal.is_by(key)
    }

    /// What the next line's `prev` must be.
    #[must_use]
    pub fn leaf_hash(&self) -> Hash {
        leaf_hash(self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_events_are_all_there() {
        for name in Event::NAMES {
            let event: Event = serde_json::from_value(name.into()).unwrap();
            assert_eq!(event.name(), name);
        }
        // Whoever reads an unknown one is told all that there are.
        let unknown = serde_json::from_value::<Event>("none".into()).unwrap_err().to_string();
        let known = unknown.split('`').skip(3).step_by(2);
        assert_eq!(known.collect::<Vec<_>>(), Event::NAMES);
    }
}
