//! Why a certificate was not replaced: a stable reason, what happened, and what to do.

use std::{borrow::Cow, io};

use jiff::{SignedDuration, Timestamp};

use crate::{
    domain::key_store::KeyStore,
    hub::{CLIENT_CERT_REFUSED, HubError, Step},
    identity::{IdentityError, x509::CertFault},
    runtime::lock::LockError,
};

const ENROL_AGAIN: &str = "enrol again: jtnt-agent enroll --force --token-file FILE";
const LATER: &str = "try again; a renewal that is due the agent tries again by itself";

/// Why there is no other certificate in place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RenewError {
    /// Stable, `UPPER_SNAKE`; the hub's own where the hub refused.
    pub reason: Cow<'static, str>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: Cow<'static, str>,
    /// Whether the same may succeed later without anybody's help.
    pub transient: bool,
}

impl RenewError {
    fn new(reason: &'static str, message: impl Into<String>, advice: &'static str) -> Self {
        let (reason, advice) = (reason.into(), advice.into());
        Self { reason, message: message.into(), advice, transient: false }
    }

    fn later(self) -> Self {
        Self { transient: true, ..self }
    }

    /// The agent is not enrolled, or what it has cannot be used.
    #[must_use]
    pub fn no_identity(fault: &IdentityError) -> Self {
        Self::new("NO_IDENTITY", fault.to_string(), "nothing was done")
    }

    /// What was done beside did not come to an end.
    pub(super) fn lost(why: &dyn std::fmt::Display) -> Self {
        Self::new("INTERNAL", format!("the renewal broke off: {why}"), LATER).later()
    }

    /// No hub is configured.
    #[must_use]
    pub fn no_hub() -> Self {
        Self::new("NO_HUB", "this agent has no hub to ask", "see hub_url in the configuration")
    }

    pub(super) fn not_due(at: Timestamp, why: &str) -> Self {
        let message = format!("nothing to renew before {at:.0} ({why})");
        Self::new("NOT_DUE", message, "to renew all the same: jtnt-agent cert renew --force")
    }

    pub(super) fn storage(what: &str, why: &io::Error) -> Self {
        let advice = "check that the folder can be written and has space left";
        Self::new("STORAGE", format!("{what}: {why}"), advice).later()
    }

    /// Somebody else replaced the identity while this was under way.
    pub(super) fn overtaken() -> Self {
        let message = "another identity, or another pair, was put in place meanwhile";
        Self::new("OVERTAKEN", message, "nothing was changed; look at: jtnt-agent cert check")
    }

    pub(super) fn busy(why: &LockError) -> Self {
        Self::new("BUSY", why.to_string(), "wait until the enrolment is over").later()
    }

    pub(super) fn key(store: &KeyStore, why: &dyn std::fmt::Display) -> Self {
        let advice = match store {
            KeyStore::File => LATER,
            KeyStore::Tpm2(_) | KeyStore::Pkcs11(_) => {
                "see key_store in the configuration, and docs/CERTIFICATES.md"
            }
        };
        Self::new("KEY", format!("no new key in {store}: {why}"), advice).later()
    }

    /// The hub did not issue one.
    pub(super) fn asked(error: &HubError) -> Self {
        let message = format!("the hub did not renew the cert: {error}");
        Self::of_hub(error, message)
    }

    /// The hub does not take the new one, or could not be asked.
    pub(super) fn tried(error: &HubError) -> Self {
        let message = format!("the hub was not shown the other cert successfully: {error}");
        Self::of_hub(error, message)
    }

    /// The hub does not take the certificate in place, or could not be asked.
    #[must_use]
    pub fn unseen(error: &HubError) -> Self {
        let message = format!("the hub was not shown the cert successfully: {error}");
        Self::of_hub(error, message)
    }

    fn of_hub(error: &HubError, message: String) -> Self {
        if error.refusal() == Some(CLIENT_CERT_REFUSED) {
            return Self::new(CLIENT_CERT_REFUSED, message, ENROL_AGAIN);
        }
        let transient = error.is_transient();
        if let HubError::Unreachable(fault) = error {
            return Self::new(fault.reason, message, fault.advice).later();
        }
        let HubError::Refused { reason, status, .. } = error else {
            return Self::new("HUB", message, LATER).with(transient);
        };
        let advice = match reason.as_str() {
            "CERTIFICATE_REVOKED"
            | "CERTIFICATE_EXPIRED"
            | "CERTIFICATE_UNKNOWN"
            | "AGENT_UNKNOWN" => ENROL_AGAIN,
            "CERTIFICATE_REPLACED" => {
                "the hub takes only a newer one; if that is the backup: jtnt-agent cert rollback"
            }
            "CLOCK_SKEW" => "set this machine's clock",
            _ if transient => LATER,
            _ => "ask the hub's operator what its log says",
        };
        let reason = if reason.is_empty() { format!("HTTP_{status}") } else { reason.clone() };
        Self { reason: reason.into(), ..Self::new("HUB", message, advice) }.with(transient)
    }

    fn with(self, transient: bool) -> Self {
        Self { transient, ..self }
    }

    /// The hub's answer is no certificate of this agent.
    pub(super) fn unusable(why: &IdentityError) -> Self {
        let message = format!("the hub's answer is no cert for this agent: {why}");
        Self::new("CERTIFICATE", message, "nothing was changed; tell the hub's operator")
    }

    /// Its dates do not fit this machine's clock; one that has not begun by the hub's clock either is
    /// no matter of clocks.
    pub(super) fn dates(fault: &CertFault, now: Timestamp, offset: Option<SignedDuration>) -> Self {
        let by_hub = offset.map_or(now, |offset| now.saturating_sub(offset).unwrap_or(now));
        let apart = match offset {
            Some(offset) => {
                let way = if offset.is_negative() { "behind" } else { "ahead of" };
                format!("this clock is {} s {way} the hub's", offset.unsigned_abs().as_secs())
            }
            None => "the hub's clock is not known".to_owned(),
        };
        if matches!(fault, CertFault::NotYetValid(begins) if offset.is_none() || *begins <= by_hub)
        {
            let message = format!("{fault}; {apart}");
            return Self::new("CLOCK_SKEW", message, "set this machine's clock, or the hub's");
        }
        Self::new("CERTIFICATE", format!("{fault}; {apart}"), "tell the hub's operator")
    }

    /// It would end soon, and before the one that it is to replace.
    pub(super) fn shorter(ends: Timestamp, current: Timestamp) -> Self {
        let message =
            format!("the hub's cert ends at {ends}, before the one in place, at {current}");
        Self::new("SHORTER", message, "nothing was changed; tell the hub's operator")
    }

    /// The hub saw another certificate than it was shown.
    pub(super) fn not_seen(shown: &str, seen: &str) -> Self {
        let message = format!("the hub was shown the cert {shown} and saw {seen}");
        Self::new("NOT_SEEN", message, "is there something between this agent and its hub?")
    }

    pub(super) fn no_backup() -> Self {
        let message = "there is no cert to go back to: a backup is kept for 7 days after a renewal";
        Self::new("NO_BACKUP", message, "nothing was changed")
    }

    pub(super) fn bad_backup(why: &dyn std::fmt::Display) -> Self {
        let message = format!("the backup cannot be used: {why}");
        Self::new("BAD_BACKUP", message, "the cert in place stays")
    }

    pub(super) fn unproven(error: &HubError) -> Self {
        let transient = error.is_transient() && error.refusal() != Some(CLIENT_CERT_REFUSED);
        let message = format!("the hub does not confirm that it takes the backup: {error}");
        // What would be as wrong without asking the hub.
        if let HubError::Unreachable(fault) = error
            && matches!(fault.step, Step::ClientCertificate | Step::Tls)
        {
            return Self::new("UNPROVEN", message, fault.advice).with(transient);
        }
        let advice = if transient {
            "to go back without its word: jtnt-agent cert rollback --no-probe"
        } else {
            "the cert in place stays"
        };
        Self::new("UNPROVEN", message, advice).with(transient)
    }
}
