//! The log as an auditor finds it, after midnight, after crashes and after cleaning.

use std::{fs, path::Path, time::Duration};

use ed25519_dalek::{Signer as _, SigningKey};
use jtnt_proto::{
    audit::SealedLine,
    audit_verify::{Summary, Verifier},
    key::PublicKey,
};

use super::*;
use crate::{
    domain::retention::Profile,
    runtime::{clock::FixedClock, durable, entropy::SeededEntropy},
};

#[derive(Debug)]
pub(super) struct Key(SigningKey);

impl AuditSigner for Key {
    fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

pub(super) struct Fixture {
    dir: tempfile::TempDir,
    pub(super) clock: Arc<FixedClock>,
}

pub(super) const DAY: Duration = Duration::from_secs(86_400);

impl Fixture {
    pub(super) fn new() -> Self {
        let clock = FixedClock::at("2026-06-01T12:00:00Z");
        Self { dir: tempfile::tempdir().unwrap(), clock }
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.dir.path().join("audit")
    }

    pub(super) fn config(&self) -> Config {
        Config {
            dir: self.dir(),
            agent_id: "agent".into(),
            retention: Retention::default(),
            zone: TimeZone::UTC,
        }
    }

    pub(super) fn signer(key: u8) -> Arc<dyn AuditSigner> {
        Arc::new(Key(SigningKey::from_bytes(&[key; 32])))
    }

    pub(super) fn open_as(&self, key: u8) -> Result<Audit, AuditError> {
        let (config, signer) = (self.config(), Self::signer(key));
        let clock = Arc::<FixedClock>::clone(&self.clock);
        Audit::open(config, signer, clock, SeededEntropy::new(1).as_ref())
    }

    pub(super) fn open(&self) -> Audit {
        self.open_as(7).unwrap()
    }

    pub(super) fn files(&self) -> Vec<String> {
        reader::list(&self.dir()).unwrap().iter().map(reader::DayFile::name).collect()
    }

    pub(super) fn today(&self) -> PathBuf {
        reader::list(&self.dir()).unwrap().pop().unwrap().path
    }

    /// What an auditor's tool says of all files.
    pub(super) fn verify(&self) -> Summary {
        let mut verifier = Verifier::new(Some(PublicKey::of(&SigningKey::from_bytes(&[7; 32]))));
        for file in reader::list(&self.dir()).unwrap() {
            verifier.begin_file(&file.name());
            let mut found = verifier.feed(&fs::read(&file.path).unwrap());
            found.extend(verifier.end_file());
            assert!(found.is_empty(), "{found:?}");
        }
        verifier.finish()
    }
}

pub(super) fn record(n: u64) -> Record {
    Record::of(Event::Startup).detail("n", n)
}

/// A witness sees all lines.
pub(super) async fn seen(audit: &Audit) {
    let offer = audit.checkpoint(None).await.unwrap();
    audit.witnessed(offer.note).await.unwrap();
}

pub(super) fn events(path: &Path) -> Vec<String> {
    reader::Lines::of(path)
        .unwrap()
        .map(|raw| SealedLine::parse(&raw.unwrap().bytes).unwrap().line.event)
        .collect()
}

#[tokio::test]
async fn lines_are_chained_signed_and_counted_over_restarts() {
    let fixture = Fixture::new();
    for run in 0..3 {
        let audit = fixture.open();
        assert_eq!(audit.append(record(run)).await.unwrap(), run + 1, "0 is the genesis");
        assert_eq!(audit.head().size, run + 2);
    }
    let summary = fixture.verify();
    assert_eq!((summary.lines, summary.last_seq), (4, Some(3)));
    assert_eq!(events(&fixture.today()), ["genesis", "startup", "startup", "startup"]);
}

#[tokio::test]
async fn many_writers_get_one_line_each() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let all = (0..100).map(|n| audit.append(record(n)));
    let mut seqs: Vec<_> =
        futures_util::future::join_all(all).await.into_iter().map(Result::unwrap).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=100).collect::<Vec<_>>());
    assert_eq!(fixture.verify().lines, 101);
}

#[tokio::test]
async fn days_chain_and_a_clock_set_back_stays_in_the_newest() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    audit.append(record(0)).await.unwrap();
    fixture.clock.advance(DAY);
    audit.append(record(1)).await.unwrap();
    fixture.clock.jump_to("2026-05-01T00:00:00Z");
    audit.append(record(2)).await.unwrap();
    assert_eq!(fixture.files(), ["audit-2026-06-01.log", "audit-2026-06-02.log"]);
    assert_eq!(
        events(&fixture.dir().join("audit-2026-06-01.log")),
        ["genesis", "startup", "day_close"]
    );
    assert_eq!(events(&fixture.today()), ["day_open", "startup", "startup"]);
    drop(audit);
    let log_id = fixture.open().head().log_id;
    assert_eq!(log_id.len(), 32, "found again though the genesis is in another file");
    assert_eq!(fixture.verify().lines, 6);
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_kept_beside_and_the_log_goes_on() {
    let fixture = Fixture::new();
    {
        let audit = fixture.open();
        audit.append(record(0)).await.unwrap();
        audit.append(record(1)).await.unwrap();
    }
    let path = fixture.today();
    let whole = fs::read(&path).unwrap();
    let last_line = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for cut in last_line + 1..whole.len() {
        durable::replace(&path, &whole[..cut], 0o640).unwrap();
        assert_eq!(fixture.open().append(record(2)).await.unwrap(), 3, "cut at {cut}");
        assert_eq!(events(&path), ["genesis", "startup", "recovered", "startup"]);
        let n = cut - last_line;
        let kept = fixture.dir().join(format!("audit-2026-06-01.log.torn-{n}"));
        assert_eq!(fs::read(kept).unwrap(), whole[last_line..cut], "nothing is overwritten");
        assert_eq!(fixture.verify().lines, 4);
    }
}

#[tokio::test]
async fn blocks_that_a_power_cut_left_unwritten_are_set_aside_whatever_follows_them() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let path = fixture.today();
    let whole = fs::read(&path).unwrap();
    for zeros in [1, 4096, 300_000] {
        let hole = [vec![0; zeros], whole.clone()].concat();
        durable::replace(&path, &[whole.clone(), hole.clone()].concat(), 0o640).unwrap();
        assert_eq!(fixture.open().append(record(0)).await.unwrap(), 2);
        assert_eq!(events(&path), ["genesis", "recovered", "startup"]);
    }
    assert_eq!(fixture.verify().lines, 3);
}

#[tokio::test]
async fn a_crash_during_the_first_write_leaves_a_log_that_can_begin() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let path = fixture.today();
    let whole = fs::read(&path).unwrap();
    for left in [0, 1, whole.len() - 1] {
        // The log's id is remembered once its first line is durable.
        durable::remove(&fixture.dir().with_extension("id")).unwrap();
        durable::replace(&path, &whole[..left], 0o640).unwrap();
        drop(fixture.open());
        assert_eq!(events(&path).len(), if left == 0 { 1 } else { 2 });
        assert_eq!(fixture.verify().first_seq, Some(0));
    }
}

#[tokio::test]
async fn a_crash_at_midnight_leaves_days_that_chain() {
    let fixture = Fixture::new();
    drop(fixture.open());
    fixture.clock.advance(DAY);
    fixture.open().append(record(0)).await.unwrap();
    let second = fixture.today();
    let whole = fs::read(&second).unwrap();
    // The new file was made, and nothing or half a line is in it.
    for left in [0, 10] {
        durable::replace(&second, &whole[..left], 0o640).unwrap();
        for _restart in 0..2 {
            fixture.open().append(record(1)).await.unwrap();
        }
        assert_eq!(events(&second)[0], "day_open");
        fixture.verify();
    }
    // The day was closed, and the new file is not there.
    fs::remove_file(&second).unwrap();
    fixture.open().append(record(2)).await.unwrap();
    assert_eq!(events(&second), ["day_open", "startup"]);
    fixture.verify();
}

#[tokio::test]
async fn local_midnight_turns_the_file() {
    let fixture = Fixture::new();
    let zone = TimeZone::fixed(jiff::tz::offset(-5));
    fixture.clock.jump_to("2026-06-02T04:59:59Z");
    let config = Config { zone, ..fixture.config() };
    let clock = Arc::<FixedClock>::clone(&fixture.clock);
    let entropy = SeededEntropy::new(1);
    let audit = Audit::open(config, Fixture::signer(7), clock, entropy.as_ref()).unwrap();
    assert_eq!(fixture.files(), ["audit-2026-06-01.log"]);
    fixture.clock.advance(Duration::from_secs(1));
    audit.append(record(0)).await.unwrap();
    assert_eq!(fixture.files(), ["audit-2026-06-01.log", "audit-2026-06-02.log"]);
}

#[tokio::test]
async fn what_was_acknowledged_is_in_the_file_at_that_moment() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    for n in 0..50 {
        let seq = audit.append(record(n)).await.unwrap();
        assert_eq!(events(&fixture.today()).len() as u64, seq + 1);
    }
}

#[tokio::test]
async fn a_foreign_or_broken_end_is_no_place_to_go_on() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let refused = fixture.open_as(8).unwrap_err().to_string();
    assert!(refused.contains("not signed by this agent's audit key"), "{refused}");
    let path = fixture.today();
    let mut broken = fs::read(&path).unwrap();
    broken.extend_from_slice(b"{\"seq\":1}\n");
    durable::replace(&path, &broken, 0o640).unwrap();
    let refused = fixture.open_as(7).unwrap_err().to_string();
    assert!(refused.contains("mv "), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), broken, "nothing was touched");
}

#[tokio::test]
async fn two_writers_are_impossible() {
    let fixture = Fixture::new();
    let _first = fixture.open();
    let refused = fixture.open_as(7).unwrap_err().to_string();
    assert!(refused.contains("is held by the audit log's writer"), "{refused}");
}

#[tokio::test]
async fn a_name_makes_no_file_old() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    audit.append(record(0)).await.unwrap();
    drop(audit);
    fs::rename(fixture.today(), fixture.dir().join("audit-2020-01-01.log")).unwrap();
    let audit = fixture.open();
    audit.append(record(0)).await.unwrap();
    seen(&audit).await;
    let cleaned = audit.clean().await.unwrap();
    assert_eq!((cleaned.files.len(), cleaned.kept.len()), (0, 1));
}

#[tokio::test]
async fn a_log_that_is_gone_is_no_new_one() {
    let fixture = Fixture::new();
    let old = fixture.open().head().log_id;
    fs::remove_dir_all(fixture.dir()).unwrap();
    let audit = fixture.open_as(7).unwrap();
    assert_ne!(audit.head().log_id, old);
    let first = reader::first_line(&fixture.today()).unwrap().unwrap();
    let first = SealedLine::parse(&first).unwrap().line;
    assert_eq!(
        (&first.details["reason"], &first.details["previous"]["log_id"]),
        (&"LOST".into(), &old.into())
    );
    assert_eq!(events(&fixture.today()), ["genesis", "degraded"]);
    drop(audit);
    fixture.open();
    assert_eq!(events(&fixture.today()).len(), 2, "it is told once");
}

#[tokio::test]
async fn a_log_that_is_given_another_name_does_not_open() {
    let fixture = Fixture::new();
    let log_id = fixture.open().head().log_id;
    let text = fs::read_to_string(fixture.today()).unwrap();
    for other in ["ffff", "../../pwn"] {
        let forged = text.replace(&log_id, other);
        durable::replace(&fixture.today(), forged.as_bytes(), 0o640).unwrap();
        let refused = fixture.open_as(7).unwrap_err().to_string();
        assert!(refused.contains("line"), "{refused}");
    }
}

#[tokio::test]
async fn where_the_hub_is_to_hold_lines_none_goes_that_it_does_not() {
    let fixture = Fixture::new();
    let strict = Config { retention: Retention::of(Profile::Pci, 1), ..fixture.config() };
    let clock = Arc::<FixedClock>::clone(&fixture.clock);
    let entropy = SeededEntropy::new(1);
    let audit = Audit::open(strict, Fixture::signer(7), clock, entropy.as_ref()).unwrap();
    let mut ends = Vec::new();
    for _ in 0..100 {
        audit.append(record(0)).await.unwrap();
        ends.push(audit.head().size);
        fixture.clock.advance(DAY);
    }
    audit.append(record(0)).await.unwrap();
    seen(&audit).await;
    let log_id = audit.head().log_id;
    assert_eq!(audit.clean().await.unwrap().files.len(), 0, "three months, and not held");
    // Of the third day the hub lacks the line that closes it, and it is no hub that holds more.
    audit.held("other".into(), u64::MAX).await;
    audit.held(log_id.clone(), ends[2]).await;
    let cleaned = audit.clean().await.unwrap();
    assert_eq!(cleaned.files, ["audit-2026-06-01.log", "audit-2026-06-02.log"]);
    assert_eq!(cleaned.kept.len(), 8);
    audit.held(log_id, u64::MAX).await;
    assert_eq!(audit.clean().await.unwrap().files.len(), 8, "90 days stay");
    assert_eq!(audit.head().held, audit.head().size - 1, "as many as there were, and the record");
    assert_eq!(fixture.files().len(), 91);
}

#[tokio::test]
async fn exactly_the_days_of_the_retention_are_kept() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    for _ in 0..31 {
        audit.append(record(0)).await.unwrap();
        fixture.clock.advance(DAY);
    }
    audit.append(record(0)).await.unwrap();
    assert_eq!(fixture.files().len(), 32, "1 June to 2 July");
    durable::replace(&fixture.dir().join("audit-2026-06-01.log.torn-1"), b"{", 0o640).unwrap();
    let stays = audit.clean().await.unwrap();
    assert_eq!(stays.kept, ["audit-2026-06-01.log"], "nobody has seen it");
    assert!(stays.files.is_empty() && fixture.files().len() == 32);
    seen(&audit).await;
    let cleaned = audit.clean().await.unwrap();
    assert_eq!(cleaned.files, ["audit-2026-06-01.log"], "2 June is 30 days old and stays");
    assert!(!fixture.dir().join("audit-2026-06-01.log.torn-1").exists(), "it goes with its day");
    assert_eq!(audit.clean().await.unwrap(), Cleaned::default(), "nothing twice");
    assert_eq!(events(&fixture.today()), ["day_open", "startup", "prune"]);
    let last = reader::Lines::of(&fixture.today()).unwrap().last().unwrap().unwrap();
    let pruned = &SealedLine::parse(&last.bytes).unwrap().line.details["files"][0];
    assert_eq!((&pruned["first_seq"], &pruned["last_seq"]), (&0.into(), &2.into()));
    drop(audit);
    assert_eq!(fixture.open().append(record(1)).await.unwrap(), audit_size(&fixture) - 1);
}

fn audit_size(fixture: &Fixture) -> u64 {
    let last = reader::Lines::of(&fixture.today()).unwrap().last().unwrap().unwrap();
    SealedLine::parse(&last.bytes).unwrap().line.seq + 1
}

#[tokio::test]
async fn a_record_that_is_too_long_is_cut_not_lost() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let mut long = record(0).detail("output", "x".repeat(100_000));
    long.command = Some("é".repeat(50_000));
    audit.append(long).await.unwrap();
    audit.append(record(1)).await.unwrap();
    assert_eq!(fixture.verify().lines, 3);
}

#[test]
fn files_with_other_names_are_not_the_log() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["audit-2026-6-1.log", "audit-2026-06-01.log.torn-3", "audit-.log", "audit.pub"] {
        durable::replace(&dir.path().join(name), b"x", 0o640).unwrap();
    }
    assert!(reader::list(dir.path()).unwrap().is_empty());
}
