//! An enrolled agent with nothing to do: heartbeats every 30 s, a long poll, all listeners up.
//! Looked at every second, since it needs more while it speaks to the hub than between.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    Outcome,
    agent::{self, Agent},
    table::{Row, Table, mib},
};

/// Before anything is measured, so that a start counts as over.
const SETTLE: Duration = Duration::from_secs(10);
const MAX_PSS_KIB: u64 = 6 * 1024;
const MAX_THREADS: u64 = 4;
const MAX_CPU_PERCENT: f64 = 0.05;

pub(crate) async fn measure(agent: &Agent, seconds: u64, table: &mut Table) -> Outcome<()> {
    sleep(SETTLE.min(Duration::from_secs(seconds))).await;
    let before = agent.cpu()?;
    let (mut pss, mut threads) = (Vec::new(), 0);
    for _ in 0..seconds {
        sleep(Duration::from_secs(1)).await;
        pss.push(agent.pss()?);
        threads = threads.max(agent.threads()?);
    }
    let cpu = agent.cpu()?.saturating_sub(before);
    pss.sort_unstable();
    let most = pss.last().copied().unwrap_or_default();
    let pss = pss.get(pss.len() / 2).copied().unwrap_or_default();
    let percent = cpu.as_secs_f64() / Duration::from_secs(seconds).as_secs_f64() * 100.0;

    let limit = format!("a sleeping process in C {}", mib(sleeping().await?));
    let row = Row::new("idle: PSS, median", mib(pss)).goal("6 MiB", pss <= MAX_PSS_KIB);
    table.show(&row.limit(&limit));
    let row = Row::new("idle: PSS, most", mib(most)).goal("6 MiB", most <= MAX_PSS_KIB);
    table.show(&row.limit(limit));
    let row =
        Row::new("idle: threads, most", threads.to_string()).goal("4", threads <= MAX_THREADS);
    table.show(&row.limit("1"));
    let row = Row::new(format!("idle: CPU over {seconds} s"), format!("{percent:.3} %"));
    table.show(&row.goal("0.05 %", percent <= MAX_CPU_PERCENT).limit("0"));
    Ok(())
}

/// PSS of `sleep`.
async fn sleeping() -> Outcome<u64> {
    let mut child = Command::new("/bin/sleep").arg("60").stdin(Stdio::null()).spawn()?;
    sleep(Duration::from_millis(200)).await;
    let pss = agent::pss(child.id());
    child.kill()?;
    child.wait()?;
    pss
}
