//! The command line of the JTNT agent: every command that talks to the daemon, and the few that
//! need nobody.
//!
//! It is a library so that `jtnt-agent` offers the same commands under its own name. A program
//! flattens [`Command`] and [`Global`] into its own clap types and calls [`run`] with a [`Host`],
//! which says how to reach a daemon and what the whole command line looks like. Everything that is
//! printed goes through [`Io`], so that a test reads what an operator would.
//!
//! The way of a command: [`cli`] parses it, [`run`] connects and picks the group in `commands`,
//! which calls the daemon; `output` turns the answer into text or JSON. Whatever goes wrong becomes
//! a [`Failure`], which knows its exit code.

pub mod cli;
mod commands;
mod connect;
mod exit;
mod failure;
mod io;
mod output;
mod run;

pub use cli::{Cli, Command, EXIT_CODES, Global};
pub use connect::{AGENT_BUSY, DEFAULT_SOCKET, Target, over};
pub use exit::Exit;
pub use failure::Failure;
pub use io::Io;
pub use run::{Host, Standalone, run};
pub use tonic::transport::Channel;
