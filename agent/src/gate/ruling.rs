//! What the gate answers, in one shape for jobs and for people who ask in advance.

use jtnt_proto::{
    bytes::Hash,
    policy::{Limits, RequireEnforcement},
};

use crate::{
    domain::{
        enforcement::Enforcement,
        policy::{Considered, Decision, Engine},
    },
    platform::paths::PathFault,
};

/// An answer, and what it was about.
#[derive(Debug)]
pub struct Ruling<T> {
    /// Whether it may be done. A violation that is only monitored is allowed.
    pub allowed: bool,
    /// Whether it is a violation that monitor mode lets pass: to be recorded, not stopped.
    pub monitored: bool,
    /// Stable, UPPER_SNAKE; `ALLOWED` when allowed by a rule.
    pub reason: &'static str,
    /// For people: what, why, what to do.
    pub message: String,
    /// The rule that decided.
    pub rule: Option<String>,
    /// Whom it runs as; a user of the job's own when absent.
    pub run_as: Option<String>,
    /// Rules that spoke of the target and did not decide, each with why.
    pub considered: Vec<Considered>,
    /// What was opened; present when it is allowed.
    pub opened: Option<T>,
    /// The path that the request resolved to.
    pub canonical: Option<String>,
    /// Hash of the program, where a rule wants one.
    pub sha256: Option<Hash>,
    /// The policy that decided; 0 without one.
    pub policy_version: u64,
    /// Its ceilings.
    pub limits: Limits,
    /// What the operating system will hold it to.
    pub enforcement: Enforcement,
}

impl<T> Ruling<T> {
    /// The ruling and the policy under which it was made.
    pub(super) fn of(ruled: Result<Self, Refusal>, rules: Option<&Engine>) -> Self {
        let ruling = ruled.unwrap_or_else(|refusal| Self {
            allowed: false,
            monitored: false,
            reason: refusal.reason,
            message: refusal.message,
            rule: refusal.rule,
            run_as: None,
            considered: Vec::new(),
            opened: None,
            canonical: refusal.canonical,
            sha256: None,
            policy_version: 0,
            limits: Limits::default(),
            enforcement: refusal.enforcement,
        });
        let Some(rules) = rules else { return ruling };
        let (policy_version, limits) = (rules.policy().version, rules.limits());
        Self { policy_version, limits, ..ruling }
    }

    pub(super) fn decided(
        decision: Decision,
        enforcement: Enforcement,
        canonical: String,
        opened: Option<T>,
    ) -> Self {
        Self {
            allowed: decision.allowed,
            monitored: decision.monitored,
            reason: decision.reason.name(),
            message: decision.message,
            rule: decision.rule,
            run_as: decision.run_as,
            considered: decision.considered,
            opened: opened.filter(|_| decision.allowed),
            canonical: Some(canonical),
            sha256: None,
            policy_version: 0,
            limits: Limits::default(),
            enforcement,
        }
    }

    /// The same answer, with what was opened closed again.
    #[must_use]
    pub fn without_file(self) -> Ruling<()> {
        Ruling {
            allowed: self.allowed,
            monitored: self.monitored,
            reason: self.reason,
            message: self.message,
            rule: self.rule,
            run_as: self.run_as,
            considered: self.considered,
            opened: None,
            canonical: self.canonical,
            sha256: self.sha256,
            policy_version: self.policy_version,
            limits: self.limits,
            enforcement: self.enforcement,
        }
    }
}

/// A no that is the gate's own, whatever the rules say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Stable, UPPER_SNAKE.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// The path that the request resolved to, where it got so far.
    pub canonical: Option<String>,
    /// The rule that would have allowed it.
    pub rule: Option<String>,
    /// What it would have been held to, where that was too little.
    pub enforcement: Enforcement,
}

impl Refusal {
    fn new(reason: &'static str, message: String, canonical: &str) -> Self {
        let (canonical, enforcement) = (Some(canonical.to_owned()), Enforcement::default());
        Self { reason, message, canonical, rule: None, enforcement }
    }

    pub(super) fn ruled_by(self, rule: Option<String>) -> Self {
        Self { rule, ..self }
    }

    pub(super) fn protected(canonical: &str) -> Self {
        let message = format!("{canonical} belongs to the agent itself; no rule can open it");
        Self::new("PROTECTED", message, canonical)
    }

    pub(super) fn no_policy(canonical: &str) -> Self {
        let message = "this agent has no policy, so nothing is allowed; publish one, or see \
                       `jtntctl policy refresh` for why it does not arrive";
        Self::new("NO_POLICY", message.to_owned(), canonical)
    }

    pub(super) fn set_id(canonical: &str) -> Self {
        let message = format!(
            "{canonical} takes other rights than its user's (set-user-id, set-group-id or file \
             capabilities); a rule for it must say \"run_as\": \"root\""
        );
        Self::new("SET_ID", message, canonical)
    }

    pub(super) fn enforcement(
        canonical: &str,
        required: RequireEnforcement,
        here: &Enforcement,
    ) -> Self {
        let word = match required {
            RequireEnforcement::None => "none",
            RequireEnforcement::Partial => "partial",
            RequireEnforcement::Full => "full",
        };
        let enough = if *here == Enforcement::None { "none" } else { "partial" };
        let message = format!(
            "{word} enforcement is required, and a job for {canonical} would get {here} here; close \
             what is named, or let the policy say \"require_enforcement\": \"{enough}\", and the \
             agent's configuration, if it sets it"
        );
        let enforcement = here.clone();
        Self { enforcement, ..Self::new("ENFORCEMENT", message, canonical) }
    }
}

impl From<PathFault> for Refusal {
    fn from(fault: PathFault) -> Self {
        Self {
            reason: fault.reason(),
            message: fault.to_string(),
            canonical: None,
            rule: None,
            enforcement: Enforcement::default(),
        }
    }
}
