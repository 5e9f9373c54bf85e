//! Durable lines by 64 writers, each of whom waits for his line before he writes the next.

use std::{fs::File, hint::black_box, io::Write as _, path::Path, sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use jiff::tz::TimeZone;
use jtnt_agent::{
    audit::{Audit, Config, Record},
    runtime::{clock::SystemClock, entropy::SystemEntropy, signer::AuditSigner as _},
};
use jtnt_proto::audit::{Event, Status};
use tokio::time::Instant;

use crate::{
    Outcome,
    log::Key,
    table::{Row, Table, ms, percentile},
};

const WRITERS: usize = 64;
/// Rounds of what the machine can do at best.
const ROUNDS: u32 = 500;

pub(crate) fn measure(dir: &Path, rounds: usize, table: &mut Table) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let config = Config {
        dir: dir.join("audit"),
        agent_id: "00000000-0000-8000-8000-000000000000".to_owned(),
        retention: jtnt_agent::domain::retention::Retention::default(),
        zone: TimeZone::UTC,
    };
    let audit = Audit::open(config, Arc::new(Key::new()), Arc::new(SystemClock), &SystemEntropy)?;
    let mut alone = runtime.block_on(write(&audit, rounds))?;
    let begun = Instant::now();
    let work = (0..WRITERS).map(|_| write(&audit, rounds));
    let times = runtime.block_on(try_join_all(work))?;
    let rate = (WRITERS * rounds) as f64 / begun.elapsed().as_secs_f64();
    let mut times: Vec<_> = times.into_iter().flatten().collect();
    let p99 = percentile(&mut times, 99);
    let limit = format!("{:.0} signatures/s, fdatasync {}", signing(), ms(fdatasync(dir)?));
    let row = Row::new(format!("append, {WRITERS} writers"), format!("{rate:.0}/s"))
        .goal("15000/s", rate >= 15_000.0)
        .limit(&limit);
    table.show(&row);
    let row = Row::new(format!("append, {WRITERS} writers: p99"), ms(p99))
        .goal("10 ms", p99 < Duration::from_millis(10))
        .limit(format!("median {}; {limit}", ms(percentile(&mut times, 50))));
    table.show(&row);
    // What a start or an end of a job waits for.
    let median = percentile(&mut alone, 50);
    let row = Row::new("append, one writer: median".to_owned(), ms(median))
        .goal("1 ms", median < Duration::from_millis(1))
        .limit(format!("p99 {}; {limit}", ms(percentile(&mut alone, 99))));
    table.show(&row);
    Ok(())
}

async fn write(audit: &Audit, rounds: usize) -> Outcome<Vec<Duration>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        audit.append(record()).await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

fn record() -> Record {
    let mut record = Record::of(Event::JobExecuted).detail("exit_code", 0);
    record.status = Some(Status::Success);
    record.job_id = Some("job-123".to_owned());
    record.command = Some("/usr/bin/systemctl status nginx".to_owned());
    record.policy_version = Some(1);
    record
}

/// Signatures a second over a line's size, by one thread, as the log has one writer.
fn signing() -> f64 {
    let (key, message) = (Key::new(), [b'x'; 512]);
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        black_box(key.sign(black_box(&message)));
    }
    f64::from(ROUNDS) / begun.elapsed().as_secs_f64()
}

/// Appending 512 bytes, durably.
fn fdatasync(dir: &Path) -> Outcome<Duration> {
    let mut file = File::create(dir.join("limit"))?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        file.write_all(&[b'x'; 512])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    Ok(percentile(&mut times, 50))
}
