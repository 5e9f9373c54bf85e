//! All unsafe code and all that differs between systems.

pub mod account;
pub mod cgroup;
mod entry;
pub mod holder;
pub mod host;
#[cfg(any(feature = "pkcs11", feature = "tpm2"))]
pub mod keys;
pub mod memory;
pub mod notify;
pub mod paths;
pub mod peer;
pub mod process;
pub mod sandbox;
pub mod space;
pub mod supervise;
pub mod sweep;
pub mod users;
pub mod watch;
pub mod watching;
