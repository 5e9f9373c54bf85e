//! Whether a verified job may be taken at all, before the policy is asked: is it for this agent,
//! is it the right time, does it make sense.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp, ToSpan as _};
use jtnt_proto::{
    identity::is_id,
    job::{
        Artifact, Cancel, Job, MAX_SEALED_BYTES, MAX_SECRETS, MAX_VALIDITY_DAYS, SealedSecret, Work,
    },
};

use super::job::Reject;

/// How far a clock of the hub's side may be ahead of this machine's.
pub const SKEW: SignedDuration = SignedDuration::from_secs(60);
/// The largest script.
pub const MAX_SCRIPT_BYTES: u64 = 1 << 20;
/// The longest path, as the system counts it.
const MAX_PATH_BYTES: usize = 4096;
/// All arguments and variables together; systems take more, but not all do.
const MAX_VECTOR_BYTES: usize = 128 * 1024;
/// Arguments and variables.
const MAX_VECTOR_ITEMS: usize = 1024;
const MAX_MODE: u32 = 0o777;

/// What the job is held against.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// This agent.
    pub agent_id: &'a str,
    /// The root in force.
    pub root_id: &'a str,
    /// Its version.
    pub root_version: u64,
    /// The policy in force; 0 without one.
    pub policy_version: u64,
    /// When the journal began.
    pub journal_created_at: Timestamp,
    /// Trusted time.
    pub now: Timestamp,
}

/// A job that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Stable.
    pub reason: Reject,
    /// For people.
    pub message: String,
}

fn refuse<T>(reason: Reject, message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { reason, message: message.into() })
}

/// Judges a job on the way in.
///
/// # Errors
/// The first reason not to take it.
pub fn admit(job: &Job, facts: &Facts<'_>) -> Result<(), Refused> {
    for_me(&job.agent_id, &job.root_id, facts)?;
    shape(job)?;
    if job.issued_at < facts.journal_created_at {
        let began = facts.journal_created_at;
        let why = format!(
            "issued at {}, before this agent's journal began at {began}; sign it again",
            job.issued_at
        );
        return refuse(Reject::BeforeJournal, why);
    }
    still_valid(job, facts)
}

/// Judges a job again right before it starts: time, root and policy have gone on.
///
/// # Errors
/// The first reason not to start it.
pub fn still_valid(job: &Job, facts: &Facts<'_>) -> Result<(), Refused> {
    for_me(&job.agent_id, &job.root_id, facts)?;
    if facts.now >= job.expires_at {
        let why = format!("expired at {}; it is {:.0}", job.expires_at, facts.now);
        return refuse(Reject::Expired, why);
    }
    if job.not_before.duration_since(facts.now) > SKEW {
        let why = format!("not valid before {}; it is {}", job.not_before, facts.now);
        return refuse(Reject::NotYetValid, why);
    }
    let versions = [
        ("root", job.min_root_version, facts.root_version),
        ("policy", job.min_policy_version, facts.policy_version),
    ];
    for (what, wanted, have) in versions {
        if have < wanted {
            let why = format!("asks for {what} version {wanted}; this agent has {have}");
            return refuse(Reject::VersionTooOld, why);
        }
    }
    Ok(())
}

/// Judges a cancel.
///
/// # Errors
/// When it is for somebody else, void or malformed.
pub fn admit_cancel(cancel: &Cancel, facts: &Facts<'_>) -> Result<(), Refused> {
    for_me(&cancel.agent_id, &cancel.root_id, facts)?;
    if !is_id(&cancel.job_id) {
        return refuse(Reject::Malformed, "the cancel's job_id is no id");
    }
    let too_long = cancel.expires_at.duration_since(cancel.issued_at) > max_validity();
    if too_long {
        let why = format!("the cancel is valid for more than {MAX_VALIDITY_DAYS} days");
        return refuse(Reject::ValidTooLong, why);
    }
    if facts.now >= cancel.expires_at {
        return refuse(Reject::Expired, format!("the cancel expired at {}", cancel.expires_at));
    }
    Ok(())
}

fn for_me(agent_id: &str, root_id: &str, facts: &Facts<'_>) -> Result<(), Refused> {
    if agent_id != facts.agent_id {
        return refuse(Reject::NotForMe, format!("it is for agent {}", agent_id.escape_debug()));
    }
    if root_id != facts.root_id {
        let why = format!("it was signed under root {}", root_id.escape_debug());
        return refuse(Reject::NotForMe, why);
    }
    Ok(())
}

fn max_validity() -> SignedDuration {
    SignedDuration::from_hours(24 * MAX_VALIDITY_DAYS)
}

fn shape(job: &Job) -> Result<(), Refused> {
    let malformed = |why: String| Refused { reason: Reject::Malformed, message: why };
    if !is_id(&job.job_id) {
        return Err(malformed("job_id is not 1 to 64 of A-Z a-z 0-9 _ -".to_owned()));
    }
    if job.not_before < job.issued_at || job.expires_at <= job.not_before {
        let why = "issued_at, not_before and expires_at do not follow one another";
        return Err(malformed(why.to_owned()));
    }
    let end = job.issued_at.checked_add((24 * MAX_VALIDITY_DAYS).hours());
    if end.is_ok_and(|end| job.expires_at > end) {
        let why = format!("valid for more than {MAX_VALIDITY_DAYS} days from issued_at");
        return refuse(Reject::ValidTooLong, why);
    }
    secrets(job).map_err(malformed)?;
    job.limits.check().map_err(malformed)?;
    work(&job.work).map_err(malformed)
}

fn secrets(job: &Job) -> Result<(), String> {
    if !job.secrets.is_empty() && !matches!(job.work, Work::Exec(_) | Work::Script(_)) {
        return Err("a transfer has no use for secrets".to_owned());
    }
    if job.secrets.len() > MAX_SECRETS {
        return Err(format!("more than {MAX_SECRETS} secrets"));
    }
    let mut known = BTreeSet::new();
    for secret in &job.secrets {
        let name = &secret.name;
        if !SealedSecret::is_name(name) {
            return Err(format!("secret {name:?}: a name is 1 to 64 of A-Z a-z 0-9 _"));
        }
        if !known.insert(name.to_ascii_uppercase()) {
            return Err(format!("secret {name:?} stands twice"));
        }
        if secret.sealed.0.len() > MAX_SEALED_BYTES {
            return Err(format!("secret {name:?} has more than {MAX_SEALED_BYTES} bytes"));
        }
    }
    Ok(())
}

fn work(work: &Work) -> Result<(), String> {
    match work {
        Work::Exec(x) => {
            path("path", &x.path)?;
            surroundings(&x.args, &x.env, x.cwd.as_deref())
        }
        Work::Script(s) => {
            path("interpreter", &s.interpreter)?;
            surroundings(&s.args, &s.env, s.cwd.as_deref())?;
            let Artifact { size, .. } = s.content;
            if size > MAX_SCRIPT_BYTES {
                return Err(format!("a script of {size} bytes; {MAX_SCRIPT_BYTES} is the most"));
            }
            Ok(())
        }
        Work::Download(d) => {
            path("dest", &d.dest)?;
            match d.mode {
                Some(mode) if mode > MAX_MODE => Err(format!("mode {mode:o} is beyond 777")),
                _ => Ok(()),
            }
        }
        Work::Upload(u) => {
            path("path", &u.path)?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            let named = (1..=64).contains(&u.name.len()) && u.name.bytes().all(plain);
            if !named || u.name.bytes().all(|b| b == b'.') {
                return Err("name is not 1 to 64 of A-Z a-z 0-9 . _ -".to_owned());
            }
            Ok(())
        }
    }
}

fn path(what: &str, path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("{what} is not an absolute path: {}", path.escape_debug()));
    }
    if path.contains('\0') || path.len() > MAX_PATH_BYTES {
        return Err(format!("{what} is no path: a zero byte, or more than {MAX_PATH_BYTES} bytes"));
    }
    Ok(())
}

fn surroundings(
    args: &[String],
    env: &std::collections::BTreeMap<String, String>,
    cwd: Option<&str>,
) -> Result<(), String> {
    if let Some(cwd) = cwd {
        path("cwd", cwd)?;
    }
    let words = || args.iter().chain(env.keys()).chain(env.values());
    if words().any(|w| w.contains('\0')) {
        return Err("a zero byte in arguments or environment".to_owned());
    }
    if env.keys().any(|name| name.is_empty() || name.contains('=')) {
        return Err("an environment variable without a proper name".to_owned());
    }
    let bytes: usize = words().map(|w| w.len() + 1).sum();
    if args.len() + env.len() > MAX_VECTOR_ITEMS || bytes > MAX_VECTOR_BYTES {
        return Err(format!(
            "more than {MAX_VECTOR_ITEMS} arguments and variables, or {MAX_VECTOR_BYTES} bytes of \
             them"
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
