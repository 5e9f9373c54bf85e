//! Why an enrolment failed: a stable reason, what happened, and what to do.

use std::{borrow::Cow, fmt, io, path::Path};

use jiff::Timestamp;

use crate::{hub::HubError, identity::IdentityError, trust::TrustError};

const ASK_FOR_TOKEN: &str = "ask the hub's operator for a new token";

/// Why an enrolment failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct EnrolError {
    /// Stable, `UPPER_SNAKE`; the hub's own where the hub refused.
    pub reason: Cow<'static, str>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: &'static str,
}

impl EnrolError {
    fn new(reason: &'static str, message: impl Into<String>, advice: &'static str) -> Self {
        Self { reason: reason.into(), message: message.into(), advice }
    }

    pub(super) fn storage(path: &Path, why: &io::Error) -> Self {
        let message = format!("{}: {why}", path.display());
        Self::new("STORAGE", message, "check that the folder can be written and has space left")
    }

    pub(super) fn unplaced(data_dir: &Path, why: &io::Error) -> Self {
        let message = format!(
            "the agent is enrolled, but its files could not be put in place below {}: {why}",
            data_dir.display()
        );
        Self::new("UNPLACED", message, "make space or mend permissions, then start the agent")
    }

    pub(super) fn unrecorded(path: &Path, why: &io::Error) -> Self {
        let message =
            format!("the agent is enrolled, but {} cannot be written: {why}", path.display());
        Self::new("UNRECORDED", message, "the audit log will lack this enrolment; check the disk")
    }

    pub(super) fn busy(why: &dyn fmt::Display) -> Self {
        Self::new("BUSY", format!("another enrolment is under way: {why}"), "wait for its end")
    }

    pub(super) fn locked(why: &dyn fmt::Display) -> Self {
        Self::new("BUSY", why.to_string(), "try again once that process is gone")
    }

    pub(super) fn enrolled(what: &str) -> Self {
        let message = format!("this machine has an identity already: {what}");
        Self::new("ALREADY_ENROLLED", message, "add --force to replace it by a new one")
    }

    pub(super) fn key(why: &IdentityError) -> Self {
        Self::new("AUDIT_KEY", why.to_string(), "mend the audit key, then try again")
    }

    pub(super) fn tls_key(why: &dyn fmt::Display) -> Self {
        Self::new("TLS_KEY", format!("no TLS key could be made: {why}"), "try again")
    }

    pub(super) fn root_file(path: &Path, why: &dyn fmt::Display) -> Self {
        let message = format!("{}: {why}", path.display());
        Self::new("ROOT_UNREADABLE", message, "give the root.json of the hub's operator")
    }

    pub(super) fn root(why: &TrustError) -> Self {
        let message = format!("the root of roles cannot be believed: {why}");
        Self::new("ROOT_INVALID", message, "get the root.json again, not from the hub")
    }

    pub(super) fn root_expired(at: Timestamp) -> Self {
        let message = format!("the root of roles expired at {at}");
        let advice = "get a newer root.json from the operator, and check this machine's clock";
        Self::new("ROOT_EXPIRED", message, advice)
    }

    pub(super) fn root_mismatch(wanted: &dyn fmt::Display, seen: &str) -> Self {
        let message = format!(
            "none of the hub's roots has the SHA-256 {wanted} (seen: {seen}): this is another hub, \
             or somebody stands between"
        );
        Self::new("ROOT_MISMATCH", message, "compare hub_url and hash with the operator's")
    }

    pub(super) fn hub_ca(path: &Path, why: &dyn fmt::Display) -> Self {
        let message = format!("{}: {why}", path.display());
        Self::new("HUB_CA_UNREADABLE", message, "give a PEM file with the hub's authority")
    }

    pub(super) fn tls(why: String) -> Self {
        Self::new("HUB_CA_UNUSABLE", why, "check the root of roles and --hub-ca")
    }

    pub(super) fn certificate(why: &str) -> Self {
        let message = format!("the hub issued a cert that cannot be this agent's: {why}");
        Self::new("BAD_CERTIFICATE", message, "nothing was changed; tell the hub's operator")
    }

    pub(super) fn skew(here: Timestamp, there: Timestamp) -> Self {
        let message = format!(
            "the clocks differ: {here} here, {there} at the hub, so the new cert is not valid here"
        );
        Self::new("CLOCK_SKEW", message, "set this machine's clock, or the hub's, and try again")
    }

    pub(super) fn hub(error: HubError) -> Self {
        match error {
            HubError::Unreachable(fault) => Self::new(fault.reason, fault.message, fault.advice),
            HubError::Refused { reason, detail, .. } => Self::refused(reason, &detail),
            other @ (HubError::Deadline(_) | HubError::BreakerOpen(_)) => Self::new(
                "HUB_TIMEOUT",
                other.to_string(),
                "try again; if it stays so, look at the hub's log",
            ),
            other @ HubError::BadAnswer(_) => Self::new(
                "BAD_ANSWER",
                other.to_string(),
                "check hub_url: what answers there may be no hub; nothing was changed",
            ),
        }
    }

    fn refused(reason: String, detail: &str) -> Self {
        // Where we know what the reason means, the hub need not give its advice beside ours.
        let (detail, advice) = match reason.as_str() {
            "TOKEN_UNKNOWN" => {
                ("it did not make this token", "check the token, or ask the hub's operator for one")
            }
            "TOKEN_USED" => ("this token was used already", ASK_FOR_TOKEN),
            "TOKEN_EXPIRED" => ("this token has expired", ASK_FOR_TOKEN),
            _ => (detail, "look at the hub's log"),
        };
        let stable = !reason.is_empty()
            && reason.len() <= 64
            && reason.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        let reason = if stable { Cow::Owned(reason) } else { Cow::Borrowed("REFUSED") };
        Self { reason, message: format!("the hub refused: {detail}"), advice }
    }
}
