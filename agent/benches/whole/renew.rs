//! What a renewal of the certificate costs: a key, a request, a judgement, a trial, and the swap.

use std::{process::Command, time::Duration};

use tokio::time::Instant;

use crate::{
    Outcome,
    agent::Agent,
    site::{Site, exec_true},
    table::{Row, Table, ms, percentile},
};

const CPU: Duration = Duration::from_millis(50);

pub(crate) async fn measure(
    site: &Site,
    agent: &Agent,
    count: usize,
    table: &mut Table,
) -> Outcome<()> {
    let before = agent.cpu()?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        renew(site).await?;
        times.push(begun.elapsed());
    }
    let used = agent.cpu()?.saturating_sub(before) / u32::try_from(count).unwrap_or(1).max(1);
    table.show(&Row::new("renewal, agent's CPU", ms(used)).goal("50 ms", used <= CPU));
    let p50 = percentile(&mut times, 50);
    table.show(&Row::new("renewal, typed to done: p50", ms(p50)));
    // Jobs that come while certificates change places, against those of a quiet time.
    let mut quiet = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        site.run(exec_true()).await?;
        quiet.push(begun.elapsed());
    }
    let mut busy = Vec::with_capacity(count);
    for _ in 0..count {
        let (renewed, took) = tokio::join!(renew(site), async {
            let begun = Instant::now();
            site.run(exec_true()).await.map(|_| begun.elapsed())
        });
        renewed?;
        busy.push(took?);
    }
    let (quiet, busy) = (percentile(&mut quiet, 50), percentile(&mut busy, 50));
    let row = Row::new("job while it renews: p50", ms(busy));
    table.show(&row.limit(format!("without {}", ms(quiet))));
    Ok(())
}

async fn renew(site: &Site) -> Outcome<()> {
    let mut command = Command::new(site.program());
    command.arg("--config").arg(site.path("config.json")).args(["cert", "renew", "--force"]);
    let ended = tokio::task::spawn_blocking(move || command.output()).await??;
    if ended.status.success() {
        return Ok(());
    }
    Err(format!("not renewed: {}", String::from_utf8_lossy(&ended.stderr)).into())
}
