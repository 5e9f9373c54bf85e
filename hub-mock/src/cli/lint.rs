//! What is wrong with a policy, before anyone signs it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jtnt_proto::{
    identity,
    policy::{Effect, Policy},
    root::Root,
};

/// Everything that is wrong; nothing when it is well.
pub(super) fn faults(policy: &Policy, now: Timestamp) -> Vec<String> {
    let mut faults = Vec::new();
    if policy.version == 0 {
        faults.push("version: counts from 1".to_owned());
    }
    if !identity::is_id(&policy.policy_id) {
        faults.push("policy_id: must match [A-Za-z0-9_-]{1,64}".to_owned());
    }
    if policy.expires_at <= now {
        faults.push(format!("expires_at: {} is over", policy.expires_at));
    }
    let days = i64::from(Root::DEFAULT_POLICY_DAYS);
    if policy.expires_at.as_second() - policy.issued_at.as_second() > days * 86_400 {
        faults.push(format!("expires_at: more than {days} days after issued_at"));
    }
    faults.extend(policy.limits.check().err());
    let exec = policy.exec.iter().map(|r| ("exec", &r.id, &r.args));
    let script = policy.script.iter().map(|r| ("script", &r.id, &r.args));
    for (kind, id, args) in exec.chain(script) {
        faults.extend(args.check().err().map(|fault| format!("{kind} rule {id:?}: {fault}")));
    }
    rules(policy, &mut faults);
    faults
}

fn rules(policy: &Policy, faults: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    let exec = policy.exec.iter().map(|r| ("exec", &r.id, &r.path));
    let script = policy.script.iter().map(|r| ("script", &r.id, &r.interpreter));
    let file = policy.file.iter().map(|r| ("file", &r.id, &r.path));
    for (kind, id, path) in exec.chain(script).chain(file) {
        if !identity::is_id(id) {
            faults.push(format!("{kind} rule {id:?}: an id must match [A-Za-z0-9_-]{{1,64}}"));
        }
        if !seen.insert(id) {
            faults.push(format!("{kind} rule {id:?}: the id stands twice in the document"));
        }
        let climbs = path.split('/').any(|part| part == ".." || part == ".");
        if !path.starts_with('/') || climbs || path.contains("//") {
            faults.push(format!("{kind} rule {id:?}: {path:?} is no plain absolute path"));
        }
    }
    for rule in &policy.script {
        if rule.effect == Effect::Allow && rule.sha256.is_none() && rule.signer.is_none() {
            faults.push(format!("script rule {:?}: an allow names sha256 or signer", rule.id));
        }
    }
    for rule in policy.file.iter().filter(|rule| rule.access.is_empty()) {
        faults.push(format!("file rule {:?}: it is about no access at all", rule.id));
    }
}
