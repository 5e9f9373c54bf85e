//! The JTNT endpoint agent.

pub mod audit;
pub mod domain;
pub mod runtime;
pub mod store;
pub mod telemetry;
pub mod trust;
