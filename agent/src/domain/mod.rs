//! Decisions without I/O: no file, no socket, no clock, no chance. `now` and random numbers are
//! arguments, effects leave as values.

pub mod admission;
pub mod asked;
pub mod backoff;
pub mod breaker;
pub mod cert_rule;
pub mod degraded;
pub mod enforcement;
pub mod flood;
pub mod health;
pub mod ids;
pub mod job;
pub mod key_store;
pub mod policy;
pub mod recovery;
pub mod retention;
pub mod schedule;
pub mod seen;
