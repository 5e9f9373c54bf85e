//! The pages of the two loopback endpoints.

use http::StatusCode;
use prometheus::{Encoder as _, TextEncoder};

use super::{Overview, VERSION};
use crate::{domain::breaker::State, telemetry::http::Page};

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";
/// The text exposition format of Prometheus.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Overview {
    /// What `metrics_listen` shows.
    #[must_use]
    pub fn metrics_page(&self, path: &str) -> Option<Page> {
        match path {
            "/metrics" => Some(self.metrics()),
            "/" => Some(index("JTNT Agent metrics", &["/metrics"])),
            _ => None,
        }
    }

    /// What `health_listen` shows.
    #[must_use]
    pub fn health_page(&self, path: &str) -> Option<Page> {
        match path {
            "/health" => Some(self.health_json()),
            "/livez" => Some(plain(StatusCode::OK, "live")),
            "/readyz" => Some(self.readiness()),
            "/" => Some(index("JTNT Agent health", &["/health", "/livez", "/readyz"])),
            _ => None,
        }
    }

    fn metrics(&self) -> Page {
        self.refresh_gauges();
        let families = self.sources().metrics.registry.gather();
        let mut text = Vec::new();
        match TextEncoder::new().encode(&families, &mut text) {
            Ok(()) => Page {
                status: StatusCode::OK,
                content_type: METRICS,
                body: String::from_utf8_lossy(&text).into_owned(),
            },
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// Gauges of what changes without an event are read when somebody looks.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn refresh_gauges(&self) {
        let (s, facts) = (self.sources(), self.facts());
        let m = &s.metrics;
        self.inner.machine.refresh(m);
        m.disk_used.set(facts.disk.map_or(0.0, |disk| disk.used as f64));
        let expires = facts.certificate.map_or(0, |(_, to)| to.as_second());
        m.cert_expiration.set(expires as f64);
        m.show_connected(self.is_connected());
        m.show_enforcement(&s.gate.enforcement());
        let link = s.link.borrow();
        m.show_breaker(link.as_ref().map_or(State::Closed, |hub| hub.breaker()).word());
        let head = s.audit.head();
        m.audit_size.set(head.size as f64);
        m.audit_witnessed.set(head.witnessed as f64);
        m.audit_superseded.set(head.superseded.len() as f64);
        m.audit_writable.set(f64::from(u8::from(head.error.is_none())));
        let trusted = facts.enrolled == crate::domain::health::Enrolled::TrustedHub;
        m.root_trusted_from_hub.set(f64::from(u8::from(trusted)));
    }

    fn health_json(&self) -> Page {
        let report = self.health();
        let status =
            if report.is_healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        match serde_json::to_string_pretty(&report) {
            Ok(mut body) => {
                body.push('\n');
                Page { status, content_type: JSON, body }
            }
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// Ready says that the agent itself works. A hub that is away must not get it restarted.
    fn readiness(&self) -> Page {
        let faults = self.unready();
        if faults.is_empty() {
            return plain(StatusCode::OK, "ready");
        }
        plain(StatusCode::SERVICE_UNAVAILABLE, &faults.join("\n"))
    }

    /// Why the agent cannot do its work just now.
    #[must_use]
    pub fn unready(&self) -> Vec<String> {
        let s = self.sources();
        let starting = (!*s.ready.borrow()).then(|| "starting or stopping".to_owned());
        starting.into_iter().chain(self.unrecorded()).collect()
    }
}

fn plain(status: StatusCode, text: &str) -> Page {
    Page { status, content_type: TEXT, body: format!("{text}\n") }
}

fn index(title: &str, links: &[&str]) -> Page {
    let items: String =
        links.iter().map(|to| format!("<li><a href=\"{to}\">{to}</a></li>")).collect();
    let body = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <h1>{title}</h1><p>version {VERSION}</p><ul>{items}</ul></html>\n"
    );
    Page { status: StatusCode::OK, content_type: HTML, body }
}
