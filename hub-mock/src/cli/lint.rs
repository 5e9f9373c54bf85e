//! What is wrong with a policy, before anyone signs it.

use jiff::Timestamp;
use jtnt_proto::{
    policy::Policy,
    policy_lint::{self, Level},
    root::Root,
};

/// Everything that is wrong; nothing when it is well.
pub(super) fn faults(policy: &Policy, now: Timestamp) -> Vec<String> {
    let found = policy_lint::lint(policy, now);
    let errors = found.iter().filter(|p| p.level == Level::Error);
    let mut faults: Vec<_> = errors.map(ToString::to_string).collect();
    // The root that this hub makes allows no more.
    let days = i64::from(Root::DEFAULT_POLICY_DAYS);
    if policy.expires_at.as_second() - policy.issued_at.as_second() > days * 86_400 {
        faults.push(format!("expires_at: more than {days} days after issued_at"));
    }
    faults
}
