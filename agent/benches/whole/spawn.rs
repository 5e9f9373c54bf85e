//! What a shim and the whole sandbox cost over a bare fork and exec: `/bin/true`, without hub,
//! journal or audit log.

use std::{fs::File, path::Path, time::Duration};

use jtnt_agent::{
    domain::policy::Confinement,
    platform::{
        account::Account,
        sandbox::{self, Plan},
    },
    shim::{Attempt, Launcher, Order, Things},
};
use tokio::time::Instant;

use crate::{
    Outcome, limits,
    table::{Row, Table, ms, percentile},
};

const GOAL: Duration = Duration::from_millis(3);
/// A user of a job's own.
const UID: u32 = 61_190;

pub(crate) async fn measure(agent: &Path, rounds: usize, table: &mut Table) -> Outcome<()> {
    let abilities = sandbox::abilities();
    let launcher = Launcher::of(agent.to_owned());
    for (name, plan, goal) in [
        ("shim over fork+exec: p50", Plan::default(), false),
        ("shim and sandbox over fork+exec: p50", Plan { abilities, ..Plan::default() }, true),
    ] {
        let bare = limits::fork_exec()?;
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            times.push(one(&launcher, &plan, abilities.root).await?);
        }
        let over = percentile(&mut times, 50).saturating_sub(bare);
        let row = Row::new(name, ms(over)).limit(format!("fork+exec {}", ms(bare)));
        table.show(&if goal { row.goal("3 ms", over <= GOAL) } else { row });
    }
    Ok(())
}

async fn one(launcher: &Launcher, plan: &Plan, as_other: bool) -> Outcome<Duration> {
    let dir = tempfile::tempdir()?;
    let path = std::fs::canonicalize("/bin/true")?.to_string_lossy().into_owned();
    let file = File::open(&path)?;
    let order = Order {
        attempt: Attempt::new(dir.path().join("job"), 1),
        argv0: path,
        args: Vec::new(),
        env: [].into(),
        cwd: "/".to_owned(),
        account: if as_other { Account::numbered(UID) } else { Account::own() },
        file_bytes: None,
        plan: Plan { confinement: Confinement::default(), ..plan.clone() },
        output_bytes: 1 << 20,
        secrets: Vec::new(),
        watch: None,
        transfer: None,
        timeout: Duration::from_secs(60),
        grace: Duration::from_secs(1),
    };
    let begun = Instant::now();
    let shim = launcher.prepare(&order, Things::only(&file))?.go()?;
    shim.ended().await?;
    Ok(begun.elapsed())
}
