//! The policy's answer to a job's request, whatever its kind, with what was opened for it.

use jiff::Timestamp;
use jtnt_proto::{
    bytes::Hash,
    job::{Job, Script, Work},
    key::KeyId,
    policy::Limits,
};

use crate::{
    domain::{asked::Asked, enforcement::Enforcement},
    gate::{Destination, Gate, Program, Ruling, Source},
    trust::Keyring,
};

/// What is used afterwards: the very thing the policy was asked about.
#[derive(Debug)]
pub(super) enum Opened {
    /// The program, or a script's interpreter.
    Program(Program),
    Destination(Destination),
    Source(Source),
}

/// A ruling without its type.
#[derive(Debug)]
pub(super) struct Permit {
    pub(super) asked: Asked,
    pub(super) allowed: bool,
    pub(super) monitored: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) rule: Option<String>,
    pub(super) run_as: Option<String>,
    pub(super) policy_version: u64,
    pub(super) limits: Limits,
    pub(super) canonical: Option<String>,
    pub(super) sha256: Option<Hash>,
    pub(super) enforcement: Enforcement,
    pub(super) opened: Option<Opened>,
}

impl Permit {
    fn of<T>(asked: Asked, ruling: Ruling<T>, opened: impl FnOnce(T) -> Opened) -> Self {
        Self {
            asked,
            allowed: ruling.allowed,
            monitored: ruling.monitored,
            reason: ruling.reason,
            message: ruling.message,
            rule: ruling.rule,
            run_as: ruling.run_as,
            policy_version: ruling.policy_version,
            limits: ruling.limits,
            canonical: ruling.canonical,
            sha256: ruling.sha256,
            enforcement: ruling.enforcement,
            opened: ruling.opened.map(opened),
        }
    }
}

impl Permit {
    /// What it asked and whom it runs as, if it is to be watched: a violation of it passes, or, where
    /// the whole policy only monitors, those of its files do.
    pub(super) fn to_watch(&self) -> Option<Asked> {
        let watched = self.allowed && (self.monitored || self.enforcement.is_monitor());
        let run_as = self.run_as.clone().or_else(|| self.asked.run_as.clone());
        watched.then(|| Asked { run_as, ..self.asked.clone() })
    }
}

/// Asks. Opens files, and may read them whole, so it blocks.
pub(super) fn ask(gate: &Gate, keyring: &Keyring, job: &Job, now: Timestamp) -> Permit {
    let signers = signers(keyring, job, now);
    let asked = Asked::of(job, &signers);
    match &job.work {
        Work::Exec(exec) => {
            let ruling = gate.with_limits(gate.exec(exec, now), &job.limits);
            Permit::of(asked, ruling, Opened::Program)
        }
        Work::Script(script) => {
            let ruling = gate.with_limits(gate.script(script, &signers, now), &job.limits);
            Permit::of(asked, ruling, Opened::Program)
        }
        Work::Download(download) => {
            Permit::of(asked, gate.download(download, now), Opened::Destination)
        }
        Work::Upload(upload) => Permit::of(asked, gate.upload(upload, now), Opened::Source),
    }
}

fn signers(keyring: &Keyring, job: &Job, now: Timestamp) -> Vec<KeyId> {
    match &job.work {
        Work::Script(script) => endorsers(keyring, script, now),
        Work::Exec(_) | Work::Download(_) | Work::Upload(_) => Vec::new(),
    }
}

/// Keys that vouch for this very script under this very interpreter, now. A bad endorsement is as
/// good as none: a rule may still admit the script by its hash.
fn endorsers(keyring: &Keyring, script: &Script, now: Timestamp) -> Vec<KeyId> {
    let Some(envelope) = &script.endorsement else { return Vec::new() };
    match keyring.script(envelope) {
        Ok(verified) => {
            let endorsed = verified.get();
            let fits = endorsed.sha256 == script.content.sha256
                && endorsed.interpreter == script.interpreter
                && endorsed.root_id == keyring.root().root_id
                && now < endorsed.expires_at;
            if fits { verified.signers().iter().copied().collect() } else { Vec::new() }
        }
        Err(error) => {
            tracing::warn!(%error, "a script's endorsement does not count");
            Vec::new()
        }
    }
}
