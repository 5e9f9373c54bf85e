//! The policy document: what jobs may do on a machine. One document drives both the decision and
//! what the operating system enforces.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use crate::{bytes::Hash, key::KeyId};

/// Payload of type `application/vnd.jtnt.policy.v1+json`, signed by the policy role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// A name for this document, `[A-Za-z0-9_-]{1,64}`.
    pub policy_id: String,
    /// Grows with every publication; an agent never goes back.
    pub version: u64,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// From then on it denies everything.
    pub expires_at: Timestamp,
    /// Whom it is for.
    pub audience: Audience,
    /// Whether violations are stopped or only recorded.
    #[serde(default)]
    pub mode: Mode,
    /// What the operating system must enforce before a job may start.
    #[serde(default)]
    pub require_enforcement: RequireEnforcement,
    /// What network a job sees.
    #[serde(default)]
    pub network: Network,
    /// Programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<ExecRule>,
    /// Scripts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<ScriptRule>,
    /// Files, for transfers and for what a sandboxed job may touch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file: Vec<FileRule>,
    /// Ceilings that no job may exceed.
    #[serde(default)]
    pub limits: Limits,
}

/// The agents a document is for: those of the root, narrowed by ids, by labels, or by both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audience {
    /// [`crate::root::Root::root_id`].
    pub root_id: String,
    /// Only these agents; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<BTreeSet<String>>,
    /// Only agents whose *local* labels have all of these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What happens on a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is stopped.
    #[default]
    Enforce,
    /// It is recorded, not stopped.
    Monitor,
}

/// The least enforcement a job may run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequireEnforcement {
    /// The decision alone.
    None,
    /// Whatever the system offers, named in the result.
    Partial,
    /// Everything the policy says, or the job does not start.
    #[default]
    Full,
}

/// The network a job sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The machine's.
    #[default]
    Any,
    /// None at all.
    None,
}

/// Whether a rule permits or forbids. A deny that applies wins over every allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Permits.
    Allow,
    /// Forbids.
    Deny,
}

/// A rule about a native program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRule {
    /// Names the rule in every decision, `[A-Za-z0-9_-]{1,64}`, once in a document.
    pub id: String,
    /// Permit or forbid.
    pub effect: Effect,
    /// Absolute path or glob: `*` stays within a directory, `**` does not.
    pub path: String,
    /// Arguments; none at all when absent.
    #[serde(default, skip_serializing_if = "ArgsRule::is_none")]
    pub args: ArgsRule,
    /// The program's own bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Hash>,
    /// Names of environment variables a job may set.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub env: BTreeSet<String>,
    /// The user it runs as; a user of the job's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// What it may execute itself.
    #[serde(default, skip_serializing_if = "Children::is_system")]
    pub children: Children,
    /// Whether it may reach Unix sockets of the machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipc: bool,
    /// Overrides [`Policy::mode`] for this rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// A rule about a script and the interpreter that reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptRule {
    /// Names the rule.
    pub id: String,
    /// Permit or forbid.
    pub effect: Effect,
    /// Absolute path of the interpreter.
    pub interpreter: String,
    /// The script's bytes. An allow names this or [`Self::signer`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Hash>,
    /// A key of the script role that endorsed the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<KeyId>,
    /// Arguments; none at all when absent.
    #[serde(default, skip_serializing_if = "ArgsRule::is_none")]
    pub args: ArgsRule,
    /// Names of environment variables a job may set.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub env: BTreeSet<String>,
    /// The user it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// What it may execute itself.
    #[serde(default, skip_serializing_if = "Children::is_system")]
    pub children: Children,
    /// Whether it may reach Unix sockets of the machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipc: bool,
    /// Overrides [`Policy::mode`] for this rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// A rule about files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRule {
    /// Names the rule.
    pub id: String,
    /// Permit or forbid.
    pub effect: Effect,
    /// Which accesses it is about.
    pub access: BTreeSet<Access>,
    /// Absolute path or glob.
    pub path: String,
    /// The user a transfer runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
    /// Overrides [`Policy::mode`] for this rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// A way to use a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// An upload reads.
    Read,
    /// A download writes.
    Write,
    /// What a job may execute beyond the baseline.
    Execute,
}

/// Which argument vectors a rule is about. How it is read, and refused: `policy_read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ArgsRule {
    /// `"any"`.
    Any(AnyArgs),
    /// Position by position, as many as there are slots.
    Slots(Vec<ArgSlot>),
}

impl ArgsRule {
    /// Whether it is about no arguments at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an agent can take it.
    ///
    /// # Errors
    /// The first fault: too many slots, or a pattern that is none.
    pub fn check(&self) -> Result<(), String> {
        let Self::Slots(slots) = self else { return Ok(()) };
        if slots.len() > MAX_SLOTS {
            return Err(format!("more than {MAX_SLOTS} arguments"));
        }
        slots.iter().try_for_each(|slot| match slot {
            ArgSlot::Literal(_) => Ok(()),
            ArgSlot::Pattern(pattern) => pattern.compile().map(drop),
        })
    }
}

impl Default for ArgsRule {
    fn default() -> Self {
        Self::Slots(Vec::new())
    }
}

/// The word `"any"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnyArgs {
    /// Any arguments.
    Any,
}

/// One argument position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ArgSlot {
    /// Exactly this text.
    Literal(String),
    /// Text that a pattern describes.
    Pattern(ArgPattern),
}

/// A variable argument. It never begins with `-`, whatever the pattern says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgPattern {
    /// A regular expression, anchored at both ends.
    #[serde(rename = "match")]
    pub pattern: String,
}

/// The most arguments that a rule can name.
pub const MAX_SLOTS: usize = 256;
/// The longest pattern of an argument.
pub const MAX_PATTERN_BYTES: usize = 512;

impl ArgPattern {
    /// The expression, anchored at both ends of the text, even where a flag changes `^` and `$`.
    ///
    /// # Errors
    /// When it is too long, or none.
    pub fn compile(&self) -> Result<Regex, String> {
        let pattern = &self.pattern;
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(format!("a pattern has more than {MAX_PATTERN_BYTES} bytes"));
        }
        // Alone first: `a)|(b` would close the group that anchors it.
        Regex::new(pattern)
            .and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")))
            .map_err(|e| format!("pattern {pattern:?}: {e}"))
    }
}

/// What a job's own children may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Children {
    /// Programs of the system's own trees.
    #[default]
    System,
    /// Only what exec rules allow with `"args": "any"`.
    Rules,
    /// Nothing.
    None,
}

impl Children {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde wants")]
    const fn is_system(&self) -> bool {
        matches!(self, Self::System)
    }
}

/// Ceilings for every job. A job may ask for less, never for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Wall time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// Bytes kept of each output stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Memory of all the job's processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Share of one core, in percent; 200 is two cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u64>,
    /// Weight of input and output against other jobs, 1 to 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u64>,
    /// Size of any one file the job writes, and of a transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
}

impl Limits {
    /// Whether each is one that a machine can hold.
    ///
    /// # Errors
    /// Naming the one that is not, and its bounds.
    pub fn check(&self) -> Result<(), String> {
        let bounds = [
            ("timeout_seconds", self.timeout_seconds, 1, 7 * 86_400),
            ("output_bytes", self.output_bytes, 0, 1 << 30),
            ("memory_bytes", self.memory_bytes, 1 << 20, 1 << 50),
            ("pids", self.pids, 1, 4_194_304),
            ("cpu_percent", self.cpu_percent, 1, 100 * 4096),
            ("io_weight", self.io_weight, 1, 10_000),
            ("file_bytes", self.file_bytes, 0, 1 << 50),
        ];
        for (name, value, least, most) in bounds {
            if value.is_some_and(|v| v < least || v > most) {
                return Err(format!("limits.{name} is not within {least} to {most}"));
            }
        }
        Ok(())
    }
}
