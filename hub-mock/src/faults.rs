//! Faults by script: what goes wrong, on which route, how often. Nothing is left to dice.

use std::{
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use http::Method;
use jtnt_proto::envelope::Envelope;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::HubError;

/// Faults that can wait at once.
const MAX_FAULTS: usize = 256;

/// A route of the hub, by its name in commands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// `POST /api/v1/enroll`
    Enroll,
    /// `POST /api/v1/heartbeat`
    Heartbeat,
    /// `GET /api/v1/jobs`
    Jobs,
    /// `POST /api/v1/jobs/{id}/status`
    Status,
    /// `POST /api/v1/jobs/{id}/result`
    Result,
    /// `PUT /api/v1/jobs/{id}/output`
    Output,
    /// `GET /api/v1/policy`
    Policy,
    /// `POST /api/v1/certificates/renew`
    Renew,
    /// `GET /api/v1/artifacts/{sha256}` and `PUT /api/v1/artifacts/{job_id}/{name}`
    Artifact,
    /// `PUT /api/v1/audit/{log_id}`
    Audit,
    /// `GET /api/v1/trust/root/{n}`
    Root,
    /// Every route.
    Any,
}

impl Route {
    /// The route of a request; nothing for what the API does not have.
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/api/v1/")?;
        let parts: Vec<&str> = rest.split('/').collect();
        match (method.as_str(), parts.as_slice()) {
            ("POST", ["enroll"]) => Some(Self::Enroll),
            ("POST", ["heartbeat"]) => Some(Self::Heartbeat),
            ("GET", ["jobs"]) => Some(Self::Jobs),
            ("POST", ["jobs", _, "status"]) => Some(Self::Status),
            ("POST", ["jobs", _, "result"]) => Some(Self::Result),
            ("PUT", ["jobs", _, "output"]) => Some(Self::Output),
            ("GET", ["policy"]) => Some(Self::Policy),
            ("POST", ["certificates", "renew"]) => Some(Self::Renew),
            ("GET", ["artifacts", _]) | ("PUT", ["artifacts", _, _]) => Some(Self::Artifact),
            ("PUT", ["audit", _]) => Some(Self::Audit),
            ("GET", ["trust", "root", _]) => Some(Self::Root),
            _ => None,
        }
    }
}

/// What goes wrong.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The connection is closed: before TLS for `any`, else once the request shows its route.
    Refuse,
    /// 500; nothing is done.
    #[serde(rename = "500")]
    #[value(name = "500")]
    InternalError,
    /// 429 with `Retry-After: 1`; nothing is done.
    #[serde(rename = "429")]
    #[value(name = "429")]
    TooMany,
    /// It is done, and the answer drips.
    Slow,
    /// Nothing is done and no answer comes until the fault is cleared or the hub stops.
    Hang,
    /// It is done, and half of the answer comes.
    Cut,
    /// It is done, and bytes that are no JSON come.
    Garbage,
    /// It is done, and more bytes than any answer may have come.
    Oversized,
    /// 307 to another path; nothing is done.
    Redirect,
    /// It is done, and JSON of another shape comes.
    WrongShape,
    /// One bit of every signature in the answer is turned.
    WrongSignature,
    /// A document or certificate whose time is over. Documents are signed by the operator, so
    /// policy, jobs and root need one handed in with the fault.
    Expired,
    /// What was sent before comes again: jobs that ended, the oldest policy, root or certificate.
    Replay,
    /// The hub's clock is a day ahead, in `hub_time` and in `Date`.
    ClockSkew,
    /// A certificate for another agent.
    OtherAgent,
    /// A certificate for servers.
    NotForClients,
    /// A certificate that begins in an hour.
    NotYetValid,
    /// A certificate of an authority that nobody named.
    Stranger,
    /// The certificate behind its authority's.
    Disordered,
    /// The certificate and 999 others.
    LongChain,
}

impl Kind {
    /// Whether `route` has anything this kind could spoil.
    #[must_use]
    pub const fn applies_to(self, route: Route) -> bool {
        match self {
            Self::WrongSignature | Self::Expired | Self::Replay => matches!(
                route,
                Route::Enroll
                    | Route::Renew
                    | Route::Jobs
                    | Route::Policy
                    | Route::Root
                    | Route::Any
            ),
            Self::OtherAgent
            | Self::NotForClients
            | Self::NotYetValid
            | Self::Stranger
            | Self::Disordered
            | Self::LongChain => matches!(route, Route::Enroll | Route::Renew),
            Self::Refuse
            | Self::InternalError
            | Self::TooMany
            | Self::Slow
            | Self::Hang
            | Self::Cut
            | Self::Garbage
            | Self::Oversized
            | Self::Redirect
            | Self::WrongShape
            | Self::ClockSkew => true,
        }
    }
}

/// A fault that waits for its request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Where.
    pub route: Route,
    /// What.
    pub kind: Kind,
    /// How often; until cleared when absent.
    #[serde(default)]
    pub times: Option<u32>,
    /// The document that [`Kind::Expired`] serves.
    #[serde(default)]
    pub document: Option<Envelope>,
}

/// The faults in force, first come first served.
#[derive(Debug)]
pub(crate) struct Faults {
    waiting: Mutex<Vec<Fault>>,
    cleared: watch::Sender<u64>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { waiting: Mutex::default(), cleared: watch::Sender::new(0) }
    }

    /// Adds one, unless it cannot strike its route or too many wait.
    pub(crate) fn set(&self, fault: Fault) -> Result<(), HubError> {
        let mut waiting = self.lock();
        if waiting.len() >= MAX_FAULTS || !fault.kind.applies_to(fault.route) {
            let why = "this kind cannot strike this route, or too many faults wait already";
            return Err(HubError::refused("FAULT", why));
        }
        if fault.times != Some(0) {
            waiting.push(fault);
        }
        Ok(())
    }

    /// Forgets all, and lets hanging requests go.
    pub(crate) fn clear(&self) {
        self.lock().clear();
        self.cleared.send_modify(|n| *n += 1);
    }

    /// The faults that wait.
    pub(crate) fn list(&self) -> Vec<Fault> {
        self.lock().clone()
    }

    /// Takes the first fault for a request to `route`.
    pub(crate) fn take(&self, route: Route) -> Option<Fault> {
        self.take_where(|f| {
            let refused_before = f.route == Route::Any && f.kind == Kind::Refuse;
            (f.route == route || f.route == Route::Any)
                && f.kind.applies_to(route)
                && !refused_before
        })
    }

    /// Whether the next connection is to be refused.
    pub(crate) fn take_refusal(&self) -> bool {
        self.take_where(|f| f.route == Route::Any && f.kind == Kind::Refuse).is_some()
    }

    /// Waits for the next [`Self::clear`].
    pub(crate) async fn cleared(&self) {
        let mut cleared = self.cleared.subscribe();
        if cleared.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn take_where(&self, wanted: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut waiting = self.lock();
        let at = waiting.iter().position(wanted)?;
        let fault = waiting.get_mut(at)?;
        if let Some(times) = &mut fault.times {
            *times -= 1;
        }
        let taken = fault.clone();
        if taken.times == Some(0) {
            waiting.remove(at);
        }
        Some(taken)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        clap::ValueEnum::from_str(text, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(route: Route, kind: Kind, times: Option<u32>) -> Fault {
        Fault { route, kind, times, document: None }
    }

    #[test]
    fn a_fault_strikes_as_often_as_told_and_only_its_route() {
        let faults = Faults::new();
        faults.set(fault(Route::Policy, Kind::TooMany, Some(2))).unwrap();
        assert!(faults.take(Route::Jobs).is_none());
        assert!(faults.take(Route::Policy).is_some());
        assert!(faults.take(Route::Policy).is_some());
        assert!(faults.take(Route::Policy).is_none());
    }

    #[test]
    fn a_fault_without_number_strikes_until_cleared() {
        let faults = Faults::new();
        faults.set(fault(Route::Any, Kind::Garbage, None)).unwrap();
        for _ in 0..5 {
            assert_eq!(faults.take(Route::Heartbeat).unwrap().kind, Kind::Garbage);
        }
        faults.clear();
        assert!(faults.take(Route::Heartbeat).is_none());
    }

    #[test]
    fn what_cannot_be_spoiled_is_refused() {
        Faults::new().set(fault(Route::Heartbeat, Kind::Replay, None)).unwrap_err();
        Faults::new().set(fault(Route::Policy, Kind::Replay, None)).unwrap();
    }

    #[test]
    fn routes_are_told_by_method_and_path() {
        let of = |m: Method, p| Route::of(&m, p);
        assert_eq!(of(Method::GET, "/api/v1/jobs"), Some(Route::Jobs));
        assert_eq!(of(Method::PUT, "/api/v1/artifacts/j/n"), Some(Route::Artifact));
        assert_eq!(of(Method::GET, "/api/v1/artifacts/j/n"), None);
        assert_eq!(of(Method::GET, "/openapi.json"), None);
    }
}
