//! What a durable record costs: transitions in the journal and lines in the audit log, by one
//! writer who waits for each, and by 64 who share commits and syncs.
//!
//! The limit of the machine is printed first: one append and fdatasync of a line's size.

use std::{
    fs::File,
    hint::black_box,
    io::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ed25519_dalek::{Signer as _, SigningKey};
use futures_util::future::try_join_all;
use jiff::tz::TimeZone;
use jtnt_agent::{
    audit::{Audit, Config, Record},
    domain::job::{Entry, State},
    runtime::{clock::SystemClock, entropy::SystemEntropy, signer::AuditSigner},
    store::Journal,
};
use jtnt_proto::{
    audit::{Event, Status},
    key::PublicKey,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const WRITERS: u64 = 64;

#[derive(Debug)]
struct Key(SigningKey);

impl AuditSigner for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

fn entry(id: &str) -> Outcome<Entry> {
    Ok(serde_json::from_value(serde_json::json!({
        "job_id": id, "kind": "exec", "command": "/usr/bin/systemctl status nginx",
        "state": "queued", "attempt": 1, "received_at": "2026-06-01T12:00:00Z",
        "expires_at": "2026-06-02T12:00:00Z", "policy_version": 1,
    }))?)
}

fn line() -> Record {
    let mut record = Record::of(Event::JobExecuted).detail("exit_code", 0);
    record.status = Some(Status::Success);
    record.job_id = Some("job-123".to_owned());
    record.command = Some("/usr/bin/systemctl status nginx".to_owned());
    record.policy_version = Some(1);
    record
}

/// Turns `rounds` of `writers` transitions each; every writer has a job of its own and waits for
/// its commit before it asks for the next.
async fn transitions(journal: &Journal, writers: u64, rounds: u64) -> Outcome<()> {
    let work = (0..writers).map(|writer| async move {
        let queued = entry(&format!("job-{writer}"))?;
        for round in 0..rounds {
            let state = if round % 2 == 0 { State::Running } else { State::Queued };
            journal.update(Entry { state, ..queued.clone() }).await?;
        }
        Outcome::Ok(())
    });
    try_join_all(work).await.map(drop)
}

async fn lines(audit: &Audit, writers: u64, rounds: u64) -> Outcome<()> {
    let work = (0..writers).map(|_| async {
        for _ in 0..rounds {
            audit.append(line()).await?;
        }
        Outcome::Ok(())
    });
    try_join_all(work).await.map(drop)
}

/// One write and one fdatasync of a line's size, as the file system does it.
fn limit(dir: &Path, c: &mut Criterion) -> Outcome<()> {
    let mut file = File::create(dir.join("limit"))?;
    let bytes = [b'x'; 512];
    c.bench_function("limit: append 512 bytes and fdatasync", |b| {
        b.iter(|| black_box(file.write_all(&bytes).and_then(|()| file.sync_data()).is_ok()));
    });
    Ok(())
}

fn durable(c: &mut Criterion) -> Outcome<()> {
    // Beside the build's output, since a temporary folder is often memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    limit(dir.path(), c)?;

    let journal = Journal::open(&dir.path().join("jobs.redb"), Arc::new(SystemClock))?;
    let config = Config {
        dir: dir.path().join("audit"),
        agent_id: "00000000-0000-8000-8000-000000000000".to_owned(),
        retention: jtnt_agent::domain::retention::Retention::default(),
        zone: TimeZone::UTC,
    };
    let key = Arc::new(Key(SigningKey::from_bytes(&[7; 32])));
    let audit = Audit::open(config, key, Arc::new(SystemClock), &SystemEntropy)?;
    for writer in 0..WRITERS {
        runtime.block_on(journal.admit(entry(&format!("job-{writer}"))?))?;
    }

    for writers in [1, WRITERS] {
        let mut group = c.benchmark_group(format!("{writers} writers"));
        group.throughput(Throughput::Elements(writers));
        group.bench_function("journal transition", |b| {
            b.iter_custom(|rounds| {
                timed(|| runtime.block_on(transitions(&journal, writers, rounds)))
            });
        });
        group.bench_function("audit line", |b| {
            b.iter_custom(|rounds| timed(|| runtime.block_on(lines(&audit, writers, rounds))));
        });
        group.finish();
    }
    Ok(())
}

/// An agent that was killed comes back to 100,000 jobs, of which 1,000 still wait.
fn recovery(c: &mut Criterion) -> Outcome<()> {
    const JOBS: usize = 100_000;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let journal = Journal::open(&live, Arc::new(SystemClock))?;
    let numbers: Vec<_> = (0..JOBS).collect();
    for portion in numbers.chunks(1000) {
        let journal = &journal;
        let work = portion.iter().map(|n| async move {
            let waits = entry(&format!("job-{n}"))?;
            journal.admit(waits.clone()).await?;
            if *n >= 1000 {
                let state = State::Finished(jtnt_proto::hub::Outcome::Ok);
                journal.update(Entry { state, delivered: true, ..waits }).await?;
            }
            Outcome::Ok(())
        });
        runtime.block_on(try_join_all(work))?;
    }
    // A copy of the open file is what a kill leaves.
    c.bench_function("open a journal of 100,000 jobs after a kill", |b| {
        b.iter_custom(|rounds| {
            let mut all = Duration::ZERO;
            for _ in 0..rounds {
                let copied = std::fs::copy(&live, &copy);
                all += timed(|| {
                    copied?;
                    let journal = Journal::open(&copy, Arc::new(SystemClock))?;
                    let (waits, owed) = (journal.unfinished()?, journal.undelivered()?);
                    black_box((waits, owed));
                    Ok(())
                });
            }
            all
        });
    });
    Ok(())
}

/// A round that failed counts as an hour, so that it cannot pass for a fast one.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn timed(work: impl FnOnce() -> Outcome<()>) -> Duration {
    let begun = Instant::now();
    if work().is_ok() { begun.elapsed() } else { Duration::from_secs(3600) }
}

#[expect(clippy::panic, reason = "a benchmark that cannot start has no other way to say so")]
fn all(c: &mut Criterion) {
    if let Err(error) = durable(c).and_then(|()| recovery(c)) {
        panic!("{error}");
    }
}

criterion_group! {
    name = store;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = all
}
criterion_main!(store);
