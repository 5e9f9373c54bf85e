//! The agent's end of an upload's line: the file is read by a process of the job, and only what it
//! sends is ever seen here. See [`super::carry`].

use std::{io, os::fd::AsFd as _};

use jtnt_proto::bytes::Hash;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::{
    carry::{DONE, FROM, HASH},
    launch::send,
};

/// A file to upload, in the hands of another process.
#[derive(Debug)]
pub struct Source {
    line: UnixStream,
    size: u64,
}

impl Source {
    /// Waits until the file is open.
    ///
    /// # Errors
    /// When the process has ended; its shim tells why. So for all of these.
    pub async fn new(mut line: UnixStream) -> io::Result<Self> {
        let size = line.read_u64_le().await?;
        Ok(Self { line, size })
    }

    /// The size of the file.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// All from `offset` on. Dropped before its end, no more is sent.
    ///
    /// # Errors
    /// See [`Source::new`].
    pub async fn from(&self, offset: u64) -> io::Result<UnixStream> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut word = vec![FROM];
        word.extend(offset.to_le_bytes());
        self.line.writable().await?;
        send(&self.line, &word, &[theirs.as_fd()])?;
        UnixStream::from_std(ours)
    }

    /// The hash of the whole, which has not changed since it was opened.
    ///
    /// # Errors
    /// See [`Source::new`].
    pub async fn hash(&mut self) -> io::Result<Hash> {
        self.line.write_all(&[HASH]).await?;
        let mut hash = [0; 32];
        self.line.read_exact(&mut hash).await?;
        Ok(Hash(hash))
    }

    /// The hub has all of it.
    ///
    /// # Errors
    /// See [`Source::new`].
    pub async fn done(mut self) -> io::Result<()> {
        self.line.write_all(&[DONE]).await
    }
}
