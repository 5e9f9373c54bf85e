//! Rules that are asked and enforce nothing: what was asked before is asked again, of those in force
//! at one moment or of a document that nobody has signed. Its answers hold no open file, so that
//! nothing can be run, read or written by them.

use std::sync::Arc;

use jiff::Timestamp;
use jtnt_proto::job::Work;

use super::{Gate, Rules, Ruling};
use crate::domain::{asked::Asked, policy::Engine};

/// Asks the same rules each time. It opens files and may read them whole, so it blocks.
#[derive(Debug, Clone)]
pub struct Rehearsal(Gate);

impl Gate {
    /// The rules in force now, also when others come into force meanwhile.
    #[must_use]
    pub fn present(&self) -> Rehearsal {
        self.rehearse(self.rules())
    }

    /// These rules, as if they were in force on this machine.
    #[must_use]
    pub fn candidate(&self, rules: Engine) -> Rehearsal {
        self.rehearse(Some(Arc::new(rules)))
    }

    fn rehearse(&self, rules: Option<Arc<Engine>>) -> Rehearsal {
        Rehearsal(Self { rules: Rules::Rehearsed(rules), config: Arc::clone(&self.config) })
    }
}

impl Rehearsal {
    /// The version of the rules; 0 without any.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.rules().map_or(0, |rules| rules.policy().version)
    }

    /// What a job that asks this would meet.
    #[must_use]
    pub fn ask(&self, asked: &Asked, now: Timestamp) -> Ruling<()> {
        let (gate, limits) = (&self.0, &asked.limits);
        match asked.work() {
            Work::Exec(exec) => gate.with_limits(gate.exec(&exec, now), limits).without_file(),
            Work::Script(script) => {
                let ruling = gate.script(&script, asked.signers(), now);
                gate.with_limits(ruling, limits).without_file()
            }
            Work::Download(download) => gate.download(&download, now).without_file(),
            Work::Upload(upload) => gate.upload(&upload, now).without_file(),
        }
    }
}
