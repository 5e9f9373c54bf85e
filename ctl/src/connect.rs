//! The way to the daemon: a Unix socket as a rule, a plain URL where one was forwarded.

use std::{
    cell::Cell,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    Exit, Failure,
    failure::{self, cause},
};

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/jtnt-agent/admin.sock";
/// Local peers answer at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two tries at a socket whose queue is full.
#[cfg(unix)]
const TRY_AGAIN: Duration = Duration::from_millis(5);
thread_local! {
    /// Whether the other side of this thread's last connection began to speak HTTP/1. Which error that
    /// becomes depends on who notices first, so it is not told by the error.
    static OLD_HTTP: Cell<bool> = const { Cell::new(false) };
}

/// Whether what answered is no agent: none speaks HTTP/1.
pub(crate) fn spoke_old_http() -> bool {
    OLD_HTTP.get()
}

/// A stream whose first words are looked at.
#[derive(Debug)]
struct Overheard<S> {
    stream: S,
    begun: bool,
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let came = buf.filled().get(before..).unwrap_or_default();
        if !self.begun && !came.is_empty() {
            self.begun = true;
            OLD_HTTP.set(came.starts_with(b"HTTP/1"));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The reason of a failure to connect to an agent that runs, but does not get to us.
pub const AGENT_BUSY: &str = "AGENT_BUSY";

/// Where a daemon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Socket(PathBuf),
    /// Plain HTTP/2, such as a forwarded port.
    Url(String),
}

impl Target {
    /// Reads `--socket`: a path, `unix:PATH`, `unix://PATH` or `http://HOST:PORT`.
    ///
    /// # Errors
    /// For any other scheme.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return Ok(Self::Socket(path.into()));
        }
        match text.split_once("://") {
            None if !text.is_empty() => Ok(Self::Socket(text.into())),
            Some(("http", place)) if is_place(place) => Ok(Self::Url(text.to_owned())),
            _ => Err(format!(
                "a path is needed, such as {DEFAULT_SOCKET}; or http://HOST:PORT of a forwarded one"
            )),
        }
    }

    /// Connects; waits for as long as `patience` where too many others do the same.
    ///
    /// # Errors
    /// With exit code 3 when nobody listens or gets to us, 4 when the caller may not.
    pub async fn connect(&self, patience: Duration) -> Result<Channel, Failure> {
        match self {
            Self::Socket(path) => unix(path, patience).await,
            Self::Url(url) => {
                let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| {
                    Failure::new(Exit::Usage, format!("use {url}"), error.to_string())
                })?;
                OLD_HTTP.set(false);
                let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
                endpoint.connect_with_connector(tower::service_fn(tcp)).await.map_err(|error| {
                    let why = cause(&error);
                    Failure::new(Exit::Unreachable, format!("reach the agent at {url}"), why)
                        .advise("is the port forwarded to a running agent?")
                })
            }
        }
    }
}

async fn tcp(place: Uri) -> io::Result<TokioIo<Overheard<TcpStream>>> {
    let (host, port) = (place.host().unwrap_or_default(), place.port_u16().unwrap_or(80));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(Overheard { stream, begun: false }))
}

/// Whether it is `HOST:PORT`, perhaps with a slash.
fn is_place(text: &str) -> bool {
    let place = text.strip_suffix('/').unwrap_or(text);
    place.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// A channel over a stream that is connected already; `name` is what messages call its other end.
///
/// # Errors
/// When it does not speak HTTP/2.
pub async fn over<S>(stream: S, name: &str) -> Result<Channel, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // One connection, made before so that its failure has a name; a lost one is not made again.
    OLD_HTTP.set(false);
    let mut stream = Some(TokioIo::new(Overheard { stream, begun: false }));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or(io::ErrorKind::ConnectionReset);
        async move { stream.map_err(io::Error::from) }
    });
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            let what = format!("speak to {name}");
            if failure::is_cut(&error) {
                return Failure::cut(what, &error);
            }
            Failure::new(Exit::Unreachable, what, cause(&error))
                .advise("is it the admin socket of a JTNT agent?")
        })
}

#[cfg(unix)]
async fn unix(path: &Path, patience: Duration) -> Result<Channel, Failure> {
    let stream = dial(path, patience).await.map_err(|error| unreachable(path, &error))?;
    over(stream, &path.display().to_string()).await
}

/// A socket whose queue is full says so at once, so that the waiting is ours.
#[cfg(unix)]
async fn dial(path: &Path, patience: Duration) -> io::Result<tokio::net::UnixStream> {
    use tokio::time::{Instant, sleep, timeout};
    let given_up = Instant::now() + patience;
    loop {
        let stream = timeout(CONNECT_TIMEOUT, tokio::net::UnixStream::connect(path)).await;
        match stream.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into())) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= given_up {
                    return Err(error);
                }
                sleep(TRY_AGAIN).await;
            }
            other => return other,
        }
    }
}

#[cfg(not(unix))]
async fn unix(path: &Path, _patience: Duration) -> Result<Channel, Failure> {
    std::future::ready(Err(unreachable(path, &io::ErrorKind::Unsupported.into()))).await
}

fn unreachable(path: &Path, error: &io::Error) -> Failure {
    let what = format!("reach the agent at {}", path.display());
    let kind = error.kind();
    if kind == io::ErrorKind::PermissionDenied {
        return Failure::new(Exit::Denied, what, "you may not open the socket")
            .advise("use sudo, or have an administrator open the socket's directory to you");
    }
    if kind == io::ErrorKind::WouldBlock {
        let why = "the agent is busy: more callers wait at the socket than it takes";
        let mut busy = Failure::new(Exit::Unreachable, what, why).advise(
            "try again with a longer --timeout; who calls so often stands in the audit log as \
             refused",
        );
        busy.reason = Some(AGENT_BUSY.to_owned());
        return busy;
    }
    let why = if kind == io::ErrorKind::NotFound {
        "there is no such socket, so no agent runs or it listens elsewhere".to_owned()
    } else if kind == io::ErrorKind::ConnectionRefused {
        "the socket is there, but no agent listens on it".to_owned()
    } else {
        error.to_string()
    };
    Failure::new(Exit::Unreachable, what, why).advise(
        "start it with sudo jtnt-agent service start, or with jtnt-agent run in the \
             foreground; or name its socket with --socket PATH",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_told_apart() {
        let socket = |path: &str| Ok(Target::Socket(path.into()));
        assert_eq!(Target::parse("/a/b.sock"), socket("/a/b.sock"));
        assert_eq!(Target::parse("unix:/a"), socket("/a"));
        assert_eq!(Target::parse("unix:///a"), socket("/a"));
        let url = "http://127.0.0.1:1";
        assert_eq!(Target::parse(url), Ok(Target::Url(url.into())));
        for bad in
            ["", "https://x:1", "ftp://x", "http://", "http:///run/a.sock", "http://x", "http://:1"]
        {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    /// A listener with as many callers waiting as it takes.
    #[cfg(unix)]
    async fn full(path: &Path) -> (tokio::net::UnixListener, Vec<tokio::net::UnixStream>) {
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(path).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut callers = Vec::new();
        while let Ok(caller) = tokio::net::UnixStream::connect(path).await {
            callers.push(caller);
        }
        (listener, callers)
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn whoever_finds_the_queue_full_gets_in_once_it_moves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let (listener, _callers) = full(&path).await;
        // The first try comes before the queue moves: both take turns on one thread.
        let patience = Duration::from_secs(60);
        let (stream, taken) = tokio::join!(dial(&path, patience), listener.accept());
        assert!(stream.is_ok() && taken.is_ok(), "{stream:?}");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn an_agent_that_stays_busy_is_told_from_one_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let _full = full(&path).await;
        let failure = Target::Socket(path).connect(Duration::ZERO).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert_eq!(failure.reason.as_deref(), Some(AGENT_BUSY));
        assert!(failure.text().contains("the agent is busy"), "{}", failure.text());
    }
}
