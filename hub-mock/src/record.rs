//! Every request that came, as tests and operators want to see it afterwards.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use jtnt_proto::bytes::Hash;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::faults::Route;

/// Requests that are remembered.
const MAX_RECORDS: usize = 4096;
/// Bodies up to this many bytes are kept as JSON.
pub(crate) const MAX_KEPT_BODY_BYTES: usize = 16 * 1024;

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recorded {
    /// 1, 2, 3, ... in the order of the answers.
    pub seq: u64,
    /// When it was answered.
    pub at: Timestamp,
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Route, where the API has it.
    pub route: Option<Route>,
    /// Agent named by the client certificate.
    pub agent_id: Option<String>,
    /// Serial of the client certificate, lower hex.
    pub serial: Option<String>,
    /// Status of the answer; 0 where a fault closed the connection.
    pub status: u16,
    /// Bytes of the body; of an artifact's what the request announced.
    pub body_bytes: u64,
    /// SHA-256 of the body, but for artifacts.
    pub body_sha256: Option<Hash>,
    /// The body, where it is JSON and small. An enrolment token is left out.
    pub body: Option<Value>,
}

/// Which requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Of this agent.
    pub agent: Option<String>,
    /// To this route.
    pub route: Option<Route>,
    /// After this one.
    pub after: Option<u64>,
}

impl Filter {
    /// All requests to `route`.
    #[must_use]
    pub fn route(route: Route) -> Self {
        Self { route: Some(route), ..Self::default() }
    }

    fn wants(&self, r: &Recorded) -> bool {
        self.agent.as_ref().is_none_or(|a| r.agent_id.as_ref() == Some(a))
            && self.route.is_none_or(|route| route == Route::Any || r.route == Some(route))
            && self.after.is_none_or(|after| r.seq > after)
    }
}

/// The last requests.
#[derive(Debug)]
pub(crate) struct Recorder {
    ring: Mutex<VecDeque<Recorded>>,
    newest: watch::Sender<u64>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { ring: Mutex::default(), newest: watch::Sender::new(0) }
    }

    /// Remembers `record` and gives it its number.
    pub(crate) fn push(&self, mut record: Recorded) {
        let mut ring = self.lock();
        record.seq = ring.back().map_or(1, |last| last.seq + 1);
        let seq = record.seq;
        if ring.len() == MAX_RECORDS {
            ring.pop_front();
        }
        ring.push_back(record);
        drop(ring);
        self.newest.send_replace(seq);
    }

    /// What is remembered and wanted, oldest first.
    pub(crate) fn list(&self, filter: &Filter) -> Vec<Recorded> {
        self.lock().iter().filter(|r| filter.wants(r)).cloned().collect()
    }

    /// The first request, past or to come, that `wanted` is true of.
    pub(crate) async fn await_one(&self, wanted: impl Fn(&Recorded) -> bool) -> Recorded {
        let mut newest = self.newest.subscribe();
        let mut seen = 0;
        loop {
            newest.borrow_and_update();
            let after = seen;
            for record in self.lock().iter().filter(|r| r.seq > after) {
                seen = record.seq;
                if wanted(record) {
                    return record.clone();
                }
            }
            if newest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Recorded>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
