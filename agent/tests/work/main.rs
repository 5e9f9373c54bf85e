//! Jobs against a real hub over real TLS: what runs, what is moved, and what faults do to it. Each
//! module is `cfg(test)`, by which clippy knows helpers of tests.

#[cfg(test)]
mod flow;
#[cfg(test)]
mod support;
#[cfg(test)]
mod transfers;
