//! `jtntctl`.

use std::process::ExitCode;

use clap::Parser as _;
use jtntctl::{Cli, Exit, Io, Standalone, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Exit::Io.into();
    };
    let mut io = Io::of_process(cli.global.color);
    runtime.block_on(run(cli.command, &cli.global, &mut io, &Standalone)).into()
}
