//! What leaves the log for somebody who has no agent: a proof of one line, and all of it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use jtnt_proto::{
    admin::v1::{self as pb, export_log_response::Part as Sent},
    audit_export::{ANCHOR, Exported, KEY, MANIFEST, Manifest, WITNESSES},
    audit_proof::Proof,
    bytes::Hash,
    checkpoint::{witness_name, witness_vkey},
};
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::{Deps, blocking};
use crate::{
    admin::error,
    audit::{query, reader},
    identity::Paths,
    runtime::durable,
};

/// One message holds so much of a file.
const CHUNK_BYTES: usize = 256 * 1024;
const MAX_KEY_BYTES: u64 = 4096;

/// The file that proves line `seq`.
pub(super) async fn prove(deps: &Deps, seq: u64) -> Result<String, Status> {
    let s = deps.overview.sources();
    let size = s.audit.head().size;
    if seq >= size {
        let why = format!("the log has {size} lines, the first is 0");
        return Err(error::not_found("NO_SUCH_LINE", why));
    }
    let proof = s.audit.prove(seq).await.map_err(error::internal)?;
    let dir = deps.audit_dir.clone();
    let line =
        blocking(move || query::line_of(&dir, seq)).await?.map_err(super::audit::unreadable)?;
    let line = line.ok_or_else(|| {
        error::not_found("PRUNED", format!("the file with line {seq} was removed by retention"))
    })?;
    Ok(Proof { line, index: seq, hashes: proof.hashes, note: proof.note }.text())
}

/// A file that is yet to be sent.
enum Part {
    Text(String, Vec<u8>),
    Log(String, PathBuf, u64),
}

/// An export under way.
pub(super) struct Export {
    parts: VecDeque<Part>,
    open: Option<Open>,
    manifest: Option<Manifest>,
}

struct Open {
    name: String,
    from: Box<dyn io::Read + Send>,
    sha256: Sha256,
    bytes: u64,
}

impl Export {
    /// The log as it is now. Blocks.
    pub(super) fn of(deps: &Deps) -> io::Result<Self> {
        let s = deps.overview.sources();
        // Before the files are looked at, or they might cover lines that come after that.
        let anchors = s.audit.anchors(&s.agent_id)?;
        let mut parts = VecDeque::new();
        let key = Paths { data_dir: s.data_dir.clone() }.audit_pub();
        parts.push_back(Part::Text(KEY.to_owned(), durable::read(&key, MAX_KEY_BYTES)?));
        if let Ok(identity) = &*s.identity.borrow() {
            let root = identity.keyring.root();
            let (name, role) = (witness_name(&root.root_id), &root.roles.witness);
            let keys = role.keyids.iter().filter_map(|id| root.keys.get(id));
            let keys: String = keys.map(|key| format!("{}\n", witness_vkey(&name, key))).collect();
            parts.push_back(Part::Text(WITNESSES.to_owned(), keys.into_bytes()));
        }
        if let Some((_, newest)) = anchors.last() {
            parts.push_back(Part::Text(ANCHOR.to_owned(), newest.clone().into_bytes()));
        }
        for (name, note) in anchors {
            parts.push_back(Part::Text(format!("checkpoints/{name}"), note.into_bytes()));
        }
        let failed = s.audit.head().error.is_some();
        for (day, bytes) in reader::snapshot(&deps.audit_dir, failed)? {
            parts.push_back(Part::Log(day.name(), day.path, bytes));
        }
        for log_id in s.audit.head().superseded {
            let folder = format!("superseded-{log_id}");
            for (name, note) in s.audit.anchors_of(&s.agent_id, &log_id)? {
                parts.push_back(Part::Text(format!("{folder}/{name}"), note.into_bytes()));
            }
            for (name, path, bytes) in reader::contents(&deps.audit_dir.join(&folder))? {
                parts.push_back(Part::Log(format!("{folder}/{name}"), path, bytes));
            }
        }
        let (agent_id, log_id) = (s.agent_id.clone(), s.audit.head().log_id);
        let manifest = Some(Manifest::new(agent_id, log_id, s.clock.now()));
        Ok(Self { parts, open: None, manifest })
    }

    /// The next piece; nothing behind the last.
    pub(super) fn next(&mut self) -> io::Result<Option<Sent>> {
        let Some(open) = &mut self.open else { return self.begin() };
        let mut piece = vec![0; CHUNK_BYTES];
        let read = open.from.read(&mut piece)?;
        piece.truncate(read);
        if read > 0 {
            open.sha256.update(&piece);
            open.bytes += read as u64;
            return Ok(Some(Sent::Chunk(piece)));
        }
        if let (Some(done), Some(manifest)) = (self.open.take(), &mut self.manifest) {
            let sha256 = Hash(done.sha256.finalize().into());
            manifest.files.push(Exported { name: done.name, bytes: done.bytes, sha256 });
        }
        self.begin()
    }

    /// The next file; the manifest is the last.
    fn begin(&mut self) -> io::Result<Option<Sent>> {
        let (name, from, bytes): (_, Box<dyn io::Read + Send>, u64) = match self.parts.pop_front() {
            Some(Part::Text(name, text)) => {
                let bytes = text.len() as u64;
                (name, Box::new(io::Cursor::new(text)), bytes)
            }
            Some(Part::Log(name, path, bytes)) => {
                (name, Box::new(File::open(&path)?.take(bytes)), bytes)
            }
            None => {
                let Some(manifest) = self.manifest.take() else { return Ok(None) };
                let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other)?;
                let bytes = text.len() as u64;
                (MANIFEST.to_owned(), Box::new(io::Cursor::new(text)), bytes)
            }
        };
        let file = pb::ExportFile { name: name.clone(), bytes };
        self.open = Some(Open { name, from, sha256: Sha256::new(), bytes: 0 });
        Ok(Some(Sent::File(file)))
    }
}
