//! Checkpoints: how long an audit log is and what its tree's root is, as a signed note (C2SP
//! signed-note, tlog-checkpoint) by the agent's audit key, cosigned by witnesses (tlog-cosignature).
//!
//! ```text
//! jtnt-audit/0e64…/5f1c…
//! 1042
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
//!
//! — jtnt-audit/0e64…/5f1c… FQxT…
//! — jtnt-hub/37b1… Xm2B…
//! ```

use sha2::{Digest as _, Sha256};

use crate::{
    bytes::{Hash, from_base64, to_base64},
    identity::is_id,
    key::PublicKey,
};

/// The longest note.
pub const MAX_BYTES: usize = 8 * 1024;
/// Signatures in one note.
const MAX_SIGNATURES: usize = 16;
/// An Ed25519 signature over the text.
const ED25519: u8 = 0x01;
/// A cosignature of version 1: Ed25519 over time and text.
const COSIGNATURE: u8 = 0x04;
const DASH: &str = "\u{2014} ";

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Names the log: see [`origin`].
    pub origin: String,
    /// Lines.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
}

/// The name of an agent's log.
#[must_use]
pub fn origin(agent_id: &str, log_id: &str) -> String {
    format!("jtnt-audit/{agent_id}/{log_id}")
}

/// The name under which the hub of this root of roles cosigns.
#[must_use]
pub fn witness_name(root_id: &str) -> String {
    format!("jtnt-hub/{root_id}")
}

impl Checkpoint {
    /// The text that is signed, with its last newline.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, to_base64(&self.root.0))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
        // One number has one form, or one checkpoint would have two texts.
        let number: u64 = size.parse().ok().filter(|n: &u64| n.to_string() == size)?;
        let named = origin.strip_prefix("jtnt-audit/")?.split_once('/')?;
        let good = is_id(named.0) && is_id(named.1) && lines.next().is_none();
        let root = Hash(from_base64(root)?);
        good.then(|| Self { origin: origin.to_owned(), size: number, root })
    }

    /// The id in the log's name.
    #[must_use]
    pub fn log_id(&self) -> &str {
        self.origin.rsplit('/').next().unwrap_or_default()
    }

    /// The note with the signature of the log's own key.
    #[must_use]
    pub fn sign(&self, key: &PublicKey, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> String {
        let text = self.text();
        let signature = sign(text.as_bytes());
        let line = line(&self.origin, ED25519, key, &signature);
        format!("{text}\n{line}")
    }

    /// The line by which a witness of this name cosigns at this Unix time.
    #[must_use]
    pub fn cosign(
        &self,
        name: &str,
        key: &PublicKey,
        time: u64,
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> String {
        let signature = sign(self.cosigned_text(time).as_bytes());
        line(name, COSIGNATURE, key, &[&time.to_be_bytes()[..], &signature].concat())
    }

    fn cosigned_text(&self, time: u64) -> String {
        format!("cosignature/v1\ntime {time}\n{}", self.text())
    }
}

/// The hash of a key, its kind and its name (signed-note).
fn key_hash(name: &str, kind: u8, key: &PublicKey) -> [u8; 4] {
    let hash = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', kind])
        .chain_update(key.as_bytes())
        .finalize();
    let mut short = [0; 4];
    short.copy_from_slice(hash.split_at(4).0);
    short
}

fn line(name: &str, kind: u8, key: &PublicKey, signature: &[u8]) -> String {
    let bytes = [&key_hash(name, kind, key)[..], signature].concat();
    format!("{DASH}{name} {}\n", to_base64(&bytes))
}

/// The key of a log, as other implementations of signed notes take it: `NAME+HASH+KEY`.
#[must_use]
pub fn log_vkey(origin: &str, key: &PublicKey) -> String {
    vkey(origin, ED25519, key)
}

/// The key of a witness, as other implementations take it.
#[must_use]
pub fn witness_vkey(name: &str, key: &PublicKey) -> String {
    vkey(name, COSIGNATURE, key)
}

fn vkey(name: &str, kind: u8, key: &PublicKey) -> String {
    let hash = hex::encode(key_hash(name, kind, key));
    format!("{name}+{hash}+{}", to_base64(&[&[kind][..], key.as_bytes()].concat()))
}

/// Name and key of a witness, as [`witness_vkey`] tells them.
#[must_use]
pub fn parse_witness(vkey: &str) -> Option<(String, PublicKey)> {
    let mut parts = vkey.trim().splitn(3, '+');
    let (name, hash, raw) = (parts.next()?, parts.next()?, parts.next()?);
    let raw: [u8; 33] = from_base64(raw)?;
    let (kind, key) = raw.split_first()?;
    let key = PublicKey::from_bytes(key.try_into().ok()?)?;
    let good = *kind == COSIGNATURE && hash == hex::encode(key_hash(name, *kind, &key));
    good.then(|| (name.to_owned(), key))
}

/// A note as it was read; whose signatures hold is for who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it says.
    pub checkpoint: Checkpoint,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signature {
    name: String,
    hash: [u8; 4],
    bytes: Vec<u8>,
}

impl Note {
    /// Takes a note apart.
    ///
    /// # Errors
    /// When it is not one, in words.
    pub fn parse(note: &str) -> Result<Self, &'static str> {
        if note.len() > MAX_BYTES {
            return Err("it is longer than 8 KiB");
        }
        let (text, signatures) = note.split_once("\n\n").ok_or("it has no signature")?;
        let checkpoint = Checkpoint::parse(&format!("{text}\n"))
            .ok_or("its text is no checkpoint of an audit log: name, size, root")?;
        let lines = signatures.strip_suffix('\n').ok_or("its last line has no end")?;
        let signatures: Option<Vec<_>> = lines.split('\n').map(Signature::parse).collect();
        let signatures = signatures.ok_or("a line of it is no signature")?;
        if signatures.len() > MAX_SIGNATURES {
            return Err("it has more than 16 signatures");
        }
        Ok(Self { checkpoint, signatures })
    }

    /// Whether the log's own key signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let (origin, text) = (&self.checkpoint.origin, self.checkpoint.text());
        self.of(origin, ED25519, key).any(|signature| {
            let bytes: Option<&[u8; 64]> = signature.try_into().ok();
            bytes.is_some_and(|bytes| key.verifies(text.as_bytes(), bytes))
        })
    }

    /// Whether it says that this key, as the log's, has signed it.
    #[must_use]
    pub fn names(&self, key: &PublicKey) -> bool {
        self.of(&self.checkpoint.origin, ED25519, key).next().is_some()
    }

    /// When the witness of this name and key cosigned it last, in Unix seconds; nothing where it
    /// did not.
    #[must_use]
    pub fn cosigned_by(&self, name: &str, key: &PublicKey) -> Option<u64> {
        let times = self.of(name, COSIGNATURE, key).filter_map(|signature| {
            let (time, bytes) = signature.split_at_checked(8)?;
            let time = u64::from_be_bytes(time.try_into().ok()?);
            let bytes: &[u8; 64] = bytes.try_into().ok()?;
            let text = self.checkpoint.cosigned_text(time);
            key.verifies(text.as_bytes(), bytes).then_some(time)
        });
        times.max()
    }

    fn of(&self, name: &str, kind: u8, key: &PublicKey) -> impl Iterator<Item = &[u8]> {
        let hash = key_hash(name, kind, key);
        let ours = move |s: &&Signature| s.hash == hash && s.name == name;
        self.signatures.iter().filter(ours).map(|s| s.bytes.as_slice())
    }
}

impl Signature {
    fn parse(line: &str) -> Option<Self> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let (name, rest) = line.strip_prefix(DASH)?.split_once(' ')?;
        let bytes = STANDARD.decode(rest).ok()?;
        let (hash, bytes) = bytes.split_at_checked(4)?;
        let plain = !name.is_empty() && !name.contains(|c: char| c == '+' || c.is_whitespace());
        let (hash, bytes) = (hash.try_into().ok()?, bytes.to_vec());
        plain.then(|| Self { name: name.to_owned(), hash, bytes })
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    fn key(n: u8) -> (SigningKey, PublicKey) {
        let key = SigningKey::from_bytes(&[n; 32]);
        let public = PublicKey::of(&key);
        (key, public)
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: origin("agent-1", "log1"), size: 1042, root: Hash([7; 32]) }
    }

    fn signed() -> String {
        let (secret, public) = key(1);
        checkpoint().sign(&public, |text| secret.sign(text).to_bytes())
    }

    #[test]
    fn a_note_says_who_signed_what() {
        let (witness, public) = key(2);
        let name = witness_name("root-1");
        let line = checkpoint()
            .cosign(&name, &public, 1_800_000_000, |text| witness.sign(text).to_bytes());
        let note = Note::parse(&(signed() + &line)).unwrap();
        assert_eq!((note.checkpoint.size, note.checkpoint.log_id()), (1042, "log1"));
        assert_eq!(note.checkpoint, checkpoint());
        assert!(note.is_signed_by(&key(1).1) && !note.is_signed_by(&key(2).1));
        assert_eq!(note.cosigned_by(&name, &public), Some(1_800_000_000));
        assert_eq!(note.cosigned_by(&witness_name("other"), &public), None);
        assert_eq!(note.cosigned_by(&name, &key(1).1), None);
        assert_eq!(Note::parse(&signed()).unwrap().cosigned_by(&name, &public), None);
    }

    #[test]
    fn a_signature_counts_for_its_text_name_kind_and_time_alone() {
        let (secret, public) = key(1);
        let good = signed();
        for (from, to) in [("1042", "1043"), ("agent-1", "agent-2"), ("log1", "log2")] {
            let other = Note::parse(&good.replacen(from, to, 1)).unwrap();
            assert!(!other.is_signed_by(&public), "{to}");
        }
        // The same key as a witness signs something else.
        let name = checkpoint().origin;
        let line = checkpoint().cosign(&name, &public, 5, |text| secret.sign(text).to_bytes());
        let note = Note::parse(&format!("{}\n{line}", checkpoint().text())).unwrap();
        assert!(!note.is_signed_by(&public));
        assert_eq!(note.cosigned_by(&name, &public), Some(5));
        let bytes = checkpoint().cosign(&name, &public, 6, |_| [0; 64]);
        let mut forged = Note::parse(&format!("{}\n{bytes}", checkpoint().text())).unwrap();
        forged.signatures[0].bytes =
            [&6_u64.to_be_bytes()[..], &note.signatures[0].bytes[8..]].concat();
        assert_eq!(forged.cosigned_by(&name, &public), None, "another time");
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let good = signed();
        Note::parse(&good).unwrap();
        for bad in [
            String::new(),
            checkpoint().text(),
            good.replacen("1042", "01042", 1),
            good.replacen("1042", "+1042", 1),
            good.replacen("1042", "-1", 1),
            good.replacen("1042", "99999999999999999999", 1),
            good.replacen("jtnt-audit/", "other/", 1),
            good.replacen("agent-1/log1", "agent-1", 1),
            good.replacen("agent-1/log1", "agent-1/log1/x", 1),
            good.replacen("\n\n", "\nextension\n\n", 1),
            good.trim_end().to_owned(),
            good.replacen(DASH, "- ", 1),
            format!("{good}\n"),
            format!("{good}{DASH}name AAAA\n").replacen("name AAAA", "name AA", 1),
            good.clone() + &good.split_once("\n\n").unwrap().1.repeat(16),
            "x".repeat(MAX_BYTES + 1),
        ] {
            assert!(Note::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_told_as_others_take_them() {
        let vkey = log_vkey("example.com/foo", &key(1).1);
        let parts: Vec<_> = vkey.split('+').collect();
        assert_eq!((parts.len(), parts[0], parts[1].len()), (3, "example.com/foo", 8));
        let raw: [u8; 33] = from_base64(parts[2]).unwrap();
        assert_eq!((raw[0], &raw[1..]), (1, &key(1).1.as_bytes()[..]));
        let witness = witness_vkey("jtnt-hub/r", &key(2).1);
        assert_eq!(parse_witness(&witness), Some(("jtnt-hub/r".to_owned(), key(2).1)));
        assert_eq!(parse_witness(&vkey), None, "a log's");
        assert_eq!(parse_witness(&witness.replacen("jtnt-hub", "other", 1)), None);
    }
}
