//! What the line of each event tells: who, what it was done to, how it ended and where it came
//! from. Auditors ask these of every line (PCI DSS 10.2.2), so a line that lacks one is a fault,
//! and a new event does not compile before it has an entry. The table in docs/AUDIT.md is this one.

use std::fmt::Write as _;

use crate::audit::{Event, Line};

/// What the line of one event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// When it is written.
    pub when: &'static str,
    /// What `object` holds, or that it is `job_id` that tells it.
    pub object: &'static str,
    /// What `status` may be.
    pub statuses: &'static [&'static str],
    /// What `origin` may be.
    pub origins: &'static [&'static str],
    /// What may stand in `details`.
    pub details: &'static [&'static str],
}

impl Event {
    /// What its line tells.
    #[must_use]
    pub const fn told(self) -> &'static Told {
        match self {
            Self::Genesis => &GENESIS,
            Self::Startup => &STARTUP,
            Self::Shutdown => &SHUTDOWN,
            Self::Enrollment => &ENROLLMENT,
            Self::JobStarted => &JOB_STARTED,
            Self::JobExecuted => &JOB_EXECUTED,
            Self::JobRejected => &JOB_REJECTED,
            Self::PolicyChanged => &POLICY_CHANGED,
            Self::PolicyViolation => &POLICY_VIOLATION,
            Self::CertRotated => &CERT_ROTATED,
            Self::UpdateApplied => &UPDATE_APPLIED,
            Self::RootChanged => &ROOT_CHANGED,
            Self::AdminCall => &ADMIN_CALL,
            Self::LogRead => &LOG_READ,
            Self::Refused => &REFUSED,
            Self::ConfigChanged => &CONFIG_CHANGED,
            Self::KeyRotated => &KEY_ROTATED,
            Self::DayOpen => &DAY_OPEN,
            Self::DayClose => &DAY_CLOSE,
            Self::Recovered => &RECOVERED,
            Self::Prune => &PRUNE,
            Self::Degraded => &DEGRADED,
            Self::OutputDropped => &OUTPUT_DROPPED,
        }
    }
}

impl Line {
    /// What it lacks, or has that its event does not have; of an event that is not known, nothing.
    #[must_use]
    pub fn flaws(&self) -> Vec<String> {
        let Ok(event) = serde_json::from_value::<Event>(self.event.as_str().into()) else {
            return Vec::new();
        };
        let (told, mut flaws) = (event.told(), Vec::new());
        for (field, value, known) in
            [("status", &self.status, told.statuses), ("origin", &self.origin, told.origins)]
        {
            match value.as_deref() {
                None => flaws.push(format!("no {field}")),
                Some(value) if !known.contains(&value) => flaws.push(format!("{field} {value}")),
                Some(_) => {}
            }
        }
        if self.object.is_none() && self.job_id.is_none() {
            flaws.push("neither object nor job_id".to_owned());
        }
        // Of the hub and of the agent itself `origin` is the whole name; of this machine's users not.
        let by_user = self.origin.as_deref() == Some("local");
        if by_user && self.caller.is_none() && !self.details.contains_key("by") {
            flaws.push("neither caller nor details.by".to_owned());
        }
        let strange = self.details.keys().filter(|key| !told.details.contains(&key.as_str()));
        flaws.extend(strange.map(|key| format!("details.{key} is new")));
        flaws
    }
}

/// The events as a table for people.
#[must_use]
pub fn table() -> String {
    let mut text =
        "| Event | When | Object | `status` | `origin` | In `details` |\n| --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    let words = |all: &[&str]| all.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    for name in Event::NAMES {
        let Ok(event) = serde_json::from_value::<Event>(name.into()) else { continue };
        let Told { when, object, statuses, origins, details } = event.told();
        let (statuses, origins, details) = (words(statuses), words(origins), words(details));
        let _written =
            writeln!(text, "| `{name}` | {when} | {object} | {statuses} | {origins} | {details} |");
    }
    text
}

const GENESIS: Told = Told {
    when: "the log begins",
    object: "`audit log`",
    statuses: &["success"],
    origins: &["agent"],
    details: &["log_id", "public_key", "hub_key", "reason", "previous", "checkpoint"],
};

const STARTUP: Told = Told {
    when: "the agent started",
    object: "`agent`",
    statuses: &["success"],
    origins: &["agent"],
    details: &["version", "pid", "boot_id"],
};

const SHUTDOWN: Told = Told {
    when: "the agent stopped: it was asked to, or lost a part of itself",
    object: "`agent`",
    statuses: &["success", "error"],
    origins: &["agent"],
    details: &["reason", "cut_short"],
};

const ENROLLMENT: Told = Told {
    when: "the agent enrolled, tried to, or left its hub",
    object: "the hub's URL",
    statuses: &["success", "error"],
    origins: &["local"],
    details: &["at", "reason", "message", "enrolled_as", "action"],
};

const JOB_STARTED: Told = Told {
    when: "a job is about to run",
    object: "`job_id`; the program or file",
    statuses: &["success"],
    origins: &["hub"],
    details: &["type", "payload_sha256", "rule", "program_sha256"],
};

const JOB_EXECUTED: Told = Told {
    when: "a job ended",
    object: "`job_id`",
    statuses: &["success", "error", "timeout", "cancelled"],
    origins: &["hub"],
    details: &[
        "type",
        "state",
        "duration_ms",
        "exit_code",
        "signal",
        "reason",
        "rule",
        "enforcement",
        "result_sha256",
        "artifact_sha256",
        "recovered",
    ],
};

const JOB_REJECTED: Told = Told {
    when: "a job was refused before policy was asked; of a flood, one line a minute",
    object: "`job_id`; `jobs` for many",
    statuses: &["denied"],
    origins: &["hub"],
    details: &["reason", "message", "type", "suppressed", "reasons"],
};

const POLICY_CHANGED: Told = Told {
    when: "a policy took effect, or was refused",
    object: "the policy's id; `policy`",
    statuses: &["success", "denied"],
    origins: &["hub", "agent"],
    details: &[
        "old_version",
        "new_version",
        "expires_at",
        "sha256",
        "signers",
        "reason",
        "message",
    ],
};

const POLICY_VIOLATION: Told = Told {
    when: "policy forbade a job, or would have (`monitored`)",
    object: "`job_id`",
    statuses: &["denied", "success"],
    origins: &["hub"],
    details: &["reason", "rule", "type", "message", "monitored"],
};

const CERT_ROTATED: Told = Told {
    when: "a certificate was replaced, or rolled back",
    object: "its serial",
    statuses: &["success"],
    origins: &["agent", "local"],
    details: &["before", "serial", "not_after", "rolled_back"],
};

const UPDATE_APPLIED: Told = Told {
    when: "the agent was updated, or an update was undone",
    object: "the version",
    statuses: &["success", "error"],
    origins: &["hub", "local", "agent"],
    details: &["old_version", "new_version", "sha256", "reason"],
};

const ROOT_CHANGED: Told = Told {
    when: "a new root of roles took effect",
    object: "the root's id",
    statuses: &["success"],
    origins: &["hub"],
    details: &["old_version", "new_version", "sha256"],
};

const ADMIN_CALL: Told = Told {
    when: "an admin method that changes something is let in (`phase` is `begun`), and is over (`ended`)",
    object: "the part of the agent",
    statuses: &["success", "error", "timeout", "denied", "cancelled"],
    origins: &["local"],
    details: &["phase", "began", "code", "reason", "message", "duration_ms"],
};

const LOG_READ: Told = Told {
    when: "somebody was let read log lines, or the output of jobs",
    object: "the part of the agent",
    statuses: &["success"],
    origins: &["local"],
    details: &[],
};

const REFUSED: Told = Told {
    when: "callers were turned away at the admin socket; one line a minute a user",
    object: "`admin API`",
    statuses: &["denied"],
    origins: &["local"],
    details: &["no_credential", "role", "rate", "protocol", "by"],
};

const CONFIG_CHANGED: Told = Told {
    when: "a setting takes effect, also one that was changed while no agent ran (`by` is `start`); or a \
           changed file was refused",
    object: "the file or setting",
    statuses: &["success", "error"],
    origins: &["local", "agent"],
    details: &["changed", "needs_restart", "old", "new", "message", "by"],
};

const KEY_ROTATED: Told = Told {
    when: "the audit key was replaced; by the old key",
    object: "`audit log`",
    statuses: &["success"],
    origins: &["agent", "local"],
    details: &["public_key", "acceptance"],
};

const DAY_OPEN: Told = Told {
    when: "a day's file begins",
    object: "`audit log`",
    statuses: &["success"],
    origins: &["agent"],
    details: &["log_id", "previous", "frontier", "public_key"],
};

const DAY_CLOSE: Told = Told {
    when: "a day's file ends",
    object: "`audit log`",
    statuses: &["success"],
    origins: &["agent"],
    details: &["file", "sha256", "bytes"],
};

const RECOVERED: Told = Told {
    when: "torn bytes at the end of the log were set aside",
    object: "the file",
    statuses: &["success"],
    origins: &["agent"],
    details: &["file", "kept_as", "sha256", "bytes"],
};

const PRUNE: Told = Told {
    when: "old files are about to be removed",
    object: "`audit log`",
    statuses: &["success"],
    origins: &["agent"],
    details: &["files"],
};

const DEGRADED: Told = Told {
    when: "something that the agent promises does not hold (`error`), or does again (`success`)",
    object: "`audit log`, `witness`, `sandbox`, `journal`, or the id of a log that was put back",
    statuses: &["error", "success"],
    origins: &["agent"],
    details: &["what", "message", "since", "changes", "put_aside"],
};

const OUTPUT_DROPPED: Told = Told {
    when: "output that was kept for the hub is gone",
    object: "`job_id`",
    statuses: &["error"],
    origins: &["agent"],
    details: &["reason", "stdout_bytes", "stderr_bytes"],
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(changes: &serde_json::Value) -> Line {
        let mut line = json!({
            "timestamp": "2025-12-16T10:30:00Z", "type": "audit", "event": "admin_call",
            "agent_id": "a", "status": "success", "origin": "local", "object": "certificate",
            "caller": {"uid": 0, "pid": 9}, "details": {"phase": "begun"}, "seq": 4, "prev": "",
        });
        let line_fields = line.as_object_mut().unwrap();
        for (key, value) in changes.as_object().unwrap() {
            if value.is_null() {
                line_fields.remove(key);
            } else {
                line_fields.insert(key.clone(), value.clone());
            }
        }
        serde_json::from_value(line).unwrap()
    }

    #[test]
    fn a_line_without_who_what_how_or_whence_is_flawed() {
        for (changes, flaws) in [
            (json!({}), vec![]),
            (json!({"status": null}), vec!["no status"]),
            (json!({"status": "well"}), vec!["status well"]),
            (json!({"origin": "hub"}), vec!["origin hub"]),
            (json!({"object": null}), vec!["neither object nor job_id"]),
            (json!({"object": null, "job_id": "j"}), vec![]),
            (json!({"caller": null}), vec!["neither caller nor details.by"]),
            (json!({"details": {"x": 1}}), vec!["details.x is new"]),
            (json!({"event": "of_a_later_version", "status": null}), vec![]),
        ] {
            assert_eq!(line(&changes).flaws(), flaws, "{changes}");
        }
    }

    #[test]
    fn the_table_in_the_docs_has_every_event() {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/AUDIT.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        let table = table();
        assert_eq!(table.lines().count(), 2 + Event::NAMES.len());
        assert!(docs.contains(table.trim_end()), "docs/AUDIT.md has another table than:\n{table}");
    }
}
