//! Bodies: what is sent (bytes, or what a file has) and artifacts as they arrive. Neither is ever
//! in memory as a whole.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::Stream as _;
use http_body::{Body, Frame, SizeHint};
use jtnt_proto::bytes::Hash;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, ReadBuf, Take},
    time::{Instant, Sleep, sleep},
};
use tokio_util::io::ReaderStream;

use super::pool::Flow;

const CHUNK_BYTES: usize = 256 * 1024;

/// A body to send.
pub(super) enum Outgoing {
    Bytes(Option<Bytes>),
    Read(Reading),
}

/// Bytes that are read meanwhile.
pub type Readable = Box<dyn AsyncRead + Send + Unpin>;

/// Such bytes, counted as they leave.
pub(super) struct Reading {
    bytes: ReaderStream<Take<Readable>>,
    left: u64,
    sent: Arc<AtomicU64>,
}

impl Reading {
    /// The next `length` bytes; `sent` shows progress.
    pub(super) fn new(bytes: Readable, length: u64, sent: Arc<AtomicU64>) -> Self {
        let bytes = ReaderStream::with_capacity(bytes.take(length), CHUNK_BYTES);
        Self { bytes, left: length, sent }
    }
}

impl Outgoing {
    pub(super) fn bytes(bytes: Bytes) -> Self {
        Self::Bytes(Some(bytes).filter(|b| !b.is_empty()))
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", Body::size_hint(self).lower())
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let part = match self.get_mut() {
            Self::Bytes(bytes) => return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Read(part) => part,
        };
        if part.left == 0 {
            return Poll::Ready(None);
        }
        let next = ready!(Pin::new(&mut part.bytes).poll_next(cx));
        Poll::Ready(match next {
            Some(Ok(bytes)) => {
                let n = bytes.len() as u64;
                part.left = part.left.saturating_sub(n);
                part.sent.fetch_add(n, Ordering::Relaxed);
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(e)) => Some(Err(e)),
            None => Some(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was sent",
            ))),
        })
    }

    fn is_end_stream(&self) -> bool {
        Body::size_hint(self).exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Bytes(bytes) => bytes.as_ref().map_or(0, |b| b.len() as u64),
            Self::Read(part) => part.left,
        })
    }
}

/// The body of an artifact, checked as it is read: the last read fails when there are not `size`
/// bytes in all or, where reading began at 0, when they do not have the promised hash.
pub(super) struct Artifact {
    pub(super) flow: Flow,
    buffer: Bytes,
    left: u64,
    hash: Option<(Sha256, Hash)>,
    stall: Duration,
    /// Armed while nothing comes.
    waits: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Artifact {
    pub(super) fn new(
        flow: Flow,
        sha256: Hash,
        (offset, size): (u64, u64),
        stall: Duration,
    ) -> Self {
        Self {
            flow,
            buffer: Bytes::new(),
            left: size.saturating_sub(offset),
            hash: (offset == 0).then(|| (Sha256::new(), sha256)),
            stall,
            waits: None,
            ended: false,
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.flow.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => {
                self.waits = None;
                self.buffer = data;
                Poll::Ready(self.count())
            }
            Poll::Ready(Some(Err(fault))) => Poll::Ready(Err(io::Error::other(fault))),
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(self.judge())
            }
            Poll::Pending => {
                let stall = self.stall;
                let waits = self.waits.get_or_insert_with(|| Box::pin(sleep(stall)));
                ready!(waits.as_mut().poll(cx));
                waits.as_mut().reset(Instant::now() + stall);
                let why = format!("nothing came for {} s", stall.as_secs());
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
            }
        }
    }

    fn count(&mut self) -> io::Result<()> {
        let n = self.buffer.len() as u64;
        let Some(left) = self.left.checked_sub(n) else {
            return Err(invalid("the artifact is longer than promised"));
        };
        self.left = left;
        if let Some((hash, _)) = &mut self.hash {
            hash.update(&self.buffer);
        }
        Ok(())
    }

    fn judge(&mut self) -> io::Result<()> {
        if self.left != 0 {
            let why = format!("the artifact ends {} bytes early", self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        match self.hash.take() {
            Some((hash, wanted)) => {
                let is = Hash(hash.finalize().into());
                let wrong = || invalid("the artifact does not have the promised hash");
                if is == wanted { Ok(()) } else { Err(wrong()) }
            }
            None => Ok(()),
        }
    }
}

impl AsyncRead for Artifact {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.buffer.is_empty() && !this.ended {
            ready!(this.poll_fill(cx))?;
        }
        let n = this.buffer.len().min(out.remaining());
        out.put_slice(this.buffer.get(..n).unwrap_or_default());
        this.buffer.advance(n);
        Poll::Ready(Ok(()))
    }
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
