//! A hub and an agent that is enrolled with it.

use std::{collections::BTreeMap, sync::Arc};

use jtnt_agent::{
    domain::key_store::KeyStore,
    enrol::{self, Deps, Options, RootPin, host_facts},
    hub::{Address, HubClient, HubConfig},
    identity::{self, Identity, Paths},
    runtime::{clock::SystemClock, entropy::SystemEntropy},
    telemetry::metrics::Metrics,
};
use jtnt_hub_mock::{Builder, Handle};
use tempfile::TempDir;

pub(crate) struct Line {
    pub(crate) hub: Handle,
    pub(crate) identity: Identity,
    pub(crate) client: HubClient,
    pub(crate) metrics: Metrics,
    pub(crate) dir: TempDir,
}

impl Line {
    pub(crate) async fn to(builder: Builder) -> Self {
        let (hub, dir) = (builder.start().await.unwrap(), TempDir::new().unwrap());
        let metrics = Metrics::new("test").unwrap();
        let options = options(&hub, dir.path()).await;
        let deps = Deps {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            metrics: metrics.clone(),
        };
        enrol::enroll(options, deps).await.unwrap();
        let identity = identity::load(&Paths { data_dir: dir.path().to_owned() }).unwrap();
        let client = HubClient::new(config(&hub.url(), &identity, &metrics));
        Self { hub, identity, client, metrics, dir }
    }

    /// A client of the same agent for another address.
    pub(crate) fn client_to(&self, url: &str) -> HubClient {
        HubClient::new(config(url, &self.identity, &self.metrics))
    }

    /// A client of the same agent through a proxy.
    pub(crate) fn client_through(&self, proxy: &str) -> HubClient {
        let proxy = Some(Address::proxy(proxy).unwrap());
        HubClient::new(HubConfig {
            proxy,
            ..config(&self.hub.url(), &self.identity, &self.metrics)
        })
    }
}

pub(crate) fn config(url: &str, identity: &Identity, metrics: &Metrics) -> HubConfig {
    HubConfig {
        url: Address::hub(url).unwrap(),
        proxy: None,
        tls: Arc::clone(&identity.tls),
        slow_key: false,
        breaker_failures: 5,
        metrics: metrics.clone(),
        clock: Arc::new(SystemClock),
    }
}

pub(crate) async fn options(hub: &Handle, dir: &std::path::Path) -> Options {
    Options {
        data_dir: dir.to_owned(),
        hub: Address::hub(&hub.url()).unwrap(),
        proxy: None,
        token: hub.token().await.unwrap().into(),
        root: RootPin::File(hub.root_file()),
        hub_ca: None,
        labels: BTreeMap::new(),
        host: host_facts("0.0.0"),
        config: None,
        key_store: KeyStore::File,
        force: false,
    }
}
