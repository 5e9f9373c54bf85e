//! The local admin API: a Unix socket, roles by the kernel's word about the peer, one guard before
//! every method, one file a service.

mod authz;
mod connection;
mod convert;
mod error;
mod guard;
mod methods;
mod outcome;
mod refusals;
mod services;
mod slots;
mod socket;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use jtnt_proto::audit::Caller;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::sleep,
};
use tonic::service::Routes;

pub use authz::{Authz, Names, Standing};
pub use methods::{METHODS, Method, Role, Trail};

use self::{guard::Rules, refusals::Refusals, refusals::Why, slots::Slots, socket::Socket};
use crate::{
    jobs::Jobs,
    overview::Overview,
    platform::peer::{self, Peer},
    renewal::{RenewError, Renewal},
    runtime::tasks::{Class, Tasks},
    telemetry::log::LogLevel,
};

/// After an error of the system at accepting, which is mostly a lack of descriptors.
const PAUSE: Duration = Duration::from_secs(1);

/// What a reading of the configuration changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings that differ, by name.
    pub changed: Vec<String>,
    /// Those of them that wait for a restart.
    pub needs_restart: Vec<String>,
}

/// Reads the configuration and the identity again for somebody, or says why not.
pub type Reload = Arc<dyn Fn(Option<Caller>) -> Reloading + Send + Sync>;
type Reloading = Pin<Box<dyn Future<Output = Result<Reloaded, String>> + Send>>;

/// Shows the certificate in place to the hub over a connection of its own: which serial the hub saw,
/// if it tells, and how keys were agreed on.
pub type Proof =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Proven, RenewError>> + Send>> + Send + Sync>;

/// What the hub saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proven {
    /// Serial of what was shown, lower hex.
    pub serial: String,
    /// Of what the hub saw.
    pub seen: Option<String>,
    /// Such as `X25519MLKEM768`.
    pub key_exchange: Option<String>,
}

/// What the services work with.
#[derive(Clone)]
pub struct Deps {
    /// How the agent is; through it, everything that only is to be read.
    pub overview: Overview,
    /// Jobs.
    pub jobs: Jobs,
    /// What replaces the certificate.
    pub renewal: Renewal,
    /// Shows a certificate to the hub.
    pub proof: Proof,
    /// Who may do what; changes when the configuration is read again.
    pub authz: watch::Receiver<Authz>,
    /// The log's level.
    pub log: LogLevel,
    /// Reads the configuration again.
    pub reload: Reload,
    /// `data_dir/audit`.
    pub audit_dir: PathBuf,
    /// Where connections are served.
    pub tasks: Tasks,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps").field("audit_dir", &self.audit_dir).finish_non_exhaustive()
    }
}

/// The API, to be served on a socket or on a single connection.
#[derive(Debug, Clone)]
pub struct Admin {
    routes: Routes,
    rules: Rules,
    tasks: Tasks,
    deps: Deps,
}

impl Admin {
    /// The API over what the agent has.
    ///
    /// # Errors
    /// Only if the API's own description cannot be read.
    pub async fn new(deps: Deps) -> Result<Self, String> {
        let (routes, health) = services::routes(&deps).await?;
        let sources = deps.overview.sources();
        let rules = Rules {
            authz: deps.authz.clone(),
            audit: sources.audit.clone(),
            refusals: Arc::new(Refusals::new(sources.metrics.clone())),
            tasks: deps.tasks.clone(),
        };
        services::tell_readiness(health, &deps).await;
        Ok(Self { routes, rules, tasks: deps.tasks.clone(), deps })
    }

    /// Listens at `path` until the agent stops.
    ///
    /// # Errors
    /// When it cannot be listened at, for people.
    pub fn listen(&self, path: &Path) -> Result<(), String> {
        let socket = socket::bind(path)?;
        tracing::info!(setting = "admin_socket", path = %path.display(), "listening");
        let own = self.clone();
        self.tasks.spawn("admin socket", Class::Essential, async move {
            let stop = own.tasks.shutdown();
            tokio::select! {
                () = own.accept(&socket) => {}
                () = stop.cancelled() => {}
            }
        });
        let own = self.clone();
        self.tasks.spawn("admin refusals", Class::Essential, async move {
            own.rules.refusals.run(&own.rules.audit, own.tasks.shutdown()).await;
        });
        Ok(())
    }

    /// Serves one connection whose peer is known.
    pub async fn serve<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let what = (self.routes.clone(), self.rules.clone());
        connection::serve(stream, peer, what, &self.tasks).await;
    }

    async fn accept(&self, socket: &Socket) {
        let slots = Slots::default();
        let clock = &self.deps.overview.sources().clock;
        loop {
            let stream = match socket.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::warn!(%error, setting = "admin_socket", "cannot accept");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(peer) = peer::of(&stream) else {
                self.rules.refusals.count(Why::NoCredential, None, None, None);
                continue;
            };
            let Some(slot) = slots.take(peer.uid, clock.uptime()) else {
                self.rules.refusals.count(Why::Rate, Some(peer.uid), peer.pid, None);
                continue;
            };
            let own = self.clone();
            self.tasks.spawn("admin connection", Class::OneShot, async move {
                own.serve(stream, peer).await;
                drop(slot);
            });
        }
    }
}
