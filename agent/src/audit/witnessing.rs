//! What the log shows to witnesses, and what it keeps of their word: checkpoints and proofs.

use std::{io, sync::Arc};

use jtnt_proto::checkpoint::{self, Checkpoint, Note};

use super::{AuditError, Inclusion, Offer, checkpoints::Checkpoints, log::Log};

impl Log {
    /// See [`super::Audit::checkpoint`].
    pub(super) fn checkpoint(&mut self, since: Option<u64>) -> Result<Offer, AuditError> {
        if self.open.as_ref().is_none_or(|open| open.tree.is_none()) {
            let recovered = self.recover();
            self.settle(recovered)?;
        }
        let (key, signer) = (self.signer.public_key(), Arc::clone(&self.signer));
        let open = self.opened()?;
        let (log_id, head) = (open.log_id.clone(), open.head);
        let checkpoints = self.checkpoints(&log_id);
        let tree = self.open.as_ref().and_then(|open| open.tree.as_ref());
        let tree = tree.ok_or_else(|| AuditError("its tree cannot be had; see the log".into()))?;
        let (size, root) = (tree.frontier().size(), tree.frontier().root());
        let failed = |e: io::Error| AuditError(format!("a checkpoint is not durable: {e}"));
        let checkpoint = Checkpoint { origin: self.origin(&log_id), size, root };
        let note = match checkpoints.own(&[key]) {
            Some((own, text)) if own.checkpoint == checkpoint => text,
            _ => {
                let note = checkpoint.sign(&key, |text| signer.sign(text));
                tree.sync().and_then(|()| checkpoints.keep_own(&note)).map_err(failed)?;
                note
            }
        };
        let seen = || Some(checkpoints.witnessed(&self.signer.keys(), size)?.size);
        let old_size = since.or_else(seen).unwrap_or(0);
        let proof = tree.since(old_size).map_err(failed)?;
        let proof = proof.ok_or_else(|| {
            AuditError(format!("it has {size} lines, and a witness has seen {old_size}"))
        })?;
        Ok(Offer { log_id, size, head, note, old_size, proof })
    }

    /// See [`super::Audit::witnessed`].
    pub(super) fn witnessed(&mut self, note: &str) -> Result<(), AuditError> {
        let refused = |why: &str| AuditError(format!("a cosigned checkpoint is not kept: {why}"));
        let checkpoint = Note::parse(note).map_err(refused)?.checkpoint;
        let log_id = self.opened()?.log_id.clone();
        if checkpoint.origin != self.origin(&log_id) {
            return Err(refused("it is another log's"));
        }
        let kept = self.checkpoints(&log_id).keep_witnessed(self.today(), checkpoint.size, note);
        kept.map_err(|e| refused(&e.to_string()))?;
        self.last.witnessed = checkpoint.size;
        Ok(())
    }

    /// See [`super::Audit::prove`].
    pub(super) fn prove(&mut self, seq: u64) -> Result<Inclusion, AuditError> {
        let (log_id, size) = (self.opened()?.log_id.clone(), self.opened()?.size);
        let seen = self
            .checkpoints(&log_id)
            .witnessed(&self.signer.keys(), size)
            .filter(|seen| seq < seen.size);
        let (size, note) = match seen {
            Some(seen) => (seen.size, seen.note),
            None => self.checkpoint(None).map(|own| (own.size, own.note))?,
        };
        let tree = self.open.as_ref().and_then(|open| open.tree.as_ref());
        let hashes = tree.map(|tree| tree.inclusion(seq, size)).transpose();
        let hashes = hashes.map_err(|e| AuditError(format!("its tree cannot be read: {e}")))?;
        let hashes = hashes.flatten().ok_or_else(|| AuditError(format!("it has no line {seq}")))?;
        Ok(Inclusion { hashes, note })
    }

    pub(super) fn origin(&self, log_id: &str) -> String {
        checkpoint::origin(&self.config.agent_id, log_id)
    }

    pub(super) fn checkpoints(&self, log_id: &str) -> Checkpoints {
        Checkpoints::of(&self.config.dir, log_id, self.origin(log_id))
    }
}
