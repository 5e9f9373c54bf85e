//! A document as its author writes it, compiled to be asked before anybody signs it. What comes of
//! it is no [`Verified`](crate::trust::Verified) policy, so it can never be in force.

use jiff::Timestamp;
use jtnt_proto::{envelope::MAX_PAYLOAD_BYTES, policy_lint::draft};

use crate::{domain::policy::Engine, platform::paths::resolve};

/// Why a document cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCandidate {
    /// No agent would take it.
    #[error("no agent takes this document: {0}")]
    Malformed(String),
    /// It would deny everything.
    #[error("it expired at {0}, so it denies everything; give it a later expires_at")]
    Expired(Timestamp),
    /// It is too long to be published.
    #[error("it has {0} bytes, and a policy has at most {MAX_PAYLOAD_BYTES}")]
    TooLong(usize),
}

impl NoCandidate {
    /// Stable, `UPPER_SNAKE`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "MALFORMED",
            Self::Expired(_) => "EXPIRED",
            Self::TooLong(_) => "TOO_LONG",
        }
    }
}

/// Reads and compiles a document, in which may be absent what publishing fills in. It looks at
/// files, so it blocks.
///
/// # Errors
/// As [`NoCandidate`].
pub fn candidate(document: &str, now: Timestamp) -> Result<Engine, NoCandidate> {
    if document.len() > MAX_PAYLOAD_BYTES {
        return Err(NoCandidate::TooLong(document.len()));
    }
    let policy = draft(document.as_bytes()).map_err(|e| NoCandidate::Malformed(e.to_string()))?;
    if policy.expires_at <= now {
        return Err(NoCandidate::Expired(policy.expires_at));
    }
    Engine::compile(policy, &mut resolve).map_err(|e| NoCandidate::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"version": 7, "expires_at": "2026-01-20T00:00:00Z",
        "exec": [{"id": "uptime", "effect": "allow", "path": "/usr/bin/uptime"}]}"#;

    fn refused(document: &str) -> (&'static str, String) {
        let no = candidate(document, "2026-01-01T00:00:00Z".parse().unwrap()).unwrap_err();
        (no.reason(), no.to_string())
    }

    #[test]
    fn a_document_as_its_author_writes_it_is_taken() {
        let engine = candidate(GOOD, "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(engine.policy().version, 7);
    }

    #[test]
    fn what_no_agent_takes_is_told_with_its_place() {
        for (document, reason, says) in [
            ("", "MALFORMED", "line 1 column 1"),
            (&GOOD.replace("effect", "efect"), "MALFORMED", "line 2"),
            (&GOOD.replace("/usr/bin", "bin"), "MALFORMED", "rule \"uptime\""),
            (&GOOD.replace("7", "0"), "MALFORMED", "version 0"),
            (&GOOD.replace("2026", "2025"), "EXPIRED", "2025-01-20T00:00:00Z"),
            (&" ".repeat(MAX_PAYLOAD_BYTES + 1), "TOO_LONG", "1048577 bytes"),
        ] {
            let (given, said) = refused(document);
            assert_eq!(given, reason, "{said}");
            assert!(said.contains(says), "{said}");
        }
    }
}
