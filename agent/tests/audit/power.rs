//! The power is cut at each moment of the process's life. What it did to files is recorded once; from
//! that every disk is made that a cut may leave, and each must hold what was promised until then.

use std::{collections::BTreeSet, fs, path::Path};

use jtnt_proto::bytes::Hash;

use crate::{
    disk::{self, Change, Disk},
    judge::judge,
    trace::{self, Tracing},
    work::{self, Part, Plan, Said},
};

/// Fewer would mean that nothing was left open.
const LEAST: usize = 800;
/// Syncs of days' files, and of the folder after one was made, that are tried without.
const LEAST_NEEDED: (usize, usize) = (10, 3);

/// A disk at some moment, and what was told until then.
#[derive(Debug, Clone)]
struct Moment {
    disk: Disk,
    said: Vec<Said>,
}

impl Moment {
    fn first() -> Self {
        Self { disk: Disk::new(), said: Vec::new() }
    }

    /// A log of two days that was torn by a power cut before.
    fn torn() -> Self {
        let mut moment = Self::first();
        let youth = moment.record(Plan::Youth);
        youth.iter().for_each(|change| moment.pass(change));
        let newest = youth.iter().rev().find_map(day_made).unwrap().to_owned();
        moment.pass(&Change::Write(newest.clone(), None, work::torn()));
        moment.pass(&Change::Sync(newest));
        moment.pass(&Change::Said(Said::Torn(Hash::of(&work::torn()))));
        moment
    }

    fn pass(&mut self, change: &Change) {
        self.disk.apply(change);
        if let Change::Said(what) = change {
            self.said.push(what.clone());
        }
    }

    /// What a process changes that finds the disk so.
    fn record(&self, plan: Plan) -> Vec<Change> {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        fs::create_dir(&data).unwrap();
        disk::put(&self.disk.seen(), &data);
        let run = trace::run(plan, Part::All, &data, &home.path().join("trace"), &Tracing::Changes);
        trace::changes(&run.text, &data)
    }
}

/// What was found where the power was cut.
#[derive(Debug, Default)]
struct Cuts {
    known: BTreeSet<Hash>,
    wrong: Vec<String>,
}

impl Cuts {
    /// Makes each disk that may be left when the power is cut now, but for those that were seen.
    fn cut(&mut self, moment: &Moment, place: &str) {
        for state in moment.disk.states() {
            let text = format!("{} {state:?}", moment.said.len());
            if self.known.insert(Hash::of(text.as_bytes())) {
                let home = in_memory();
                disk::put(&state, home.path());
                if let Err(fault) = judge(home.path(), &moment.said) {
                    self.wrong.push(format!("{place}: {fault}"));
                }
            }
        }
    }

    /// After each of these changes, until something is wrong.
    fn cut_in(&mut self, mut moment: Moment, changes: &[Change]) {
        for change in changes {
            moment.pass(change);
            self.cut(&moment, &brief(change));
            if !self.wrong.is_empty() {
                return;
            }
        }
    }
}

/// Where a sync costs nothing; there are thousands.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn brief(change: &Change) -> String {
    let name = |path: &Path| path.file_name().unwrap_or("data".as_ref()).display().to_string();
    match change {
        Change::Create(path) => format!("create {}", name(path)),
        Change::Mkdir(path) => format!("mkdir {}", name(path)),
        Change::Write(path, at, bytes) => format!("write {} {at:?} {}", name(path), bytes.len()),
        Change::Cut(path, to) => format!("cut {} to {to}", name(path)),
        Change::Sync(path) => format!("sync {}", name(path)),
        Change::Rename(from, to) => format!("rename {} to {}", name(from), name(to)),
        Change::Unlink(path) => format!("unlink {}", name(path)),
        Change::Said(_) => "said".to_owned(),
    }
}

/// The day's file that this makes.
fn day_made(change: &Change) -> Option<&Path> {
    if let Change::Create(path) = change { is_of_a_day(path).then_some(path) } else { None }
}

/// The day's file that this writes to.
fn day_written(change: &Change) -> Option<&Path> {
    if let Change::Write(path, ..) = change { is_of_a_day(path).then_some(path) } else { None }
}

fn is_of_a_day(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "log")
}

/// Whether the log must not do without this sync: of a day's file, before its lines are told of, or of
/// the folder, before anything is written to a new day's file.
fn is_needed(changes: &[Change], n: usize) -> bool {
    let Change::Sync(synced) = &changes[n] else { return false };
    let again = |change: &Change| matches!(change, Change::Sync(path) if path == synced);
    let made = day_made(&changes[n - 1]);
    let due = |change: &Change| match made {
        // The folder of the first day is synced again before a line is written.
        Some(_) => day_written(change) == made,
        None => matches!(change, Change::Said(_)),
    };
    let concerns = made.is_some() || day_written(&changes[n - 1]) == Some(synced);
    let next = changes[n + 1..].iter().find(|change| again(change) || due(change));
    concerns && next.is_some_and(due)
}

#[test]
#[ignore = "takes a minute and strace: `cargo test -p jtnt-agent --test audit -- --ignored --nocapture points`"]
fn whenever_the_power_is_cut_the_log_keeps_what_it_promised_at_all_points() {
    let life = Moment::first().record(Plan::Life);
    let mut cuts = Cuts::default();
    cuts.cut_in(Moment::first(), &life);
    println!("{} states after {} changes", cuts.known.len(), life.len());
    let torn = Moment::torn();
    let mended = torn.record(Plan::Again);
    cuts.cut_in(torn, &mended);
    println!("{} with {} of mending: {:?}", cuts.known.len(), mended.len(), cuts.wrong);
    assert_eq!(cuts.wrong, Vec::<String>::new());
    assert!(cuts.known.len() >= LEAST, "{} states", cuts.known.len());
}

#[test]
#[ignore = "takes a minute and strace: `cargo test -p jtnt-agent --test audit -- --ignored --nocapture points`"]
fn without_a_sync_something_would_be_lost_at_some_of_the_points() {
    let life = Moment::first().record(Plan::Life);
    let mut tried = (0, 0);
    for n in (1..life.len()).filter(|n| is_needed(&life, *n)) {
        let mut moment = Moment::first();
        life[..n].iter().for_each(|change| moment.pass(change));
        let mut cuts = Cuts::default();
        cuts.cut_in(moment, &life[n + 1..]);
        let place = format!("without {}, after {}", brief(&life[n]), brief(&life[n - 1]));
        println!("{place}: {}", cuts.wrong.first().expect(&place));
        let of_folder = day_made(&life[n - 1]).is_some();
        *(if of_folder { &mut tried.1 } else { &mut tried.0 }) += 1;
    }
    println!("{tried:?} syncs are needed");
    assert!(tried.0 >= LEAST_NEEDED.0 && tried.1 >= LEAST_NEEDED.1, "{tried:?} syncs");
}

/// What a killed process has not synced, the next one must not take for sure.
#[test]
#[ignore = "takes a minute and strace: `cargo test -p jtnt-agent --test audit -- --ignored --nocapture points`"]
fn whoever_goes_on_after_a_kill_syncs_what_was_left_at_all_points() {
    let life = Moment::first().record(Plan::Life);
    let (mut moment, mut states, mut wrong) = (Moment::first(), 0, Vec::new());
    for change in &life {
        if matches!(change, Change::Sync(_)) {
            let mut later = moment.clone();
            let mut cuts = Cuts::default();
            for next in later.record(Plan::Again) {
                later.pass(&next);
                if matches!(next, Change::Said(_)) {
                    let place = format!("killed at {}, then {}", brief(change), brief(&next));
                    cuts.cut(&later, &place);
                }
            }
            states += cuts.known.len();
            wrong.extend(cuts.wrong);
        }
        moment.pass(change);
    }
    println!("{states} states, {} violations", wrong.len());
    assert_eq!(wrong, Vec::<String>::new());
    assert!(states >= LEAST, "{states} states");
}
