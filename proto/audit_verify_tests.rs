//! A log made by hand, then spoilt in every way the check claims to see.

use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Map, Value, json};

use super::*;
use crate::audit_keys::acceptance_message;
use crate::{
    audit::{leaf_hash, seal},
    bytes::to_base64,
};

pub(super) fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub(super) struct Log {
    key: SigningKey,
    pub(super) lines: Vec<Vec<u8>>,
}

impl Log {
    /// Genesis and `n` more lines.
    pub(super) fn of(n: u64) -> Self {
        let mut log = Self { key: key(1), lines: Vec::new() };
        log.genesis("L1");
        for i in 0..n {
            log.add(Event::JobExecuted, &json!({"n": i}));
        }
        log
    }

    pub(super) fn genesis(&mut self, id: &str) {
        let key = PublicKey::of(&self.key).to_string();
        self.push(0, ZERO, Event::Genesis, &json!({"log_id": id, "public_key": key}));
    }

    pub(super) fn add(&mut self, event: Event, details: &Value) {
        let seq = u64::try_from(self.lines.len()).unwrap();
        let prev = leaf_hash(self.lines.last().unwrap());
        self.push(seq, prev, event, details);
    }

    pub(super) fn push(&mut self, seq: u64, prev: Hash, event: Event, details: &Value) {
        let line = line(seq, prev, event, details.as_object().cloned().unwrap());
        self.lines.push(seal(&line, |m| self.key.sign(m).to_bytes()).unwrap());
    }

    pub(super) fn rotate(&mut self, new: SigningKey, acceptor: &SigningKey) {
        let seq = u64::try_from(self.lines.len()).unwrap();
        let prev = prev_text(leaf_hash(self.lines.last().unwrap()));
        let public = PublicKey::of(&new);
        let message = acceptance_message("agent-1", seq, &prev, &public);
        let acceptance = to_base64(&acceptor.sign(&message).to_bytes());
        let details = json!({"public_key": public.to_string(), "acceptance": acceptance});
        self.add(Event::KeyRotated, &details);
        self.key = new;
    }
}

fn line(seq: u64, prev: Hash, event: Event, details: Map<String, Value>) -> Line {
    Line {
        timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
        kind: "audit".into(),
        event: event.name(),
        agent_id: "agent-1".into(),
        job_id: Some(format!("job-{seq}")),
        command: Some("/usr/bin/uptime".into()),
        status: Some("success".into()),
        user: Some("nobody".into()),
        policy_version: Some(7),
        caller: None,
        origin: Some("hub".into()),
        object: Some("thing".into()),
        details,
        seq,
        prev: prev_text(prev),
    }
}

fn check(key: Option<PublicKey>, files: &[&[Vec<u8>]]) -> (Vec<Finding>, Summary) {
    let mut verifier = Verifier::new(key);
    let mut found = Vec::new();
    for (i, lines) in files.iter().enumerate() {
        verifier.begin_file(&format!("f{i}"));
        found.extend(lines.iter().flat_map(|l| verifier.line(l, true)).collect::<Vec<_>>());
    }
    (found, verifier.finish())
}

fn flaws(lines: &[Vec<u8>]) -> Vec<(Flaw, u64)> {
    let (found, summary) = check(Some(PublicKey::of(&key(1))), &[lines]);
    let wanted = if found.is_empty() { Verdict::Ok } else { Verdict::Tampered };
    assert_eq!(summary.verdict, wanted, "{found:?}");
    found.into_iter().map(|f| (f.verdict, f.line)).collect()
}

#[test]
fn a_log_as_written_is_ok_and_says_that_its_end_is_not_anchored() {
    let log = Log::of(5);
    let (found, summary) = check(Some(PublicKey::of(&key(1))), &[&log.lines[..3], &log.lines[3..]]);
    assert_eq!(found, []);
    assert_eq!((summary.lines, summary.files), (6, 2));
    assert_eq!((summary.first_seq, summary.last_seq), (Some(0), Some(5)));
    assert_eq!(summary.verdict, Verdict::Ok);
    assert_eq!(summary.unknown.len(), 1);
    assert!(summary.unknown[0].contains("after seq 5"), "{:?}", summary.unknown);
}

#[test]
fn bytes_may_be_cut_anywhere_on_their_way_in() {
    let log = Log::of(3);
    let bytes: Vec<u8> = log.lines.iter().flat_map(|l| [l.as_slice(), b"\n"].concat()).collect();
    for size in [1, 7, 100, bytes.len()] {
        let mut verifier = Verifier::new(Some(PublicKey::of(&key(1))));
        verifier.begin_file("f");
        let mut found: Vec<_> = bytes.chunks(size).flat_map(|c| verifier.feed(c)).collect();
        found.extend(verifier.end_file());
        assert_eq!(found, []);
        assert_eq!(verifier.finish().lines, 4);
    }
}

#[test]
fn a_deleted_line_is_a_gap() {
    let mut log = Log::of(5);
    log.lines.remove(2);
    assert_eq!(flaws(&log.lines), [(Flaw::SeqGap, 3)]);
}

#[test]
fn swapped_lines_are_seen() {
    let mut log = Log::of(5);
    log.lines.swap(2, 3);
    assert_eq!(flaws(&log.lines), [(Flaw::SeqGap, 3), (Flaw::Duplicate, 4)]);
}

#[test]
fn a_copied_line_is_a_duplicate_wherever_it_stands() {
    for to in [3, 5] {
        let mut log = Log::of(5);
        log.lines.insert(to, log.lines[2].clone());
        assert_eq!(flaws(&log.lines), [(Flaw::Duplicate, to as u64 + 1)]);
    }
}

#[test]
fn a_second_signed_line_of_the_same_number_is_a_fork() {
    let mut log = Log::of(3);
    let prev = leaf_hash(&log.lines[1]);
    log.push(2, prev, Event::Startup, &json!({}));
    assert_eq!(flaws(&log.lines), [(Flaw::Fork, 5)]);
}

#[test]
fn an_inserted_line_of_another_key_is_seen() {
    let mut log = Log::of(3);
    let stranger = line(2, leaf_hash(&log.lines[1]), Event::Startup, Map::new());
    log.lines.insert(2, seal(&stranger, |m| key(9).sign(m).to_bytes()).unwrap());
    assert_eq!(flaws(&log.lines)[0], (Flaw::BadSignature, 3));
}

#[test]
fn a_line_signed_by_the_key_but_not_chained_is_seen() {
    let mut log = Log::of(1);
    log.push(2, Hash([5; 32]), Event::Startup, &json!({}));
    assert_eq!(flaws(&log.lines), [(Flaw::Chain, 3)]);
    let mut first = Log { key: key(1), lines: Vec::new() };
    first.push(0, Hash([5; 32]), Event::Startup, &json!({}));
    assert_eq!(flaws(&first.lines), [(Flaw::Chain, 1)]);
}

#[test]
fn every_field_of_a_line_is_bound() {
    let whole = Log::of(3);
    let text = String::from_utf8(whole.lines[2].clone()).unwrap();
    for (from, to) in [
        ("2026-01-02", "2026-01-03"),
        (r#""audit""#, r#""other""#),
        ("job_executed", "job_rejected"),
        ("agent-1", "agent-2"),
        ("job-2", "job-3"),
        ("uptime", "reboot"),
        ("success", "denied_"),
        ("nobody", "root"),
        (r#""policy_version":7"#, r#""policy_version":8"#),
        (r#""hub""#, r#""local""#),
        ("thing", "other"),
        (r#""n":1"#, r#""n":2"#),
    ] {
        let mut log = Log::of(3);
        let edited = text.replacen(from, to, 1);
        assert_ne!(edited, text, "{from}");
        log.lines[2] = edited.into_bytes();
        assert_eq!(flaws(&log.lines), [(Flaw::BadSignature, 3), (Flaw::Chain, 4)], "{from}");
    }
    for (from, to) in [(r#""seq":2"#, r#""seq":9"#), (r#""prev":"#, r#""prev" :"#)] {
        let mut log = Log::of(3);
        log.lines[2] = text.replacen(from, to, 1).into_bytes();
        assert_eq!(flaws(&log.lines)[0], (Flaw::BadSignature, 3), "{from}");
    }
}

#[test]
fn a_cut_at_each_byte_of_the_last_line_is_a_torn_tail_or_a_valid_shorter_log() {
    let log = Log::of(2);
    let last = log.lines[2].clone();
    for cut in 0..=last.len() {
        let mut verifier = Verifier::new(Some(PublicKey::of(&key(1))));
        verifier.begin_file("f");
        assert_eq!(verifier.line(&log.lines[0], true), []);
        assert_eq!(verifier.line(&log.lines[1], true), []);
        assert_eq!(verifier.feed(&last[..cut]), []);
        let found = verifier.end_file();
        let summary = verifier.finish();
        assert_eq!(summary.lines, 2);
        if cut == 0 {
            assert_eq!((found.len(), summary.verdict), (0, Verdict::Ok));
        } else {
            assert_eq!(found[0].verdict, Flaw::TornTail);
            assert_eq!(summary.verdict, Verdict::Incomplete);
        }
    }
}

#[test]
fn a_torn_line_in_the_middle_of_a_log_is_tampering() {
    let log = Log::of(2);
    let mut verifier = Verifier::new(Some(PublicKey::of(&key(1))));
    verifier.begin_file("f0");
    verifier.line(&log.lines[0], true);
    verifier.line(&log.lines[1][..20], false);
    verifier.begin_file("f1");
    verifier.line(&log.lines[1], true);
    assert_eq!(verifier.finish().verdict, Verdict::Tampered);
}

#[test]
fn what_is_no_line_is_malformed_and_bounded() {
    let mut log = Log::of(1);
    log.lines.insert(1, b"hello".to_vec());
    log.lines.insert(2, Vec::new());
    assert_eq!(flaws(&log.lines), [(Flaw::Malformed, 2), (Flaw::Malformed, 3)]);
    let mut verifier = Verifier::new(None);
    verifier.begin_file("f");
    for _ in 0..10 {
        assert_eq!(verifier.feed(&[b'x'; 64 * 1024]), []);
    }
    assert!(verifier.partial.len() <= MAX_LINE_BYTES + 1);
    let found = verifier.feed(b"\n");
    assert!(found[0].message.contains("longer than"), "{found:?}");
}

#[test]
fn without_a_key_the_log_is_checked_against_itself_and_says_so() {
    let log = Log::of(2);
    let (found, summary) = check(None, &[&log.lines]);
    assert_eq!((found.len(), summary.verdict), (0, Verdict::Ok));
    assert!(summary.unknown.iter().any(|u| u.contains("taken from the log itself")));
}

#[test]
fn without_key_and_beginning_nothing_can_be_said() {
    let log = Log::of(4);
    let (found, summary) = check(None, &[&log.lines[2..]]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].verdict, Flaw::UnknownKey);
    assert_eq!(summary.verdict, Verdict::Incomplete);
    assert_eq!(check(None, &[]).1.verdict, Verdict::Incomplete);
}

#[test]
fn a_lone_file_proves_only_itself_and_a_prune_record_is_named() {
    let mut log = Log::of(4);
    log.add(Event::Prune, &json!({"files": ["audit-2026-01-01.log"]}));
    let (found, summary) = check(Some(PublicKey::of(&key(1))), &[&log.lines[2..]]);
    assert_eq!((found.len(), summary.verdict), (0, Verdict::Ok));
    assert!(summary.unknown[0].contains("prove only themselves"), "{:?}", summary.unknown);
    assert!(summary.unknown.iter().any(|u| u.contains("PRUNED")));
}

#[test]
fn a_rotation_that_both_keys_signed_hands_the_log_over() {
    let mut log = Log::of(2);
    log.rotate(key(2), &key(2));
    log.add(Event::Startup, &json!({}));
    for given in [1, 2] {
        let (found, summary) = check(Some(PublicKey::of(&key(given))), &[&log.lines]);
        assert_eq!((found.len(), summary.verdict), (0, Verdict::Ok), "{found:?}");
    }
}

#[test]
fn a_rotation_that_the_new_key_did_not_accept_changes_nothing() {
    let mut log = Log::of(2);
    log.rotate(key(2), &key(3));
    log.add(Event::Startup, &json!({}));
    assert_eq!(flaws(&log.lines), [(Flaw::BadSignature, 4), (Flaw::BadSignature, 5)]);
}

#[test]
fn a_log_of_another_key_is_not_vouched_for() {
    let log = Log::of(2);
    let (found, summary) = check(Some(PublicKey::of(&key(9))), &[&log.lines]);
    assert_eq!((found.len(), summary.verdict), (0, Verdict::Incomplete));
    assert!(summary.unknown.iter().any(|u| u.contains("UNKNOWN_KEY")));
    // A beginning that somebody else put before the lines does not make them his.
    let mut forged = Log { key: key(9), lines: Vec::new() };
    forged.genesis("L1");
    forged.lines.extend_from_slice(&log.lines[1..]);
    let (found, summary) = check(Some(PublicKey::of(&key(1))), &[&forged.lines]);
    assert_eq!((found[0].verdict, summary.verdict), (Flaw::BadSignature, Verdict::Tampered));
}

#[test]
fn another_log_after_the_first_is_told_from_a_fork() {
    let mut log = Log::of(2);
    log.genesis("L2");
    let (found, summary) = check(Some(PublicKey::of(&key(1))), &[&log.lines]);
    assert_eq!((found.len(), summary.verdict), (0, Verdict::Incomplete));
    assert!(summary.unknown.iter().any(|u| u.contains("another log begins")));
    let mut same = Log::of(2);
    same.genesis("L1");
    assert_eq!(flaws(&same.lines), [(Flaw::Duplicate, 4)]);
}
