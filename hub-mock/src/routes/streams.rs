//! `PUT /api/v1/jobs/{id}/output`: output of jobs that run, for people who watch. Each job has one
//! file, a line a piece, so that whoever comes late, or after a restart, reads it from the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path as FilePath, PathBuf},
};

use axum::{
    Json,
    extract::{Path, State},
};
use bytes::Bytes;
use http::StatusCode;
use jtnt_proto::{
    hub::{MAX_CHUNK_BYTES, OutputChunk, OutputState, OutputStream},
    job::Job,
};
use tokio::{
    fs::{self, OpenOptions},
    io::AsyncWriteExt as _,
    sync::{Mutex, watch},
};

use super::{
    caller::{Caller, read},
    jobs::{attempt_counts, owned},
    problem::Refusal,
};
use crate::{error::HubError, hub::Shared};

/// What is kept of one job, in bytes of the file.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Jobs whose place is known without reading their file again.
const MAX_OPEN: usize = 1024;
/// Pieces in one answer.
const MAX_PIECES: usize = 32;

/// All files.
#[derive(Debug)]
pub(crate) struct Streams {
    open: Mutex<BTreeMap<PathBuf, Places>>,
    /// Counts pieces, for those who wait for one.
    came: watch::Sender<u64>,
}

/// How far each stream of each run of a job is.
#[derive(Debug, Default)]
struct Places {
    received: BTreeMap<(u32, OutputStream), u64>,
    ended: BTreeSet<(u32, OutputStream)>,
    bytes: u64,
}

impl Default for Streams {
    fn default() -> Self {
        Self { open: Mutex::default(), came: watch::Sender::new(0) }
    }
}

impl Streams {
    /// Takes a piece; where its stream stands then.
    async fn take(&self, path: PathBuf, chunk: &OutputChunk) -> io::Result<u64> {
        let mut open = self.open.lock().await;
        let mut places = match open.remove(&path) {
            Some(places) => places,
            None => Places::of(&stored(&path).await?),
        };
        let before = places.received(chunk);
        let news = chunk.offset >= before && (chunk.end || !chunk.data.0.is_empty());
        if news && !places.ended.contains(&(chunk.attempt, chunk.stream)) {
            let mut line = serde_json::to_vec(chunk)?;
            line.push(b'\n');
            if places.bytes + line.len() as u64 > MAX_FILE_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            append(&path, &line).await?;
            places.add(chunk, line.len() as u64);
            self.came.send_modify(|n| *n += 1);
        }
        let received = places.received(chunk);
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(path, places);
        Ok(received)
    }

    /// What came of a job, without its first `from` pieces.
    pub(crate) async fn pieces(
        &self,
        path: &FilePath,
        from: usize,
    ) -> io::Result<Vec<OutputChunk>> {
        let _no_half_line = self.open.lock().await;
        Ok(stored(path).await?.into_iter().skip(from).take(MAX_PIECES).collect())
    }

    /// Tells of the next pieces.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.came.subscribe()
    }
}

impl Places {
    fn of(chunks: &[OutputChunk]) -> Self {
        let mut places = Self::default();
        for chunk in chunks {
            places.add(chunk, chunk.data.0.len() as u64);
        }
        places
    }

    fn received(&self, chunk: &OutputChunk) -> u64 {
        self.received.get(&(chunk.attempt, chunk.stream)).copied().unwrap_or(0)
    }

    fn add(&mut self, chunk: &OutputChunk, bytes: u64) {
        let key = (chunk.attempt, chunk.stream);
        self.received.insert(key, chunk.offset + chunk.data.0.len() as u64);
        if chunk.end {
            self.ended.insert(key);
        }
        self.bytes += bytes;
    }
}

/// Where a job's pieces are.
pub(crate) fn file(dir: &FilePath, job_id: &str) -> PathBuf {
    dir.join("streams").join(format!("{job_id}.jsonl"))
}

/// Every whole line; a hub that was killed may have left a half one.
async fn stored(path: &FilePath) -> io::Result<Vec<OutputChunk>> {
    let bytes = match fs::read(path).await {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

async fn append(path: &FilePath, line: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).await?;
    }
    let mut file = OpenOptions::new().append(true).create(true).open(path).await?;
    file.write_all(line).await?;
    file.flush().await
}

pub(super) async fn put(
    State(core): State<Shared>,
    caller: Caller,
    Path(job_id): Path<String>,
    body: Bytes,
) -> Result<Json<OutputState>, Refusal> {
    let chunk: OutputChunk = read(&body)?;
    attempt_counts(chunk.attempt)?;
    if chunk.data.0.len() > MAX_CHUNK_BYTES || chunk.offset.checked_add(1 << 20).is_none() {
        let why = format!("a piece has at most {MAX_CHUNK_BYTES} bytes");
        return Err(Refusal::unprocessable("CHUNK", why));
    }
    {
        let inner = core.lock();
        let job = owned(&inner, &caller, &job_id)?;
        let asked = serde_json::from_slice::<Job>(&job.envelope.payload.0);
        if !asked.is_ok_and(|job| job.stream_output) {
            let why = "nobody asked for this job's output while it runs";
            return Err(Refusal::conflict("NOT_ASKED", why));
        }
    }
    let path = file(&core.settings.dir, &job_id);
    match core.streams.take(path.clone(), &chunk).await {
        Ok(received) => Ok(Json(OutputState { received })),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            let why = format!("this hub keeps at most {MAX_FILE_BYTES} bytes of it");
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE", why))
        }
        Err(e) => Err(HubError::file(&path)(e).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jtnt_proto::bytes::Base64;

    fn chunk(offset: u64, data: &str, end: bool) -> OutputChunk {
        let data = Base64(data.as_bytes().to_vec());
        OutputChunk { attempt: 1, stream: OutputStream::Stdout, offset, data, end }
    }

    #[tokio::test]
    async fn a_piece_counts_once_and_gaps_stay_gaps_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "j");
        let streams = Streams::default();
        assert_eq!(streams.take(path.clone(), &chunk(0, "abc", false)).await.unwrap(), 3);
        assert_eq!(streams.take(path.clone(), &chunk(0, "abc", false)).await.unwrap(), 3);
        assert_eq!(streams.take(path.clone(), &chunk(0, "", false)).await.unwrap(), 3, "asked");
        let streams = Streams::default();
        assert_eq!(streams.take(path.clone(), &chunk(0, "", false)).await.unwrap(), 3);
        assert_eq!(streams.take(path.clone(), &chunk(9, "z", false)).await.unwrap(), 10);
        assert_eq!(streams.take(path.clone(), &chunk(10, "", true)).await.unwrap(), 10);
        assert_eq!(streams.take(path.clone(), &chunk(10, "more", false)).await.unwrap(), 10);
        let pieces = streams.pieces(&path, 1).await.unwrap();
        assert_eq!(pieces, [chunk(9, "z", false), chunk(10, "", true)]);
    }
}
