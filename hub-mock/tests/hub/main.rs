//! The hub over real TLS: what agents may and may not do, what faults look like from outside, and
//! what survives a restart. Each module is `cfg(test)`, by which clippy knows helpers of tests.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod api;
#[cfg(test)]
mod artifacts;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod control;
#[cfg(test)]
mod enrolment;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod restart;
