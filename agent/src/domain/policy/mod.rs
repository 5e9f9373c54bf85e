//! The policy engine: a verified document, compiled once, asked often.
//!
//! Nothing is allowed unless a rule says so, and a deny that applies wins over every allow. The
//! engine sees paths that were already opened and resolved; it never touches a file.

pub mod learn;
pub mod pattern;

mod args;
mod class;
mod compile;
mod confine;
mod decide;
mod index;

use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use jtnt_proto::{
    bytes::Hash,
    key::KeyId,
    policy::{Access, Limits, Policy, RequireEnforcement},
};

pub use compile::CompileError;
pub use confine::{Area, Confinement, Found, NETWORK, OWN, SYSTEM, Shape};
pub use jtnt_proto::policy_env as env;

/// A compiled document.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    exec: index::Index<compile::Exec>,
    script: index::Index<compile::Script>,
    file: index::Index<compile::File>,
    areas: BTreeMap<Option<String>, confine::Areas>,
}

/// What was found at the path of a request, after every link was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The path of the open descriptor; UTF-8, absolute and normal.
    pub canonical: String,
    /// Hash of the content, where it was taken.
    pub sha256: Option<Hash>,
    /// File and every ancestor belong to root and nobody else can write them.
    pub guarded: bool,
    /// Names the file has.
    pub links: u64,
    /// Whether it is a native executable.
    pub native: bool,
}

/// What a request to run something asks beside the program itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// Arguments after the program's or the script's name.
    pub args: &'a [String],
    /// Names of variables the job sets.
    pub env: &'a [String],
    /// The user it asks for.
    pub run_as: Option<&'a str>,
}

/// A script and who vouches for it.
#[derive(Debug, Clone, Copy)]
pub struct ScriptFacts<'a> {
    /// Hash of the script.
    pub sha256: Hash,
    /// Keys of the script role that endorsed it for this interpreter.
    pub signers: &'a [KeyId],
}

/// The engine's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done. A violation that is only monitored is allowed.
    pub allowed: bool,
    /// Whether it is a violation that monitor mode lets pass: to be recorded, not stopped.
    pub monitored: bool,
    /// Why.
    pub reason: Reason,
    /// For people: what, why, what to do.
    pub message: String,
    /// The rule that decided.
    pub rule: Option<String>,
    /// Whom it runs as; a user of the job's own when absent.
    pub run_as: Option<String>,
    /// Rules that spoke of the target and did not decide, each with why.
    pub considered: Vec<Considered>,
}

/// A rule that did not decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// Its id.
    pub rule: String,
    /// Why it did not.
    pub why: Reason,
}

/// Why a request is allowed or not. The names are stable. Ordered by how near a request came: of
/// several rules that nearly matched, the nearest is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A rule allows it.
    Allowed,
    /// No rule speaks of the path.
    NoRule,
    /// No rule for it has these arguments.
    Arguments,
    /// No rule for it pins these bytes, or this signer.
    Content,
    /// A variable that no rule lists.
    Environment,
    /// Another user than the rule's.
    RunAs,
    /// Others could change the file, and no hash pins it.
    Unguarded,
    /// The file has several names, and no hash pins it.
    HardLink,
    /// A rule forbids it.
    DenyRule,
    /// It is a script: those have rules of their own.
    NotNative,
    /// It runs whatever it is given: allowed through script rules only.
    Interpreter,
    /// A variable that no rule may allow.
    ForbiddenVariable,
    /// The policy has expired.
    PolicyExpired,
}

impl Reason {
    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::NoRule => "NO_RULE",
            Self::Arguments => "ARGUMENTS",
            Self::Content => "CONTENT",
            Self::Environment => "ENVIRONMENT",
            Self::RunAs => "RUN_AS",
            Self::Unguarded => "UNGUARDED",
            Self::HardLink => "HARD_LINK",
            Self::DenyRule => "DENY_RULE",
            Self::NotNative => "NOT_NATIVE",
            Self::Interpreter => "INTERPRETER",
            Self::ForbiddenVariable => "FORBIDDEN_VARIABLE",
            Self::PolicyExpired => "POLICY_EXPIRED",
        }
    }
}

impl Engine {
    /// Compiles a document. `resolve` tells where a path without stars leads once its links are
    /// followed, so that a rule for `/bin/sh` is about `/usr/bin/dash` where that is so; it
    /// returns the path itself where nothing is there.
    ///
    /// # Errors
    /// The first rule that makes no sense.
    pub fn compile(
        policy: Policy,
        resolve: &mut dyn FnMut(&Path) -> String,
    ) -> Result<Self, CompileError> {
        compile::engine(policy, resolve)
    }

    /// The document.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a rule about this program wants its hash, so that only then it is taken.
    #[must_use]
    pub fn pins_content(&self, canonical: &str) -> bool {
        self.exec.about(canonical).any(|rule| rule.sha256.is_some())
    }

    /// Whether a program may run.
    #[must_use]
    pub fn exec(&self, program: &Target, around: Surroundings<'_>, now: Timestamp) -> Decision {
        decide::exec(self, program, around, now)
    }

    /// Whether a script may run.
    #[must_use]
    pub fn script(
        &self,
        interpreter: &Target,
        script: ScriptFacts<'_>,
        around: Surroundings<'_>,
        now: Timestamp,
    ) -> Decision {
        decide::script(self, interpreter, script, around, now)
    }

    /// Whether a file may be used. For a write, `target` is the file to be.
    #[must_use]
    pub fn file(
        &self,
        target: &Target,
        access: Access,
        run_as: Option<&str>,
        now: Timestamp,
    ) -> Decision {
        decide::file(self, target, access, run_as, now)
    }

    /// The ceilings.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.policy.limits
    }

    /// The stricter of the document's and the machine's own minimum.
    #[must_use]
    pub fn require_enforcement(&self, local: RequireEnforcement) -> RequireEnforcement {
        self.policy.require_enforcement.max(local)
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
