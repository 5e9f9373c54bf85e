//! What the agent tells about itself: logs, metrics, and the two loopback endpoints.

pub mod metrics;
