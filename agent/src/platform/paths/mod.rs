//! Paths that somebody else named: opened once, and from then on only the descriptor counts.
//!
//! A name is checked as text, opened by `openat2` without magic links, and the name that the
//! kernel has for the descriptor is walked from `/` down to learn who could change what it means.
//! Nothing between the check and the use of a file goes by name again.

mod fault;
mod open;
mod sealed;
#[cfg(test)]
mod tests;

pub use fault::PathFault;
pub use open::{Inode, Opened, Place, enter, reach, reopen, resolve};
pub use sealed::{hash, hash_of, sealed_copy};
