//! Decisions of the policy.

use jtnt_proto::admin::v1 as pb;

use crate::gate::Ruling;

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
        enforcement: ruling.enforcement.to_string(),
        policy_version: ruling.policy_version,
        run_as: ruling.run_as.unwrap_or_default(),
    }
}
