//! Where results rest until the hub has them. A small one stands in the journal's record of the
//! job's end, so that both are durable at once; one that is large, or has to wait for the hub, is
//! a file, so that an outage does not make the journal grow.

use std::{collections::BTreeSet, io, path::PathBuf, sync::atomic::Ordering};

use jiff::Timestamp;
use jtnt_proto::{
    audit::Event,
    bytes::Hash,
    hub::{JobResult, Outcome, Output},
    json,
};
use serde::Deserialize;

use super::{
    cache::{MAX_RECORDS, SLACK},
    core::Core,
    results::{MAX_RESULT_BYTES, executed, summary},
};
use crate::{
    audit::{
        Record,
        query::{Filter, Scan},
    },
    domain::job::{Dropped, Entry, State},
    runtime::durable,
    store::StoreError,
};

/// Larger results are files from the beginning.
const MAX_JOURNALED_BYTES: usize = 4096;

impl Core {
    /// Puts a result into the journal's record; gives it back if it does not belong there.
    pub(super) fn enclose(&self, entry: &mut Entry, body: Vec<u8>) -> Result<(), Vec<u8>> {
        if body.len() > MAX_JOURNALED_BYTES {
            return Err(body);
        }
        let text = String::from_utf8(body).map_err(std::string::FromUtf8Error::into_bytes)?;
        self.pending_bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
        entry.result = Some(text);
        Ok(())
    }

    /// Takes it out again.
    pub(super) fn disclose(&self, entry: &mut Entry) -> Vec<u8> {
        let body = entry.result.take().unwrap_or_default();
        self.fewer_pending(body.len() as u64);
        body.into_bytes()
    }

    /// Keeps the very bytes that the hub will get in a file.
    pub(super) async fn store_result(&self, entry: &Entry, body: Vec<u8>) -> io::Result<()> {
        let (path, bytes) = (self.result_file(entry), body.len() as u64);
        let write = move || durable::replace(&path, &body, durable::PRIVATE);
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        self.pending_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Moves a result that has to wait from the journal to a file.
    pub(super) async fn set_aside(&self, mut entry: Entry) -> io::Result<()> {
        // One whose output was dropped is small, and there may be many.
        if entry.dropped.is_some() {
            return Ok(());
        }
        let Some(body) = entry.result.take() else { return Ok(()) };
        let bytes = body.len() as u64;
        self.store_result(&entry, body.into_bytes()).await?;
        // It is counted as a file by now.
        self.fewer_pending(bytes);
        self.deps.journal.note(entry).await.map_err(io::Error::other)
    }

    /// The stored result, or one made from the journal.
    pub(super) async fn result_body(&self, entry: &Entry, outcome: Outcome) -> io::Result<Vec<u8>> {
        if let Some(body) = &entry.result {
            return Ok(body.clone().into_bytes());
        }
        let path = self.result_file(entry);
        let read = move || durable::read(&path, MAX_RESULT_BYTES);
        match tokio::task::spawn_blocking(read).await.map_err(io::Error::other)? {
            Ok(body) => Ok(body),
            Err(error) => {
                if entry.dropped.is_none() {
                    tracing::warn!(%error, job_id = %entry.job_id, "a result is made again");
                }
                without_output(entry, outcome)
            }
        }
    }

    /// Forgets a result that the hub has. A job is delivered once all of its output is there, too.
    pub(super) async fn delivered(&self, mut entry: Entry) -> Result<(), StoreError> {
        (entry.delivered, entry.reported) = (entry.parts.is_empty(), !entry.parts.is_empty());
        entry.envelope = None;
        let follows = entry.reported;
        if let Some(body) = entry.result.take() {
            // After a crash the same bytes are sent again, which the hub knows then.
            self.deps.journal.note(entry).await?;
            self.fewer_pending(body.len() as u64);
        } else {
            let path = self.result_file(&entry);
            self.deps.journal.update(entry).await?;
            // Not synced: a result file that comes back after a crash is removed at the start.
            self.remove_result(path).await;
        }
        if follows {
            self.follow_up.notify_one();
        }
        if self.deps.journal.counts().delivered >= MAX_RECORDS + SLACK {
            self.crowded.notify_one();
        }
        Ok(())
    }

    /// The stored result without its output.
    async fn lighter(&self, entry: &Entry, outcome: Outcome, why: Dropped) -> io::Result<Vec<u8>> {
        let body = self.result_body(entry, outcome).await?;
        let mut result: JobResult = json::from_slice(&body).map_err(io::Error::other)?;
        for output in [&mut result.stdout, &mut result.stderr].into_iter().flatten() {
            let (total_bytes, sha256) = (output.total_bytes, output.sha256);
            let dropped = Some(why.name().to_owned());
            *output = Output { total_bytes, sha256, dropped, ..Output::default() };
        }
        serde_json::to_vec(&result).map_err(io::Error::other)
    }

    /// Removes the file of a result, if there is one.
    async fn remove_result(&self, path: PathBuf) {
        let remove = move || {
            let bytes = std::fs::metadata(&path).map_or(0, |meta| meta.len());
            std::fs::remove_file(&path).map(|()| bytes)
        };
        if let Ok(Ok(bytes)) = tokio::task::spawn_blocking(remove).await {
            self.fewer_pending(bytes);
        }
    }

    /// Gives up what was kept of a job's output for the hub, and leaves a mark of it in the journal,
    /// the audit log and the metrics; the end of the job itself stays.
    pub(super) async fn drop_output(
        &self,
        mut entry: Entry,
        why: Dropped,
    ) -> Result<(), StoreError> {
        let follows = entry.bytes_to_follow();
        self.fewer_pending(follows);
        entry.parts.clear();
        entry.dropped = Some(why.name().to_owned());
        let mut record = Record::of(Event::OutputDropped)
            .detail("reason", why.name())
            .detail("stdout_bytes", entry.stdout_bytes)
            .detail("stderr_bytes", entry.stderr_bytes);
        record.job_id = Some(entry.job_id.to_string());
        self.log(record).await;
        self.deps.metrics.output_dropped.with_label_values(&[why.name()]).inc();
        tracing::warn!(job_id = %entry.job_id, reason = why.name(), "output kept for the hub is dropped");
        match (entry.state, why) {
            // The hub still waits for the end, and learns with it that there is no more.
            (State::Finished(outcome), Dropped::Full | Dropped::Old | Dropped::Lost)
                if !entry.reported =>
            {
                let lighter = self.lighter(&entry, outcome, why).await;
                let body = lighter.map_err(|error| StoreError(error.to_string()))?;
                let _before = self.disclose(&mut entry);
                entry.result_sha256 = Some(Hash::of(&body));
                let path = self.result_file(&entry);
                if self.enclose(&mut entry, body).is_err() {
                    // Nearly impossible: it is made again from the journal when it is due.
                    tracing::warn!(job_id = %entry.job_id, "a result is too long for the journal");
                }
                self.deps.journal.update(entry).await?;
                self.remove_result(path).await;
                Ok(())
            }
            _ => self.delivered(entry).await,
        }
    }

    pub(super) fn fewer_pending(&self, bytes: u64) {
        let (order, less) = (Ordering::Relaxed, |all: u64| Some(all.saturating_sub(bytes)));
        let _before = self.pending_bytes.fetch_update(order, order, less);
    }

    /// After a start: a result in the journal may have been all that a crash left of a job's end.
    /// Those without a line in the audit log get one.
    pub(super) async fn mend(&self) -> Result<(), StoreError> {
        let mut kept = Vec::new();
        for mut entry in self.deps.journal.undelivered()? {
            self.pending_bytes.fetch_add(entry.bytes_to_follow(), Ordering::Relaxed);
            if entry.result.is_some() && self.result_file(&entry).exists() {
                // It was on its way to the file, and its line comes before that.
                entry.result = None;
                self.deps.journal.note(entry).await?;
            } else if entry.result.is_some() {
                kept.push(entry);
            }
        }
        let Some(since) = kept.iter().filter_map(|e| e.finished_at).min() else { return Ok(()) };
        let bytes: usize = kept.iter().filter_map(|e| e.result.as_ref()).map(String::len).sum();
        self.pending_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let dir = self.deps.audit.dir().to_owned();
        let looked = tokio::task::spawn_blocking(move || ends_in(&dir, since)).await;
        let logged = looked.map_err(|e| StoreError(e.to_string()))?.unwrap_or_else(|error| {
            // Then one line too many is better than none.
            tracing::warn!(%error, "whether the ends of jobs were logged cannot be read");
            BTreeSet::new()
        });
        for entry in kept {
            if let State::Finished(outcome) = entry.state
                && !logged.contains(entry.job_id.as_str())
            {
                self.log(executed(&entry, outcome).detail("recovered", true)).await;
            }
        }
        Ok(())
    }
}

/// A result that says that there was output, and why it is not there.
fn without_output(entry: &Entry, outcome: Outcome) -> io::Result<Vec<u8>> {
    let dropped = entry.dropped.clone().or_else(|| Some(Dropped::Lost.name().to_owned()));
    let output = |total_bytes: u64| {
        let output = Output { total_bytes, dropped: dropped.clone(), ..Output::default() };
        (total_bytes > 0).then_some(output)
    };
    let (stdout, stderr) = (output(entry.stdout_bytes), output(entry.stderr_bytes));
    let result = JobResult { stdout, stderr, ..summary(entry, outcome) };
    serde_json::to_vec(&result).map_err(io::Error::other)
}

/// The jobs whose end the log tells, from `since` on. Blocks.
fn ends_in(dir: &std::path::Path, since: Timestamp) -> io::Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Line {
        job_id: String,
    }
    let event = Some(Event::JobExecuted.name());
    let filter = Filter { since: Some(since), event, ..Filter::default() };
    let mut scan = Scan::new(dir, filter, 0)?;
    let mut found = BTreeSet::new();
    while let Some(lines) = scan.next()? {
        let ids = lines.iter().filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        found.extend(ids.map(|line| line.job_id));
    }
    Ok(found)
}
