//! `audit prove`, `audit export`, and reading both back where there is no agent.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jtnt_proto::{
    admin::v1::{self as pb, export_log_response::Part},
    audit_export::{
        ANCHOR, Exported, KEY, MANIFEST, MAX_MANIFEST_BYTES, Manifest, WITNESSES, is_plain,
    },
    audit_proof::{MAX_BYTES, Proof},
    audit_verify::{Finding, Flaw},
    bytes::Hash,
};
use sha2::{Digest as _, Sha256};
use tonic::transport::Channel;

use super::{
    policy::read,
    show,
    verify::{self, By},
};
use crate::{
    Exit, Failure,
    output::audit::{self as view, Report},
    run::{Outcome, Session},
};

type Client = pb::audit_service_client::AuditServiceClient<Channel>;

const MAX_PROOF_BYTES: u64 = MAX_BYTES as u64;
/// Keys of witnesses, one a line.
const MAX_WITNESSES_BYTES: u64 = 64 * 1024;

pub(super) async fn prove(session: &mut Session<'_>, seq: u64) -> Outcome {
    let mut client = Client::new(session.channel()?);
    let request = session.ask(pb::ProveLineRequest { seq });
    let answer = session.call(&format!("prove line {seq}"), client.prove_line(request)).await?;
    show(session, &view::Proven { seq, proof: &answer.proof }, |_| answer.proof.clone())?;
    Ok(Exit::Done)
}

/// `audit verify --proof`.
pub(super) fn check(session: &mut Session<'_>, path: &Path, by: &By) -> Outcome {
    let what = format!("take the proof from {}", path.display());
    let wrong = |why: &str| Failure::new(Exit::Usage, what.clone(), why);
    let text = String::from_utf8(read(path, MAX_PROOF_BYTES)?);
    let text = text.map_err(|_not_text| wrong("it is not text"))?;
    let proof = Proof::parse(&text).map_err(wrong)?;
    let (keys, witnesses) = (by.keys()?, by.witnesses()?);
    let (found, summary) = proof.check(&path.display().to_string(), &keys, &witnesses);
    let mut report = Report::of_line(&proof.line);
    found.into_iter().for_each(|finding| report.add(finding.into()));
    report.conclude_here(summary);
    verify::tell(session, &report)
}

pub(super) async fn export(session: &mut Session<'_>, out: &Path) -> Outcome {
    const WHAT: &str = "export the audit log";
    let mut client = Client::new(session.channel()?);
    let mut stream = session.call(WHAT, client.export_log(pb::ExportLogRequest {})).await?;
    let mut folder = Folder::create(out)?;
    while let Some(answer) = session.next(WHAT, &mut stream).await? {
        match answer.part {
            Some(Part::File(file)) => folder.begin(&file.name)?,
            Some(Part::Chunk(bytes)) => folder.write(&bytes)?,
            None => {}
        }
    }
    let done = folder.end()?;
    if !done.whole {
        let why = format!("the agent's answer ends too early; {} is not whole", out.display());
        return Err(Failure::new(Exit::Incomplete, WHAT, why).into());
    }
    let shown =
        view::Export { out: out.display().to_string(), files: done.files, bytes: done.bytes };
    show(session, &shown, |_| shown.text())?;
    Ok(Exit::Done)
}

/// A folder that is being filled.
struct Folder {
    dir: PathBuf,
    open: Option<(PathBuf, File)>,
    done: Filled,
}

#[derive(Debug, Default)]
struct Filled {
    files: u64,
    bytes: u64,
    /// The manifest, which comes last, is there.
    whole: bool,
}

impl Folder {
    /// Makes it; only its owner sees what the log says.
    fn create(dir: &Path) -> Result<Self, Failure> {
        DirBuilder::new().mode(0o700).create(dir).map_err(|error| {
            let failure = Failure::file("make the folder", dir, &error);
            if error.kind() == io::ErrorKind::AlreadyExists {
                return failure.advise("an export has a folder of its own: name a new one");
            }
            failure
        })?;
        Ok(Self { dir: dir.to_owned(), open: None, done: Filled::default() })
    }

    fn begin(&mut self, name: &str) -> Result<(), Failure> {
        self.close()?;
        if !is_plain(name) {
            let why = format!("it sends a file that is named {name:?}");
            return Err(Failure::new(Exit::Io, "take the agent's answer", why));
        }
        let path = self.dir.join(name);
        let fault = |error: io::Error| Failure::file("write", &path, &error);
        if let Some(parent) = path.parent().filter(|parent| *parent != self.dir) {
            match DirBuilder::new().mode(0o700).create(parent) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(fault(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path).map_err(fault)?;
        self.open = Some((path, file));
        self.done.files += 1;
        self.done.whole = name == MANIFEST;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some((path, file)) = &mut self.open else { return Ok(()) };
        file.write_all(bytes).map_err(|error| Failure::file("write", path, &error))?;
        self.done.bytes += u64::try_from(bytes.len()).unwrap_or(0);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Failure> {
        let Some((path, file)) = self.open.take() else { return Ok(()) };
        file.sync_all().map_err(|error| Failure::file("write", &path, &error))
    }

    fn end(mut self) -> Result<Filled, Failure> {
        self.close()?;
        Ok(self.done)
    }
}

/// An export that is to be checked: its logs, what to check them by, and what is wrong with its files.
pub(super) fn opened(dir: &Path, by: By) -> Result<(Vec<PathBuf>, By, Vec<Finding>), Failure> {
    let path = dir.join(MANIFEST);
    if let Err(error) = plain(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(Failure::file("read", &path, &error));
    }
    let json = read(&path, MAX_MANIFEST_BYTES).map_err(|failure| {
        failure.advise("a folder is checked as a whole where `audit export` made it")
    })?;
    let manifest = Manifest::parse(&json).map_err(|why| {
        Failure::new(Exit::Usage, format!("take the manifest from {}", path.display()), why)
    })?;
    let mut found = Vec::new();
    for file in &manifest.files {
        found.extend(compare(dir, file)?);
    }
    found.extend(unlisted(dir, &manifest)?);
    let there = |name: &str| {
        let listed = manifest.files.iter().any(|file| file.name == name);
        Some(dir.join(name)).filter(|path| listed && path.exists())
    };
    let logs = manifest.files.iter().filter(|file| file.name.starts_with("audit-"));
    let logs: Vec<_> = logs.map(|file| dir.join(&file.name)).filter(|path| path.exists()).collect();
    if logs.is_empty() && found.is_empty() {
        let why = "it holds no log; there is nothing to check";
        return Err(Failure::new(Exit::Incomplete, format!("check {}", dir.display()), why));
    }
    // The names end in the number of lines.
    let kept = manifest.files.iter().filter(|file| file.name.starts_with("checkpoints/"));
    let newest = kept.max_by_key(|file| file.name.rsplit('-').next().map(str::to_owned));
    let newest = || there(&newest?.name);
    let anchor = by.anchor.or_else(|| there(ANCHOR)).or_else(newest);
    let from_export = by.key.is_none();
    let key = by.key.or_else(|| there(KEY));
    let mut witness = by.witness;
    let witness_from_export = witness.is_empty();
    if witness.is_empty()
        && let Some(path) = there(WITNESSES)
    {
        let text = String::from_utf8_lossy(&read(&path, MAX_WITNESSES_BYTES)?).into_owned();
        witness.extend(text.lines().map(str::to_owned));
    }
    let from_export = [
        from_export.then_some("whose log this is: the key came with it; give --key to know"),
        witness_from_export.then_some(
            "who has seen the checkpoint: the witness's key came with it; give --witness",
        ),
    ];
    let from_export = from_export.into_iter().flatten().collect();
    Ok((logs, By { key, anchor, witness, from_export }, found))
}

/// Logs that somebody has put beside those of the export.
fn unlisted(dir: &Path, manifest: &Manifest) -> Result<Vec<Finding>, Failure> {
    let fault = |error| Failure::file("read", dir, &error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(fault)? {
        let name = entry.map_err(fault)?.file_name().to_string_lossy().into_owned();
        let listed = name == MANIFEST || manifest.files.iter().any(|file| file.name == name);
        let folder = manifest.files.iter().any(|f| f.name.split('/').next() == Some(&name));
        if !listed && !folder {
            let file = dir.join(&name).display().to_string();
            let message = "the manifest does not list it: it is no part of the export".to_owned();
            found.push(Finding { verdict: Flaw::Malformed, file, line: 0, seq: None, message });
        }
    }
    Ok(found)
}

/// What is the matter with a file, by the manifest.
fn compare(dir: &Path, listed: &Exported) -> Result<Option<Finding>, Failure> {
    let path = dir.join(&listed.name);
    let (verdict, message) = match digest(&path) {
        Ok((sha256, bytes)) if (sha256, bytes) == (listed.sha256, listed.bytes) => return Ok(None),
        Ok(_) => (Flaw::Malformed, "it is not the file that the manifest lists"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (Flaw::Truncated, "the manifest lists it, and it is not here")
        }
        Err(error) => return Err(Failure::file("read", &path, &error)),
    };
    let (file, message) = (path.display().to_string(), message.to_owned());
    Ok(Some(Finding { verdict, file, line: 0, seq: None, message }))
}

/// Opens a file of an export: a pipe among them would never end.
fn plain(path: &Path) -> io::Result<File> {
    if fs::metadata(path)?.is_file() {
        return File::open(path);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file"))
}

fn digest(path: &Path) -> io::Result<(Hash, u64)> {
    let (mut file, mut hash, mut bytes) = (plain(path)?, Sha256::new(), 0);
    let mut piece = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok((Hash(hash.finalize().into()), bytes));
        }
        hash.update(piece.get(..read).unwrap_or_default());
        bytes += u64::try_from(read).unwrap_or(0);
    }
}
