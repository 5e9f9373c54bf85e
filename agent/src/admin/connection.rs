//! One connection: its first bytes say whether it speaks HTTP/2 at all, then it is served within
//! bounds until it ends, is refused, or the agent stops.

use std::{future::Future, io, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower::ServiceExt as _;

use super::{
    guard::{Guard, Rules},
    refusals::Why,
};
use crate::{
    platform::peer::Peer,
    runtime::tasks::{Class, Tasks},
};

/// RFC 9113, 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A local client sends its first bytes at once or not at all.
const FIRST_BYTES: Duration = Duration::from_secs(5);
/// Calls at once on one connection.
const MAX_STREAMS: u32 = 32;
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Bytes of requests that may wait to be read, on the whole connection.
const WINDOW_BYTES: u32 = 256 * 1024;
/// A peer that does not answer pings is gone.
const PING: Duration = Duration::from_secs(30);
/// After the last word, before the connection is cut.
const LINGER: Duration = Duration::from_secs(1);

/// What a client of another protocol is told, as HTTP/1 so that it can read it.
const WRONG_PROTOCOL: &str = "this socket speaks gRPC, that is HTTP/2 with prior knowledge; use \
    jtntctl, or grpcurl -plaintext -unix -authority localhost SOCKET list\n";

/// Serves one peer.
pub(super) async fn serve<S>(
    mut stream: S,
    peer: Peer,
    (routes, rules): (Routes, Rules),
    tasks: &Tasks,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut first = [0; PREFACE.len()];
    let Ok(Ok(seen)) = timeout(FIRST_BYTES, preface(&mut stream, &mut first)).await else { return };
    if first.get(..seen) != Some(PREFACE) {
        rules.refusals.count(Why::Protocol, Some(peer.uid), peer.pid, None);
        let _told = timeout(LINGER, turn_away(&mut stream)).await;
        return;
    }
    let (reading, writing) = tokio::io::split(stream);
    let io = tokio::io::join(io::Cursor::new(first).chain(reading), writing);
    let refused = CancellationToken::new();
    let guard = Guard::new(routes.prepare(), rules, peer, refused.clone());
    let service = guard.map_request(|request: Request<Incoming>| request.map(Body::new));
    let served = http2::Builder::new(Executor(tasks.clone()))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    tokio::pin!(served);
    let stop = tasks.shutdown();
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = either(&stop, &refused) => {
            served.as_mut().graceful_shutdown();
            timeout(LINGER, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection");
    }
}

async fn either(one: &CancellationToken, other: &CancellationToken) {
    tokio::select! {
        () = one.cancelled() => {}
        () = other.cancelled() => {}
    }
}

/// Reads as many bytes as are like the preface, and one that is not.
async fn preface(
    stream: &mut (impl AsyncRead + Unpin),
    first: &mut [u8; PREFACE.len()],
) -> io::Result<usize> {
    let mut seen = 0;
    while let Some(rest) = first.get_mut(seen..).filter(|rest| !rest.is_empty()) {
        let read = stream.read(rest).await?;
        seen += read;
        if read == 0 || first.get(..seen) != PREFACE.get(..seen) {
            break;
        }
    }
    if seen == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(seen) }
}

/// Answers, and reads what the client still sends: a socket that is closed with unread bytes
/// loses the answer.
async fn turn_away(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{WRONG_PROTOCOL}",
        WRONG_PROTOCOL.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// Runs the calls of a connection as tasks of the agent.
#[derive(Clone)]
struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        self.0.spawn("admin call", Class::OneShot, call);
    }
}
