//! A log as an agent writes it: each line with what a job's line holds, chained and signed.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signer as _, SigningKey};
use jtnt_agent::runtime::signer::AuditSigner;
use jtnt_proto::{
    audit::{Event, Line, ZERO, leaf_hash, prev_text, seal},
    bytes::Hash,
    key::PublicKey,
};
use serde_json::{Map, Value, json};

use crate::Outcome;

/// The audit key of all that is measured.
#[derive(Debug)]
pub(crate) struct Key(SigningKey);

impl Key {
    pub(crate) fn new() -> Self {
        Self(SigningKey::from_bytes(&[7; 32]))
    }
}

impl AuditSigner for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

/// A log in a file, and the key in another, as `audit verify` takes them.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) log: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
}

impl Written {
    /// So many lines, or as many as have so many bytes.
    pub(crate) fn new(dir: &Path, lines: u64, bytes: u64) -> Outcome<Self> {
        let key = Key::new();
        let mut written =
            Self { log: dir.join("audit.log"), key: dir.join("audit.pub"), lines: 0, bytes: 0 };
        File::create(&written.key)?.write_all(key.public_key().to_string().as_bytes())?;
        let mut file = BufWriter::new(File::create(&written.log)?);
        let mut prev = ZERO;
        while written.lines < lines && written.bytes < bytes {
            let raw = sealed(&key, written.lines, prev)?;
            prev = leaf_hash(&raw);
            file.write_all(&raw)?;
            file.write_all(b"\n")?;
            written.lines += 1;
            written.bytes += raw.len() as u64 + 1;
        }
        file.flush()?;
        Ok(written)
    }
}

fn sealed(key: &Key, seq: u64, prev: Hash) -> Outcome<Vec<u8>> {
    let (event, details) = if seq == 0 {
        (Event::Genesis, json!({"log_id": "log", "public_key": key.public_key()}))
    } else {
        (
            Event::JobExecuted,
            json!({"attempt": 1, "duration_ms": 12, "exit_code": 0, "stdout_bytes": 512}),
        )
    };
    let details = match details {
        Value::Object(details) => details,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    };
    let line = Line {
        timestamp: "2026-06-01T12:00:00.123456Z".parse()?,
        kind: "audit".to_owned(),
        event: event.name(),
        agent_id: "00000000-0000-8000-8000-000000000000".to_owned(),
        job_id: Some(format!("job-{seq}")),
        command: Some("/usr/bin/systemctl status nginx".to_owned()),
        status: Some("success".to_owned()),
        user: Some("nobody".to_owned()),
        policy_version: Some(1),
        caller: None,
        origin: Some("hub".to_owned()),
        object: None,
        details,
        seq,
        prev: prev_text(prev),
    };
    Ok(seal(&line, |message| key.sign(message))?)
}
