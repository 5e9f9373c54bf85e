//! From exec to an agent that answers.

use std::time::Duration;

use crate::{
    Outcome, limits,
    site::Site,
    table::{Row, Table, ms, percentile},
};

const GOAL: Duration = Duration::from_millis(25);

pub(crate) async fn measure(site: &Site, starts: usize, table: &mut Table) -> Outcome<()> {
    let mut times = Vec::with_capacity(starts);
    // The first one makes what is not there yet.
    for start in 0..=starts {
        let agent = site.start()?;
        let took = agent.ready().await?;
        if start > 0 {
            times.push(took);
        }
        agent.stop().await?;
    }
    let (median, late) = (percentile(&mut times, 50), percentile(&mut times, 90));
    let row = Row::new("exec to ready, median", ms(median)).goal("25 ms", median <= GOAL);
    table.show(&row.limit(format!("fork+exec {}", ms(limits::fork_exec()?))));
    table.show(&Row::new(format!("exec to ready, 90th of {starts}"), ms(late)));
    Ok(())
}
