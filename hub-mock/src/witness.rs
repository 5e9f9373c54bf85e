//! The hub as a witness of its agents' audit logs (C2SP tlog-witness, carried by the heartbeat): it
//! cosigns what it has seen grow, and remembers that before it answers. Lines that are not a
//! continuation of those get no cosignature, and the log is listed as one that shrank or forked.

use std::{collections::BTreeMap, path::Path};

use ed25519_dalek::{Signer as _, SigningKey};
use jiff::Timestamp;
use jtnt_proto::{
    audit_keys::{MAX_ROTATIONS, rotated},
    bytes::Hash,
    checkpoint::{self, Checkpoint, Note},
    envelope::Envelope,
    hub::{AuditHead, AuditRefusal, MAX_KEY_ROTATIONS},
    key::PublicKey,
    merkle,
    root::Root,
};
use serde::{Deserialize, Serialize};

use crate::{clock, error::HubError, hub::Core, operator, state::Event};

/// Logs that are remembered of one agent; a new one comes with a restored disk.
pub(crate) const MAX_LOGS: usize = 256;

/// What the hub has seen of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenLog {
    /// Lines.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
    /// The agent's checkpoint with the hub's cosignature.
    pub note: String,
    /// When.
    pub at: Timestamp,
    /// What was wrong once, for ever. What was seen may still grow: somebody showed another log, such
    /// as a clone of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// A log that is not the one that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// What is wrong.
    pub kind: AuditRefusal,
    /// The agent's checkpoint that shows it.
    pub note: String,
    /// When it came.
    pub at: Timestamp,
}

/// What a witness answers.
#[derive(Debug, Default)]
pub(crate) struct Word {
    /// The line that cosigns.
    pub(crate) cosignature: Option<String>,
    /// How much it has seen, where the proof does not begin there.
    pub(crate) has: Option<u64>,
    /// Why it does not cosign.
    pub(crate) refusal: Option<AuditRefusal>,
    /// The checkpoint that the agent itself signed, where its log has shrunk.
    pub(crate) seen: Option<String>,
}

/// What is to be done about a checkpoint.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Cosign,
    Behind(u64),
    Refuse(AuditRefusal),
}

fn judge(seen: Option<&SeenLog>, head: &AuditHead, shown: &Checkpoint) -> Judgement {
    let (size, root) = seen.map_or((0, merkle::empty()), |seen| (seen.size, seen.root));
    if shown.size < size {
        return Judgement::Refuse(AuditRefusal::Shrunk);
    }
    if head.old_size != Some(size) {
        return Judgement::Behind(size);
    }
    if merkle::is_consistent((size, root), (shown.size, shown.root), &head.proof) {
        Judgement::Cosign
    } else {
        Judgement::Refuse(AuditRefusal::Forked)
    }
}

/// The log that ends without a word when another begins: one that was put back is in trouble already.
fn unexplained(logs: &BTreeMap<String, SeenLog>) -> Option<String> {
    let (id, newest) = logs.iter().max_by_key(|(_, log)| log.at)?;
    newest.trouble.is_none().then(|| id.clone())
}

/// The hub's own key, and the name that goes with it.
#[derive(Debug)]
pub(crate) struct Witness {
    key: SigningKey,
    public: PublicKey,
    name: String,
}

impl Witness {
    /// With the key of this folder. Every version of the root of roles has the same id.
    pub(crate) fn open(dir: &Path, roots: &[&Envelope]) -> Result<Self, HubError> {
        let key = key(dir)?;
        let root = roots.iter().find_map(|e| serde_json::from_slice::<Root>(&e.payload.0).ok());
        let root = root.ok_or_else(|| HubError::refused("ROOT", "there is no root of roles"))?;
        let (public, name) = (PublicKey::of(&key), checkpoint::witness_name(&root.root_id));
        Ok(Self { key, public, name })
    }

    fn cosign(&self, checkpoint: &Checkpoint) -> String {
        let now = clock::unix_seconds(clock::now());
        checkpoint.cosign(&self.name, &self.public, now, |text| self.key.sign(text).to_bytes())
    }

    /// The key as other implementations take it.
    pub(crate) fn vkey(&self) -> String {
        checkpoint::witness_vkey(&self.name, &self.public)
    }
}

/// The witness's key, made at the first start.
pub(crate) fn key(dir: &Path) -> Result<SigningKey, HubError> {
    let path = dir.join("witness.key");
    if path.exists() { operator::read_key(&path) } else { operator::new_key(&path) }
}

impl Core {
    /// Takes up the audit keys that took the place of the one that is known.
    pub(crate) async fn rotate(&self, agent_id: &str, lines: &[String]) -> Result<(), HubError> {
        for line in lines.iter().take(MAX_KEY_ROTATIONS) {
            let seq = {
                let mut inner = self.lock();
                let agent = inner.state.agents.get(agent_id);
                let agent = agent.filter(|agent| agent.past_keys.len() < MAX_ROTATIONS);
                let known = agent.map(|agent| agent.audit_key);
                let key = known.and_then(|known| rotated(&known, agent_id, line.as_bytes()));
                let Some(key) = key else { continue };
                let agent_id = agent_id.to_owned();
                self.record(&mut inner, Event::AuditKeyRotated { agent_id, key })
            };
            self.durable(seq).await?;
        }
        Ok(())
    }

    /// Looks at an agent's checkpoint, and remembers it before the answer.
    pub(crate) async fn witness(&self, agent_id: &str, head: &AuditHead) -> Result<Word, HubError> {
        let Some(text) = &head.checkpoint else { return Ok(Word::default()) };
        let bad = Word { refusal: Some(AuditRefusal::BadCheckpoint), ..Word::default() };
        let Ok(note) = Note::parse(text) else { return Ok(bad) };
        let shown = &note.checkpoint;
        let named = shown.origin == checkpoint::origin(agent_id, &head.log_id);
        let (seq, word) = {
            let mut inner = self.lock();
            let Some(agent) = inner.state.agents.get(agent_id) else { return Ok(bad) };
            let known = agent.logs.contains_key(&head.log_id);
            if !known && agent.logs.len() >= MAX_LOGS {
                return Ok(bad);
            }
            let current = note.is_signed_by(&agent.audit_key);
            // A machine that was put back to before its key was replaced.
            let past = agent.past_keys.iter().any(|key| note.is_signed_by(key));
            if !named || shown.size != head.size || !(current || past) {
                return Ok(bad);
            }
            let seen = agent.logs.get(&head.log_id);
            let judgement = if current {
                judge(seen, head, shown)
            } else {
                Judgement::Refuse(AuditRefusal::Shrunk)
            };
            let replaced = if seen.is_none() { unexplained(&agent.logs) } else { None };
            let before = seen.map(|seen| seen.note.clone());
            let trouble = seen.and_then(|seen| seen.trouble.clone());
            let (agent_id, log_id) = (agent_id.to_owned(), head.log_id.clone());
            let (note, at) = (text.clone(), clock::now());
            match judgement {
                Judgement::Behind(has) => return Ok(Word { has: Some(has), ..Word::default() }),
                Judgement::Cosign => {
                    // Only a log that is taken up takes the place of another.
                    if let Some(log_id) = replaced {
                        let kind = AuditRefusal::Replaced;
                        let trouble = Trouble { kind, note: note.clone(), at };
                        let agent_id = agent_id.clone();
                        self.record(&mut inner, Event::LogInTrouble { agent_id, log_id, trouble });
                    }
                    let (size, root, line) = (shown.size, shown.root, self.witness.cosign(shown));
                    let seen = SeenLog { size, root, note: note + &line, at, trouble };
                    let seq = self.record(&mut inner, Event::LogSeen { agent_id, log_id, seen });
                    (seq, Word { cosignature: Some(line), ..Word::default() })
                }
                Judgement::Refuse(kind) => {
                    let word = Word { refusal: Some(kind), seen: before, ..Word::default() };
                    if trouble.is_some() {
                        return Ok(word);
                    }
                    let trouble = Trouble { kind, note, at };
                    let event = Event::LogInTrouble { agent_id, log_id, trouble };
                    (self.record(&mut inner, event), word)
                }
            }
        };
        self.durable(seq).await?;
        Ok(word)
    }
}

#[cfg(test)]
mod tests {
    use jtnt_proto::{audit::leaf_hash, merkle::Frontier};

    use super::*;

    fn tree(size: u64) -> (Vec<Hash>, Hash) {
        let (mut kept, mut frontier) = (Vec::new(), Frontier::default());
        for n in 0..size {
            frontier.push(leaf_hash(&n.to_be_bytes()), |hash| kept.push(hash));
        }
        (kept, frontier.root())
    }

    fn shown(size: u64, old: u64) -> (AuditHead, Checkpoint) {
        let (kept, root) = tree(size);
        let proof = merkle::consistency(&kept, old, size).unwrap().unwrap_or_default();
        let head = AuditHead {
            log_id: "log".to_owned(),
            size,
            head: Hash([0; 32]),
            checkpoint: None,
            old_size: Some(old),
            proof,
            key_rotations: Vec::new(),
        };
        (head, Checkpoint { origin: "o".to_owned(), size, root })
    }

    fn seen(size: u64) -> SeenLog {
        let at = Timestamp::UNIX_EPOCH;
        SeenLog { size, root: tree(size).1, note: String::new(), at, trouble: None }
    }

    #[test]
    fn only_what_grew_from_what_was_seen_is_cosigned() {
        let judged = |before: Option<&SeenLog>, (head, shown): (AuditHead, Checkpoint)| {
            judge(before, &head, &shown)
        };
        assert_eq!(judged(None, shown(7, 0)), Judgement::Cosign);
        assert_eq!(judged(None, shown(7, 3)), Judgement::Behind(0));
        let five = seen(5);
        assert_eq!(judged(Some(&five), shown(5, 5)), Judgement::Cosign, "nothing new");
        assert_eq!(judged(Some(&five), shown(9, 5)), Judgement::Cosign);
        assert_eq!(judged(Some(&five), shown(9, 4)), Judgement::Behind(5));
        assert_eq!(judged(Some(&five), shown(4, 4)), Judgement::Refuse(AuditRefusal::Shrunk));
        let other = SeenLog { root: Hash([1; 32]), ..five };
        assert_eq!(judged(Some(&other), shown(9, 5)), Judgement::Refuse(AuditRefusal::Forked));
        assert_eq!(judged(Some(&other), shown(5, 5)), Judgement::Refuse(AuditRefusal::Forked));
    }
}
