//! Whether a signed policy may take effect: for whom, for how long, and after which other.

use jiff::{SignedDuration, Timestamp};
use jtnt_proto::{bytes::Hash, envelope::Envelope, policy::Policy, root::Root};

use super::Labels;
use crate::trust::{Keyring, TrustError, Verified};

/// How far the clock of whoever signed may be ahead.
const SKEW: SignedDuration = SignedDuration::from_mins(5);
const HOURS_A_DAY: i64 = 24;

/// Why a policy does not take effect. The names are stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub(super) struct Refused {
    /// `UPPER_SNAKE`.
    pub(super) reason: &'static str,
    /// For people.
    pub(super) message: String,
}

impl Refused {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Whom a policy must be for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) agent_id: &'a str,
    pub(super) labels: &'a Labels,
}

/// The last policy that took effect under the same policy role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    pub(super) version: u64,
    pub(super) payload: Hash,
}

impl Floor {
    pub(super) fn of(policy: &Verified<Policy>) -> Self {
        Self { version: policy.get().version, payload: policy.payload_sha256() }
    }
}

/// What holds of a policy at any time: it is signed by the role and is for this agent. A stored
/// one must pass this again at every start and under every new root.
pub(super) fn stands(
    envelope: &Envelope,
    keyring: &Keyring,
    reader: Reader<'_>,
) -> Result<Verified<Policy>, Refused> {
    let policy = keyring.policy(envelope).map_err(|e| distrusted(&e))?;
    let root = keyring.root();
    addressed(policy.get(), root, reader)?;
    lifetime(policy.get(), root)?;
    Ok(policy)
}

/// What must hold beside when a policy arrives.
pub(super) fn may_follow(
    policy: &Verified<Policy>,
    root: &Root,
    floor: Option<Floor>,
    now: Timestamp,
) -> Result<(), Refused> {
    let new = policy.get();
    if let Some(floor) = floor {
        newer(policy, floor)?;
    }
    if new.issued_at.duration_since(now) > SKEW {
        let message =
            format!("issued at {}, and here it is {now:.0}; set the clocks", new.issued_at);
        return Err(Refused::new("ISSUED_IN_FUTURE", message));
    }
    if new.expires_at <= now {
        let message = format!("it expired at {}; publish a newer one", new.expires_at);
        return Err(Refused::new("EXPIRED", message));
    }
    if root.expires_at <= now {
        let message = format!("the root of roles expired at {}; rotate it", root.expires_at);
        return Err(Refused::new("ROOT_EXPIRED", message));
    }
    Ok(())
}

fn newer(policy: &Verified<Policy>, floor: Floor) -> Result<(), Refused> {
    let version = policy.get().version;
    if version < floor.version {
        let message = format!("version {version} is older than {}, which was here", floor.version);
        return Err(Refused::new("VERSION_TOO_OLD", message));
    }
    if version == floor.version && policy.payload_sha256() != floor.payload {
        let message = format!("another document was version {version}; give it a new number");
        return Err(Refused::new("VERSION_REUSED", message));
    }
    Ok(())
}

fn distrusted(error: &TrustError) -> Refused {
    let reason = match error {
        TrustError::Threshold { .. } => "BAD_SIGNATURE",
        TrustError::WrongType { .. } => "WRONG_TYPE",
        TrustError::NotAnEnvelope(_)
        | TrustError::TooLong(_)
        | TrustError::Malformed(_)
        | TrustError::Root(_) => "MALFORMED",
    };
    Refused::new(reason, error.to_string())
}

fn addressed(policy: &Policy, root: &Root, reader: Reader<'_>) -> Result<(), Refused> {
    let audience = &policy.audience;
    let refused = |message: String| Err(Refused::new("NOT_FOR_ME", message));
    if audience.root_id != root.root_id {
        return refused(format!("it is for the installation {:?}", audience.root_id));
    }
    if audience.agents.as_ref().is_some_and(|agents| !agents.contains(reader.agent_id)) {
        return refused(format!("it does not name the agent {}", reader.agent_id));
    }
    match audience.labels.iter().find(|(name, value)| reader.labels.get(*name) != Some(*value)) {
        Some((name, value)) => {
            refused(format!("it is for agents with the label {name}={value} in their config"))
        }
        None => Ok(()),
    }
}

fn lifetime(policy: &Policy, root: &Root) -> Result<(), Refused> {
    let days = root.max_policy_days.unwrap_or(Root::DEFAULT_POLICY_DAYS);
    let longest = SignedDuration::from_hours(i64::from(days) * HOURS_A_DAY);
    let life = policy.expires_at.duration_since(policy.issued_at);
    if life > longest {
        let message = format!("it is valid for more than the {days} days that the root allows");
        return Err(Refused::new("VALID_TOO_LONG", message));
    }
    if life <= SignedDuration::ZERO {
        return Err(Refused::new("EXPIRED", "it expires before it is issued"));
    }
    Ok(())
}
