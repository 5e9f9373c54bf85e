//! Artifacts as they come from the hub: into memory, or over a line to whoever writes the file.
//! Memory stays flat, and a connection that breaks costs only what was under way.

use std::{io, time::Duration};

use jtnt_proto::{bytes::Hash, job::Artifact};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::{core::Core, runner::Ended};
use crate::hub::{
    HubClient,
    retry::{Retry, wanted},
};

const CHUNK_BYTES: usize = 256 * 1024;

/// Hands an artifact over, to a process that takes its hash as it writes.
pub(super) async fn relay(core: &Core, artifact: Artifact, line: UnixStream) -> Result<(), Ended> {
    let to = Received { sink: Sink::Line(line), bytes: 0 };
    receive(core, artifact, to).await.map(drop)
}

/// Fetches a small artifact into memory.
pub(super) async fn fetch(core: &Core, artifact: Artifact) -> Result<Vec<u8>, Ended> {
    let to = Received { sink: Sink::Memory(Vec::new()), bytes: 0 };
    let Sink::Memory(content) = receive(core, artifact, to).await?.sink else {
        return Err(Ended::nothing_opened());
    };
    let found = Hash::of(&content);
    if found == artifact.sha256 {
        return Ok(content);
    }
    let message = format!("the hub's artifact has hash {found}, not {}", artifact.sha256);
    Err(Ended::failed("ARTIFACT_MISMATCH", message))
}

/// What has come so far, and where it went.
#[derive(Debug)]
struct Received {
    sink: Sink,
    bytes: u64,
}

#[derive(Debug)]
enum Sink {
    Memory(Vec<u8>),
    Line(UnixStream),
}

impl Received {
    async fn take(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.bytes += bytes.len() as u64;
        match &mut self.sink {
            Sink::Memory(memory) => memory.extend_from_slice(bytes),
            Sink::Line(line) => line.write_all(bytes).await.map_err(|_gone| Ended::cut())?,
        }
        Ok(())
    }
}

/// Reads the whole artifact, over as many connections as it takes.
async fn receive(
    core: &Core,
    artifact: Artifact,
    mut received: Received,
) -> Result<Received, Ended> {
    let mut retry = Retry::default();
    while received.bytes < artifact.size {
        let hub = hub(core).await?;
        let before = received.bytes;
        let pause = match hub.artifact(artifact.sha256, artifact.size, before).await {
            Ok(body) => {
                match drain(body, &mut received, artifact.size).await? {
                    // An artifact that ended early, or all of it.
                    Ok(()) => {}
                    // A body that is wrong will be wrong again.
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        return Err(Ended::failed("ARTIFACT_MISMATCH", error.to_string()));
                    }
                    Err(error) => tracing::debug!(%error, "a download broke off"),
                }
                Duration::ZERO
            }
            Err(error) if error.is_transient() => wanted(&error),
            Err(error) => return Err(Ended::failed("ARTIFACT_REFUSED", error.to_string())),
        };
        if received.bytes > before {
            retry.succeeded();
        }
        if received.bytes < artifact.size {
            tokio::time::sleep(retry.wait(pause, &*core.deps.entropy)).await;
        }
    }
    Ok(received)
}

/// The hub, as soon as there is one.
pub(super) async fn hub(core: &Core) -> Result<HubClient, Ended> {
    let mut link = core.deps.link.clone();
    let found = link.wait_for(Option::is_some).await;
    let hub = found.ok().and_then(|hub| hub.clone());
    hub.ok_or_else(|| Ended::failed("NO_HUB", "the agent has left its hub"))
}

/// Reads a body to its end; the next chunk is read while the last is handed on.
async fn drain(
    mut body: impl AsyncRead + Unpin,
    received: &mut Received,
    size: u64,
) -> Result<io::Result<()>, Ended> {
    let mut spare = Vec::with_capacity(CHUNK_BYTES);
    let (mut chunk, mut read) = fill(&mut body, Vec::with_capacity(CHUNK_BYTES)).await;
    loop {
        if received.bytes + chunk.len() as u64 > size {
            let message = "the hub sent more than the artifact's size";
            return Err(Ended::failed("ARTIFACT_MISMATCH", message));
        }
        if chunk.len() < CHUNK_BYTES {
            received.take(&chunk).await?;
            return Ok(read);
        }
        let (taken, (next, next_read)) =
            tokio::join!(received.take(&chunk), fill(&mut body, spare));
        taken?;
        (spare, chunk, read) = (chunk, next, next_read);
    }
}

/// Fills a chunk; a short one is the last, and the result says why.
async fn fill(
    body: &mut (impl AsyncRead + Unpin),
    mut chunk: Vec<u8>,
) -> (Vec<u8>, io::Result<()>) {
    chunk.clear();
    while chunk.len() < CHUNK_BYTES {
        let room = (CHUNK_BYTES - chunk.len()) as u64;
        match (&mut *body).take(room).read_buf(&mut chunk).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return (chunk, Err(error)),
        }
    }
    (chunk, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn into_memory() -> Received {
        Received { sink: Sink::Memory(Vec::new()), bytes: 0 }
    }

    #[tokio::test]
    async fn a_body_of_any_length_arrives_whole() {
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let bytes: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut received = into_memory();
            drain(&bytes[..], &mut received, length as u64).await.unwrap().unwrap();
            assert!(matches!(received.sink, Sink::Memory(memory) if memory == bytes), "{length}");
        }
    }

    #[tokio::test]
    async fn more_than_was_promised_is_refused_before_it_is_handed_on() {
        let mut received = into_memory();
        let ended = drain(&[0; 11][..], &mut received, 10).await.unwrap_err();
        assert_eq!((ended.reason, received.bytes), (Some("ARTIFACT_MISMATCH"), 0));
    }

    #[tokio::test]
    async fn nothing_is_read_for_a_process_that_has_ended() {
        let (line, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut received = Received { sink: Sink::Line(line), bytes: 0 };
        let ended = drain(&[0; 10][..], &mut received, 10).await.unwrap_err();
        assert_eq!(ended.reason, Some("CUT_SHORT"));
    }
}
