//! The connection test: the way to the hub step by step, each with what was seen and what to do.

use std::{future::Future, sync::Arc, time::Duration};

use jiff::SignedDuration;
use tokio::time::timeout;

use super::{
    ANSWER, CLIENT_CERT_REFUSED, HubClient, HubError,
    connect::{Target, tcp},
    error::{Fault, Step},
    exchange::Exchange,
    routes::get,
};
use crate::runtime::clock::SharedClock;

/// Clocks that are further apart break expiry dates.
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// One step of the connection test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeStep {
    /// `dns`, `tcp`, `tls`, `client_certificate`, `http` or `clock`.
    pub name: &'static str,
    /// Whether it worked.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// Stable, `UPPER_SNAKE`; empty when it worked.
    pub reason: String,
    /// What to do; empty when it worked.
    pub advice: String,
    /// How long it took.
    pub took: Duration,
}

impl HubClient {
    /// Tries the way to the hub with a connection of its own, past the breaker. The first step
    /// that fails is the last. Without a client certificate that step is left out.
    pub async fn probe(&self) -> Vec<ProbeStep> {
        let mut log = Log { steps: Vec::new(), clock: Arc::clone(&self.clock) };
        // The log has the fault already.
        let _told = self.walk(&mut log).await;
        log.steps
    }

    async fn walk(&self, log: &mut Log) -> Result<(), ()> {
        let target = self.pool.target().anew();
        let addresses = log
            .step(Step::Dns, target.resolve(), |found| {
                let found: Vec<_> = found.iter().map(|a| a.ip().to_string()).collect();
                format!("{} is {}", target.hub.host, found.join(", "))
            })
            .await?;
        let stream = log
            .step(Step::Tcp, tcp(&addresses), |s| {
                s.peer_addr().map_or_else(|e| e.to_string(), |a| format!("connected to {a}"))
            })
            .await?;
        let stream = log
            .step(Step::Tls, target.tls(stream), |s| {
                let group = s.get_ref().1.negotiated_key_exchange_group();
                let group = group.map_or_else(String::new, |g| format!(", {:?}", g.name()));
                format!("TLS 1.3{group}; the hub's cert is trusted and for {}", target.hub.host)
            })
            .await?;
        drop(stream);
        self.ask(log, target).await
    }

    /// The client certificate is judged by the hub's first answer, as in TLS 1.3 the handshake
    /// ends before the server has looked at it.
    async fn ask(&self, log: &mut Log, target: Target) -> Result<(), ()> {
        let identified = target.tls.client_auth_cert_resolver.has_certs();
        let exchange = Exchange {
            pool: self.pool.beside(target),
            clock: Arc::clone(&self.clock),
            offset: Arc::default(),
        };
        let offset = Arc::clone(&exchange.offset);
        // Both routes change nothing; the first needs a certificate.
        let call = if identified {
            get("/api/v1/policy", "/api/v1/policy")
        } else {
            get("/api/v1/trust/root/{n}", "/api/v1/trust/root/1")
        };
        let began = log.clock.uptime();
        let answer = timeout(ANSWER, exchange.run(call))
            .await
            .unwrap_or(Err(HubError::Deadline(ANSWER)))
            .map(drop);
        let took = log.clock.uptime().saturating_sub(began);
        let (certificate, http) = judged(answer);
        if identified {
            log.push(Step::ClientCertificate, took, certificate)?;
        }
        log.push(Step::Http, took, http)?;
        let offset = *offset.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        log.push(Step::Clock, Duration::ZERO, clocks(offset))
    }
}

type Seen = Result<String, Fault>;

/// What an answer says of the certificate, and of the hub.
fn judged(answer: Result<(), HubError>) -> (Seen, Seen) {
    let accepted = || Ok("the hub accepts this agent's cert".to_owned());
    let fault = |step, reason, message: String, advice| Fault { step, reason, message, advice };
    match answer {
        Ok(()) => (accepted(), Ok("the hub answers".to_owned())),
        Err(HubError::Refused { status: 404, .. }) => {
            (accepted(), Ok("the hub answers; it has no policy yet".to_owned()))
        }
        Err(HubError::Refused { status: 401 | 403, detail, reason, .. }) => {
            let advice = match reason.as_str() {
                "CERTIFICATE_EXPIRED" => "renew it: jtnt-agent cert renew --force",
                "CERTIFICATE_REPLACED" => {
                    "go back to the newer one, if that is the backup: jtnt-agent cert rollback"
                }
                _ => "enrol again: jtnt-agent enroll --force --token-file FILE",
            };
            let message = format!("the hub refuses this agent's client cert: {detail}");
            let refused = fault(Step::ClientCertificate, CLIENT_CERT_REFUSED, message, advice);
            (Err(refused.clone()), Err(refused))
        }
        Err(HubError::Unreachable(f)) if f.step == Step::ClientCertificate => {
            (Err(f.clone()), Err(f))
        }
        Err(e) => {
            let (reason, advice) = match &e {
                HubError::Unreachable(f) => (f.reason, f.advice),
                HubError::Refused { .. } => ("HTTP_ERROR", "look at the hub's log"),
                HubError::Deadline(_) => ("HTTP_TIMEOUT", "the hub is up, but does not answer"),
                HubError::BadAnswer(_) => {
                    ("HTTP_NOT_A_HUB", "check hub_url: what answers there is no hub")
                }
                HubError::BreakerOpen(_) => ("BREAKER_OPEN", "wait a minute"),
            };
            (accepted(), Err(fault(Step::Http, reason, e.to_string(), advice)))
        }
    }
}

fn clocks(offset: Option<SignedDuration>) -> Seen {
    let Some(offset) = offset else { return Ok("the hub does not tell its time".to_owned()) };
    let seconds = offset.as_secs();
    let way = if seconds < 0 { "behind" } else { "ahead of" };
    let detail = format!("this machine's clock is {} s {way} the hub's", seconds.unsigned_abs());
    if offset.abs() <= MAX_SKEW {
        return Ok(detail);
    }
    Err(Fault {
        step: Step::Clock,
        reason: "CLOCK_SKEW",
        message: detail,
        advice: "set the clock (timedatectl set-ntp true), here or at the hub; \
                 until then certs and policies expire at the wrong time",
    })
}

/// The steps so far.
struct Log {
    steps: Vec<ProbeStep>,
    clock: SharedClock,
}

impl Log {
    /// Does a step and writes it down.
    async fn step<T>(
        &mut self,
        step: Step,
        work: impl Future<Output = Result<T, Fault>>,
        seen: impl FnOnce(&T) -> String,
    ) -> Result<T, ()> {
        let began = self.clock.uptime();
        let done = work.await;
        let took = self.clock.uptime().saturating_sub(began);
        match done {
            Ok(done) => {
                self.push(step, took, Ok(seen(&done)))?;
                Ok(done)
            }
            Err(fault) => self.push(fault.step, took, Err(fault)).and(Err(())),
        }
    }

    fn push(&mut self, step: Step, took: Duration, seen: Seen) -> Result<(), ()> {
        let ok = seen.is_ok();
        let (detail, reason, advice) = match seen {
            Ok(detail) => (detail, "", ""),
            Err(fault) => (fault.message, fault.reason, fault.advice),
        };
        self.steps.push(ProbeStep {
            name: step.word(),
            ok,
            detail,
            reason: reason.to_owned(),
            advice: advice.to_owned(),
            took,
        });
        if ok { Ok(()) } else { Err(()) }
    }
}
