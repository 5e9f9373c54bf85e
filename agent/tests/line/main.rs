//! The line to the hub: client, connection test and heartbeat against a real hub over real TLS. Each
//! module is `cfg(test)`, by which clippy knows helpers of tests.

#[cfg(test)]
mod client;
#[cfg(test)]
mod heart;
#[cfg(test)]
mod probe;
#[cfg(test)]
mod renewal;
#[cfg(test)]
mod support;
