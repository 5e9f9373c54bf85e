//! Checkpoints say what the lines say, whatever became of the tree's file.

use std::fs;

use jtnt_proto::{
    audit::leaf_hash,
    audit_verify::{Verdict, Verifier},
    checkpoint::Note,
    key::PublicKey,
    merkle::{self, Frontier},
};

use super::{tests::*, *};
use crate::runtime::durable;

fn key() -> PublicKey {
    Fixture::signer(7).public_key()
}

/// The root over all lines that the files hold, counted from nothing.
fn root_of_lines(fixture: &Fixture) -> (u64, Hash) {
    let mut frontier = Frontier::default();
    for day in reader::list(&fixture.dir()).unwrap() {
        for line in reader::Lines::of(&day.path).unwrap() {
            frontier.push(leaf_hash(&line.unwrap().bytes), |_| {});
        }
    }
    (frontier.size(), frontier.root())
}

fn said(offer: &Offer) -> (u64, Hash) {
    let note = Note::parse(&offer.note).unwrap();
    assert!(note.is_signed_by(&key()));
    assert_eq!(note.checkpoint.origin, format!("jtnt-audit/agent/{}", offer.log_id));
    (note.checkpoint.size, note.checkpoint.root)
}

/// The file of the only tree.
fn tree_file(fixture: &Fixture) -> PathBuf {
    let mut found = fs::read_dir(fixture.dir()).unwrap().map(|entry| entry.unwrap().path());
    found.find(|path| path.extension().is_some_and(|e| e == "tree")).unwrap()
}

#[tokio::test]
async fn each_one_continues_those_before_over_days_and_restarts() {
    let fixture = Fixture::new();
    let mut before = Vec::new();
    for n in 0..40 {
        let audit = fixture.open();
        for _ in 0..=n % 3 {
            audit.append(record(n)).await.unwrap();
        }
        let offer = audit.checkpoint(None).await.unwrap();
        assert_eq!(said(&offer), root_of_lines(&fixture));
        assert_eq!((offer.old_size, offer.size), (0, said(&offer).0));
        for (size, root) in &before {
            let since = audit.checkpoint(Some(*size)).await.unwrap();
            assert!(merkle::is_consistent((*size, *root), said(&offer), &since.proof));
        }
        before.push(said(&offer));
        if n % 5 == 0 {
            fixture.clock.advance(DAY);
        }
    }
    let beyond = before.last().unwrap().0 + 1;
    let refused = fixture.open().checkpoint(Some(beyond)).await.unwrap_err().to_string();
    assert!(refused.contains("a witness has seen"), "{refused}");
}

#[tokio::test]
async fn what_a_witness_has_seen_is_where_the_next_proof_begins() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let first = audit.checkpoint(None).await.unwrap();
    audit.witnessed(first.note.clone()).await.unwrap();
    audit.append(record(1)).await.unwrap();
    let second = audit.checkpoint(None).await.unwrap();
    assert_eq!(second.old_size, first.size);
    assert!(merkle::is_consistent(said(&first), said(&second), &second.proof));
    audit.witnessed(second.note.clone()).await.unwrap();
    let kept = || fs::read_dir(fixture.dir().join("checkpoints").join(&first.log_id)).unwrap();
    assert_eq!(kept().count(), 2, "our own, and one a day");
    fixture.clock.advance(DAY);
    audit.append(record(2)).await.unwrap();
    let third = audit.checkpoint(None).await.unwrap();
    audit.witnessed(third.note.clone()).await.unwrap();
    assert_eq!(kept().count(), 3);
    drop(audit);
    assert_eq!(fixture.open().checkpoint(None).await.unwrap().old_size, third.size);
    let other = third.note.replace("agent", "other");
    let refused = fixture.open().witnessed(other).await.unwrap_err().to_string();
    assert!(refused.contains("another log's"), "{refused}");
}

#[tokio::test]
async fn whatever_a_crash_left_of_the_tree_it_is_made_anew_from_the_lines() {
    let fixture = Fixture::new();
    {
        let audit = fixture.open();
        for n in 0..20 {
            audit.append(record(n)).await.unwrap();
        }
        audit.checkpoint(None).await.unwrap();
        fixture.clock.advance(DAY);
        for n in 0..20 {
            audit.append(record(n)).await.unwrap();
        }
    }
    let (lines, file) = (root_of_lines(&fixture), tree_file(&fixture));
    let whole = fs::read(&file).unwrap();
    for left in [0, 1, 31, 32, whole.len() / 2, whole.len() - 1, whole.len()] {
        // Cut, or as long as before and never written.
        for zeros in [0, whole.len() - left] {
            let torn = [&whole[..left], &vec![0; zeros]].concat();
            durable::replace(&file, &torn, 0o640).unwrap();
            let offer = fixture.open().checkpoint(None).await.unwrap();
            assert_eq!(said(&offer), lines, "{left} and {zeros}");
            assert_eq!(fs::read(&file).unwrap(), whole);
        }
    }
    fs::remove_file(&file).unwrap();
    fs::remove_dir_all(fixture.dir().join("checkpoints")).unwrap();
    assert_eq!(said(&fixture.open().checkpoint(None).await.unwrap()), lines);
}

#[tokio::test]
async fn days_that_were_removed_are_remembered_by_the_day_that_follows() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    let mut all = Vec::new();
    for n in 0..33 {
        audit.append(record(n)).await.unwrap();
        all.push(said(&audit.checkpoint(None).await.unwrap()));
        fixture.clock.advance(DAY);
    }
    audit.append(record(34)).await.unwrap();
    seen(&audit).await;
    audit.clean().await.unwrap();
    let anchor = audit.checkpoint(None).await.unwrap();
    let now = said(&anchor);
    drop(audit);
    // What was pruned, and said so, leaves a log that verifies against the checkpoint.
    let note = Note::parse(&anchor.note).unwrap();
    let mut verifier = Verifier::new(Some(key())).with_anchor(note, Vec::new());
    for day in reader::list(&fixture.dir()).unwrap() {
        verifier.begin_file(&day.name());
        assert_eq!(verifier.feed(&fs::read(&day.path).unwrap()), Vec::new());
        assert_eq!(verifier.end_file(), Vec::new());
    }
    assert_eq!(verifier.end(), Vec::new());
    let summary = verifier.finish();
    assert_eq!(summary.verdict, Verdict::Ok, "{summary:?}");
    assert!(summary.first_seq > Some(0));
    fs::remove_file(tree_file(&fixture)).unwrap();
    let audit = fixture.open();
    let offer = audit.checkpoint(Some(all[30].0)).await.unwrap();
    assert_eq!(said(&offer), now);
    assert!(merkle::is_consistent(all[30], now, &offer.proof));
}

#[tokio::test]
async fn what_nobody_can_prove_any_more_is_not_proven_wrongly() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    for n in 0..33 {
        audit.append(record(n)).await.unwrap();
        if n == 0 {
            let seen = audit.checkpoint(None).await.unwrap();
            audit.witnessed(seen.note).await.unwrap();
        }
        fixture.clock.advance(DAY);
    }
    audit.append(record(34)).await.unwrap();
    let early = audit.anchor("agent").unwrap();
    seen(&audit).await;
    audit.clean().await.unwrap();
    drop(audit);
    // The tree is lost together with the lines, what was kept of them begins later, and so does not what
    // a hub has that was put back itself.
    fs::remove_file(tree_file(&fixture)).unwrap();
    let early = Note::parse(&early).unwrap().checkpoint.size;
    for _restart in 0..2 {
        let audit = fixture.open();
        let refused = audit.checkpoint(Some(early)).await.unwrap_err().to_string();
        assert!(refused.contains("are gone"), "{refused}");
        assert_eq!(said(&audit.checkpoint(Some(0)).await.unwrap()).0, audit.head().size);
    }
}

#[tokio::test]
async fn a_day_that_another_key_opened_is_not_believed() {
    let fixture = Fixture::new();
    {
        let audit = fixture.open();
        audit.append(record(0)).await.unwrap();
        fixture.clock.advance(DAY);
        audit.append(record(1)).await.unwrap();
    }
    fs::remove_file(fixture.dir().join("audit-2026-06-01.log")).unwrap();
    fs::remove_file(tree_file(&fixture)).unwrap();
    let opened = fs::read_to_string(fixture.today()).unwrap();
    assert!(opened.contains("\"frontier\":["), "{opened}");
    let forged = opened.replacen("\"frontier\":[\"", "\"frontier\":[\"A", 1);
    durable::replace(&fixture.today(), forged.as_bytes(), 0o640).unwrap();
    let refused = fixture.open_as(7).unwrap_err().to_string();
    assert!(refused.contains("its first line"), "{refused}");
}

#[tokio::test]
async fn a_tree_that_cannot_be_had_is_told() {
    let fixture = Fixture::new();
    let audit = fixture.open();
    assert!(audit.head().provable);
    drop(audit);
    let file = tree_file(&fixture);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let audit = fixture.open();
    audit.append(record(1)).await.unwrap();
    assert!(!audit.head().provable);
    fs::remove_dir(&file).unwrap();
    audit.checkpoint(None).await.unwrap();
    audit.append(record(2)).await.unwrap();
    assert!(audit.head().provable);
}
