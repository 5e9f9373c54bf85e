//! The whole agent as it is shipped, against a hub over real mTLS: what it costs while it idles,
//! how soon it is there, how long a job takes, how fast files move. One table, with the goal and
//! what this machine can do at best, measured in the same run.
//!
//! ```text
//! cargo bench -p jtnt-agent --bench whole                     all of it, some minutes
//! cargo bench -p jtnt-agent --bench whole -- --smoke          a few seconds of each, to try it
//! cargo bench -p jtnt-agent --bench whole -- --only endure    100,000 jobs
//! cargo bench -p jtnt-agent --bench whole -- --only jobs --agent OTHER/jtnt-agent
//! ```
//!
//! Nothing else should run meanwhile. The small ones, each with its limit, are `--bench policy`
//! and `--bench store`.

mod agent;
mod endure;
mod idle;
mod jobs;
mod limits;
mod program;
mod renew;
mod site;
mod spawn;
mod start;
mod table;
mod transfer;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};

use site::Site;
use table::{Row, Table};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What is measured, and how long.
#[derive(Debug, Parser)]
struct Wish {
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// A few rounds of each
    #[arg(long)]
    smoke: bool,
    /// An agent that is built already
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Seconds of idling
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Starts
    #[arg(long, default_value_t = 40)]
    starts: usize,
    /// Jobs one after another
    #[arg(long, default_value_t = 500)]
    jobs: usize,
    /// Jobs with many in flight
    #[arg(long, default_value_t = 3000)]
    burst: usize,
    /// Renewals
    #[arg(long, default_value_t = 40)]
    renewals: usize,
    /// Jobs of `--only endure`
    #[arg(long, default_value_t = 100_000)]
    endure: usize,
    /// MiB of a transfer
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    /// Cargo passes it
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Size,
    Start,
    Spawn,
    Idle,
    Jobs,
    Renew,
    Transfer,
    /// Many jobs through one agent; only where it is named
    Endure,
}

impl Wish {
    fn has(&self, part: Part) -> bool {
        self.only.contains(&part) || (self.only.is_empty() && part != Part::Endure)
    }

    fn shorter(self) -> Self {
        if !self.smoke {
            return self;
        }
        Self {
            idle: 5,
            starts: 5,
            jobs: 20,
            burst: 100,
            renewals: 5,
            endure: 2000,
            mib: 64,
            ..self
        }
    }
}

fn main() -> ExitCode {
    let wish = Wish::parse().shorter();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(run(&wish)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

#[expect(clippy::print_stderr, reason = "a benchmark tells its reader")]
fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("whole: {error}");
    ExitCode::FAILURE
}

async fn run(wish: &Wish) -> Outcome<()> {
    let program = match &wish.agent {
        Some(program) => program.clone(),
        None => program::release("jtnt-agent")?,
    };
    let mut table = Table::default();
    if wish.has(Part::Size) {
        let bytes = std::fs::metadata(&program)?.len();
        let row = Row::new("binary, stripped", table::mb(bytes)).goal("7 MB", bytes <= 7_000_000);
        table.show(&row);
    }
    if wish.has(Part::Spawn) {
        spawn::measure(&program, wish.jobs, &mut table).await?;
    }
    let site = Site::new(&program).await?;
    if wish.has(Part::Start) {
        start::measure(&site, wish.starts, &mut table).await?;
    }
    let mut agent = site.start()?;
    agent.ready().await?;
    site.warm_up().await?;
    if wish.has(Part::Idle) {
        // After a fresh start: an agent that has worked is another thing than one that idles.
        agent.stop().await?;
        agent = site.start()?;
        agent.ready().await?;
        idle::measure(&agent, wish.idle, &mut table).await?;
    }
    if wish.has(Part::Jobs) {
        jobs::measure(&site, &agent, (wish.jobs, wish.burst), &mut table).await?;
    }
    if wish.has(Part::Renew) {
        renew::measure(&site, &agent, wish.renewals, &mut table).await?;
    }
    if wish.has(Part::Transfer) {
        transfer::measure(&site, &agent, wish.mib, &mut table).await?;
    }
    if wish.has(Part::Endure) {
        return endure::measure(&site, agent, wish.endure, &mut table).await;
    }
    agent.stop().await
}
