//! The audit log: how fast it is written and checked, what memory a check of a large one takes, how
//! soon there is a proof that it only grew. One table, with the goal and what this machine can do at
//! best, measured in the same run.
//!
//! ```text
//! cargo bench -p jtnt-agent --bench audit                     a minute
//! cargo bench -p jtnt-agent --bench audit -- --only large     1 GiB of log, some minutes
//! ```
//!
//! Nothing else should run meanwhile.

mod append;
mod check;
mod log;
mod proof;
#[path = "../whole/table.rs"]
mod table;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use tempfile::TempDir;

use table::Table;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What is measured, and of what size.
#[derive(Debug, Parser)]
struct Wish {
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Lines of the log that is checked
    #[arg(long, default_value_t = 100_000)]
    lines: u64,
    /// MiB of `--only large`
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Lines of the tree
    #[arg(long, default_value_t = 10_000_000)]
    tree: u64,
    /// Lines of each writer
    #[arg(long, default_value_t = 1000)]
    rounds: usize,
    /// Checks a log and tells what memory that took: the other process of `--only large`
    #[arg(long, hide = true, num_args = 2, value_names = ["LOG", "KEY"])]
    check: Option<Vec<PathBuf>>,
    /// Cargo passes it
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Append,
    Verify,
    Proof,
    /// A log of many MiB; only where it is named
    Large,
}

impl Wish {
    fn has(&self, part: Part) -> bool {
        self.only.contains(&part) || (self.only.is_empty() && part != Part::Large)
    }
}

fn main() -> ExitCode {
    let wish = Wish::parse();
    let done = match wish.check.as_deref() {
        Some([log, key]) => check::child(log, key),
        Some(_) | None => run(&wish),
    };
    done.map_or_else(|error| failed(&*error), |()| ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "a benchmark tells its reader")]
fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("audit: {error}");
    ExitCode::FAILURE
}

fn run(wish: &Wish) -> Outcome<()> {
    let mut table = Table::default();
    if wish.has(Part::Append) {
        append::measure(folder()?.path(), wish.rounds, &mut table)?;
    }
    if wish.has(Part::Verify) {
        check::measure(folder()?.path(), wish.lines, &mut table)?;
    }
    if wish.has(Part::Proof) {
        proof::measure(folder()?.path(), wish.tree, &mut table)?;
    }
    if wish.has(Part::Large) {
        check::large(folder()?.path(), wish.mib, &mut table)?;
    }
    Ok(())
}

/// Beside the build's output, since a temporary folder is often memory.
fn folder() -> Outcome<TempDir> {
    Ok(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}
