//! The way to the hub, step by step: name, address, proxy, TLS. Each step fails with a text of its
//! own, and all of them together have ten seconds.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, lookup_host},
    runtime::Handle,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::identity::tls::in_full;

use super::{
    address::Address,
    error::{Fault, Step},
};

/// All steps together.
const CONNECT: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// A proxy's answer to CONNECT.
const MAX_PROXY_ANSWER: usize = 8 * 1024;

/// Where to, and as whom.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) hub: Address,
    pub(super) proxy: Option<Address>,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) slow_key: bool,
}

impl Target {
    /// The same, with no session to resume.
    pub(super) fn anew(&self) -> Self {
        Self { tls: in_full(&self.tls), ..self.clone() }
    }

    /// All steps.
    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>, Fault> {
        let all = async {
            let stream = tcp(&self.resolve().await?).await?;
            self.tls(stream).await
        };
        timeout(CONNECT, all).await.unwrap_or_else(|_| {
            Err(Fault {
                step: Step::Tls,
                reason: "CONNECT_TIMEOUT",
                message: format!(
                    "no connection to {} within {} s",
                    self.hub.authority(),
                    CONNECT.as_secs()
                ),
                advice: "something accepts connections there but does not speak TLS in time",
            })
        })
    }

    /// The addresses of whoever is dialled: the proxy, where there is one.
    pub(super) async fn resolve(&self) -> Result<Vec<SocketAddr>, Fault> {
        let Address { host, port } = self.proxy.as_ref().unwrap_or(&self.hub);
        let found = timeout(CONNECT, lookup_host((host.as_str(), *port)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| Fault::dns(host, &e))?;
        let found: Vec<_> = found.take(MAX_ADDRESSES).collect();
        if found.is_empty() { Err(Fault::dns(host, &"it has no address")) } else { Ok(found) }
    }

    /// TLS over an open connection.
    pub(super) async fn tls(&self, mut stream: TcpStream) -> Result<TlsStream<TcpStream>, Fault> {
        if self.proxy.is_some() {
            tunnel(&mut stream, &self.hub).await.map_err(|e| Fault::proxy(&e))?;
        }
        let host = &self.hub.host;
        let Some(name) = self.hub.server_name() else {
            return Err(Fault::dns(host, &"it is no name and no address"));
        };
        let shaking =
            timeout(CONNECT, TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream));
        let shaken = if self.slow_key {
            // The device signs within the handshake, and whoever waits for it can do nothing else.
            let runtime = Handle::current();
            let shaken = spawn_blocking(move || runtime.block_on(shaking)).await;
            shaken.unwrap_or_else(|e| Ok(Err(io::Error::other(e))))
        } else {
            shaking.await
        };
        shaken
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| Fault::handshake(host, &e))
    }
}

/// The first address that takes the connection. A dead one does not use up the others' time.
pub(super) async fn tcp(addresses: &[SocketAddr]) -> Result<TcpStream, Fault> {
    let share = CONNECT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut fault = None;
    for at in addresses {
        let tried = timeout(share, TcpStream::connect(at)).await;
        match tried.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                if let Err(e) = stream.set_nodelay(true) {
                    tracing::debug!("no nodelay: {e}");
                }
                return Ok(stream);
            }
            Err(e) => fault = Some(Fault::tcp(at, &e)),
        }
    }
    Err(fault.unwrap_or_else(|| Fault::dns("", &"it has no address")))
}

/// Asks an HTTP proxy for a tunnel (RFC 9110, 9.3.6).
async fn tunnel(stream: &mut TcpStream, hub: &Address) -> io::Result<()> {
    let to = hub.authority();
    stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::with_capacity(256);
    // Byte by byte: what follows the head belongs to TLS.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_PROXY_ANSWER {
            return Err(io::Error::other("its answer is too long"));
        }
        head.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(head.split(|b| *b == b'\r').next().unwrap_or_default());
    match line.split(' ').nth(1) {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
        _ => Err(io::Error::other(format!("it answered {line:?}"))),
    }
}
