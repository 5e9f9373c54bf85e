//! Compares a log, as it is read, with a checkpoint that somebody else has kept: the one thing that
//! shows what was cut off or rewritten by whoever has the log's key.

use serde_json::Value;

use crate::{
    audit::{Line, frontier_of},
    bytes::Hash,
    checkpoint::{self, Checkpoint, Note},
    merkle::Frontier,
};

/// What is wrong with the log, as the checkpoint shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Other lines than those that were seen.
    Forked(String),
    /// Fewer lines than were seen.
    Truncated(String),
}

/// One comparison.
#[derive(Debug)]
pub(crate) struct Anchor {
    note: Note,
    /// The tree over all lines up to here; nothing where it cannot be known.
    tree: Option<Frontier>,
    /// The lines that the checkpoint covers are those that were read.
    agrees: bool,
    /// Why they could not be compared.
    unknown: Option<String>,
    told: bool,
}

impl Anchor {
    pub(crate) const fn new(note: Note) -> Self {
        Self { note, tree: None, agrees: false, unknown: None, told: false }
    }

    pub(crate) const fn note(&self) -> &Note {
        &self.note
    }

    /// Lines that the checkpoint covers.
    pub(crate) const fn size(&self) -> u64 {
        self.note.checkpoint.size
    }

    const fn checkpoint(&self) -> &Checkpoint {
        &self.note.checkpoint
    }

    /// The first line of what is read, before it counts.
    pub(crate) fn begin(&mut self, line: &Line) -> Option<Broken> {
        let seen = checkpoint::origin(&line.agent_id, self.checkpoint().log_id());
        if seen != self.checkpoint().origin {
            self.unknown = Some(format!(
                "whether these are the lines of the checkpoint: it is of another agent, {}",
                self.checkpoint().origin
            ));
            return None;
        }
        let log_id = line.details.get("log_id").and_then(Value::as_str);
        if let Some(log_id) = log_id.filter(|id| *id != self.checkpoint().log_id()) {
            self.told = true;
            let seen = self.checkpoint().log_id();
            return Some(Broken::Forked(format!(
                "this is the log {log_id}, and the checkpoint is of the log {seen}, which is not here"
            )));
        }
        self.tree = if line.seq == 0 { Some(Frontier::default()) } else { frontier_of(line) };
        if self.tree.is_none() {
            self.unknown = Some(format!(
                "whether these lines are those of the checkpoint: seq {} does not say what stood \
                 before it; a day's first line does",
                line.seq
            ));
        } else if line.seq > self.checkpoint().size {
            self.unknown = Some(format!(
                "whether these lines are those of the checkpoint: it covers {} lines, and the first \
                 here has seq {}",
                self.checkpoint().size,
                line.seq
            ));
        }
        self.compare()
    }

    /// The next line that follows.
    pub(crate) fn line(&mut self, seq: u64, leaf: Hash) -> Option<Broken> {
        match &mut self.tree {
            Some(tree) if tree.size() == seq => tree.push(leaf, |_| {}),
            Some(_) => self.tree = None, // a gap, which is told of already
            None => {}
        }
        self.compare()
    }

    fn compare(&mut self) -> Option<Broken> {
        let tree = self.tree.as_ref().filter(|tree| tree.size() == self.checkpoint().size)?;
        if tree.root() == self.checkpoint().root {
            self.agrees = true;
            return None;
        }
        self.told = true;
        let size = self.checkpoint().size;
        Some(Broken::Forked(format!(
            "the first {size} lines are not those that the checkpoint vouches for: some were changed \
             or exchanged, and signed again"
        )))
    }

    /// The log ends behind this line.
    pub(crate) fn end(&mut self, last: u64) -> Option<Broken> {
        let (lines, size) = (last.saturating_add(1), self.checkpoint().size);
        if self.told || lines >= size {
            return None;
        }
        self.told = true;
        Some(Broken::Truncated(format!(
            "it ends after {lines} lines, and {size} have been seen: {} are missing, or their files \
             were not given",
            size - lines
        )))
    }

    /// What is not known after all lines, in words.
    pub(crate) fn unknown(self, last: u64) -> Option<String> {
        if self.told {
            return None;
        }
        let size = self.checkpoint().size;
        if !self.agrees {
            return Some(self.unknown.unwrap_or_else(|| {
                "whether these lines are those of the checkpoint: some are missing here".to_owned()
            }));
        }
        let newer = last.saturating_add(1).saturating_sub(size);
        (newer > 0).then(|| {
            format!(
                "whether the last {newer} lines are all, and as they were written: the checkpoint is \
                 older (UNANCHORED({newer}))"
            )
        })
    }

    /// Whether it agrees with what was read.
    pub(crate) const fn agrees(&self) -> bool {
        self.agrees
    }
}
