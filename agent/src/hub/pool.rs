//! Connections that are kept for the next request. No task drives them: a connection makes
//! progress while somebody waits for its answer, and rests otherwise, so an idle agent has no
//! timers and no wake-ups here, and dropping a request ends all that it started.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use prometheus::IntCounterVec;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::client::TlsStream;

use super::{body::Outgoing, connect::Target, error::Fault};

/// Connections that rest.
const MAX_IDLE: usize = 4;
/// A connection that rested longer is not trusted to be there.
const MAX_REST: Duration = Duration::from_secs(90);
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 32 * 1024;
const BUFFER_BYTES: usize = 256 * 1024;

type Driver = Connection<TokioIo<TlsStream<TcpStream>>, Outgoing>;

/// One connection.
pub(super) struct Conn {
    sender: SendRequest<Outgoing>,
    /// Gone when the connection has ended.
    driver: Option<Pin<Box<Driver>>>,
    broke: Option<hyper::Error>,
    rests_since: Instant,
}

impl Conn {
    pub(super) async fn over(stream: TlsStream<TcpStream>) -> hyper::Result<Self> {
        let mut http = http1::Builder::new();
        http.max_headers(MAX_HEADERS).max_header_size(MAX_HEADER_BYTES).max_buf_size(BUFFER_BYTES);
        let (sender, driver) = http.handshake(TokioIo::new(stream)).await?;
        let driver = Some(Box::pin(driver));
        Ok(Self { sender, driver, broke: None, rests_since: Instant::now() })
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(ended) = driver.as_mut().poll(cx)
        {
            self.driver = None;
            self.broke = ended.err();
        }
    }

    /// Whether another request can be sent.
    async fn is_ready(&mut self) -> bool {
        poll_fn(|cx| {
            self.drive(cx);
            self.sender.poll_ready(cx)
        })
        .await
        .is_ok()
    }

    pub(super) async fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> hyper::Result<Response<Incoming>> {
        let mut answer = pin!(self.sender.send_request(request));
        let answer = poll_fn(|cx| {
            self.drive(cx);
            answer.as_mut().poll(cx)
        });
        // The connection knows better than the request why it ended.
        answer.await.map_err(|e| if e.is_canceled() { self.broke.take().unwrap_or(e) } else { e })
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("open", &self.driver.is_some()).finish_non_exhaustive()
    }
}

/// The connections of one client.
#[derive(Debug)]
pub(super) struct Pool {
    target: Target,
    idle: Mutex<Vec<Conn>>,
    key_exchange: Mutex<Option<String>>,
    count: IntCounterVec,
}

impl Pool {
    /// Connections are counted in `count` by their key exchange.
    pub(super) fn new(target: Target, count: IntCounterVec) -> Arc<Self> {
        let (idle, key_exchange) = (Mutex::default(), Mutex::default());
        Arc::new(Self { target, idle, key_exchange, count })
    }

    /// Another one, whose connections are counted with those of this one.
    pub(super) fn beside(&self, target: Target) -> Arc<Self> {
        Self::new(target, self.count.clone())
    }

    pub(super) const fn target(&self) -> &Target {
        &self.target
    }

    /// How the last new connection agreed on its keys.
    pub(super) fn key_exchange(&self) -> Option<String> {
        lock(&self.key_exchange).clone()
    }

    /// A connection that rested and still works.
    pub(super) async fn rested(&self) -> Option<Conn> {
        loop {
            let mut conn = lock(&self.idle).pop()?;
            if conn.rests_since.elapsed() < MAX_REST && conn.is_ready().await {
                return Some(conn);
            }
        }
    }

    /// A new connection.
    pub(super) async fn fresh(&self) -> Result<Conn, Fault> {
        let stream = self.target.connect().await?;
        let group = stream.get_ref().1.negotiated_key_exchange_group();
        let group = group.map(|g| format!("{:?}", g.name()));
        if let Some(group) = &group {
            self.count.with_label_values(&[group]).inc();
        }
        *lock(&self.key_exchange) = group;
        Conn::over(stream).await.map_err(|e| Fault::broken(&self.target.hub.host, &e))
    }

    fn give_back(&self, mut conn: Conn) {
        if conn.driver.is_none() || conn.sender.is_closed() {
            return;
        }
        conn.rests_since = Instant::now();
        let mut idle = lock(&self.idle);
        idle.retain(|c| c.rests_since.elapsed() < MAX_REST);
        if idle.len() < MAX_IDLE {
            idle.push(conn);
        }
    }
}

/// The body of an answer, together with the connection it comes over.
#[derive(Debug)]
pub(super) struct Flow {
    body: Incoming,
    conn: Option<Conn>,
    pool: Arc<Pool>,
}

impl Flow {
    pub(super) const fn new(body: Incoming, conn: Conn, pool: Arc<Pool>) -> Self {
        Self { body, conn: Some(conn), pool }
    }

    /// The next bytes; nothing at the end, when the connection goes back to rest.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            if let Some(conn) = &mut self.conn {
                conn.drive(cx);
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match Frame::into_data(frame) {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    Err(_trailers) => {}
                },
                Some(Err(e)) => {
                    self.conn = None;
                    let host = &self.pool.target.hub.host;
                    return Poll::Ready(Some(Err(Fault::broken(host, &e))));
                }
                None => {
                    if let Some(conn) = self.conn.take() {
                        self.pool.give_back(conn);
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// As [`Self::poll_data`].
    pub(super) async fn data(&mut self) -> Option<Result<Bytes, Fault>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
