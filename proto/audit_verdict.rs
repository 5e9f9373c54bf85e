//! What a check of an audit log can come to: flaws with their places, a verdict, and what is not known.

use std::fmt;

/// What is the matter at one place of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// The key did not sign these bytes.
    BadSignature,
    /// `prev` is not the hash of the line before.
    Chain,
    /// Lines are missing before this one.
    SeqGap,
    /// The line stands here for the second time, or out of its order.
    Duplicate,
    /// The last line is not whole: a crash, or somebody cut it.
    TornTail,
    /// The log is shorter than a checkpoint says. Found by who compares with a checkpoint.
    Truncated,
    /// Two signed lines claim the same place.
    Fork,
    /// No key is known that could check this.
    UnknownKey,
    /// Lines are gone, as a prune record says.
    Pruned,
    /// No checkpoint covers this. Found by who compares with a checkpoint.
    Unanchored,
    /// The bytes are no audit line.
    Malformed,
}

impl Flaw {
    /// The stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BadSignature => "BAD_SIGNATURE",
            Self::Chain => "CHAIN",
            Self::SeqGap => "SEQ_GAP",
            Self::Duplicate => "DUPLICATE",
            Self::TornTail => "TORN_TAIL",
            Self::Truncated => "TRUNCATED",
            Self::Fork => "FORK",
            Self::UnknownKey => "UNKNOWN_KEY",
            Self::Pruned => "PRUNED",
            Self::Unanchored => "UNANCHORED",
            Self::Malformed => "MALFORMED",
        }
    }

    /// Whether it alone shows that somebody changed the log.
    pub(crate) fn is_tampering(self) -> bool {
        match self {
            Self::BadSignature
            | Self::Chain
            | Self::SeqGap
            | Self::Duplicate
            | Self::Truncated
            | Self::Fork
            | Self::Malformed => true,
            Self::TornTail | Self::UnknownKey | Self::Pruned | Self::Unanchored => false,
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A flaw and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub verdict: Flaw,
    /// The file's name, as it was given to [`crate::audit_verify::Verifier::begin_file`].
    pub file: String,
    /// The line in the file, from 1.
    pub line: u64,
    /// The line's own number, where it could be read.
    pub seq: Option<u64>,
    /// In words.
    pub message: String,
}

/// The answer to "is this log whole?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was given is as it was written.
    Ok,
    /// Something was changed.
    Tampered,
    /// Nothing is known to be changed, but something needed is missing.
    Incomplete,
}

impl Verdict {
    /// The stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Tampered => "TAMPERED",
            Self::Incomplete => "INCOMPLETE",
        }
    }
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The verdict.
    pub verdict: Verdict,
    /// Lines read, torn ones not counted.
    pub lines: u64,
    /// Files read.
    pub files: u64,
    /// Number of the first line.
    pub first_seq: Option<u64>,
    /// Highest number seen.
    pub last_seq: Option<u64>,
    /// What this check could not know, in words.
    pub unknown: Vec<String>,
}
