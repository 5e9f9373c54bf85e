//! Listeners and connections of both sides: TLS for agents, plain loopback HTTP for control.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::{hub::Shared, routes, tls::Peer};

/// Connections at once, each side.
const MAX_CONNECTIONS: usize = 8192;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A kept-alive connection may rest for this long.
const HEADER: Duration = Duration::from_secs(120);
/// An answer under way has this long when the hub stops.
const LAST_ANSWER: Duration = Duration::from_secs(3);
const MAX_HEADER_BYTES: usize = 32 * 1024;
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Which side a listener serves.
#[derive(Clone)]
pub(crate) enum Side {
    /// Agents, over TLS.
    Agents,
    /// The operator, over loopback.
    Control,
}

/// Opens a listener. A port that was just given up can be taken again.
pub(crate) async fn bind(addr: SocketAddr) -> Result<TcpListener, crate::HubError> {
    TcpListener::bind(addr).await.map_err(|source| crate::HubError::Listen { addr, source })
}

/// Accepts until the hub stops.
pub(crate) async fn accept(
    core: Shared,
    listener: TcpListener,
    (side, app): (Side, Router),
    tasks: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = core.stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                if matches!(side, Side::Agents) && core.faults.take_refusal() {
                    continue;
                }
                let (core, side, app) = (Arc::clone(&core), side.clone(), app.clone());
                tasks.spawn(connection(core, stream, (side, app), place));
            }
            Err(e) => {
                // Out of descriptors, most likely: give connections time to end.
                tracing::warn!("cannot accept: {e}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(
    core: Shared,
    stream: TcpStream,
    (side, app): (Side, Router),
    place: OwnedSemaphorePermit,
) {
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!("no nodelay: {e}");
    }
    match side {
        Side::Control => serve(&core, stream, app, None).await,
        Side::Agents => {
            match timeout(HANDSHAKE, TlsAcceptor::from(core.authorities.tls()).accept(stream)).await
            {
                Ok(Ok(stream)) => {
                    let chain = stream.get_ref().1.peer_certificates();
                    let peer = chain.and_then(|c| c.first()).and_then(Peer::of);
                    serve(&core, stream, app, peer).await;
                }
                Ok(Err(e)) => tracing::debug!("TLS handshake: {e}"),
                Err(e) => tracing::debug!("TLS handshake: {e}"),
            }
        }
    }
    drop(place);
}

async fn serve<S>(core: &Shared, stream: S, app: Router, peer: Option<Peer>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        answer(app.clone(), request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(MAX_HEADER_BYTES * 16);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = core.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(e) = ended {
        tracing::debug!("connection: {e}");
    }
}

/// Runs the router. A response that a fault marked is not sent.
async fn answer(app: Router, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let response = app.oneshot(request).await.unwrap_or_else(|never| match never {});
    if routes::hangs_up(&response) {
        return Err(io::Error::other("closed by a fault"));
    }
    Ok(response)
}
