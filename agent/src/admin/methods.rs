//! What each method needs of its caller, and what it leaves in the audit log. A method that does
//! not stand here is refused.

use std::{fmt, time::Duration};

/// What a caller may do; each role may all that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Nothing.
    None,
    /// Look, but at no output.
    Read,
    /// Look at everything, and steer what runs.
    Operate,
    /// Everything.
    Admin,
}

impl Role {
    /// The word in messages and in `authz explain`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    /// The setting that gives the role to a group.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::None | Self::Read => "reader_groups",
            Self::Operate => "operator_groups",
            Self::Admin => "admin_groups",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a call leaves in the audit log before it has an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trail {
    /// Nothing: it only looks.
    Nothing,
    /// That somebody read what not everybody may read.
    Read,
    /// That somebody changed something.
    Change,
}

/// One method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// As it stands in the request's path.
    pub path: &'static str,
    /// The least role.
    pub role: Role,
    /// What is recorded.
    pub trail: Trail,
    /// How long the answer may take to begin.
    pub within: Duration,
}

impl Method {
    /// The part of the agent that it is about, as the audit log has it.
    #[must_use]
    pub fn object(&self) -> &'static str {
        let service = self.path.trim_start_matches("/jtnt.admin.v1.").split('/').next();
        match service.unwrap_or_default() {
            "CertService" => "certificate",
            "PolicyService" => "policy",
            "JobService" => "jobs",
            "AuditService" => "audit log",
            "CacheService" => "cache",
            _ => "agent",
        }
    }
}

/// It looks something up.
const fn quick(path: &'static str, role: Role, trail: Trail) -> Method {
    Method { path, role, trail, within: Duration::from_secs(30) }
}

/// It waits for the hub or for a disk, or it goes on for as long as the caller listens.
const fn slow(path: &'static str, role: Role, trail: Trail) -> Method {
    Method { path, role, trail, within: Duration::from_secs(600) }
}

use Role::{Admin, Operate, Read as Reader};
use Trail::{Change, Nothing, Read};

/// Every method that is served.
pub const METHODS: &[Method] = &[
    quick("/jtnt.admin.v1.AgentService/GetStatus", Reader, Nothing),
    slow("/jtnt.admin.v1.AgentService/WatchStatus", Reader, Nothing),
    quick("/jtnt.admin.v1.AgentService/GetHealth", Reader, Nothing),
    quick("/jtnt.admin.v1.AgentService/GetVersion", Reader, Nothing),
    // It makes connections, so not everybody who looks may ask for it.
    slow("/jtnt.admin.v1.AgentService/TestConnection", Operate, Nothing),
    quick("/jtnt.admin.v1.AgentService/GetLogLevel", Reader, Nothing),
    quick("/jtnt.admin.v1.AgentService/SetLogLevel", Admin, Change),
    quick("/jtnt.admin.v1.AgentService/Reload", Admin, Change),
    quick("/jtnt.admin.v1.AgentService/ExplainAuthz", Reader, Nothing),
    quick("/jtnt.admin.v1.CertService/GetCertificate", Reader, Nothing),
    quick("/jtnt.admin.v1.CertService/PlanRenewal", Reader, Nothing),
    slow("/jtnt.admin.v1.CertService/ProveCertificate", Operate, Nothing),
    slow("/jtnt.admin.v1.CertService/RenewCertificate", Operate, Change),
    slow("/jtnt.admin.v1.CertService/ForceRenewal", Admin, Change),
    slow("/jtnt.admin.v1.CertService/RollBackCertificate", Admin, Change),
    quick("/jtnt.admin.v1.PolicyService/GetPolicy", Reader, Nothing),
    slow("/jtnt.admin.v1.PolicyService/RefreshPolicy", Operate, Change),
    // These open paths that the caller names.
    quick("/jtnt.admin.v1.PolicyService/CheckExec", Admin, Nothing),
    quick("/jtnt.admin.v1.PolicyService/CheckScript", Admin, Nothing),
    quick("/jtnt.admin.v1.PolicyService/CheckFile", Admin, Nothing),
    // And this opens those that jobs named.
    quick("/jtnt.admin.v1.PolicyService/DiffPolicy", Admin, Nothing),
    // It tells which files a job used.
    quick("/jtnt.admin.v1.PolicyService/LearnPolicy", Admin, Read),
    quick("/jtnt.admin.v1.JobService/ListJobs", Reader, Nothing),
    quick("/jtnt.admin.v1.JobService/GetJob", Reader, Nothing),
    slow("/jtnt.admin.v1.JobService/WatchJobs", Reader, Nothing),
    slow("/jtnt.admin.v1.JobService/ReadLogs", Operate, Read),
    quick("/jtnt.admin.v1.JobService/CancelJob", Operate, Change),
    slow("/jtnt.admin.v1.AuditService/ListLines", Operate, Read),
    slow("/jtnt.admin.v1.AuditService/TailLines", Operate, Read),
    slow("/jtnt.admin.v1.AuditService/VerifyLog", Operate, Read),
    slow("/jtnt.admin.v1.AuditService/ProveLine", Operate, Read),
    slow("/jtnt.admin.v1.AuditService/ExportLog", Operate, Read),
    quick("/jtnt.admin.v1.AuditService/RotateKey", Admin, Change),
    slow("/jtnt.admin.v1.AuditService/CleanLog", Admin, Change),
    quick("/jtnt.admin.v1.CacheService/GetCache", Operate, Nothing),
    slow("/jtnt.admin.v1.CacheService/CleanCache", Admin, Change),
    quick("/grpc.health.v1.Health/Check", Reader, Nothing),
    slow("/grpc.health.v1.Health/Watch", Reader, Nothing),
    slow("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Reader, Nothing),
    slow("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Reader, Nothing),
];

/// What a stranger is told about any method: that it takes a role at all.
pub(super) const ANY: Method = quick("", Reader, Nothing);

/// The method of that path.
#[must_use]
pub(super) fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

/// The method that somebody means by `/jtnt.admin.v1.JobService/CancelJob`, `JobService/CancelJob`,
/// `JobService/Cancel` or `Cancel`.
///
/// # Errors
/// The paths it may mean: none, or several.
pub(super) fn meant(name: &str) -> Result<&'static Method, Vec<&'static str>> {
    let asked = name.trim_start_matches('/');
    let (service, method) = asked.rsplit_once('/').unwrap_or(("", asked));
    let of_service = |path: &'static str| {
        let (theirs, rest) = path.trim_start_matches('/').rsplit_once('/')?;
        let short = theirs.rsplit('.').next();
        (service.is_empty() || service == theirs || Some(service) == short).then_some(rest)
    };
    let fitting = |fits: &dyn Fn(&str) -> bool| -> Vec<&'static Method> {
        METHODS.iter().filter(|m| of_service(m.path).is_some_and(fits)).collect()
    };
    // A whole name first: it may begin another one, as `Check` does.
    let mut found = fitting(&|theirs| theirs == method);
    if found.is_empty() && !method.is_empty() {
        found = fitting(&|theirs| theirs.starts_with(method));
    }
    match found.as_slice() {
        [only] => Ok(only),
        several => Err(several.iter().map(|m| m.path).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use std::collections::BTreeSet;

    #[test]
    fn every_method_of_the_api_has_a_role_and_none_is_made_up() {
        let set = prost_types::FileDescriptorSet::decode(jtnt_proto::admin::DESCRIPTORS).unwrap();
        let mut served = BTreeSet::new();
        for file in set.file.iter().filter(|f| f.package() == "jtnt.admin.v1") {
            for service in &file.service {
                for method in &service.method {
                    let (s, m) = (service.name(), method.name());
                    served.insert(format!("/jtnt.admin.v1.{s}/{m}"));
                }
            }
        }
        let ours = METHODS.iter().map(|m| m.path).filter(|p| p.starts_with("/jtnt."));
        assert_eq!(ours.map(str::to_owned).collect::<BTreeSet<_>>(), served);
    }

    #[test]
    fn a_method_that_is_not_listed_is_not_found() {
        assert!(find("/jtnt.admin.v1.AgentService/Nothing").is_none());
        assert!(find("").is_none());
    }

    #[test]
    fn a_method_may_be_named_in_short_where_one_is_meant() {
        let cancel = "/jtnt.admin.v1.JobService/CancelJob";
        for short in [
            cancel,
            "jtnt.admin.v1.JobService/CancelJob",
            "JobService/CancelJob",
            "JobService/Cancel",
            "Cancel",
        ] {
            assert_eq!(meant(short).unwrap().path, cancel, "{short}");
        }
        assert_eq!(meant("Check").unwrap().path, "/grpc.health.v1.Health/Check");
        assert_eq!(meant("Clean").unwrap_err().len(), 2);
        for none in ["", "/", "JobService/", "Nothing", "AuditService/CancelJob"] {
            assert!(meant(none).unwrap_err().is_empty(), "{none}");
        }
    }

    #[test]
    fn what_changes_something_needs_more_than_looking() {
        let weak = METHODS.iter().filter(|m| m.trail != Nothing && m.role < Operate);
        assert_eq!(weak.count(), 0);
    }
}
