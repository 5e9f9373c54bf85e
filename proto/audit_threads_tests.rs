//! However many threads check a log, and however its bytes arrive, the verdict is that of who reads
//! it line by line.

use std::sync::LazyLock;

use ed25519_dalek::Signer as _;
use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::{
    tests::{Log, key},
    *,
};
use crate::{
    audit::leaf_hash,
    checkpoint::{Checkpoint, origin},
    merkle,
};

/// Two rotations and a prune record; the second rotation hands the log to key 3.
static HONEST: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut log = Log::of(30);
    log.rotate(key(2), &key(2));
    for i in 0..40 {
        log.add(Event::JobExecuted, &json!({"n": i}));
    }
    log.add(Event::Prune, &json!({"files": [{"name": "audit-2026-01-01.log", "last_seq": 3}]}));
    log.rotate(key(3), &key(3));
    for i in 0..20 {
        log.add(Event::Startup, &json!({"n": i}));
    }
    log.lines
});

/// What somebody does to the lines, wherever the numbers lead.
#[derive(Debug, Clone)]
enum Change {
    Delete(usize),
    Copy(usize, usize),
    Swap(usize, usize),
    Flip(usize, usize),
    Junk(usize, Vec<u8>),
    TooLong(usize, usize),
    AnotherLog,
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<usize>;
    prop_oneof![
        at().prop_map(Change::Delete),
        (at(), at()).prop_map(|(from, to)| Change::Copy(from, to)),
        (at(), at()).prop_map(|(a, b)| Change::Swap(a, b)),
        (at(), at()).prop_map(|(line, byte)| Change::Flip(line, byte)),
        (at(), vec(any::<u8>(), 0..300)).prop_map(|(to, bytes)| Change::Junk(to, bytes)),
        (at(), 0..3_usize).prop_map(|(to, more)| Change::TooLong(to, more)),
        Just(Change::AnotherLog),
    ]
}

impl Change {
    fn apply(&self, lines: &mut Vec<Vec<u8>>) {
        let n = lines.len();
        match self {
            Self::Junk(to, bytes) => lines.insert(to % (n + 1), bytes.clone()),
            Self::TooLong(to, more) => {
                lines.insert(to % (n + 1), vec![b'x'; MAX_LINE_BYTES - 1 + more]);
            }
            Self::AnotherLog => {
                let mut other = Log::of(0);
                other.lines.clear();
                other.genesis("L2");
                lines.extend(other.lines);
            }
            _ if n == 0 => {}
            Self::Delete(at) => drop(lines.remove(at % n)),
            Self::Copy(from, to) => {
                let copy = lines[from % n].clone();
                lines.insert(to % (n + 1), copy);
            }
            Self::Swap(a, b) => lines.swap(a % n, b % n),
            Self::Flip(line, byte) => {
                let line = &mut lines[line % n];
                if let Some(at) = byte.checked_rem(line.len()) {
                    line[at] ^= 1;
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Case {
    /// So many of the honest lines, from this one.
    lines: (usize, usize),
    changes: Vec<Change>,
    /// A second file begins behind so many bytes, if there are as many.
    second: usize,
    /// So many bytes are cut from the end.
    cut: usize,
    key: Option<u8>,
    anchor: Option<usize>,
    threads: usize,
    sizes: Vec<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let lines = (prop_oneof![3 => Just(0_usize), 1 => 0..60_usize], 0..120_usize);
    let changes = vec(change(), 0..4);
    let cut = prop_oneof![Just(0_usize), 1..2000_usize];
    let key = prop_oneof![Just(None), Just(Some(1)), Just(Some(2)), Just(Some(3)), Just(Some(9))];
    let anchor = prop_oneof![Just(None), (1..90_usize).prop_map(Some)];
    let size = prop_oneof![1..50_usize, 1..3000_usize, Just(1 << 20)];
    (lines, changes, 0..60_000_usize, cut, key, anchor, 1..6_usize, vec(size, 1..4)).prop_map(
        |(lines, changes, second, cut, key, anchor, threads, sizes)| Case {
            lines,
            changes,
            second,
            cut,
            key,
            anchor,
            threads,
            sizes,
        },
    )
}

impl Case {
    fn files(&self) -> [Vec<u8>; 2] {
        let (from, n) = self.lines;
        let mut lines: Vec<_> = HONEST.iter().skip(from).take(n).cloned().collect();
        self.changes.iter().for_each(|change| change.apply(&mut lines));
        let mut first =
            lines.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect::<Vec<_>>();
        first.truncate(first.len().saturating_sub(self.cut));
        let second = first.split_off(self.second.min(first.len()));
        [first, second]
    }

    fn verifier(&self) -> Verifier {
        let verifier = Verifier::new(self.key.map(|n| PublicKey::of(&key(n))));
        let Some(size) = self.anchor else { return verifier };
        let mut tree = merkle::Frontier::default();
        HONEST.iter().take(size).for_each(|line| tree.push(leaf_hash(line), |_| {}));
        let origin = origin("agent-1", "L1");
        let note = Checkpoint { origin, size: tree.size(), root: tree.root() }
            .sign(&PublicKey::of(&key(3)), |text| key(3).sign(text).to_bytes());
        verifier.with_anchor(Note::parse(&note).unwrap(), Vec::new())
    }

    fn line_by_line(&self) -> (Vec<Finding>, Summary) {
        let (mut verifier, mut found) = (self.verifier(), Vec::new());
        for (n, file) in self.files().iter().enumerate() {
            verifier.begin_file(&format!("f{n}"));
            for part in file.split_inclusive(|byte| *byte == b'\n') {
                let whole = part.strip_suffix(b"\n");
                let most = &part[..part.len().min(MAX_LINE_BYTES + 1)];
                found.extend(verifier.line(whole.unwrap_or(most), whole.is_some()));
            }
        }
        found.extend(verifier.end());
        (found, verifier.finish())
    }

    fn with_threads(&self) -> (Vec<Finding>, Summary) {
        let threads = self.threads.try_into().unwrap();
        let (mut verifier, mut found) = (self.verifier(), Vec::new());
        for (n, file) in self.files().iter().enumerate() {
            verifier.begin_file(&format!("f{n}"));
            let (mut rest, mut sizes) = (&file[..], self.sizes.iter().cycle());
            while !rest.is_empty() {
                let size = rest.len().min(*sizes.next().unwrap());
                let (taken, more) = verifier.feed_with(threads, &rest[..size]);
                found.extend(more);
                rest = &rest[taken..];
            }
            found.extend(verifier.end_file());
        }
        found.extend(verifier.end());
        (found, verifier.finish())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn threads_and_the_way_of_the_bytes_change_nothing(case in case()) {
        prop_assert_eq!(case.with_threads(), case.line_by_line());
    }
}

fn honest(sizes: usize) -> Case {
    Case {
        lines: (0, HONEST.len()),
        changes: Vec::new(),
        second: usize::MAX,
        cut: 0,
        key: Some(1),
        anchor: None,
        threads: 4,
        sizes: vec![sizes],
    }
}

#[test]
fn rotations_in_the_middle_of_what_is_examined_at_once_are_followed() {
    for key in [None, Some(1), Some(2), Some(3)] {
        for size in [1, 100, 1 << 20] {
            let (found, summary) = Case { key, ..honest(size) }.with_threads();
            assert_eq!((found, summary.verdict), (vec![], Verdict::Ok), "{key:?}, {size}");
        }
    }
}

#[test]
fn very_many_lines_are_taken_in_turns() {
    let mut verifier = Verifier::new(None);
    verifier.begin_file("f");
    let bytes = vec![b'\n'; MAX_AHEAD + 10];
    let (taken, found) = verifier.feed_with(2.try_into().unwrap(), &bytes);
    assert_eq!((taken, found.len()), (MAX_AHEAD, MAX_AHEAD));
    assert_eq!(verifier.feed(&bytes).len(), MAX_AHEAD + 10);
    assert_eq!(verifier.end_file(), []);
}

#[test]
fn nothing_is_nothing_and_a_torn_tail_is_one() {
    for threads in [1, 4] {
        let (found, summary) = Case { lines: (0, 0), threads, ..honest(100) }.with_threads();
        assert_eq!((found, summary.verdict, summary.lines), (vec![], Verdict::Incomplete, 0));
        let torn = Case { cut: 1, threads, ..honest(1 << 20) };
        let (found, summary) = torn.with_threads();
        assert_eq!(found.iter().map(|f| f.verdict).collect::<Vec<_>>(), [Flaw::TornTail]);
        assert_eq!((found, summary), torn.line_by_line());
    }
}
