//! `cargo demo`: a newcomer's first minute. Starts a hub and an agent as real processes, lets the
//! agent enrol and work, checks every step, and shows what an operator sees.
//!
//! It ends by itself, and with another exit code than 0 when any step came out otherwise than it
//! should; so it is a test as well.

mod hub;
mod screen;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the end-to-end tests use the rest of it")]
mod support;
mod tour;

use std::process::ExitCode;

use screen::Screen;
use support::fault::{Fault, Res};
use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
};

const USAGE: &str = "usage: cargo demo [--keep]

  --keep   stay up on the ports of the operations guide (9090, 9091, hub 8443, 8444) until Ctrl-C
";

fn main() -> ExitCode {
    let mut screen = Screen::new();
    let args: Vec<_> = std::env::args().skip(1).collect();
    let keep = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => false,
        ["--keep"] => true,
        ["--help" | "-h"] => {
            screen.text(USAGE);
            return ExitCode::SUCCESS;
        }
        _ => {
            screen.failure(USAGE);
            return ExitCode::from(2);
        }
    };
    match run(&mut screen, keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            screen.failure(&format!("\nThe demo failed: {fault}\n"));
            ExitCode::FAILURE
        }
    }
}

fn run(screen: &mut Screen, keep: bool) -> Res<()> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = Interrupt::listen()?;
        let pair = tokio::select! {
            pair = tour::run(screen, keep) => pair?,
            // What was started ends with its handles, and the folder goes as well.
            () = interrupt.came() => return Err(Fault::new("it was interrupted")),
        };
        if keep {
            interrupt.came().await;
        }
        tour::stop(screen, keep, pair).await
    })
}

/// Ctrl-C or SIGTERM.
struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    fn listen() -> Res<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn came(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
