//! What the agent tells about itself: logs, metrics, and the two loopback endpoints.

mod guests;
pub mod http;
pub mod log;
pub mod metrics;
#[cfg(test)]
pub(crate) mod overheard;
pub mod system;
