//! How a hub starts: its settings, and the order in which its parts come to life.

use std::{
    fs::{File, TryLockError},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jtnt_proto::{envelope::Envelope, json, key::PublicKey};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::{
    authorities::Authorities,
    control,
    durable::{self, Access},
    error::{HubError, random},
    handle::Handle,
    hub::{Core, Settings, Shared},
    journal,
    operator::{self, Operator},
    routes,
    server::{self, Side},
    state::State,
    witness::{self, Witness},
};

const DAY: Duration = Duration::from_secs(86_400);

/// A hub to be started. Every setting has a default that suits a test: loopback, free ports, a
/// folder that vanishes with the handle.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    dir: Option<PathBuf>,
    pub(crate) listen: SocketAddr,
    pub(crate) control: SocketAddr,
    names: Vec<String>,
    settings: Settings,
}

impl Default for Builder {
    fn default() -> Self {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            dir: None,
            listen: loopback,
            control: loopback,
            names: ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec(),
            settings: Settings {
                dir: PathBuf::new(),
                lease: Duration::from_secs(30),
                certificate_life: 365 * DAY,
                token_life: Duration::from_secs(3600),
                slow_pause: Duration::from_millis(200),
                renews_expired: true,
            },
        }
    }
}

impl Builder {
    /// The hub's folder; made when it is not there. A temporary one by default.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Where agents connect.
    pub const fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = addr;
        self
    }

    /// Where the operator connects; a loopback address.
    pub const fn control(mut self, addr: SocketAddr) -> Self {
        self.control = addr;
        self
    }

    /// The names in the server's certificate.
    pub fn names(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.names = names.into_iter().map(Into::into).collect();
        self
    }

    /// How long an agent has to acknowledge a job before it is sent again.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How long agents' certificates live.
    pub const fn certificate_life(mut self, life: Duration) -> Self {
        self.settings.certificate_life = life;
        self
    }

    /// How long enrolment tokens live.
    pub const fn token_life(mut self, life: Duration) -> Self {
        self.settings.token_life = life;
        self
    }

    /// The pause between the pieces of an answer under [`Kind::Slow`](crate::faults::Kind::Slow).
    pub const fn slow_pause(mut self, pause: Duration) -> Self {
        self.settings.slow_pause = pause;
        self
    }

    /// Whether an expired certificate may still ask for a new one; yes by default.
    pub const fn renews_expired(mut self, yes: bool) -> Self {
        self.settings.renews_expired = yes;
        self
    }

    /// Starts the hub. When this returns, both listeners answer.
    ///
    /// # Errors
    /// When the folder, a key or an address cannot be used.
    pub async fn start(self) -> Result<Handle, HubError> {
        let (dir, temporary) = match &self.dir {
            Some(dir) => (dir.clone(), None),
            None => {
                let made = TempDir::new().map_err(HubError::file(&std::env::temp_dir()))?;
                (made.path().to_owned(), Some(made))
            }
        };
        self.start_in(dir, temporary).await
    }

    pub(crate) async fn start_in(
        self,
        dir: PathBuf,
        temporary: Option<TempDir>,
    ) -> Result<Handle, HubError> {
        if !self.control.ip().is_loopback() {
            let why = format!("{} is no loopback address", self.control);
            return Err(HubError::refused("CONTROL_ADDRESS", why));
        }
        durable::private_dir(&dir).map_err(HubError::file(&dir))?;
        let lock = lock(&dir)?;
        let authorities = Authorities::open(dir.clone(), self.names.clone())?;
        let (state, journal) = journal::open(&dir)?;
        let first = first_root(&dir, &authorities, &state)?;
        let agents = server::bind(self.listen).await?;
        let control = server::bind(self.control).await?;
        let at = |l: &tokio::net::TcpListener| l.local_addr().map_err(HubError::file(&dir));
        let (agents_addr, control_addr) = (at(&agents)?, at(&control)?);

        let settings = Settings { dir: dir.clone(), ..self.settings.clone() };
        let roots: Vec<_> = first.as_ref().into_iter().chain(state.roots.values()).collect();
        let witness = Witness::open(&dir, &roots)?;
        let own = (authorities, witness);
        let core: Shared = Arc::new(Core::new(settings, own, (state, journal, lock)));
        if let Some(envelope) = first {
            core.publish_root(envelope).await?;
        }
        let token = control_token(&dir)?;
        write(&dir.join("control.addr"), control_addr.to_string().as_bytes(), Access::Public)?;

        let tasks = TaskTracker::new();
        let app = (Side::Agents, routes::router(Arc::clone(&core)));
        tasks.spawn(server::accept(Arc::clone(&core), agents, app, tasks.clone()));
        let app = (Side::Control, control::router(Arc::clone(&core), token));
        tasks.spawn(server::accept(Arc::clone(&core), control, app, tasks.clone()));
        let again = Self { dir: Some(dir), listen: agents_addr, control: control_addr, ..self };
        Ok(Handle { core, tasks, again, temporary })
    }
}

/// The first root, unless there is one. The only moment at which the server touches the
/// operator's folder, and it makes it.
fn first_root(
    dir: &Path,
    authorities: &Authorities,
    state: &State,
) -> Result<Option<Envelope>, HubError> {
    if !state.roots.is_empty() {
        return Ok(None);
    }
    let at = dir.join("root.json");
    if at.exists() {
        let bytes = std::fs::read(&at).map_err(HubError::file(&at))?;
        return json::from_slice(&bytes).map(Some).map_err(|e| HubError::damaged("root.json", e));
    }
    let witness = PublicKey::of(&witness::key(dir)?);
    let named = authorities.views().into_iter().map(|ca| ca.certificate).collect();
    let (_, envelope) = Operator::create(dir, named, witness)?;
    operator::write_root(dir, &envelope)?;
    Ok(Some(envelope))
}

fn control_token(dir: &Path) -> Result<String, HubError> {
    let token = hex::encode(random::<32>()?);
    write(&dir.join("control.token"), token.as_bytes(), Access::Private)?;
    Ok(token)
}

fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), HubError> {
    durable::replace(path, bytes, access).map_err(HubError::file(path))
}

/// One hub a folder: two would write one journal.
fn lock(dir: &Path) -> Result<File, HubError> {
    let path = dir.join("lock");
    let file = durable::appending(&path).map_err(HubError::file(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let why = format!("another hub runs in {}; stop it first", dir.display());
            Err(HubError::refused("LOCKED", why))
        }
        Err(TryLockError::Error(e)) => Err(HubError::file(&path)(e)),
    }
}
