//! The ground floor: time, chance, tasks and durable files. Everything that would make a run
//! differ from the next one enters here, so that tests can hold it still.

pub mod clock;
pub mod durable;
pub mod entropy;
pub mod lock;
pub mod signer;
pub mod tasks;
