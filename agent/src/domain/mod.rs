//! Decisions without I/O: no file, no socket, no clock, no chance. `now` and random numbers are
//! arguments, effects leave as values.

pub mod ids;
pub mod job;
pub mod policy;
