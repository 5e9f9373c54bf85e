//! Why a request to the hub did not succeed, for programs (reasons) and for people (what failed,
//! why, what to do).

use std::{error::Error as StdError, fmt, io, time::Duration};

use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as Tls, OtherError};

use crate::identity::client_key::Unsigned;

/// A step on the way to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Step {
    Dns,
    Tcp,
    Tls,
    ClientCertificate,
    Http,
    Clock,
}

impl Step {
    /// The word in the connection test.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::ClientCertificate => "client_certificate",
            Self::Http => "http",
            Self::Clock => "clock",
        }
    }
}

/// The reason of a [`Fault`] by which the hub says in TLS that it does not take the certificate.
pub const CLIENT_CERT_REFUSED: &str = "CLIENT_CERT_REFUSED";

/// What went wrong on the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Where.
    pub step: Step,
    /// Stable, `UPPER_SNAKE`.
    pub reason: &'static str,
    /// What was seen.
    pub message: String,
    /// What to do.
    pub advice: &'static str,
}

/// Why a request did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// No answer: name, route, TLS, or a connection that broke. Worth another try.
    #[error(transparent)]
    Unreachable(Fault),
    /// No answer in time. Worth another try.
    #[error("no answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The breaker is open; nothing was sent. Worth another try later.
    #[error("circuit breaker open for another {} s", .0.as_secs())]
    BreakerOpen(Duration),
    /// An answer that says no.
    #[error("the hub answered {status}: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Stable reason of the problem document, or empty.
        reason: String,
        /// The same for people.
        detail: String,
        /// What `Retry-After` asked for.
        retry_after: Option<Duration>,
    },
    /// An answer that breaks the contract: too long, a redirect, not JSON, another shape.
    #[error("the hub's answer breaks the contract: {0}")]
    BadAnswer(String),
}

impl HubError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Deadline(_) | Self::BreakerOpen(_) => true,
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::BadAnswer(_) => true,
        }
    }

    /// Why the hub says no, in an answer or, of the certificate, in TLS.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { reason, .. } => Some(reason),
            Self::Unreachable(fault) => Some(fault.reason).filter(|r| *r == CLIENT_CERT_REFUSED),
            Self::Deadline(_) | Self::BreakerOpen(_) | Self::BadAnswer(_) => None,
        }
    }

    /// The step of the way to the hub that failed, as the connection test calls it.
    #[must_use]
    pub const fn cause(&self) -> &'static str {
        match self {
            Self::Unreachable(fault) => fault.step.word(),
            Self::Deadline(_)
            | Self::BreakerOpen(_)
            | Self::Refused { .. }
            | Self::BadAnswer(_) => Step::Http.word(),
        }
    }

    /// How long the hub asked to be left alone.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::BreakerOpen(left) => Some(*left),
            Self::Unreachable(_) | Self::Deadline(_) | Self::BadAnswer(_) => None,
        }
    }

    /// Whether somebody answered, and as a hub does.
    pub(super) const fn hub_is_there(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status < 500)
    }
}

impl Fault {
    pub(super) fn dns(host: &str, why: &dyn fmt::Display) -> Self {
        Self {
            step: Step::Dns,
            reason: "DNS",
            message: format!("the name {host} cannot be resolved: {why}"),
            advice: "check hub_url, and the name servers in /etc/resolv.conf",
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "of many errors, two whose cause is likely")]
    pub(super) fn tcp(at: &dyn fmt::Display, why: &io::Error) -> Self {
        let (reason, advice) = match why.kind() {
            io::ErrorKind::ConnectionRefused => (
                "TCP_REFUSED",
                "nothing listens there: check the port in hub_url, and that the hub runs",
            ),
            io::ErrorKind::TimedOut => (
                "TCP_TIMEOUT",
                "nothing answers there: check the address, the route, and firewalls between",
            ),
            _ => ("TCP", "check the address, the route, and firewalls between"),
        };
        let message = format!("no connection to {at}: {why}");
        Self { step: Step::Tcp, reason, message, advice }
    }

    pub(super) fn proxy(why: &dyn fmt::Display) -> Self {
        Self {
            step: Step::Tcp,
            reason: "PROXY",
            message: format!("the proxy makes no connection to the hub: {why}"),
            advice: "check hub_proxy, and that the proxy allows CONNECT to the hub's port",
        }
    }

    /// A handshake, or a connection in use, that failed.
    pub(super) fn broken(host: &str, error: &(dyn StdError + 'static)) -> Self {
        if let Some(tls) = tls_error(error) {
            return Self::tls(host, tls);
        }
        Self {
            step: Step::Http,
            reason: "CONNECTION_LOST",
            message: format!("the connection to {host} broke: {}", chain(error)),
            advice: "the hub or something between closed it: look at the hub's log",
        }
    }

    pub(super) fn handshake(host: &str, error: &io::Error) -> Self {
        if let Some(tls) = tls_error(error) {
            return Self::tls(host, tls);
        }
        Self {
            step: Step::Tls,
            reason: "TLS_CLOSED",
            message: format!("{host} closed the connection during the TLS handshake: {error}"),
            advice: "check that the port in hub_url is the hub's TLS port",
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "TLS has many errors, and a few that say what to do"
    )]
    fn tls(host: &str, error: &Tls) -> Self {
        let (step, reason, message, advice) = match error {
            Tls::InvalidCertificate(bad) => return Self::certificate(host, bad),
            Tls::AlertReceived(alert) if about_our_certificate(*alert) => (
                Step::ClientCertificate,
                CLIENT_CERT_REFUSED,
                format!("the hub refuses this agent's client cert: {alert:?}"),
                "enrol again: jtnt-agent enroll --force --token-file FILE",
            ),
            Tls::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure)
            | Tls::PeerIncompatible(_) => (
                Step::Tls,
                "TLS_VERSION",
                format!("{host} does not speak TLS 1.3 as the agent does: {error}"),
                "let the hub, or the proxy before it, speak TLS 1.3",
            ),
            Tls::InvalidMessage(_) => (
                Step::Tls,
                "NOT_TLS",
                format!("what answers at {host} does not speak TLS"),
                "check that the port in hub_url is the hub's TLS port",
            ),
            Tls::Other(OtherError(why)) if why.downcast_ref::<Unsigned>().is_some() => (
                Step::ClientCertificate,
                "CLIENT_KEY",
                why.to_string(),
                "see that its token or TPM is there and lets the agent in; if the key is lost, enrol \
                 again: jtnt-agent enroll --force --token-file FILE",
            ),
            other => (
                Step::Tls,
                "TLS",
                format!("TLS with {host} failed: {other}"),
                "look at the hub's log",
            ),
        };
        Self { step, reason, message, advice }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "of many faults, those of which people can tell the cause"
    )]
    fn certificate(host: &str, bad: &Bad) -> Self {
        let (reason, message, advice) = match bad {
            Bad::UnknownIssuer | Bad::BadSignature => (
                "HUB_UNTRUSTED",
                format!("the cert of {host} is signed by an authority this agent does not trust"),
                "check hub_url; if the hub is right, enrol with a root that names its authority, \
                 or with --hub-ca",
            ),
            Bad::NotValidForName => (
                "HUB_NAME",
                format!("the cert of the hub is not for the name {host}"),
                "use a name in hub_url that stands in the hub's certificate",
            ),
            Bad::NotValidForNameContext { presented, .. } => (
                "HUB_NAME",
                format!("the cert of the hub is for {}, not for {host}", presented.join(", ")),
                "use a name in hub_url that stands in the hub's certificate",
            ),
            Bad::Expired | Bad::ExpiredContext { .. } => (
                "HUB_CERT_EXPIRED",
                format!("the cert of {host} has expired, or this machine's clock is ahead: {bad}"),
                "check this machine's clock (date -u); if it is right, the hub needs a new cert",
            ),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => (
                "HUB_CERT_NOT_YET_VALID",
                format!("the cert of {host} is not valid yet, so a clock is wrong: {bad}"),
                "check this machine's clock (date -u), and the hub's",
            ),
            other => (
                "HUB_CERT",
                format!("the cert of {host} cannot be used: {other}"),
                "the hub needs another certificate",
            ),
        };
        Self { step: Step::Tls, reason, message, advice }
    }
}

/// The hub says in TLS what it thinks of our certificate.
const fn about_our_certificate(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// The error of TLS within another one. An `io::Error` does not give its inner error as source.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Tls> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<Tls>() {
            return Some(tls);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// An error with its causes.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
