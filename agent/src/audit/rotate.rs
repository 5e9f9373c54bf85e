//! The audit key gives way to another, in the log itself: the old key signs the line that names the new
//! one, the new one accepts all lines before it. A crash in between is ended at the next opening.

use std::{fs, io, path::Path, sync::Arc};

use jtnt_proto::{
    audit::{self as format, Event, SealedLine, Status},
    audit_keys::{MAX_ROTATIONS, acceptance_message, rotated},
    bytes::to_base64,
    hub::MAX_KEY_ROTATIONS,
    key::PublicKey,
};

use super::{AuditError, FILE_MODE, Record, files, log::Log, query::seq_of, recover::fault};
use crate::runtime::durable;

/// Every `key_rotated` line of this agent, in all its logs: what tells a hub that the key is another.
const FILE: &str = "rotations.jsonl";
const MAX_BYTES: u64 = (MAX_ROTATIONS as u64 + 1) * 4096;

/// The lines by which the key of the agent in this folder was replaced, oldest first.
///
/// # Errors
/// When they cannot be read.
pub fn rotations(dir: &Path) -> io::Result<Vec<String>> {
    match durable::read(&dir.join(FILE), MAX_BYTES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => Ok(String::from_utf8_lossy(&read?).lines().map(str::to_owned).collect()),
    }
}

/// Adds one, unless it is there.
fn remember(dir: &Path, raw: &[u8]) -> io::Result<()> {
    let mut all = rotations(dir)?;
    let line = String::from_utf8_lossy(raw).into_owned();
    if all.last() == Some(&line) {
        return Ok(());
    }
    all.push(line);
    let text: String = all.iter().map(|line| format!("{line}\n")).collect();
    durable::replace(&dir.join(FILE), text.as_bytes(), FILE_MODE)
}

/// Whether a line may be the last of a log that this key goes on with: it signed it, or came by it.
pub(super) fn is_end(line: &SealedLine<'_>, keys: &[PublicKey]) -> bool {
    let Some((current, before)) = keys.split_last() else { return false };
    let came = before.last().and_then(|before| rotated(before, &line.line.agent_id, line.raw));
    line.is_signed_by(current) || came == Some(*current)
}

impl Log {
    /// See [`super::Audit::rotate_key`].
    pub(super) fn rotate_key(&mut self) -> Result<(u64, PublicKey), AuditError> {
        if self.open.is_none() {
            let recovered = self.recover();
            self.settle(recovered)?;
        }
        let outcome = self.try_rotate();
        self.settle(outcome)
    }

    fn try_rotate(&mut self) -> Result<(u64, PublicKey), AuditError> {
        let dir = self.config.dir.clone();
        let told = rotations(&dir).map_err(|e| fault(&dir, &e))?;
        let before = told.len();
        let unseen = told.iter().filter_map(|raw| seq_of(raw.as_bytes()));
        if unseen.filter(|seq| *seq >= self.last.witnessed).count() >= MAX_KEY_ROTATIONS {
            let why = "the hub has not heard of the last new keys yet; wait for a heartbeat";
            return Err(AuditError(why.to_owned()));
        }
        if before >= MAX_ROTATIONS {
            return Err(AuditError(format!("its key was replaced {before} times; enrol anew")));
        }
        self.turn_day()?;
        let kept = |e: &io::Error| AuditError(format!("a new key cannot be kept: {e}"));
        let next = self.signer.propose().map_err(|e| kept(&e))?;
        let open = self.opened()?;
        let (seq, prev, public) = (open.size, format::prev_text(open.head), next.public_key());
        let message = acceptance_message(&self.config.agent_id, seq, &prev, &public);
        let mut record = Record::of(Event::KeyRotated)
            .detail("public_key", public.to_string())
            .detail("acceptance", to_base64(&next.sign(&message)));
        (record.status, record.origin) = (Some(Status::Success), Some("agent"));
        self.write(record)?;
        self.sync()?;
        self.last.urgent = seq + 1;
        // From here on the old key may write no line more.
        self.end_rotation()?;
        // What is believed of the tree must be signed by the key in force.
        self.checkpoint(Some(0))?;
        Ok((seq, public))
    }

    /// Puts a new key in force that the log's last line tells of, or forgets one that none does.
    pub(super) fn end_rotation(&self) -> Result<(), AuditError> {
        let dir = &self.config.dir;
        let mut told = None;
        if let Some(raw) = last_line(dir).map_err(|e| fault(dir, &e))? {
            let (signer, agent_id) = (Arc::clone(&self.signer), &self.config.agent_id);
            told = rotated(&signer.public_key(), agent_id, &raw);
            if told.is_some() {
                remember(dir, &raw).map_err(|e| fault(dir, &e))?;
            }
        }
        self.signer.settle(told).map_err(|e| AuditError(format!("its new key: {e}")))?;
        match told {
            Some(key) if key != self.signer.public_key() => Err(AuditError(format!(
                "its last line says that the key {key} took over, and that is not in keys/; restore it"
            ))),
            Some(_) | None => Ok(()),
        }
    }
}

/// The last whole line of the log.
fn last_line(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    for day in files::list(dir)?.into_iter().rev() {
        if fs::metadata(&day.path)?.len() == 0 {
            continue;
        }
        if let Some(last) = files::tail(&day.path)?.last {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{Mutex, MutexGuard},
    };

    use ed25519_dalek::{Signer as _, SigningKey};
    use jtnt_proto::{
        audit_verify::{Summary, Verdict, Verifier},
        bytes::Hash,
        checkpoint::{Checkpoint, Note},
    };

    use super::{
        super::tests::{DAY, Fixture, events, record, seen},
        *,
    };
    use crate::{
        audit::{Audit, reader},
        runtime::{clock::FixedClock, entropy::SeededEntropy, signer::AuditSigner},
    };

    /// Keys 7, 8, 9, ... one after another, and a disk that may refuse the next.
    #[derive(Debug, Default)]
    struct Keys(Mutex<Held>);

    #[derive(Debug, Clone, Default)]
    struct Held {
        before: u8,
        proposed: bool,
        refuses: bool,
    }

    impl Keys {
        fn held(&self) -> MutexGuard<'_, Held> {
            self.0.lock().unwrap()
        }
    }

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    #[derive(Debug)]
    struct One(u8);

    impl AuditSigner for One {
        fn public_key(&self) -> PublicKey {
            PublicKey::of(&key(self.0))
        }

        fn sign(&self, message: &[u8]) -> [u8; 64] {
            key(self.0).sign(message).to_bytes()
        }
    }

    impl AuditSigner for Keys {
        fn public_key(&self) -> PublicKey {
            One(7 + self.held().before).public_key()
        }

        fn sign(&self, message: &[u8]) -> [u8; 64] {
            One(7 + self.held().before).sign(message)
        }

        fn keys(&self) -> Vec<PublicKey> {
            (7..=7 + self.held().before).map(|n| One(n).public_key()).collect()
        }

        fn propose(&self) -> io::Result<Arc<dyn AuditSigner>> {
            let mut held = self.held();
            held.proposed = true;
            Ok(Arc::new(One(8 + held.before)))
        }

        fn adopt(&self) -> io::Result<()> {
            let mut held = self.held();
            if held.refuses {
                return Err(io::ErrorKind::StorageFull.into());
            }
            (held.before, held.proposed) = (held.before + 1, false);
            Ok(())
        }

        fn settle(&self, told: Option<PublicKey>) -> io::Result<()> {
            let held = self.held().clone();
            if held.proposed && told == Some(One(8 + held.before).public_key()) {
                return self.adopt();
            }
            self.held().proposed = false;
            Ok(())
        }
    }

    fn open(fixture: &Fixture, keys: &Arc<Keys>) -> Result<Audit, AuditError> {
        let clock = Arc::<FixedClock>::clone(&fixture.clock);
        let keys = Arc::<Keys>::clone(keys);
        Audit::open(fixture.config(), keys, clock, SeededEntropy::new(1).as_ref())
    }

    fn verified(fixture: &Fixture, key: u8, anchor: Option<&str>) -> Summary {
        let mut verifier = Verifier::new(Some(One(key).public_key()));
        if let Some(note) = anchor {
            verifier = verifier.with_anchor(Note::parse(note).unwrap(), Vec::new());
        }
        for file in reader::list(&fixture.dir()).unwrap() {
            verifier.begin_file(&file.name());
            let found = verifier.feed(&fs::read(&file.path).unwrap());
            assert_eq!(found, Vec::new());
        }
        assert_eq!(verifier.end(), Vec::new());
        verifier.finish()
    }

    #[tokio::test]
    async fn a_log_goes_on_under_another_key_and_verifies_from_each_of_its_days() {
        let (fixture, keys) = (Fixture::new(), Arc::new(Keys::default()));
        let audit = open(&fixture, &keys).unwrap();
        let mut notes = Vec::new();
        for day in 0..40 {
            audit.append(record(day)).await.unwrap();
            notes.push(audit.checkpoint(None).await.unwrap().note);
            if day % 20 == 10 {
                let (seq, new) = audit.rotate_key().await.unwrap();
                assert_eq!((audit.head().urgent, new), (seq + 1, keys.public_key()));
                audit.append(record(day)).await.unwrap();
            }
            fixture.clock.advance(DAY);
        }
        for note in &notes {
            // By the newest key, whoever signed the checkpoint.
            assert_eq!(verified(&fixture, 9, Some(note)).verdict, Verdict::Ok);
        }
        assert_eq!(verified(&fixture, 7, None).verdict, Verdict::Ok, "and by the first");
        seen(&audit).await;
        assert!(!audit.clean().await.unwrap().files.is_empty());
        drop(audit);
        // What is left begins under the second key, and its first line says so.
        let audit = open(&fixture, &keys).unwrap();
        let note = audit.checkpoint(None).await.unwrap().note;
        let summary = verified(&fixture, 9, Some(&note));
        assert_eq!(summary.verdict, Verdict::Ok, "{summary:?}");
        assert!(summary.first_seq > Some(0));
        // The hub follows from key to key.
        let told = rotations(&fixture.dir()).unwrap();
        let known = told
            .iter()
            .try_fold(One(7).public_key(), |known, line| rotated(&known, "agent", line.as_bytes()));
        assert_eq!((told.len(), known), (2, Some(keys.public_key())));
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_put_in_place_stops_the_log_until_it_can() {
        let (fixture, keys) = (Fixture::new(), Arc::new(Keys::default()));
        let audit = open(&fixture, &keys).unwrap();
        audit.append(record(0)).await.unwrap();
        keys.held().refuses = true;
        audit.rotate_key().await.unwrap_err();
        let refused = audit.append(record(1)).await.unwrap_err().to_string();
        assert!(refused.contains("its new key"), "the old one signs no more: {refused}");
        keys.held().refuses = false;
        audit.append(record(2)).await.unwrap();
        let told = events(&fixture.today());
        assert_eq!(told, ["genesis", "startup", "key_rotated", "startup"]);
        assert_eq!(verified(&fixture, 8, None).verdict, Verdict::Ok);
    }

    #[tokio::test]
    async fn a_crash_behind_the_line_ends_at_the_next_opening_and_a_lost_key_is_told() {
        for lost in [false, true] {
            let (fixture, keys) = (Fixture::new(), Arc::new(Keys::default()));
            let audit = open(&fixture, &keys).unwrap();
            audit.append(record(0)).await.unwrap();
            keys.held().refuses = true;
            audit.rotate_key().await.unwrap_err();
            drop(audit);
            fs::remove_file(fixture.dir().join(FILE)).unwrap();
            *keys.held() = Held { proposed: !lost, ..Held::default() };
            let opened = open(&fixture, &keys);
            if lost {
                let refused = opened.unwrap_err().to_string();
                assert!(refused.contains("took over") && refused.contains("restore"), "{refused}");
            } else {
                opened.unwrap().append(record(1)).await.unwrap();
                assert_eq!(verified(&fixture, 8, None).verdict, Verdict::Ok);
                assert_eq!(rotations(&fixture.dir()).unwrap().len(), 1);
            }
        }
    }

    #[tokio::test]
    async fn a_key_that_was_replaced_ends_no_log_any_more() {
        let (fixture, keys) = (Fixture::new(), Arc::new(Keys::default()));
        let audit = open(&fixture, &keys).unwrap();
        let early = audit.checkpoint(None).await.unwrap().note;
        let (seq, _) = audit.rotate_key().await.unwrap();
        let note = |key: u8, size: u64| {
            let seen = Note::parse(&early).unwrap().checkpoint;
            let other = Checkpoint { size, root: Hash([9; 32]), ..seen };
            other.sign(&One(key).public_key(), |text| One(key).sign(text))
        };
        // Whoever stole it can say what he likes of later lines.
        assert!(!audit.rolled_back(note(7, seq + 1000)).await.unwrap());
        assert!(!audit.rolled_back(note(6, 1)).await.unwrap(), "nobody's key");
        // Of its own time its word counts, and that of the key in force at any.
        assert!(audit.rolled_back(note(7, seq)).await.unwrap());
        assert!(!audit.rolled_back(note(7, 1)).await.unwrap(), "another log has begun");
    }
}
