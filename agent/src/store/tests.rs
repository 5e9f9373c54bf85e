//! The journal against a naive model, across restarts and copies taken while it is live.

use std::collections::{BTreeMap, BTreeSet};

use jtnt_proto::hub::Outcome;
use proptest::prelude::*;

use super::*;
use crate::runtime::clock::FixedClock;

pub(super) fn id(n: u8) -> JobId {
    JobId::try_from(format!("job-{n}")).unwrap()
}

pub(super) fn hours(n: i64) -> Timestamp {
    "2026-06-01T00:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_hours(n)
}

pub(super) fn entry(n: u8, state: State) -> Entry {
    Entry {
        job_id: id(n),
        kind: "exec".into(),
        command: "/usr/bin/true".into(),
        envelope: None,
        state,
        attempt: 1,
        received_at: hours(0),
        expires_at: hours(24),
        started_at: None,
        finished_at: state.is_terminal().then(|| hours(1)),
        duration_ms: None,
        process: None,
        exit_code: None,
        signal: None,
        reason: None,
        message: None,
        user: None,
        policy_version: 1,
        rule: None,
        monitored: false,
        enforcement: None,
        stdout_bytes: 0,
        stderr_bytes: 0,
        result: None,
        result_sha256: None,
        reported: false,
        parts: Vec::new(),
        dropped: None,
        delivered: false,
    }
}

pub(super) fn open(path: &Path) -> Result<Journal, StoreError> {
    Ok(Journal::open(path, FixedClock::at("2026-06-01T00:00:00Z"))?)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

#[tokio::test]
async fn an_id_is_used_once_even_after_a_restart_and_a_prune() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobs.redb");
    let done = Entry { delivered: true, ..entry(1, State::Finished(Outcome::Ok)) };
    {
        let journal = open(&path).unwrap();
        assert_eq!(journal.admit(entry(1, State::Queued)).await.unwrap(), Admission::New);
        let again = journal.admit(entry(1, State::Queued)).await.unwrap();
        assert_eq!(again, Admission::Replay(Some(Box::new(entry(1, State::Queued)))));
        journal.update(done).await.unwrap();
    }
    let journal = open(&path).unwrap();
    assert_eq!(journal.prune(hours(2), hours(2)).await.unwrap(), [id(1)]);
    assert_eq!(journal.get(&id(1)).unwrap(), None);
    assert_eq!(journal.admit(entry(1, State::Queued)).await.unwrap(), Admission::Replay(None));
    journal.prune(hours(0), hours(26)).await.unwrap();
    assert_eq!(
        journal.admit(entry(1, State::Queued)).await.unwrap(),
        Admission::New,
        "an expired id may be forgotten, since the job it named no longer passes"
    );
}

#[tokio::test]
async fn what_was_acknowledged_is_in_a_copy_taken_while_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let journal = open(&live).unwrap();
    for n in 0..20 {
        journal.admit(entry(n, State::Queued)).await.unwrap();
        std::fs::copy(&live, &copy).unwrap();
        let recovered = open(&copy).unwrap();
        assert_eq!(recovered.unfinished().unwrap().len(), usize::from(n) + 1);
    }
}

#[tokio::test]
async fn a_note_is_seen_at_once_and_durable_with_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let journal = open(&live).unwrap();
    journal.admit(entry(1, State::Queued)).await.unwrap();
    let done = Entry { delivered: true, ..entry(1, State::Finished(Outcome::Ok)) };
    journal.note(done.clone()).await.unwrap();
    assert_eq!(journal.get(&id(1)).unwrap(), Some(done.clone()));
    assert_eq!(journal.counts(), Counts { delivered: 1, ..Counts::default() });
    journal.admit(entry(2, State::Queued)).await.unwrap();
    std::fs::copy(&live, &copy).unwrap();
    assert_eq!(open(&copy).unwrap().get(&id(1)).unwrap(), Some(done));
}

#[tokio::test]
async fn a_job_that_was_never_admitted_cannot_be_updated() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir.path().join("j")).unwrap();
    assert!(journal.update(entry(1, State::Running)).await.is_err());
    assert_eq!(journal.counts(), Counts::default());
}

#[test]
fn a_file_that_is_no_journal_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
    let before = std::fs::metadata(&path).unwrap().len();
    let refused = open(&path).unwrap_err().to_string();
    assert!(refused.contains("jtnt-agent run puts it aside"), "{refused}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
}

#[test]
fn a_second_agent_is_told_that_the_file_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    let _first = open(&path).unwrap();
    let refused = open(&path).unwrap_err().to_string();
    assert!(refused.contains("in use"), "{refused}");
}

#[tokio::test]
async fn watchers_hear_of_changes_and_cursors_last() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("j");
    {
        let journal = open(&path).unwrap();
        let mut news = journal.changes();
        journal.admit(entry(3, State::Queued)).await.unwrap();
        assert_eq!(news.recv().await.unwrap(), entry(3, State::Queued));
        journal.set_cursor("seen", b"42".to_vec()).await.unwrap();
    }
    let journal = open(&path).unwrap();
    assert_eq!(journal.cursor("seen").unwrap().as_deref(), Some(&b"42"[..]));
    assert_eq!(journal.cursor("unseen").unwrap(), None);
    assert_eq!(journal.created_at(), hours(0));
}

#[derive(Debug, Clone)]
enum Step {
    Admit(u8),
    Update(u8, State, bool),
    Prune,
    Thin(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop::sample::select(vec![
        State::Queued,
        State::Starting,
        State::Running,
        State::Finished(Outcome::Ok),
        State::Rejected,
    ]);
    prop_oneof![
        4 => (0..6_u8).prop_map(Step::Admit),
        6 => (0..6_u8, state, any::<bool>()).prop_map(|(n, s, d)| Step::Update(n, s, d)),
        1 => Just(Step::Prune),
        1 => (0..3_u64).prop_map(Step::Thin),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn the_journal_is_a_map_that_survives(steps in prop::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal = open(&path).unwrap();
        let (mut model, mut used) = (BTreeMap::<JobId, Entry>::new(), BTreeSet::new());
        let mut came = Vec::new();
        for step in steps {
            match step {
                Step::Admit(n) => {
                    let fresh = used.insert(id(n));
                    let found = block_on(journal.admit(entry(n, State::Queued))).unwrap();
                    prop_assert_eq!(found == Admission::New, fresh);
                    if fresh {
                        came.push(id(n));
                        model.insert(id(n), entry(n, State::Queued));
                    }
                }
                Step::Update(n, state, delivered) => {
                    let next = Entry { delivered: delivered && state.is_terminal(), ..entry(n, state) };
                    let known = model.contains_key(&id(n));
                    prop_assert_eq!(block_on(journal.update(next.clone())).is_ok(), known);
                    if known {
                        model.insert(id(n), next);
                    }
                }
                Step::Prune => {
                    block_on(journal.prune(hours(2), hours(2))).unwrap();
                    model.retain(|_, e| !e.delivered);
                }
                Step::Thin(keep) => {
                    let ends = model.values().filter(|e| e.delivered);
                    let mut ends: Vec<_> = ends.map(|e| e.job_id.clone()).collect();
                    // All ended at once here, so the order in which they came decides.
                    ends.sort_by_key(|id| came.iter().position(|other| other == id));
                    let most = usize::try_from(keep).unwrap();
                    let gone: Vec<_> = ends[..ends.len().saturating_sub(most)].to_vec();
                    prop_assert_eq!(&block_on(journal.thin(keep)).unwrap(), &gone);
                    model.retain(|id, _| !gone.contains(id));
                }
                Step::Reopen => {
                    drop(journal);
                    journal = open(&path).unwrap();
                }
            }
            let of = |keep: &dyn Fn(&Entry) -> bool| -> BTreeSet<JobId> {
                model.values().filter(|e| keep(e)).map(|e| e.job_id.clone()).collect()
            };
            let ids = |found: Vec<Entry>| -> BTreeSet<JobId> {
                found.into_iter().map(|e| e.job_id).collect()
            };
            prop_assert_eq!(ids(journal.unfinished().unwrap()), of(&|e| !e.state.is_terminal()));
            prop_assert_eq!(
                ids(journal.undelivered().unwrap()),
                of(&|e| e.state.is_terminal() && !e.delivered)
            );
            prop_assert_eq!(ids(journal.recent(100, &|_| true).unwrap()), of(&|_| true));
            let counts = journal.counts();
            prop_assert_eq!(counts.queued, of(&|e| e.state == State::Queued).len() as u64);
            prop_assert_eq!(counts.delivered, of(&|e| e.delivered).len() as u64);
        }
    }
}
