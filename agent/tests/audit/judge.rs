//! What must hold of an audit log after a crash, whatever crashed: it opens and goes on, nothing that
//! was promised is gone, and an auditor finds nothing.

use std::{collections::BTreeMap, fs, path::Path};

use jtnt_agent::audit::{Audit, Offer, reader};
use jtnt_proto::{
    audit::SealedLine,
    audit_verify::{Verdict, Verifier},
    bytes::Hash,
    checkpoint::Note,
    merkle,
};
use serde_json::Value;

use crate::work::{self, Calendar, Owed, Said};

type Outcome<T> = Result<T, String>;

/// Lines by number, and what stands behind the last whole one of each file.
#[derive(Debug, Default)]
struct Found {
    lines: BTreeMap<u64, Vec<u8>>,
    torn: Vec<Vec<u8>>,
}

/// What is on disk, before anybody has mended it.
fn look(data: &Path) -> Outcome<Found> {
    let mut found = Found::default();
    let dir = work::audit_dir(data);
    if !dir.is_dir() {
        return Ok(found);
    }
    for file in reader::list(&dir).map_err(|e| e.to_string())? {
        let bytes = fs::read(&file.path).map_err(|e| e.to_string())?;
        let written = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        let whole = bytes[..written].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        for raw in bytes[..whole].split_inclusive(|b| *b == b'\n') {
            let raw = &raw[..raw.len() - 1];
            let line = SealedLine::parse(raw).map_err(|e| format!("{}: {e}", file.name()))?;
            if found.lines.insert(line.line.seq, raw.to_vec()).is_some_and(|twin| twin != raw) {
                return Err(format!("two lines have seq {}", line.line.seq));
            }
        }
        if whole < bytes.len() {
            found.torn.push(bytes[whole..].to_vec());
        }
    }
    Ok(found)
}

/// Opens the log, goes on with it and holds it against what was told of it.
pub(crate) fn judge(data: &Path, said: &[Said]) -> Outcome<()> {
    let before = look(data)?;
    let owed = Owed::to(said);
    let offer = go_on(data, &owed)?;
    let after = look(data)?;
    is_all_there(&before, &after, &owed.lines)?;
    is_kept(data, &before, &owed)?;
    let first = verify(data, Note::parse(&work::cosign(&offer.note))?)?;
    match owed.anchor {
        // What it covers was removed, and said so; the proof stands for it.
        Some(anchor) if anchor.checkpoint.size < first => Ok(()),
        // A record of that which it does not cover leaves open where the first lines are.
        Some(anchor) => verdict(data, anchor, &[Verdict::Ok, Verdict::Incomplete]).map(drop),
        None => Ok(()),
    }
}

/// What a new agent does with it, on the day of the newest file and on the next.
fn go_on(data: &Path, owed: &Owed) -> Outcome<Offer> {
    let text = |e: jtnt_agent::audit::AuditError| e.to_string();
    let newest = reader::list(&work::audit_dir(data)).unwrap_or_default().pop();
    let day = newest.map_or(0, |file| work::number_of(file.day));
    let calendar = Calendar::at(day);
    let audit = work::open(data, &calendar).map_err(text)?;
    let (anchor, kept) = (owed.anchor.as_ref(), owed.kept);
    let seen = anchor.map_or(0, |note| note.checkpoint.size);
    let witnessed = audit.head().witnessed;
    if witnessed < kept || witnessed > seen {
        return Err(format!("{witnessed} lines are witnessed, not {kept} to {seen}"));
    }
    work::runtime().block_on(async {
        audit.append(work::record(1)).await.map_err(text)?;
        proven(&audit, anchor).await?;
        calendar.turn_to(day + 1);
        audit.append(work::record(2)).await.map_err(text)?;
        proven(&audit, anchor).await
    })
}

/// A checkpoint of all lines, which the hub takes.
async fn proven(audit: &Audit, anchor: Option<&Note>) -> Outcome<Offer> {
    let (old, old_root) =
        anchor.map_or((0, merkle::empty()), |note| (note.checkpoint.size, note.checkpoint.root));
    let offer = audit.checkpoint(Some(old)).await.map_err(|e| e.to_string())?;
    let now = Note::parse(&offer.note).unwrap().checkpoint;
    let grown = merkle::is_consistent((old, old_root), (now.size, now.root), &offer.proof);
    let size = now.size;
    if grown { Ok(offer) } else { Err(format!("no proof that {old} lines became {size}")) }
}

fn is_all_there(before: &Found, after: &Found, owed: &[(u64, Option<Hash>)]) -> Outcome<()> {
    let pruned: Vec<_> = after.lines.values().flat_map(|raw| pruned_by(raw)).collect();
    let excused = |seq: u64| pruned.iter().any(|(first, last)| (*first..=*last).contains(&seq));
    for (seq, hash) in owed {
        match after.lines.get(seq).map(|raw| SealedLine::parse(raw).unwrap().leaf_hash()) {
            Some(there) if hash.is_none_or(|hash| hash == there) => {}
            None if excused(*seq) => {}
            other => return Err(format!("line {seq} was promised, and is {other:?}")),
        }
    }
    for (seq, raw) in &before.lines {
        if after.lines.get(seq) != Some(raw) {
            return Err(format!("line {seq} was whole, and is no longer"));
        }
    }
    Ok(())
}

/// First and last lines of the files that a prune record names.
fn pruned_by(raw: &[u8]) -> Vec<(u64, u64)> {
    let line = SealedLine::parse(raw).unwrap().line;
    let files = line.details.get("files").and_then(Value::as_array).cloned().unwrap_or_default();
    let seqs = files.iter().map(|f| Some((f["first_seq"].as_u64()?, f["last_seq"].as_u64()?)));
    if line.event == "prune" { seqs.flatten().collect() } else { Vec::new() }
}

/// Torn bytes stand beside, as they were, and the log says so.
fn is_kept(data: &Path, before: &Found, owed: &Owed) -> Outcome<()> {
    let beside = fs::read_dir(work::audit_dir(data)).map_err(|e| e.to_string())?;
    let beside = beside.map(|file| file.unwrap().path());
    let beside: Vec<_> = beside
        .filter(|path| path.to_str().is_some_and(|p| p.contains(".log.torn-")))
        .map(|path| Hash::of(&fs::read(path).unwrap()))
        .collect();
    let lines = look(data)?.lines;
    let told = |hash: &Hash| {
        let mut lines = lines.values().map(|raw| SealedLine::parse(raw).unwrap().line);
        lines.any(|l| l.event == "recovered" && l.details["sha256"] == hash.to_string())
    };
    let torn: Vec<_> = before.torn.iter().map(|bytes| Hash::of(bytes)).collect();
    if let Some(lost) = torn.iter().chain(&owed.torn).find(|hash| !beside.contains(hash)) {
        return Err(format!("torn bytes are gone: {lost}"));
    }
    match torn.iter().chain(&owed.torn).find(|hash| !told(hash)) {
        Some(untold) => Err(format!("no line tells of torn bytes: {untold}")),
        None => Ok(()),
    }
}

/// An auditor with this checkpoint finds nothing; the first line's number.
fn verify(data: &Path, anchor: Note) -> Outcome<u64> {
    verdict(data, anchor, &[Verdict::Ok])
}

/// The same where other verdicts will do.
fn verdict(data: &Path, anchor: Note, good: &[Verdict]) -> Outcome<u64> {
    let mut verifier = Verifier::new(Some(work::key())).with_anchor(anchor, vec![work::witness()]);
    let mut found = Vec::new();
    for file in reader::list(&work::audit_dir(data)).map_err(|e| e.to_string())? {
        verifier.begin_file(&file.name());
        found.extend(verifier.feed(&fs::read(&file.path).map_err(|e| e.to_string())?));
        found.extend(verifier.end_file());
    }
    found.extend(verifier.end());
    let summary = verifier.finish();
    if found.is_empty() && good.contains(&summary.verdict) {
        return Ok(summary.first_seq.unwrap_or(0));
    }
    Err(format!("an auditor finds {found:?} {summary:?}"))
}
