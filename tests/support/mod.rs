//! What the end-to-end tests and the demo share: the real binaries, run in a folder of their own.
//!
//! Nothing here panics, so that the demo can tell a newcomer what failed, and nothing waits for
//! time to pass: one waits for a log line, for a process, or with [`eventually`] for a condition.

mod agent;
mod binaries;
pub(crate) mod daemon;
pub(crate) mod fault;
mod home;
mod http;
mod log;
mod ran;
mod uids;
mod wait;

pub(crate) use agent::Agent;
pub(crate) use binaries::binary;
pub(crate) use home::{Home, is_root, put};
pub(crate) use ran::{Ran, run};
pub(crate) use wait::eventually;
