//! The table of settings: what each is called, how its value is read, and when it takes effect.

use std::path::Path;

use jtnt_proto::policy::RequireEnforcement;
use serde_json::Value;

use super::{
    Config, UpdateAuto,
    value::{
        Read, choice, choices, list, loopback, map, number, path, small, text, time, uids, url,
        window,
    },
};
use crate::{
    domain::retention::{Collector, Profile},
    telemetry::log::{Format, Level},
};

type Reader = fn(&mut Config, &Value, &Path) -> Read<()>;

/// When a changed value takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// When the configuration is read again.
    Reload,
    /// When the agent starts again.
    Restart,
    /// Not in this version: the name is kept for a feature that is still to come.
    Later,
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in the file.
    pub name: &'static str,
    /// When a change takes effect.
    pub effect: Effect,
    read: Reader,
}

impl Setting {
    pub(super) fn read(&self, config: &mut Config, value: &Value, home: &Path) -> Read<()> {
        (self.read)(config, value, home)
    }
}

const fn on(effect: Effect, name: &'static str, read: Reader) -> Setting {
    Setting { name, effect, read }
}

fn set<T>(slot: &mut T, value: Read<T>) -> Read<()> {
    *slot = value?;
    Ok(())
}

/// A century.
const MAX_DAYS: u32 = 36_525;
const LEVELS: &[(&str, Level)] = &[
    ("error", Level::Error),
    ("warn", Level::Warn),
    ("info", Level::Info),
    ("debug", Level::Debug),
    ("trace", Level::Trace),
];

use Effect::{Later, Reload, Restart};

static SETTINGS: &[Setting] = &[
    on(Reload, "hub_url", |c, v, _| set(&mut c.hub_url, url(v, "https").map(Some))),
    on(Later, "hub_proxy", |c, v, _| set(&mut c.hub_proxy, url(v, "http").map(Some))),
    on(Restart, "data_dir", |c, v, home| set(&mut c.data_dir, path(v, home))),
    on(Restart, "state_dir", |c, v, home| set(&mut c.state_dir, path(v, home))),
    on(Later, "install_dir", |c, v, home| set(&mut c.install_dir, path(v, home))),
    on(Restart, "admin_socket", |c, v, home| set(&mut c.admin_socket, path(v, home))),
    on(Reload, "admin_users", |c, v, _| set(&mut c.admin_users, list(v))),
    on(Reload, "admin_groups", |c, v, _| set(&mut c.admin_groups, list(v))),
    on(Reload, "operator_groups", |c, v, _| set(&mut c.operator_groups, list(v))),
    on(Reload, "reader_groups", |c, v, _| set(&mut c.reader_groups, list(v))),
    on(Later, "admin_tcp_listen", |c, v, _| set(&mut c.admin_tcp_listen, loopback(v).map(Some))),
    on(Later, "admin_tcp_cert", |c, v, home| set(&mut c.admin_tcp_cert, path(v, home).map(Some))),
    on(Later, "admin_tcp_key", |c, v, home| set(&mut c.admin_tcp_key, path(v, home).map(Some))),
    on(Later, "admin_tcp_client_ca", |c, v, home| {
        set(&mut c.admin_tcp_client_ca, path(v, home).map(Some))
    }),
    on(Later, "admin_tcp_roles", |c, v, _| {
        let roles = map(v)?;
        match roles.values().find(|r| !["read", "operate", "admin"].contains(&r.as_str())) {
            Some(bad) => Err(format!("expected one of read, operate, admin, found {bad:?}")),
            None => set(&mut c.admin_tcp_roles, Ok(roles)),
        }
    }),
    on(Restart, "metrics_listen", |c, v, _| set(&mut c.metrics_listen, loopback(v))),
    on(Restart, "health_listen", |c, v, _| set(&mut c.health_listen, loopback(v))),
    on(Restart, "heartbeat_interval_seconds", |c, v, _| {
        set(&mut c.heartbeat_interval_seconds, number(v, 1..=120))
    }),
    on(Restart, "retry_base_seconds", |c, v, _| set(&mut c.retry_base_seconds, number(v, 1..=60))),
    on(Restart, "retry_max_seconds", |c, v, _| set(&mut c.retry_max_seconds, number(v, 1..=3600))),
    on(Restart, "breaker_failures", |c, v, _| set(&mut c.breaker_failures, small(v, 1..=1000))),
    on(Restart, "audit_retention_days", |c, v, _| {
        set(&mut c.audit_retention_days, small(v, 1..=MAX_DAYS))
    }),
    on(Restart, "audit_profile", |c, v, _| {
        let words =
            [("default", Profile::Default), ("pci", Profile::Pci), ("hipaa", Profile::Hipaa)];
        set(&mut c.audit_profile, choice(v, &words))
    }),
    on(Restart, "audit_forward", |c, v, _| {
        let words = [
            ("hub", Collector::Hub),
            ("journald", Collector::Journald),
            ("syslog", Collector::Syslog),
        ];
        set(&mut c.audit_forward, choices(v, &words))
    }),
    on(Restart, "cert_check_time", |c, v, _| set(&mut c.cert_check_time, time(v))),
    on(Reload, "key_store", |c, v, _| set(&mut c.key_store, text(v).and_then(str::parse))),
    on(Later, "update_check_time", |c, v, _| set(&mut c.update_check_time, time(v))),
    on(Later, "update_channel", |c, v, _| {
        let channel = text(v)?;
        if jtnt_proto::identity::is_id(channel) {
            set(&mut c.update_channel, Ok(channel.to_owned()))
        } else {
            Err("expected 1 to 64 of the characters A-Z a-z 0-9 _ -".to_owned())
        }
    }),
    on(Later, "update_auto", |c, v, _| {
        let words = [
            ("critical", UpdateAuto::Critical),
            ("all", UpdateAuto::All),
            ("none", UpdateAuto::None),
        ];
        set(&mut c.update_auto, choice(v, &words))
    }),
    on(Later, "update_window", |c, v, _| set(&mut c.update_window, window(v).map(Some))),
    on(Restart, "max_concurrent_jobs", |c, v, _| {
        set(&mut c.max_concurrent_jobs, small(v, 1..=256))
    }),
    on(Later, "job_uid_range", |c, v, _| set(&mut c.job_uid_range, uids(v))),
    on(Restart, "result_cache_max_bytes", |c, v, _| {
        set(&mut c.result_cache_max_bytes, number(v, 1_048_576..=1 << 50))
    }),
    on(Restart, "result_cache_max_age_hours", |c, v, _| {
        set(&mut c.result_cache_max_age_hours, number(v, 1..=87_660))
    }),
    on(Restart, "require_enforcement", |c, v, _| {
        let words = [
            ("none", RequireEnforcement::None),
            ("partial", RequireEnforcement::Partial),
            ("full", RequireEnforcement::Full),
        ];
        set(&mut c.require_enforcement, choice(v, &words).map(Some))
    }),
    on(Reload, "log_level", |c, v, _| set(&mut c.log_level, choice(v, LEVELS))),
    on(Restart, "log_format", |c, v, _| {
        set(&mut c.log_format, choice(v, &[("human", Format::Human), ("json", Format::Json)]))
    }),
    on(Reload, "labels", |c, v, _| set(&mut c.labels, map(v))),
];

/// Every setting, in the order of the contract.
#[must_use]
pub fn all() -> &'static [Setting] {
    SETTINGS
}

pub(super) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.name == name)
}

/// The setting that was probably meant: at most a third of its letters differ.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    SETTINGS
        .iter()
        .map(|s| (distance(s.name, name), s.name))
        .min()
        .filter(|(d, near)| d * 3 <= near.len())
        .map(|(_, near)| near)
}

/// Letters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(row.first_mut().unwrap_or(&mut 0), i + 1);
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = diagonal + usize::from(x != *y);
            diagonal = *cell;
            *cell = cost.min(left + 1).min(*cell + 1);
            left = *cell;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_setting_of_its_name_and_none_is_without() {
        let shown = serde_json::to_value(Config::defaults(Path::new("/"))).unwrap();
        let mut fields: Vec<_> = shown.as_object().unwrap().keys().map(String::as_str).collect();
        let mut names: Vec<_> = SETTINGS.iter().map(|s| s.name).collect();
        fields.sort_unstable();
        names.sort_unstable();
        assert_eq!(fields, names);
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("loglevel"), Some("log_level"));
        assert_eq!(nearest("heartbeat_interval"), Some("heartbeat_interval_seconds"));
        assert_eq!(nearest("hearbeat_interval_second"), Some("heartbeat_interval_seconds"));
        assert_eq!(nearest("x"), None);
    }

    #[test]
    fn distances_are_counted() {
        for (a, b, d) in [("", "", 0), ("abc", "", 3), ("abc", "abd", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }
}
