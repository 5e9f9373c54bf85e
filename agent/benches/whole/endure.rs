//! Many jobs through one agent, with many in flight: whether memory, descriptors and disk stay as
//! they are, and how soon an agent is back after a kill with all that in its journal.

use std::path::Path;

use crate::{
    Outcome,
    agent::Agent,
    jobs,
    site::Site,
    table::{Row, Table, mb, mib, ms},
};

const PORTIONS: usize = 10;
const RECOVERY: std::time::Duration = std::time::Duration::from_secs(1);
/// What may come on top between the first portion and the last.
const GROWTH: f64 = 1.25;

/// What an agent holds at one moment.
struct Held {
    pss: u64,
    descriptors: usize,
    journal: u64,
    state: u64,
    audit: u64,
}

impl Held {
    fn of(site: &Site, agent: &Agent) -> Outcome<Self> {
        let state = site.path("state");
        Ok(Self {
            pss: agent.pss()?,
            descriptors: agent.descriptors()?,
            journal: std::fs::metadata(state.join("jobs.redb"))?.len(),
            state: bytes(&state)?,
            audit: bytes(&site.path("data/audit"))?,
        })
    }
}

pub(crate) async fn measure(
    site: &Site,
    agent: Agent,
    count: usize,
    table: &mut Table,
) -> Outcome<()> {
    let mut first: Option<Held> = None;
    for portion in 1..=PORTIONS {
        let rate = jobs::many(site, count / PORTIONS).await?;
        let held = Held::of(site, &agent)?;
        let done = portion * count / PORTIONS;
        table.show(&Row::new(format!("after {done} jobs: {rate:.0} /s, PSS"), mib(held.pss)));
        table.show(&Row::new("  open descriptors", held.descriptors.to_string()));
        table.show(&Row::new("  journal", mb(held.journal)));
        table.show(&Row::new("  state folder without it", mb(held.state - held.journal)));
        table.show(&Row::new("  audit log, a line an event", mb(held.audit)));
        if portion == PORTIONS
            && let Some(first) = &first
        {
            let growth = held.pss as f64 / first.pss as f64;
            let row = Row::new("memory, last to second portion", format!("{growth:.2}"));
            table.show(&row.goal("1.25", growth <= GROWTH));
            let growth = held.state as f64 / first.state as f64;
            let row = Row::new("state folder, the same", format!("{growth:.2}"));
            table.show(&row.goal("1.25", growth <= GROWTH));
        }
        if portion == 2 {
            first = Some(held);
        }
    }
    // Dropped, it is killed.
    drop(agent);
    let agent = site.start()?;
    let took = agent.ready().await?;
    let row = Row::new(format!("exec to ready, killed after {count} jobs"), ms(took));
    table.show(&row.goal("1 s", took <= RECOVERY));
    site.run(crate::site::exec_true()).await?;
    agent.stop().await
}

fn bytes(folder: &Path) -> Outcome<u64> {
    let (mut bytes, mut folders) = (0, vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // A job's folder may go meanwhile.
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => bytes += meta.len(),
                Err(_gone) => {}
            }
        }
    }
    Ok(bytes)
}
