//! The JTNT endpoint agent, floor by floor.
//!
//! A module names only lower floors; modules of one floor do not know each other and meet in the
//! composition root. `agent/tests/architecture.rs` holds this.
//!
//! | floor | modules | what they are for |
//! | --- | --- | --- |
//! | ground | [`runtime`] | clock, chance, tasks, durable files, locks: all that would make a run differ from the next |
//! | decisions | [`domain`] | ids, job states, the policy engine: no I/O, no clock |
//! | facts | [`trust`], [`store`], [`audit`], [`platform`], [`telemetry`] | what was signed, what survives, what is logged, what differs between systems, what is shown |
//! | door | [`gate`] | the policy's answer about a real file, opened once |
//! | keepers | [`shim`] | the process that keeps a job, whatever becomes of the agent |
//! | self | [`identity`] | keys, certificates and the TLS made from them |
//! | line | [`hub`] | the client of the hub |
//! | errands | [`enrol`], [`heartbeat`], [`policy`], [`jobs`], [`forward`], [`timetable`] | what is done over the line, and what is done daily |
//! | views | [`overview`] | how the agent is: health, status and metrics from the same facts |
//! | counter | [`admin`] | the local admin API: who calls, whether they may, and the services |
//! | wishes | [`config`] | the configuration file, the only reader of file and environment |
//! | roof | [`app`] | the command line, and what is put together for each command |
//!
//! Data flows one way. Bytes of the hub become a [`trust::Verified`] or are dropped; a verified job
//! is put to the [`domain::policy::Engine`]; what is allowed is first written to the [`audit::Audit`]
//! log and to the [`store::Journal`], each on disk before its effect.

pub mod admin;
pub mod app;
pub mod audit;
pub mod config;
pub mod domain;
pub mod enrol;
pub mod forward;
pub mod gate;
pub mod heartbeat;
pub mod hub;
pub mod identity;
pub mod jobs;
pub mod overview;
pub mod platform;
pub mod policy;
pub mod renewal;
pub mod runtime;
pub mod shim;
pub mod store;
pub mod telemetry;
pub mod timetable;
pub mod trust;
