//! A small HTTP/1 server for loopback: pages that are made when asked for, and a bound on
//! everything a local user could use up. Whoever is silent makes room for who comes; a storm of new
//! connections can still keep others waiting.
//!
//! A taken port never keeps the agent from starting, since any local user can hold one: it is said
//! and tried again. The `Host` header must name this machine, so that a web page somewhere cannot
//! read the endpoints through an operator's browser.

use std::{convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::guests::{Guest, Guests};
use crate::runtime::tasks::{Class, Tasks};

const MAX_CONNECTIONS: usize = 32;
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;
const HEADER_TIME: Duration = Duration::from_secs(5);
/// A scraper may keep its connection from one scrape to the next, while nobody needs the place.
const CONNECTION_TIME: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_secs(5);

/// What a path answers.
#[derive(Debug, Clone)]
pub struct Page {
    /// Status.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// All of it.
    pub body: String,
}

/// Makes the page of a path; `None` when there is none.
pub type Pages = Arc<dyn Fn(&str) -> Option<Page> + Send + Sync>;
/// Names who holds an address, where that can be known.
pub type Holder = fn(SocketAddr) -> Option<String>;

/// One endpoint.
#[derive(Clone)]
pub struct Endpoint {
    /// The setting that places it, such as `metrics_listen`.
    pub setting: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// What it shows.
    pub pages: Pages,
    /// For the message about a taken port.
    pub holder: Holder,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("setting", &self.setting)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Serves until the agent stops. The first attempt to listen is made before this returns; later
/// ones go on behind it.
pub async fn start(tasks: &Tasks, endpoint: Endpoint) -> Option<SocketAddr> {
    let first = listen(&endpoint, true).await;
    let bound = first.as_ref().and_then(|l| l.local_addr().ok());
    let (own, stop) = (tasks.clone(), tasks.shutdown());
    tasks.spawn(endpoint.setting, Class::Essential, async move {
        let work = async {
            let listener = match first {
                Some(listener) => listener,
                None => retry(&endpoint).await,
            };
            accept(&own, &endpoint, &listener).await;
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
    bound
}

async fn listen(endpoint: &Endpoint, say: bool) -> Option<TcpListener> {
    let Endpoint { setting, address, .. } = endpoint;
    match TcpListener::bind(address).await {
        Ok(listener) => {
            let bound = listener.local_addr().unwrap_or(*address);
            tracing::info!(setting, address = %bound, "listening");
            Some(listener)
        }
        Err(error) => {
            if say {
                tracing::warn!("{}", taken(endpoint, &error));
            }
            None
        }
    }
}

/// What to say about an address that could not be listened at.
fn taken(endpoint: &Endpoint, error: &io::Error) -> String {
    let Endpoint { setting, address, holder, .. } = endpoint;
    let port = address.port();
    let why = if error.kind() == io::ErrorKind::AddrInUse {
        match holder(*address) {
            Some(who) => format!("port {port} is held by {who}"),
            None => format!("port {port} is in use"),
        }
    } else {
        error.to_string()
    };
    format!(
        "cannot listen at {address}: {why}; trying again every {} s. Free the port, or set \
         {setting} in the configuration",
        RETRY.as_secs()
    )
}

async fn retry(endpoint: &Endpoint) -> TcpListener {
    loop {
        sleep(RETRY).await;
        if let Some(listener) = listen(endpoint, false).await {
            return listener;
        }
    }
}

async fn accept(tasks: &Tasks, endpoint: &Endpoint, listener: &TcpListener) {
    let guests = Guests::new(MAX_CONNECTIONS);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, setting = endpoint.setting, "cannot accept");
                sleep(RETRY).await;
                continue;
            }
        };
        let Some(guest) = guests.enter().await else { return };
        let (pages, stop) = (Arc::clone(&endpoint.pages), tasks.shutdown());
        tasks.spawn("http connection", Class::OneShot, async move {
            connection(stream, &pages, &guest, stop).await;
        });
    }
}

async fn connection(stream: TcpStream, pages: &Pages, guest: &Guest, stop: CancellationToken) {
    let answer = service_fn(|request: Request<Incoming>| {
        guest.heard();
        let response = respond(pages, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::select! {
        ended = timeout(CONNECTION_TIME, served) => {
            if let Ok(Err(error)) = ended {
                tracing::debug!(%error, "http connection");
            }
        }
        () = guest.told_to_leave() => {}
        () = stop.cancelled() => {}
    }
}

fn respond<B>(pages: &Pages, request: &Request<B>) -> Response<Full<Bytes>> {
    let plain = |status, body: &str| {
        let body = format!("{body}\n");
        Page { status, content_type: "text/plain; charset=utf-8", body }
    };
    let head = request.method() == Method::HEAD;
    let mut page = if !says_one_host(request) {
        plain(StatusCode::BAD_REQUEST, "HTTP/1.1 asks for exactly one Host (RFC 9112, 3.2)")
    } else if !names_this_machine(request) {
        let why = "this endpoint answers only to localhost, 127.0.0.1 and [::1]";
        plain(StatusCode::MISDIRECTED_REQUEST, why)
    } else if head || request.method() == Method::GET {
        pages(request.uri().path()).unwrap_or_else(|| plain(StatusCode::NOT_FOUND, "not found"))
    } else {
        plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD")
    };
    if head {
        page.body.clear();
    }
    let mut response = Response::new(Full::new(page.body.into()));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, page.content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// HTTP/1.0 may come without a `Host`; no browser speaks that.
fn says_one_host<B>(request: &Request<B>) -> bool {
    match request.headers().get_all(header::HOST).iter().count() {
        0 => request.version() < Version::HTTP_11,
        hosts => hosts == 1,
    }
}

/// Whether every name the request gives its server is one of this machine, with any port. A target
/// with a host of its own overrules `Host` (RFC 9112, 3.2.2).
fn names_this_machine<B>(request: &Request<B>) -> bool {
    let target = request.uri().authority().map(|authority| authority.as_str());
    let host = request.headers().get(header::HOST).map(HeaderValue::to_str);
    target.is_none_or(is_this_machine) && host.is_none_or(|host| host.is_ok_and(is_this_machine))
}

fn is_this_machine(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, "0"),
    };
    let named = ["localhost", "127.0.0.1", "[::1]"].iter().any(|n| n.eq_ignore_ascii_case(name));
    named && port.parse::<u16>().is_ok()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
