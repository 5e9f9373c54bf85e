//! The configuration file: the only reader of file and environment.
//!
//! [`Config`] holds every setting with its default. `settings` is the table of what can be
//! written, `value` reads one value, `file` finds settings in the text and says where a fault is,
//! `change` compares and merges, `edit` changes a text, [`Paths`] says where things lie.

mod change;
mod edit;
mod env;
mod file;
mod paths;
mod settings;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use jtnt_proto::policy::RequireEnforcement;
use serde::Serialize;

pub use change::{Difference, Entry, changed_since, difference, merged, remembered, take_up};
pub use env::Environment;
pub use file::{ConfigError, Fault, load, load_as_client, load_or_default};
pub use paths::Paths;
pub use settings::{Setting, all as settings};

use crate::{
    domain::{
        key_store::KeyStore,
        retention::{Collector, Profile, Retention},
    },
    telemetry::log::{Format, Level},
};

/// Where the configuration is unless `JTNT_CONFIG` or `--config` say otherwise.
pub const DEFAULT_PATH: &str = "/etc/jtnt-agent/config.json";

/// Which updates are applied without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum UpdateAuto {
    Critical,
    All,
    None,
}

/// Every setting. Fields are named as in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the contract names and explains them")]
pub struct Config {
    pub hub_url: Option<String>,
    pub hub_proxy: Option<String>,
    pub data_dir: PathBuf,
    pub state_dir: PathBuf,
    pub install_dir: PathBuf,
    pub admin_socket: PathBuf,
    pub admin_users: Vec<String>,
    pub admin_groups: Vec<String>,
    pub operator_groups: Vec<String>,
    pub reader_groups: Vec<String>,
    pub admin_tcp_listen: Option<SocketAddr>,
    pub admin_tcp_cert: Option<PathBuf>,
    pub admin_tcp_key: Option<PathBuf>,
    pub admin_tcp_client_ca: Option<PathBuf>,
    pub admin_tcp_roles: BTreeMap<String, String>,
    pub metrics_listen: SocketAddr,
    pub health_listen: SocketAddr,
    pub heartbeat_interval_seconds: u64,
    pub retry_base_seconds: u64,
    pub retry_max_seconds: u64,
    pub breaker_failures: u32,
    pub audit_retention_days: u32,
    pub audit_profile: Profile,
    pub audit_forward: Vec<Collector>,
    pub cert_check_time: String,
    pub key_store: KeyStore,
    pub update_check_time: String,
    pub update_channel: String,
    pub update_auto: UpdateAuto,
    pub update_window: Option<String>,
    pub max_concurrent_jobs: u32,
    pub job_uid_range: String,
    pub result_cache_max_bytes: u64,
    pub result_cache_max_age_hours: u64,
    pub require_enforcement: Option<RequireEnforcement>,
    pub log_level: Level,
    pub log_format: Format,
    pub labels: BTreeMap<String, String>,
}

impl Config {
    /// The defaults, for a user whose home folder is `home`.
    #[must_use]
    pub fn defaults(home: &std::path::Path) -> Self {
        Self {
            hub_url: None,
            hub_proxy: None,
            data_dir: "/var/lib/jtnt-agent".into(),
            state_dir: home.join(".jtnt/state"),
            install_dir: "/opt/jtnt-agent/bin".into(),
            admin_socket: "/run/jtnt-agent/admin.sock".into(),
            admin_users: Vec::new(),
            admin_groups: Vec::new(),
            operator_groups: Vec::new(),
            reader_groups: Vec::new(),
            admin_tcp_listen: None,
            admin_tcp_cert: None,
            admin_tcp_key: None,
            admin_tcp_client_ca: None,
            admin_tcp_roles: BTreeMap::new(),
            metrics_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090),
            health_listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091),
            heartbeat_interval_seconds: 30,
            retry_base_seconds: 1,
            retry_max_seconds: 300,
            breaker_failures: 5,
            audit_retention_days: 30,
            audit_profile: Profile::Default,
            audit_forward: Vec::new(),
            cert_check_time: "03:00".to_owned(),
            key_store: KeyStore::File,
            update_check_time: "04:00".to_owned(),
            update_channel: "stable".to_owned(),
            update_auto: UpdateAuto::Critical,
            update_window: None,
            max_concurrent_jobs: 4,
            job_uid_range: "61184-65519".to_owned(),
            result_cache_max_bytes: 1 << 30,
            result_cache_max_age_hours: 168,
            require_enforcement: None,
            log_level: Level::Info,
            log_format: Format::Human,
            labels: BTreeMap::new(),
        }
    }

    /// What of the audit log is kept, and what may go.
    #[must_use]
    pub fn retention(&self) -> Retention {
        Retention::of(self.audit_profile, self.audit_retention_days)
    }

    /// Who gets every line of it, also without being named where the profile asks for it.
    #[must_use]
    pub fn collectors(&self) -> BTreeSet<Collector> {
        let by_profile = self.retention().at_hub().then_some(Collector::Hub);
        self.audit_forward.iter().copied().chain(by_profile).collect()
    }

    /// Where everything lies.
    #[must_use]
    pub fn paths(&self) -> Paths {
        Paths { data_dir: self.data_dir.clone(), state_dir: self.state_dir.clone() }
    }
}
