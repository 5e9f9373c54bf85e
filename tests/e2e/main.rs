//! End to end: the shipped binaries, a hub over real TLS, and faults by script. What single crates
//! test at their own borders is not repeated here. Each module is `cfg(test)`, by which clippy
//! knows helpers of tests.

#[cfg(test)]
mod bad_answers;
#[cfg(test)]
mod bad_clients;
#[cfg(test)]
mod bad_config;
#[cfg(test)]
mod bad_enrolment;
#[cfg(test)]
mod bad_jobs;
#[cfg(test)]
mod bad_policy;
#[cfg(test)]
mod cert_points;
#[cfg(test)]
mod certs;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod evidence;
#[cfg(test)]
mod forward;
#[cfg(test)]
mod happy;
#[cfg(test)]
mod key_devices;
#[cfg(test)]
mod learn;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod notify;
#[cfg(test)]
mod other_user;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod output;
#[cfg(test)]
mod points;
#[cfg(test)]
mod rehearsal;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod site;
#[cfg(test)]
#[path = "../support/mod.rs"]
mod support;
#[cfg(test)]
mod vocabulary;
#[cfg(test)]
mod watch;
#[cfg(test)]
mod ways;
#[cfg(test)]
mod witness;
