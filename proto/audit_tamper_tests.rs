//! A log of five days, changed in every way, by somebody without and by somebody with its key. The
//! table in docs/AUDIT.md is what this prints.

use std::fmt::Write as _;

use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Map, json};

use super::*;
use crate::{
    audit::{leaf_hash, seal},
    bytes::to_base64,
    checkpoint::{Checkpoint, Note, origin},
    merkle::Frontier,
};

const LINES: u64 = 10_000;
const DAYS: u64 = 5;
/// Lines that came after the checkpoint.
const NEWER: u64 = 7;

/// Days of raw lines.
type Log = Vec<Vec<Vec<u8>>>;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Signs a line in the place where it shall stand.
fn line(seq: u64, prev: Hash, event: &str, details: Map<String, serde_json::Value>) -> Vec<u8> {
    let line = Line {
        timestamp: format!("2026-06-0{}T00:00:00Z", 1 + seq * DAYS / LINES).parse().unwrap(),
        kind: "audit".to_owned(),
        event: event.to_owned(),
        agent_id: "agent".to_owned(),
        job_id: Some(format!("job-{seq}")),
        command: Some("/bin/true".to_owned()),
        status: Some("success".to_owned()),
        user: Some("nobody".to_owned()),
        policy_version: Some(3),
        caller: None,
        origin: Some("hub".to_owned()),
        object: None,
        details,
        seq,
        prev: prev_text(prev),
    };
    seal(&line, |message| key().sign(message).to_bytes()).unwrap()
}

/// The log, as an agent writes one, from this line on; and its tree at each end of a day.
fn write(log: &mut Log, frontier: &mut Frontier, mut prev: Hash, to: u64, job: &str) -> Hash {
    for seq in frontier.size()..to {
        let day = seq * DAYS / LINES;
        let opens = seq > 0 && (seq - 1) * DAYS / LINES != day;
        if log.len() as u64 <= day {
            log.push(Vec::new());
        }
        let details = match seq {
            0 => {
                let key = PublicKey::of(&key()).to_string();
                json!({"log_id": "log1", "public_key": key})
            }
            _ if opens => {
                let peaks: Vec<_> = frontier.peaks().iter().map(|p| to_base64(&p.0)).collect();
                json!({"log_id": "log1", "frontier": peaks})
            }
            _ => json!({ "job": job }),
        };
        let event = match seq {
            0 => "genesis",
            _ if opens => "day_open",
            _ => "job_executed",
        };
        let raw = line(seq, prev, event, details.as_object().unwrap().clone());
        prev = leaf_hash(&raw);
        frontier.push(prev, |_| {});
        log.last_mut().unwrap().push(raw);
    }
    prev
}

fn whole() -> (Log, Note) {
    let (mut log, mut frontier) = (Log::new(), Frontier::default());
    let prev = write(&mut log, &mut frontier, ZERO, LINES - NEWER, "true");
    let checkpoint =
        Checkpoint { origin: origin("agent", "log1"), size: LINES - NEWER, root: frontier.root() };
    let public = PublicKey::of(&key());
    let note = checkpoint.sign(&public, |text| key().sign(text).to_bytes());
    write(&mut log, &mut frontier, prev, LINES, "true");
    (log, Note::parse(&note).unwrap())
}

/// What a check of these bytes comes to, and the first flaw.
fn check(files: &[Vec<u8>], anchor: Option<&Note>) -> (Verdict, String) {
    let mut verifier = Verifier::new(Some(PublicKey::of(&key())));
    if let Some(note) = anchor {
        verifier = verifier.with_anchor(note.clone(), Vec::new());
    }
    let mut found = Vec::new();
    for (n, file) in files.iter().enumerate() {
        verifier.begin_file(&format!("day-{n}"));
        found.extend(verifier.feed(file));
        found.extend(verifier.end_file());
    }
    found.extend(verifier.end());
    let flaw = found.first().map(|f| f.verdict.name().to_owned());
    (verifier.finish().verdict, flaw.unwrap_or_default())
}

fn bytes(log: &Log) -> Vec<Vec<u8>> {
    let file =
        |day: &Vec<Vec<u8>>| day.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
    log.iter().map(file).collect()
}

struct Attack {
    name: &'static str,
    log: Vec<Vec<u8>>,
    /// Nothing that is in the files can show it.
    needs_anchor: bool,
}

type Change<'a> = &'a dyn Fn(&mut Log);

fn attack(log: &Log, name: &'static str, needs_anchor: bool, change: Change<'_>) -> Attack {
    let mut changed = log.clone();
    change(&mut changed);
    Attack { name, log: bytes(&changed), needs_anchor }
}

/// By somebody without the key.
fn attacks_on_lines(log: &Log) -> Vec<Attack> {
    let mut all = Vec::new();
    let mut add = |name, change: Change<'_>| all.push(attack(log, name, false, change));
    add("a line is deleted", &|log| drop(log[2].remove(500)));
    add("a line is inserted", &|log| {
        let forged = String::from_utf8(log[1][7].clone()).unwrap().replace("true", "rm");
        log[2].insert(500, forged.into_bytes());
    });
    add("two lines change places", &|log| log[3].swap(10, 11));
    add("a line is duplicated", &|log| {
        let copy = log[1][100].clone();
        log[1].insert(101, copy);
    });
    for field in [
        "timestamp",
        "type",
        "event",
        "agent_id",
        "job_id",
        "command",
        "status",
        "user",
        "policy_version",
        "origin",
        "details",
        "seq",
        "prev",
        "signature",
    ] {
        let name: &'static str = Box::leak(format!("`{field}` is edited").into_boxed_str());
        add(name, &|log| {
            let mut raw = log[2][300].clone();
            let name = format!("\"{field}\":").into_bytes();
            let at = raw.windows(name.len()).position(|part| part == name).unwrap() + name.len();
            let byte = raw[at..].iter_mut().find(|byte| byte.is_ascii_alphanumeric()).unwrap();
            *byte = if *byte == b'1' { b'2' } else { b'1' };
            log[2][300] = raw;
        });
    }
    all
}

/// On whole days, and by whoever has the key.
fn attacks_on_days(log: &Log) -> Vec<Attack> {
    let mut all = Vec::new();
    let mut add = |name, needs, change: Change<'_>| all.push(attack(log, name, needs, change));
    add("a day in the middle is dropped", false, &|log| drop(log.remove(2)));
    add("two days change places", false, &|log| log.swap(1, 3));
    // A log whose beginning was pruned looks like that.
    add("the first line is deleted", true, &|log| drop(log[0].remove(0)));
    add("the first day is dropped", true, &|log| drop(log.remove(0)));
    add("the last day is dropped", true, &|log| drop(log.pop()));
    add("the last lines are cut off", true, &|log| {
        let day = log.last_mut().unwrap();
        day.truncate(day.len() - 100);
    });
    add("rolled back to yesterday", true, &|log| log.truncate(4));
    add("the tail is written anew with the key", true, &|log| {
        let last = log.last_mut().unwrap();
        last.truncate(last.len() - 50);
        let (mut frontier, mut prev) = (Frontier::default(), ZERO);
        for raw in log.iter().flatten() {
            prev = leaf_hash(raw);
            frontier.push(prev, |_| {});
        }
        write(log, &mut frontier, prev, LINES, "other");
    });
    add("one old line is exchanged, and all after it signed again", true, &|log| {
        log.truncate(1);
        log[0].truncate(100);
        let (mut frontier, mut prev) = (Frontier::default(), ZERO);
        for raw in log.iter().flatten() {
            prev = leaf_hash(raw);
            frontier.push(prev, |_| {});
        }
        write(log, &mut frontier, prev, LINES, "other");
    });
    add("the whole log is written anew with the key", true, &|log| {
        log.clear();
        write(log, &mut Frontier::default(), ZERO, LINES, "other");
    });
    add("all that was seen is pruned by a forged record, with the key", true, &|log| {
        let (mut frontier, mut prev) = (Frontier::default(), ZERO);
        let seen = usize::try_from(LINES - NEWER).unwrap();
        for raw in log.iter().flatten().take(seen) {
            prev = leaf_hash(raw);
            frontier.push(prev, |_| {});
        }
        let size = frontier.size();
        let peaks: Vec<_> = frontier.peaks().iter().map(|p| to_base64(&p.0)).collect();
        let details = |value: serde_json::Value| value.as_object().unwrap().clone();
        let opens = details(json!({"log_id": "log1", "frontier": peaks}));
        let opens = line(size, prev, "day_open", opens);
        let files = details(json!({"files": [{"first_seq": 0, "last_seq": size - 1}]}));
        let prunes = line(size + 1, leaf_hash(&opens), "prune", files);
        *log = vec![vec![opens, prunes]];
    });
    all
}

#[test]
fn no_attack_passes_where_a_checkpoint_was_kept() {
    let (log, anchor) = whole();
    let honest = bytes(&log);
    assert_eq!(check(&honest, None).0, Verdict::Ok);
    assert_eq!(check(&honest, Some(&anchor)).0, Verdict::Ok);
    let all: Vec<_> = attacks_on_lines(&log).into_iter().chain(attacks_on_days(&log)).collect();
    let (first, second) = all.split_at(all.len() / 2);
    let judged = |all: &[Attack]| {
        let both = |attack: &Attack| (check(&attack.log, None), check(&attack.log, Some(&anchor)));
        all.iter().map(both).collect::<Vec<_>>()
    };
    let verdicts = std::thread::scope(|scope| {
        let other = scope.spawn(|| judged(second));
        [judged(first), other.join().unwrap()].concat()
    });
    let mut table = String::new();
    for (Attack { name, needs_anchor, .. }, (alone, with)) in all.iter().zip(verdicts) {
        let cell = |(verdict, flaw): &(Verdict, String)| format!("{} {flaw}", verdict.name());
        let (one, other) = (cell(&alone), cell(&with));
        writeln!(table, "| {name} | {} | {} |", one.trim(), other.trim()).unwrap();
        assert_eq!(alone.0 == Verdict::Ok, *needs_anchor, "{name}: {alone:?}");
        assert_ne!(with.0, Verdict::Ok, "{name}: {with:?}");
    }
    println!("{table}");
    // And as if a hub had seen these very lines, a table beside them proves it.
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/AUDIT.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    assert!(docs.contains(table.trim_end()), "docs/AUDIT.md has another table than:\n{table}");
}

#[test]
fn a_cut_at_any_byte_of_the_last_lines_is_seen() {
    // Of the last lines alone: what is before them changes nothing.
    let (log, anchor) = whole();
    let day = log.last().unwrap();
    let last = &bytes(&vec![day[day.len() - 20..].to_vec()])[0];
    let from: usize = log.last().unwrap().iter().rev().take(3).map(|line| line.len() + 1).sum();
    let mut seen = 0;
    for cut in last.len() - from..last.len() {
        let (alone, flaw) = check(&[last[..cut].to_vec()], None);
        let ends_in_a_line = last[cut - 1] == b'\n';
        // The last lines are newer than the checkpoint, so a whole one less is a log of then.
        assert_eq!(alone == Verdict::Ok, ends_in_a_line, "{cut}: {flaw}");
        seen += u32::from(!ends_in_a_line);
    }
    assert!(seen > 900, "{seen}");
    let beyond: usize = log.last().unwrap().iter().rev().take(8).map(|line| line.len() + 1).sum();
    let cut = last[..last.len() - beyond].to_vec();
    assert_eq!(check(&[cut], Some(&anchor)), (Verdict::Tampered, "TRUNCATED".to_owned()));
}
