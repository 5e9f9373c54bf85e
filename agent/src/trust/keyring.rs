//! The root of roles at work: which signatures count for which document, and how one root follows
//! another.

use std::sync::Arc;

use jtnt_proto::{
    envelope::{Envelope, PayloadType},
    job::{Cancel, Job, ScriptEndorsement},
    json,
    policy::Policy,
    root::{Role, Root},
};
use serde::de::DeserializeOwned;

use super::verified::{Verified, Wanted, expect_type, parse};

/// Why bytes are not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// No envelope at all.
    #[error("not a signed envelope: {0}")]
    NotAnEnvelope(String),
    /// An envelope of another kind.
    #[error("signed as {found}, not as {wanted}")]
    WrongType {
        /// What it is.
        found: &'static str,
        /// What was needed.
        wanted: &'static str,
    },
    /// Longer than any document may be.
    #[error("a payload of {0} bytes is too long")]
    TooLong(usize),
    /// Too few keys of the role signed it.
    #[error("{valid} of {threshold} needed signatures of role {role} are valid")]
    Threshold {
        /// The role.
        role: &'static str,
        /// Distinct keys of the role that signed.
        valid: usize,
        /// How many were needed.
        threshold: u8,
    },
    /// Signed, but not a document this agent understands.
    #[error("signed, but not understood: {0}")]
    Malformed(String),
    /// A root that contradicts itself, or does not follow the one in force.
    #[error("{0}")]
    Root(String),
}

/// The root of roles in force. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keyring {
    root: Arc<Verified<Root>>,
}

impl Keyring {
    /// Takes a root that was authenticated from outside, and checks that it is whole: its own
    /// threshold signed it and it does not contradict itself.
    ///
    /// # Errors
    /// When it is not.
    pub fn from_root(bytes: &[u8]) -> Result<Self, TrustError> {
        Self::whole(&envelope(bytes)?)
    }

    /// The root in force.
    #[must_use]
    pub fn root(&self) -> &Root {
        self.root.get()
    }

    /// The next root: exactly one version later, same `root_id`, signed by the thresholds of both.
    ///
    /// # Errors
    /// When it is not.
    pub fn advance(&self, bytes: &[u8]) -> Result<Self, TrustError> {
        let envelope = envelope(bytes)?;
        expect_type(&envelope, PayloadType::Root)?;
        let (now, role) = (self.root(), &self.root().roles.root);
        Wanted { root: now, role, name: "root" }.signers(&envelope)?;
        let next = Self::whole(&envelope)?;
        let (was, is) = (now.version, next.root().version);
        if was.checked_add(1) != Some(is) {
            return Err(TrustError::Root(format!("root {is} does not follow root {was}")));
        }
        if next.root().root_id != now.root_id {
            return Err(TrustError::Root(format!(
                "root {is} is of another installation: {} instead of {}",
                next.root().root_id,
                now.root_id
            )));
        }
        Ok(next)
    }

    /// Verifies a policy. Time and audience are not judged here.
    ///
    /// # Errors
    /// When it is not one, or the policy role did not sign it.
    pub fn policy(&self, envelope: &Envelope) -> Result<Verified<Policy>, TrustError> {
        self.verify(envelope, PayloadType::Policy, "policy", |r| &r.roles.policy)
    }

    /// Verifies a job.
    ///
    /// # Errors
    /// When it is not one, or the job role did not sign it.
    pub fn job(&self, envelope: &Envelope) -> Result<Verified<Job>, TrustError> {
        self.verify(envelope, PayloadType::Job, "job", |r| &r.roles.job)
    }

    /// Verifies a cancel.
    ///
    /// # Errors
    /// When it is not one, or the job role did not sign it.
    pub fn cancel(&self, envelope: &Envelope) -> Result<Verified<Cancel>, TrustError> {
        self.verify(envelope, PayloadType::Cancel, "job", |r| &r.roles.job)
    }

    /// Verifies the endorsement of a script.
    ///
    /// # Errors
    /// When it is not one, or the script role did not sign it.
    pub fn script(&self, envelope: &Envelope) -> Result<Verified<ScriptEndorsement>, TrustError> {
        self.verify(envelope, PayloadType::Script, "script", |r| &r.roles.script)
    }

    fn verify<T: DeserializeOwned>(
        &self,
        envelope: &Envelope,
        kind: PayloadType,
        name: &'static str,
        role: fn(&Root) -> &Role,
    ) -> Result<Verified<T>, TrustError> {
        let root = self.root();
        Wanted { root, role: role(root), name }.verify(envelope, kind)
    }

    /// A root is read before its signatures count, since it names the keys that must have signed
    /// it; nothing of it is used until they did.
    fn whole(envelope: &Envelope) -> Result<Self, TrustError> {
        expect_type(envelope, PayloadType::Root)?;
        let claimed: Root = json::from_slice(&envelope.payload.0)
            .map_err(|e| TrustError::Malformed(e.to_string()))?;
        claimed.check().map_err(|e| TrustError::Root(e.to_string()))?;
        let role = &claimed.roles.root;
        let signers = Wanted { root: &claimed, role, name: "root" }.signers(envelope)?;
        Ok(Self { root: Arc::new(parse(envelope, signers)?) })
    }
}

fn envelope(bytes: &[u8]) -> Result<Envelope, TrustError> {
    json::from_slice(bytes).map_err(|e| TrustError::NotAnEnvelope(e.to_string()))
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
