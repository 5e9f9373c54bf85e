//! Where the agent's files lie. The guide and the contract promise these names.

use std::path::PathBuf;

/// The folders; everything else follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Identity, audit log, policy.
    pub data_dir: PathBuf,
    /// Journal, jobs, results.
    pub state_dir: PathBuf,
}

impl Paths {
    /// Held by whoever may write below [`Self::data_dir`].
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.data_dir.join("lock")
    }

    /// The audit log.
    #[must_use]
    pub fn audit(&self) -> PathBuf {
        self.data_dir.join("audit")
    }

    /// The configuration as the audit log was last told of it.
    #[must_use]
    pub fn config_told(&self) -> PathBuf {
        self.data_dir.join("config.told.json")
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> PathBuf {
        self.data_dir.join("policy/policy.json")
    }

    /// The client certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.data_dir.join("certs/client.crt")
    }

    /// The job journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.state_dir.join("jobs.redb")
    }

    /// A folder a job.
    #[must_use]
    pub fn jobs(&self) -> PathBuf {
        self.state_dir.join("jobs")
    }

    /// A file an undelivered result.
    #[must_use]
    pub fn results(&self) -> PathBuf {
        self.state_dir.join("job_results_pending")
    }
}
