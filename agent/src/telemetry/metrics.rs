//! Every series of the operations guide and those the contract adds, present from the start.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry,
};

use crate::domain::enforcement::Enforcement;

/// Job types, as the label has them.
pub const JOB_TYPES: [&str; 4] = ["exec", "script", "download", "upload"];
/// Templates of the hub's endpoints, as the label has them.
pub const ENDPOINTS: [&str; 10] = [
    "/api/v1/enroll",
    "/api/v1/trust/root/{n}",
    "/api/v1/heartbeat",
    "/api/v1/jobs",
    "/api/v1/jobs/{id}/status",
    "/api/v1/jobs/{id}/result",
    "/api/v1/policy",
    "/api/v1/certificates/renew",
    "/api/v1/artifacts/{sha256}",
    "/api/v1/artifacts/{job_id}/{name}",
];
/// Levels of enforcement, as the label has them.
pub const ENFORCEMENT_LEVELS: [&str; 3] = ["full", "partial", "none"];
/// As TLS names them: the first is the hybrid that no quantum computer breaks.
const KEY_EXCHANGES: [&str; 3] = ["X25519MLKEM768", "X25519", "secp256r1"];
/// States of the circuit breaker, as the label has them.
pub const BREAKER_STATES: [&str; 3] = ["closed", "open", "half_open"];

/// The agent's series. Cheap to clone: each is shared.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// What is scraped.
    pub registry: Registry,
    /// `{status}`: success, error.
    pub heartbeat: IntCounterVec,
    /// `{type, status}`: success, error, timeout, and denied, cancelled.
    pub jobs_executed: IntCounterVec,
    /// `{status}`: success, error.
    pub enrollment_attempts: IntCounterVec,
    /// `{type}`: exec, script, file.
    pub policy_violations: IntCounterVec,
    /// `{status}`: success, error.
    pub update_attempts: IntCounterVec,
    /// `{status}`: success, error.
    pub cert_rotation: IntCounterVec,
    /// `{reason}`: a job refused before policy was asked.
    pub jobs_rejected: IntCounterVec,
    /// Unix seconds.
    pub cert_not_before: Gauge,
    /// Unix seconds.
    pub cert_next_renewal: Gauge,
    /// Unix seconds.
    pub cert_last_success: Gauge,
    /// Unix seconds.
    pub cert_last_failure: Gauge,
    /// `{reason}`: output kept for the hub that went.
    pub output_dropped: IntCounterVec,
    /// `{version}`: 1.
    pub up: GaugeVec,
    /// Unix seconds.
    pub heartbeat_last_success: Gauge,
    /// Jobs that run.
    pub jobs_active: Gauge,
    /// Jobs that wait.
    pub jobs_queued: Gauge,
    /// Results that the hub does not have.
    pub results_pending: Gauge,
    /// Bytes of them.
    pub results_pending_bytes: Gauge,
    /// `{status}`: connected, disconnected; one is 1.
    pub hub_connection: GaugeVec,
    /// `{key_exchange}`: X25519MLKEM768, X25519, secp256r1.
    pub hub_connections: IntCounterVec,
    /// `{state}`: closed, open, half_open; one is 1.
    pub breaker: GaugeVec,
    /// Unix seconds; 0 without a policy.
    pub policy_expiration: Gauge,
    /// Version in force; 0 without one.
    pub policy_version: Gauge,
    /// Unix seconds; 0 without a certificate.
    pub cert_expiration: Gauge,
    /// Of all cores together, 0 to 100.
    pub cpu_percent: Gauge,
    /// Used memory of the machine.
    pub memory_used: Gauge,
    /// Used bytes of the file system of `data_dir`.
    pub disk_used: Gauge,
    /// Lines in the audit log.
    pub audit_size: Gauge,
    /// Those that a witness has seen.
    pub audit_witnessed: Gauge,
    /// Lines that were forwarded, by where.
    pub audit_forwarded: GaugeVec,
    /// 1 while lines reach those that they are forwarded to.
    pub audit_forward_up: GaugeVec,
    /// Logs that were put back to an earlier state and are kept aside.
    pub audit_superseded: Gauge,
    /// 1 while the audit log can be written.
    pub audit_writable: Gauge,
    /// 1 when the root of roles came from the hub itself.
    pub root_trusted_from_hub: Gauge,
    /// `{level}`: full, partial, none; one is 1.
    pub enforcement: GaugeVec,
    /// Agent's clock minus the hub's, in seconds.
    pub clock_offset: Gauge,
    /// Admin calls that were refused.
    pub admin_refused: IntCounterVec,
    /// Seconds.
    pub heartbeat_duration: Histogram,
    /// `{type}`, seconds.
    pub job_duration: HistogramVec,
    /// Seconds.
    pub upload_duration: Histogram,
    /// `{endpoint}`, seconds.
    pub request_duration: HistogramVec,
}

impl Metrics {
    /// Registers every series, each with all of its label values.
    ///
    /// # Errors
    /// Only if two series have one name.
    #[expect(clippy::too_many_lines, reason = "a table: a name, a help text and labels a series")]
    pub fn new(version: &str) -> prometheus::Result<Self> {
        let r = Registry::new();
        let status = &["success", "error"][..];
        let m = Self {
            heartbeat: counter(&r, "heartbeat_total", "Heartbeats sent.", "status", status)?,
            jobs_executed: executed(&r)?,
            enrollment_attempts: counter(
                &r,
                "enrollment_attempts_total",
                "Enrolments tried.",
                "status",
                status,
            )?,
            policy_violations: counter(
                &r,
                "policy_violations_total",
                "Requests the policy forbids.",
                "type",
                &["exec", "script", "file"],
            )?,
            update_attempts: counter(
                &r,
                "update_attempts_total",
                "Updates tried.",
                "status",
                status,
            )?,
            cert_rotation: counter(
                &r,
                "cert_rotation_total",
                "Certificate renewals tried.",
                "status",
                status,
            )?,
            jobs_rejected: counter(
                &r,
                "jobs_rejected_total",
                "Jobs refused before they were queued.",
                "reason",
                &crate::domain::job::Reject::ALL.map(crate::domain::job::Reject::name),
            )?,
            output_dropped: counter(
                &r,
                "output_dropped_total",
                "Jobs whose output was kept for the hub and went before it arrived.",
                "reason",
                &crate::domain::job::Dropped::ALL.map(crate::domain::job::Dropped::name),
            )?,
            up: gauge_vec(&r, "up", "1 while the agent runs.", "version", &[version])?,
            heartbeat_last_success: gauge(
                &r,
                "heartbeat_last_success_timestamp",
                "Unix time of the last heartbeat that the hub answered.",
            )?,
            jobs_active: gauge(&r, "job_execution_active", "Jobs that run now.")?,
            jobs_queued: gauge(&r, "jobs_queued", "Jobs that wait for a worker.")?,
            results_pending: gauge(&r, "results_pending", "Results the hub does not have yet.")?,
            results_pending_bytes: gauge(&r, "results_pending_bytes", "Bytes of pending results.")?,
            hub_connection: gauge_vec(
                &r,
                "hub_connection_status",
                "1 for the state of the connection to the hub.",
                "status",
                &["connected", "disconnected"],
            )?,
            hub_connections: counter(
                &r,
                "hub_connections_total",
                "TLS connections to the hub, by how their keys were agreed on.",
                "key_exchange",
                &KEY_EXCHANGES,
            )?,
            breaker: gauge_vec(
                &r,
                "circuit_breaker_state",
                "1 for the state of the circuit breaker.",
                "state",
                &BREAKER_STATES,
            )?,
            policy_expiration: gauge(
                &r,
                "policy_expiration_timestamp",
                "Unix time at which the policy expires; 0 without one.",
            )?,
            policy_version: gauge(&r, "policy_version", "Version of the policy; 0 without one.")?,
            cert_expiration: gauge(
                &r,
                "cert_expiration_timestamp",
                "Unix time at which the client certificate expires; 0 without one.",
            )?,
            cert_not_before: gauge(
                &r,
                "cert_not_before_timestamp",
                "Unix time at which the client certificate begins; 0 without one.",
            )?,
            cert_next_renewal: gauge(
                &r,
                "cert_next_renewal_timestamp",
                "Unix time from which the client certificate is to be renewed; 0 without one.",
            )?,
            cert_last_success: gauge(
                &r,
                "cert_rotation_last_success_timestamp",
                "Unix time of the last renewal since the agent started; 0 without one.",
            )?,
            cert_last_failure: gauge(
                &r,
                "cert_rotation_last_failure_timestamp",
                "Unix time of the last renewal that failed since the agent started; 0 without one.",
            )?,
            cpu_percent: gauge(&r, "system_cpu_usage_percent", "CPU use of the machine, 0-100.")?,
            memory_used: gauge(&r, "system_memory_used_bytes", "Memory in use on the machine.")?,
            disk_used: gauge(
                &r,
                "system_disk_used_bytes",
                "Bytes in use on the file system of data_dir.",
            )?,
            audit_size: gauge(&r, "audit_lines", "Lines in the audit log, pruned ones included.")?,
            audit_witnessed: gauge(
                &r,
                "audit_witnessed_lines",
                "Lines in the audit log that the hub has seen and cosigned.",
            )?,
            audit_forwarded: gauge_vec(
                &r,
                "audit_forwarded_lines",
                "Lines of the audit log that the hub holds, or that were given to journald or syslog.",
                "to",
                &[],
            )?,
            audit_forward_up: gauge_vec(
                &r,
                "audit_forward_up",
                "1 while lines of the audit log reach those that they are forwarded to.",
                "to",
                &[],
            )?,
            audit_superseded: gauge(
                &r,
                "audit_superseded_logs",
                "Audit logs that were put back to an earlier state and are kept aside.",
            )?,
            audit_writable: gauge(&r, "audit_writable", "1 while the audit log can be written.")?,
            root_trusted_from_hub: gauge(
                &r,
                "root_trusted_from_hub",
                "1 when the root of roles was taken from the hub itself.",
            )?,
            enforcement: gauge_vec(
                &r,
                "enforcement",
                "1 for what the operating system can enforce of a policy.",
                "level",
                &ENFORCEMENT_LEVELS,
            )?,
            clock_offset: gauge(&r, "clock_offset_seconds", "Clock of the agent minus the hub's.")?,
            admin_refused: counter(
                &r,
                "admin_refused_total",
                "Admin calls that were refused.",
                "reason",
                &["no_credential", "role", "rate", "protocol"],
            )?,
            heartbeat_duration: histogram(
                &r,
                "heartbeat_duration_seconds",
                "Time of a heartbeat.",
            )?,
            job_duration: histogram_vec(
                &r,
                "job_execution_duration_seconds",
                "Time of a job.",
                "type",
                &JOB_TYPES,
            )?,
            upload_duration: histogram(
                &r,
                "artifact_upload_duration_seconds",
                "Time of an artifact's upload.",
            )?,
            request_duration: histogram_vec(
                &r,
                "api_request_duration_seconds",
                "Time of a request to the hub.",
                "endpoint",
                &ENDPOINTS,
            )?,
            registry: r,
        };
        m.up.with_label_values(&[version]).set(1.0);
        build_info(&m.registry, version)?;
        m.hub_connection.with_label_values(&["disconnected"]).set(1.0);
        m.breaker.with_label_values(&["closed"]).set(1.0);
        Ok(m)
    }

    /// Shows `state` as the breaker's.
    pub fn show_breaker(&self, state: &str) {
        for s in BREAKER_STATES {
            self.breaker.with_label_values(&[s]).set(f64::from(s == state));
        }
    }

    /// Shows what the operating system enforces here.
    pub fn show_enforcement(&self, level: &Enforcement) {
        let word = match level {
            Enforcement::Full => "full",
            Enforcement::Partial(_) => "partial",
            Enforcement::None => "none",
        };
        for l in ENFORCEMENT_LEVELS {
            self.enforcement.with_label_values(&[l]).set(f64::from(l == word));
        }
    }

    /// Shows whether audit lines reach this collector, and how many have, where that is news.
    pub fn show_forwarded(&self, to: &str, up: bool, lines: Option<u64>) {
        self.audit_forward_up.with_label_values(&[to]).set(f64::from(u8::from(up)));
        let forwarded = self.audit_forwarded.with_label_values(&[to]);
        if let Some(lines) = lines {
            forwarded.set(lines as f64);
        }
    }

    /// Shows whether the hub answers.
    pub fn show_connected(&self, connected: bool) {
        self.hub_connection.with_label_values(&["connected"]).set(f64::from(connected));
        self.hub_connection.with_label_values(&["disconnected"]).set(f64::from(!connected));
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("jtnt_agent_{name}"), help)
}

fn gauge(r: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    let g = Gauge::with_opts(opts(name, help))?;
    r.register(Box::new(g.clone()))?;
    Ok(g)
}

fn gauge_vec(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[&str],
) -> prometheus::Result<GaugeVec> {
    let g = GaugeVec::new(opts(name, help), &[label])?;
    r.register(Box::new(g.clone()))?;
    for v in values {
        g.with_label_values(&[v]).set(0.0);
    }
    Ok(g)
}

/// What was built, for joining with other series.
fn build_info(r: &Registry, version: &str) -> prometheus::Result<()> {
    let labels = ["version", "os", "arch"];
    let info = GaugeVec::new(opts("build_info", "1, labelled by what was built."), &labels)?;
    r.register(Box::new(info.clone()))?;
    info.with_label_values(&[version, std::env::consts::OS, std::env::consts::ARCH]).set(1.0);
    Ok(())
}

fn counter(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let c = IntCounterVec::new(opts(name, help), &[label])?;
    r.register(Box::new(c.clone()))?;
    for v in values {
        c.with_label_values(&[v]).reset();
    }
    Ok(c)
}

fn executed(r: &Registry) -> prometheus::Result<IntCounterVec> {
    let c =
        IntCounterVec::new(opts("jobs_executed_total", "Jobs that ended."), &["type", "status"])?;
    r.register(Box::new(c.clone()))?;
    for kind in JOB_TYPES {
        for status in ["success", "error", "timeout", "denied", "cancelled"] {
            c.with_label_values(&[kind, status]).reset();
        }
    }
    Ok(c)
}

fn buckets(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::from(opts(name, help))
        .buckets(vec![0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0])
}

fn histogram(r: &Registry, name: &str, help: &str) -> prometheus::Result<Histogram> {
    let h = Histogram::with_opts(buckets(name, help))?;
    r.register(Box::new(h.clone()))?;
    Ok(h)
}

fn histogram_vec(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: &[&str],
) -> prometheus::Result<HistogramVec> {
    let h = HistogramVec::new(buckets(name, help), &[label])?;
    r.register(Box::new(h.clone()))?;
    for v in values {
        let _present = h.with_label_values(&[v]);
    }
    Ok(h)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Encoder as _;

    #[test]
    fn every_series_is_there_from_the_start() {
        let m = Metrics::new("1.2.3").unwrap();
        let mut text = Vec::new();
        prometheus::TextEncoder::new().encode(&m.registry.gather(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in [
            "jtnt_agent_heartbeat_total{status=\"error\"} 0",
            "jtnt_agent_jobs_executed_total{status=\"timeout\",type=\"upload\"} 0",
            "jtnt_agent_policy_violations_total{type=\"file\"} 0",
            "jtnt_agent_update_attempts_total{status=\"success\"} 0",
            "jtnt_agent_up{version=\"1.2.3\"} 1",
            "jtnt_agent_hub_connection_status{status=\"disconnected\"} 1",
            "jtnt_agent_circuit_breaker_state{state=\"closed\"} 1",
            "jtnt_agent_job_execution_duration_seconds_count{type=\"exec\"} 0",
            "jtnt_agent_api_request_duration_seconds_count{endpoint=\"/api/v1/policy\"} 0",
        ] {
            assert!(text.contains(line), "{line} is missing from:\n{text}");
        }
    }
}
