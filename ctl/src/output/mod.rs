//! Answers as text and as JSON, one file a concept.
//!
//! The JSON objects are written out as types on purpose: their names and shapes are a promise to
//! scripts and must not change because a message of the wire format did.

pub(crate) mod agent;
pub(crate) mod audit;
pub(crate) mod cache;
pub(crate) mod cert;
pub(crate) mod diff;
pub(crate) mod escape;
pub(crate) mod job;
pub(crate) mod json;
pub(crate) mod policy;
pub(crate) mod status;
pub(crate) mod table;
pub(crate) mod time;
