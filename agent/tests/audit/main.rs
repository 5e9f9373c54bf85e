//! The audit log on a machine that fails: killed at one system call after another, and with the power
//! cut at each moment. Each module is `cfg(test)`, by which clippy knows helpers of tests.

#![cfg(target_os = "linux")]

#[cfg(test)]
mod disk;
#[cfg(test)]
mod judge;
#[cfg(test)]
mod points;
#[cfg(test)]
mod power;
#[cfg(test)]
mod trace;
#[cfg(test)]
mod work;
