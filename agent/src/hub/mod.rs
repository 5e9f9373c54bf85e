//! The client of the hub: one stack of layers, a method a route, a bound on everything.

mod address;
mod body;
mod connect;
mod error;
mod exchange;
mod pool;
mod probe;
pub mod retry;
mod routes;
mod stack;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::SignedDuration;
use tokio::{io::AsyncRead, sync::watch};
use tower::ServiceExt as _;

use crate::{
    domain::breaker::{Breaker, State},
    runtime::clock::SharedClock,
    telemetry::metrics::Metrics,
};
use connect::Target;
use exchange::{Answer, Call, Exchange};
use pool::Pool;
use stack::{SharedBreaker, Stack, stack};

pub use address::{Address, NotAnAddress};
pub use body::Readable;
pub use error::{CLIENT_CERT_REFUSED, Fault, HubError, Step};
pub use probe::ProbeStep;
pub use routes::UploadPart;

/// How long an answer may take, all but long polls and bulk.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the hub may take beyond the wait of a long poll.
const POLL_GRACE: Duration = Duration::from_secs(10);
/// A stream without a byte for this long has ended.
const STALL: Duration = Duration::from_secs(30);
/// Requests at once: the poll, the heartbeat, and work in flight.
const MAX_IN_FLIGHT: usize = 32;

/// What a client is made of.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Where.
    pub url: Address,
    /// Through whom; never taken from the environment.
    pub proxy: Option<Address>,
    /// As whom: [`crate::identity::Identity::tls`].
    pub tls: Arc<rustls::ClientConfig>,
    /// Its key is kept by a device, which takes its time to sign.
    pub slow_key: bool,
    /// Failures in a row that open the breaker.
    pub breaker_failures: u32,
    /// Where durations and states are shown.
    pub metrics: Metrics,
    /// Time.
    pub clock: SharedClock,
}

/// The client. Cheap to clone; a new identity makes a new one.
#[derive(Clone)]
pub struct HubClient {
    stack: Stack,
    pool: Arc<Pool>,
    breaker: SharedBreaker,
    offset: Arc<Mutex<Option<SignedDuration>>>,
    clock: SharedClock,
}

/// The client that everybody watches; `None` while the agent is not enrolled.
pub type Link = watch::Receiver<Option<HubClient>>;

/// The body of an artifact, checked as it is read: the last read fails when it is not as long as
/// promised or, read from its beginning, does not have the promised hash.
pub type ArtifactBody = std::pin::Pin<Box<dyn AsyncRead + Send>>;

impl fmt::Debug for HubClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubClient").field("hub", &self.pool.target().hub).finish_non_exhaustive()
    }
}

impl HubClient {
    /// A client with no connection yet. The breaker is closed.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        let HubConfig { url, proxy, tls, slow_key, breaker_failures, metrics, clock } = config;
        let target = Target { hub: url, proxy, tls, slow_key };
        let pool = Pool::new(target, metrics.hub_connections.clone());
        let breaker = Arc::new(Mutex::new(Breaker::new(breaker_failures)));
        let offset = Arc::default();
        let exchange = Exchange {
            pool: Arc::clone(&pool),
            clock: Arc::clone(&clock),
            offset: Arc::clone(&offset),
        };
        metrics.show_breaker(State::Closed.word());
        let guarded = (Arc::clone(&clock), Arc::clone(&breaker));
        let stack = stack(exchange, metrics, guarded, MAX_IN_FLIGHT);
        Self { stack, pool, breaker, offset, clock }
    }

    /// What the breaker lets through.
    #[must_use]
    pub fn breaker(&self) -> State {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).state()
    }

    /// Has the breaker let the next request through, however long it was to rest.
    pub fn try_now(&self) {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).try_now();
    }

    /// How long the breaker lets nothing through from now on; nothing when it is not open.
    #[must_use]
    pub fn breaker_rest(&self) -> Option<Duration> {
        let now = self.clock.uptime();
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).rest(now)
    }

    /// Agent's clock minus the hub's `Date`, as of the last answer. For warnings only.
    #[must_use]
    pub fn clock_offset(&self) -> Option<SignedDuration> {
        *self.offset.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the last new connection agreed on its keys, such as `X25519MLKEM768`.
    #[must_use]
    pub fn key_exchange(&self) -> Option<String> {
        self.pool.key_exchange()
    }

    async fn call(&self, call: Call) -> Result<Answer, HubError> {
        self.stack.clone().oneshot(call).await
    }
}
