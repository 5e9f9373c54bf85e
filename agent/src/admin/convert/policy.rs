//! Decisions of the policy, and how two policies differ.

use jtnt_proto::admin::v1 as pb;
use prost::Message as _;

use super::time;
use crate::{
    domain::{enforcement::Enforcement, policy::learn::Learned},
    gate::Ruling,
    jobs::{Change, Comparison},
};

/// More changes are counted and not listed.
const MAX_CHANGES: usize = 500;
/// Nor are those beyond so many bytes: most clients take 4 MiB.
const MAX_CHANGES_BYTES: usize = 3 << 20;

pub(in crate::admin) fn decision<T>(ruling: Ruling<T>) -> pb::Decision {
    let considered = ruling
        .considered
        .into_iter()
        .map(|other| pb::Considered { rule: other.rule, why: other.why.name().to_owned() });
    pb::Decision {
        allowed: ruling.allowed,
        reason: ruling.reason.to_owned(),
        message: ruling.message,
        rule: ruling.rule.unwrap_or_default(),
        canonical_path: ruling.canonical.unwrap_or_default(),
        sha256: ruling.sha256.map(|hash| hash.to_string()).unwrap_or_default(),
        considered: considered.collect(),
        monitored: ruling.monitored,
        // Of what is refused before any rule there is nothing to hold.
        enforcement: if ruling.allowed || ruling.enforcement != Enforcement::None {
            ruling.enforcement.to_string()
        } else {
            String::new()
        },
        policy_version: ruling.policy_version,
        run_as: ruling.run_as.unwrap_or_default(),
    }
}

pub(in crate::admin) fn learned(learned: Learned) -> serde_json::Result<pb::LearnPolicyResponse> {
    let Learned { rules, notes, complete } = learned;
    // For people as well: this is what they put into a policy.
    Ok(pb::LearnPolicyResponse { document: serde_json::to_string_pretty(&rules)?, notes, complete })
}

pub(in crate::admin) fn comparison(compared: Comparison) -> pb::DiffPolicyResponse {
    let all = compared.changes.len();
    let mut bytes = 0;
    let listed = compared.changes.into_iter().take(MAX_CHANGES).map(change);
    let changes: Vec<_> = listed
        .take_while(|change| {
            bytes += change.encoded_len();
            bytes <= MAX_CHANGES_BYTES
        })
        .collect();
    let more_changes = all.saturating_sub(changes.len());
    pb::DiffPolicyResponse {
        present_version: compared.present_version,
        document_version: compared.candidate_version,
        since: Some(time(compared.since)),
        changes,
        more_changes: more_changes as u64,
        unchanged_requests: compared.unchanged.requests,
        unchanged_jobs: compared.unchanged.jobs,
        not_comparable_requests: compared.not_comparable.requests,
        not_comparable_jobs: compared.not_comparable.jobs,
        unasked_requests: compared.unasked.requests,
        unasked_jobs: compared.unasked.jobs,
    }
}

fn change(change: Change) -> pb::PolicyChange {
    pb::PolicyChange {
        command: change.command,
        r#type: change.kind.to_owned(),
        run_as: change.asked.run_as.unwrap_or_default(),
        env: change.asked.env,
        jobs: change.jobs,
        last_at: Some(time(change.last_at)),
        last_job: change.last_job,
        before: Some(decision(change.before)),
        after: Some(decision(change.after)),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jtnt_proto::policy::Limits;

    use super::*;
    use crate::{
        domain::{
            asked::{Action, Asked},
            enforcement::Enforcement,
        },
        jobs::Tally,
    };

    fn denied() -> Ruling<()> {
        Ruling {
            allowed: false,
            monitored: false,
            reason: "NO_RULE",
            message: "m".repeat(1000),
            rule: None,
            run_as: None,
            considered: Vec::new(),
            opened: None,
            canonical: None,
            sha256: None,
            policy_version: 1,
            limits: Limits::default(),
            enforcement: Enforcement::None,
        }
    }

    /// So many changes, each with so many variables.
    fn compared(changes: usize, variables: usize) -> pb::DiffPolicyResponse {
        let env = vec!["V".repeat(100); variables];
        let action = Action::Upload { path: "/a".into() };
        let asked = Asked { action, run_as: None, env, limits: Limits::default() };
        let change = |_| Change {
            asked: asked.clone(),
            command: "/a".into(),
            kind: "upload",
            jobs: 1,
            last_at: Timestamp::UNIX_EPOCH,
            last_job: "j".into(),
            before: denied(),
            after: denied(),
        };
        comparison(Comparison {
            present_version: 1,
            candidate_version: 2,
            since: Timestamp::UNIX_EPOCH,
            changes: (0..changes).map(change).collect(),
            unchanged: Tally::default(),
            not_comparable: Tally::default(),
            unasked: Tally::default(),
        })
    }

    #[test]
    fn what_does_not_fit_into_an_answer_is_counted() {
        let few = compared(3, 1);
        assert_eq!((few.changes.len(), few.more_changes), (3, 0));
        let many = compared(501, 1);
        assert_eq!((many.changes.len(), many.more_changes), (500, 1));
        let long = compared(400, 150);
        assert_eq!(long.changes.len() as u64 + long.more_changes, 400);
        assert!(long.more_changes > 0 && long.encoded_len() < 4 << 20, "{}", long.more_changes);
    }
}
