//! A faithful hub to test and try agents with: a real certificate authority, real mutual TLS, real
//! signatures, and state that survives a restart.
//!
//! The server holds no operator's key. Policies and jobs are signed on the client's side, by
//! [`operator::Operator`], and reach the server as envelopes; so a hub that is taken over can
//! withhold and delay, but runs nothing.
//!
//! ```no_run
//! # async fn example() -> Result<(), jtnt_hub_mock::HubError> {
//! use jtnt_hub_mock::{Hub, Kind, Route};
//!
//! let hub = Hub::builder().start().await?;
//! let (url, token) = (hub.url(), hub.token().await?);
//! hub.set_fault(Route::Heartbeat, Kind::TooMany, Some(3));
//! // ... enrol an agent at `url` with `token` and `hub.root_file()` ...
//! let beat = hub.await_request(|r| r.route == Some(Route::Heartbeat)).await;
//! # drop((url, token, beat));
//! hub.shutdown().await;
//! # Ok(()) }
//! ```

mod authorities;
mod builder;
pub mod cli;
mod clock;
mod control;
mod durable;
mod error;
mod faults;
mod handle;
mod hub;
mod journal;
pub mod operator;
mod pki;
mod record;
mod routes;
mod server;
mod state;
mod tls;
mod view;
mod witness;

pub use crate::{
    authorities::{AuthorityView, Step},
    builder::Builder,
    error::HubError,
    faults::{Fault, Kind, Route},
    handle::Handle,
    record::{Filter, Recorded},
    state::{OldCertificates, Standing},
    view::{AgentView, CertificateView, JobSummary, JobView},
    witness::{SeenLog, Trouble},
};

/// Where everything begins.
#[derive(Debug, Clone, Copy)]
pub struct Hub;

impl Hub {
    /// A hub with defaults that suit a test.
    pub fn builder() -> Builder {
        Builder::default()
    }
}
