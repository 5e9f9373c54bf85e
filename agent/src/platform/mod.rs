//! All unsafe code and all that differs between systems.

pub mod holder;
pub mod host;
pub mod notify;
pub mod paths;
pub mod peer;
pub mod users;
