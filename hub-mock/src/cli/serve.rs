//! `serve`: the hub itself, until it is told to stop.

use std::path::PathBuf;

use jtnt_proto::bytes::Hash;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::Serialize;
use tokio::signal;

use super::{Verdict, args::Serve, output::Output};
use crate::{Handle, Hub, error::HubError};

/// What people and scripts need to know of a hub that has started.
#[derive(Serialize)]
struct Started {
    url: String,
    control: String,
    ca_file: PathBuf,
    ca_sha256: Hash,
    root_file: PathBuf,
    root_sha256: Hash,
    token: String,
}

pub(super) async fn serve(dir: PathBuf, wish: Serve, output: &Output) -> Result<Verdict, HubError> {
    // A log that cannot be written is no reason to panic, which is how it would be told.
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .try_init();
    if let Err(e) = log {
        output.note(&format!("no log: {e}"));
    }
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let hub = Hub::builder()
        .dir(dir)
        .listen(wish.listen)
        .control(wish.control)
        .names(names.into_iter().chain(wish.names))
        .certificate_life(wish.cert_lifetime)
        .lease(wish.lease)
        .start()
        .await?;
    let started = started(&hub).await?;
    let ended = match output.show(&started, || text(&started)) {
        Ok(_) => stop_asked().await,
        Err(error) => Err(error),
    };
    hub.shutdown().await;
    ended.map(|()| Verdict::Yes)
}

async fn started(hub: &Handle) -> Result<Started, HubError> {
    let (ca_file, root_file) = (hub.ca_file(), hub.root_file());
    let ca = std::fs::read(&ca_file).map_err(HubError::file(&ca_file))?;
    let ca = CertificateDer::from_pem_slice(&ca).map_err(|e| HubError::damaged("ca.crt", e))?;
    let root = std::fs::read(&root_file).map_err(HubError::file(&root_file))?;
    Ok(Started {
        url: hub.url(),
        control: format!("http://{}", hub.control_addr()),
        ca_sha256: Hash::of(&ca),
        ca_file,
        root_sha256: Hash::of(&root),
        root_file,
        token: hub.token().await?,
    })
}

fn text(s: &Started) -> String {
    let (ca, root) = (s.ca_file.display(), s.root_file.display());
    format!(
        "hub      {}\ncontrol  {}\nCA       {ca}\n         sha256 {}\nroot     {root}\n         \
         sha256 {}\ntoken    {} (once, for an hour)\n\nenrol an agent:\n  jtnt-agent enroll --hub {} \
         --token {} --root {root}\n",
        s.url, s.control, s.ca_sha256, s.root_sha256, s.token, s.url, s.token,
    )
}

#[cfg(unix)]
async fn stop_asked() -> Result<(), HubError> {
    let failed = |e| HubError::damaged("signal handler", e);
    let mut terminate =
        signal::unix::signal(signal::unix::SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        asked = signal::ctrl_c() => asked.map_err(failed),
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn stop_asked() -> Result<(), HubError> {
    signal::ctrl_c().await.map_err(|e| HubError::damaged("signal handler", e))
}
