//! Why an enrolment failed: a stable reason, what happened, and what to do.

use std::{borrow::Cow, fmt, io, path::Path};

use jiff::Timestamp;

use crate::{
    domain::key_store::KeyStore, hub::HubError, identity::IdentityError, trust::TrustError,
};

const GIVE_CA: &str = "give a PEM file with the hub's authority";
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
    /// Whether it lies in what was typed, and how.
    pub input: Option<Input>,
}

/// What is wrong with a file that was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It cannot be read.
    Unreadable,
    /// It may not be read.
    Denied,
    /// It holds something else.
    Wrong,
}

impl Input {
    fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::PermissionDenied {
            Self::Denied
        } else {
            Self::Unreadable
        }
    }
}

impl EnrolError {
    fn new(reason: &'static str, message: impl Into<String>, advice: &'static str) -> Self {
        Self { reason: reason.into(), message: message.into(), advice, input: None }
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

    pub(super) fn tls_key(store: &KeyStore, why: &dyn fmt::Display) -> Self {
        let advice = match store {
            KeyStore::File => "try again",
            KeyStore::Tpm2(_) | KeyStore::Pkcs11(_) => {
                "see key_store in the configuration, and docs/CERTIFICATES.md"
            }
        };
        Self::new("TLS_KEY", format!("no TLS key could be made in {store}: {why}"), advice)
    }

    pub(super) fn root_file(path: &Path, why: &io::Error) -> Self {
        let message = format!("{}: {why}", path.display());
        let error =
            Self::new("ROOT_UNREADABLE", message, "give the root.json of the hub's operator");
        Self { input: Some(Input::of(why)), ..error }
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
        let advice = "compare --hub and --root-sha256 with what the hub's operator has: sha256sum \
                      root.json; take the file or its hash from the operator, not from the hub";
        Self::new("ROOT_MISMATCH", message, advice)
    }

    pub(super) fn hub_ca(path: &Path, why: &io::Error) -> Self {
        let message = format!("{}: {why}", path.display());
        let error = Self::new("HUB_CA_UNREADABLE", message, GIVE_CA);
        Self { input: Some(Input::of(why)), ..error }
    }

    pub(super) fn no_hub_ca(path: &Path, why: &str) -> Self {
        let message = format!("{}: {why}", path.display());
        let error = Self::new("HUB_CA_UNREADABLE", message, GIVE_CA);
        Self { input: Some(Input::Wrong), ..error }
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
            HubError::Unreachable(fault) => {
                let advice = typed(fault.reason).unwrap_or(fault.advice);
                Self::new(fault.reason, fault.message, advice)
            }
            HubError::Refused { reason, detail, .. } => Self::refused(reason, &detail),
            other @ (HubError::Deadline(_) | HubError::BreakerOpen(_)) => Self::new(
                "HUB_TIMEOUT",
                other.to_string(),
                "try again; if it stays so, look at the hub's log",
            ),
            other @ HubError::BadAnswer(_) => Self::new(
                "BAD_ANSWER",
                other.to_string(),
                "check --hub: what answers there may be no hub; nothing was changed",
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
        Self { reason, message: format!("the hub refused: {detail}"), advice, input: None }
    }
}

/// Advice for whoever typed the hub's address and named its root just now; the daemon's advice
/// speaks of the configuration.
fn typed(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "DNS" => "check the name in --hub, and the name servers in /etc/resolv.conf",
        "TCP_REFUSED" => "nothing listens there: check the port in --hub, and that the hub runs",
        "TLS_CLOSED" | "NOT_TLS" => "check that the port in --hub is the hub's TLS port",
        "HUB_UNTRUSTED" => {
            "--hub and the root do not belong together: compare the root's SHA-256 (sha256sum \
             root.json) with the one that the hub's operator has, and get root.json from the \
             operator, not from the hub; where another authority vouches for the hub, add --hub-ca"
        }
        "HUB_NAME" => "use a name in --hub that stands in the hub's certificate",
        _ => return None,
    })
}
