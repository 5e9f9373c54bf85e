//! What everybody watches of the agent's standing: identity, keys, the hub's client, labels. One
//! place writes it, so that the parts always belong together.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::ClientConfig;
use tokio::sync::{Notify, watch};

use crate::{
    config::Config,
    domain::key_store::KeyStore,
    hub::{Address, HubClient, HubConfig},
    identity::{self, Identity, IdentityError, Paths, SealKey, tls::in_full},
    overview::VERSION,
    policy::Labels,
    renewal::Store,
    runtime::clock::SharedClock,
    telemetry::metrics::Metrics,
    trust::Keyring,
};

/// An identity, or why there is none.
type Found = Result<Arc<Identity>, IdentityError>;

/// What is published, and what it is made with.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) identity: watch::Sender<Found>,
    pub(super) keyring: watch::Sender<Option<Keyring>>,
    pub(super) seal: watch::Sender<Option<Arc<SealKey>>>,
    pub(super) link: watch::Sender<Option<HubClient>>,
    pub(super) hub_url: watch::Sender<Option<String>>,
    pub(super) labels: watch::Sender<Labels>,
    /// Told when the files of the identity changed in this process.
    pub(super) stale: Notify,
    /// Whether anything was published yet.
    told: AtomicBool,
    /// As it was last read.
    config: Mutex<Config>,
    data_dir: PathBuf,
    metrics: Metrics,
    clock: SharedClock,
}

impl Published {
    /// Nothing but the configuration's word yet.
    pub(super) fn new(config: &Config, metrics: Metrics, clock: SharedClock) -> Arc<Self> {
        Arc::new(Self {
            identity: watch::Sender::new(Err(IdentityError::NotEnrolled)),
            keyring: watch::Sender::new(None),
            seal: watch::Sender::new(None),
            link: watch::Sender::new(None),
            hub_url: watch::Sender::new(config.hub_url.clone()),
            labels: watch::Sender::new(config.labels.clone()),
            stale: Notify::new(),
            told: AtomicBool::new(false),
            config: Mutex::new(config.clone()),
            data_dir: config.data_dir.clone(),
            metrics,
            clock,
        })
    }

    /// Looks at the identity's files and publishes what they make. A client is only replaced
    /// when something it was made of has changed: its connections are worth keeping.
    pub(super) async fn refresh(&self, config: &Config) {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone_from(config);
        let paths = Paths { data_dir: self.data_dir.clone() };
        let found = tokio::task::spawn_blocking(move || identity::load(&paths)).await;
        let found: Found = match found {
            Ok(found) => found.map(Arc::new),
            Err(error) => Err(IdentityError::Unusable(error.to_string())),
        };
        let same_hub = *self.hub_url.borrow() == config.hub_url;
        let same = same_hub && is_same(&self.identity.borrow(), &found);
        self.hub_url.send_replace(config.hub_url.clone());
        self.labels.send_if_modified(|labels| {
            let differs = *labels != config.labels;
            labels.clone_from(&config.labels);
            differs
        });
        let told = self.told.swap(true, Ordering::Relaxed);
        if told && same && (found.is_err() || self.link.borrow().is_some()) {
            return;
        }
        let keyring = found.as_ref().ok().map(|identity| identity.keyring.clone());
        let seal = found.as_ref().ok().and_then(|identity| identity.seal.clone());
        let link = found.as_ref().ok().and_then(|identity| self.client(identity, config));
        let known = self.identity.borrow().as_ref().ok().map(|before| before.agent_id.clone());
        match &found {
            Ok(identity) if known.as_ref() == Some(&identity.agent_id) => tracing::debug!(
                serial = identity.cert.serial,
                "another identity of this agent is in use"
            ),
            Ok(identity) => tracing::info!(
                agent_id = identity.agent_id,
                serial = identity.cert.serial,
                "enrolled; the client cert is valid until {}",
                identity.cert.not_after
            ),
            Err(why) => tracing::warn!("{why}"),
        }
        let _before = self.identity.send_replace(found);
        self.keyring.send_replace(keyring);
        self.seal.send_replace(seal);
        self.link.send_replace(link);
    }

    /// Looks at the identity's files once more.
    pub(super) async fn refresh_again(&self) {
        let config = self.config();
        self.refresh(&config).await;
    }

    /// A client that shows what this identity is worth, to which no earlier session helps. What it
    /// meets is no news about the connection in use.
    pub(super) fn connect(&self, identity: &Identity) -> Option<HubClient> {
        let metrics = Metrics::new(VERSION).ok()?;
        let tls = in_full(&identity.tls);
        self.client_with((identity, tls), &self.config(), metrics)
    }

    fn config(&self) -> Config {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where keys are made, as the configuration in force has it whenever that is asked.
    pub(super) fn key_store(self: &Arc<Self>) -> Store {
        let own = Arc::clone(self);
        Arc::new(move || own.config().key_store)
    }

    fn client(&self, identity: &Identity, config: &Config) -> Option<HubClient> {
        self.client_with((identity, Arc::clone(&identity.tls)), config, self.metrics.clone())
    }

    fn client_with(
        &self,
        (identity, tls): (&Identity, Arc<ClientConfig>),
        config: &Config,
        metrics: Metrics,
    ) -> Option<HubClient> {
        let url = config.hub_url.as_deref()?;
        let proxy = config.hub_proxy.as_deref().map(Address::proxy).transpose();
        match (Address::hub(url), proxy) {
            (Ok(url), Ok(proxy)) => Some(HubClient::new(HubConfig {
                url,
                proxy,
                tls,
                slow_key: identity.key_store != KeyStore::File,
                breaker_failures: config.breaker_failures,
                metrics,
                clock: Arc::clone(&self.clock),
            })),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "no connection to the hub");
                None
            }
        }
    }

    /// A root that the policy's keeper has verified and stored counts at once; what else follows
    /// from it, such as whom TLS believes, is read from the files by whoever hears of `stale`.
    pub(super) fn adopt(&self, keyring: Keyring) {
        self.keyring.send_replace(Some(keyring));
        self.stale.notify_one();
    }
}

fn is_same(old: &Found, new: &Found) -> bool {
    match (old, new) {
        (Ok(old), Ok(new)) => {
            old.cert == new.cert
                && old.root_source == new.root_source
                && old.keyring.root().version == new.keyring.root().version
                && old.keyring.root().root_id == new.keyring.root().root_id
        }
        (Err(old), Err(new)) => old == new,
        _ => false,
    }
}
