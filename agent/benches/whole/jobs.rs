//! The round trip of a job: from the hub taking it to the hub having its result on disk. Signed,
//! journaled, logged, run as a process, reported over mTLS.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jtnt_hub_mock::Route;
use tokio::time::{Instant, timeout};

use crate::{
    Outcome,
    agent::{Agent, cpu},
    limits::Limits,
    site::{PATIENCE, Site, exec_true},
    table::{Row, Table, mib, ms, percentile},
};

const IN_FLIGHT: usize = 32;
const P50: Duration = Duration::from_millis(5);
const P99: Duration = Duration::from_millis(12);
const PER_SECOND: f64 = 500.0;

pub(crate) async fn measure(
    site: &Site,
    agent: &Agent,
    (sequential, burst): (usize, usize),
    table: &mut Table,
) -> Outcome<()> {
    let limit = Limits::measure(site.dir.path())?.text();
    let (before, hub) = (agent.cpu()?, cpu(std::process::id())?);
    let mut times = Vec::with_capacity(sequential);
    for _ in 0..sequential {
        times.push(one(site).await?);
    }
    let used = agent.cpu()?.saturating_sub(before) / count(sequential);
    let hubs = cpu(std::process::id())?.saturating_sub(hub) / count(sequential);
    let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    table.show(&Row::new("job, one by one: p50", ms(p50)).goal("5 ms", p50 <= P50).limit(&limit));
    table.show(&Row::new("job, one by one: p99", ms(p99)).goal("12 ms", p99 <= P99).limit(&limit));
    table.show(&Row::new("  agent's CPU a job", ms(used)));
    table.show(&Row::new("  hub's and operator's", ms(hubs)));

    let (before, hub) = (agent.cpu()?, cpu(std::process::id())?);
    let rate = many(site, burst).await?;
    let used = agent.cpu()?.saturating_sub(before) / count(burst);
    let hubs = cpu(std::process::id())?.saturating_sub(hub) / count(burst);
    let row = Row::new(format!("job, {IN_FLIGHT} in flight"), format!("{rate:.0} /s"));
    table.show(&row.goal("500 /s", rate >= PER_SECOND).limit(&limit));
    table.show(&Row::new("  agent's CPU a job", ms(used)));
    table.show(&Row::new("  hub's and operator's", ms(hubs)));
    table.show(&Row::new("  PSS afterwards", mib(agent.pss()?)));
    Ok(())
}

async fn one(site: &Site) -> Outcome<Duration> {
    let operator = &site.operator;
    let job = operator.job(&site.agent_id, exec_true())?;
    let (envelope, path) = (operator.sign_job(&job), format!("/api/v1/jobs/{}/result", job.job_id));
    let begun = Instant::now();
    site.hub.enqueue(&site.agent_id, envelope).await?;
    // It is recorded when it is answered, and answered when it is on disk.
    let stored = site.hub.await_request(|r| r.route == Some(Route::Result) && r.path == path);
    let stored = timeout(PATIENCE, stored).await;
    let took = begun.elapsed();
    match stored {
        Ok(stored) if stored.status == 200 => Ok(took),
        _ => Err(format!("no result: {:?}", site.hub.job(&job.job_id)).into()),
    }
}

/// Jobs a second.
pub(crate) async fn many(site: &Site, jobs: usize) -> Outcome<f64> {
    let begun = Instant::now();
    let runs = stream::iter(0..jobs).map(|_| site.run(exec_true()));
    let mut ends = runs.buffer_unordered(IN_FLIGHT);
    while let Some(end) = ends.next().await {
        end?;
    }
    Ok(f64::from(count(jobs)) / begun.elapsed().as_secs_f64())
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX).max(1)
}
