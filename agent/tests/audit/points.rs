//! The process is killed at one system call after another: of the opening of a new log, of one that a
//! crash has torn, and of all that follows. After each the log is as it was promised.

use std::{
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use jtnt_agent::audit::reader;
use jtnt_proto::bytes::Hash;

use crate::{
    judge::judge,
    trace::{self, Tracing},
    work::{self, Part, Plan, Said},
};

/// Fewer would mean that it was not the log that was traced.
const LEAST: usize = 500;
/// Tracers at once.
const HANDS: usize = 2;

/// What is traced, and what was there before.
#[derive(Debug, Clone, Copy)]
struct Scene {
    plan: Plan,
    part: Part,
    torn: bool,
}

const SCENES: &[Scene] = &[
    Scene { plan: Plan::Life, part: Part::Opening, torn: false },
    Scene { plan: Plan::Life, part: Part::Rest, torn: false },
    Scene { plan: Plan::Again, part: Part::Opening, torn: true },
];

impl Scene {
    /// A log of two days with half a line behind it, and a tree's file that is cut.
    fn prepare(self, data: &Path) -> Vec<Said> {
        let mut said = Vec::new();
        if self.torn {
            work::work(Plan::Youth, Part::All, data, &mut |what| said.push(what));
            tear(data);
            said.push(Said::Torn(Hash::of(&work::torn())));
        }
        said
    }

    /// Kills one run; whether it was met.
    fn kill(self, call: &str, at: usize) -> bool {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        fs::create_dir(&data).unwrap();
        let mut said = self.prepare(&data);
        let tracing = Tracing::Kill(call.to_owned(), at);
        let run = trace::run(self.plan, self.part, &data, &home.path().join("trace"), &tracing);
        said.extend(run.said);
        let place = format!("{self:?} {call} {at}, {} told", said.len());
        if let Err(fault) = judge(&data, &said) {
            panic!("{place}: {fault}");
        }
        run.killed
    }

    /// What an undisturbed run calls, and how often.
    fn calls(self) -> Vec<(String, usize)> {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        fs::create_dir(&data).unwrap();
        self.prepare(&data);
        let run =
            trace::run(self.plan, self.part, &data, &home.path().join("trace"), &Tracing::All);
        assert!(!run.killed);
        trace::counts(&run.text).into_iter().collect()
    }
}

/// As a power cut leaves the newest file, and the tree's.
fn tear(data: &Path) {
    let audit = work::audit_dir(data);
    let newest = reader::list(&audit).unwrap().pop().unwrap().path;
    let mut file = fs::OpenOptions::new().append(true).open(newest).unwrap();
    file.write_all(&work::torn()).unwrap();
    for path in fs::read_dir(audit).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|e| e == "tree") {
            let tree = fs::OpenOptions::new().write(true).open(path).unwrap();
            tree.set_len(40).unwrap();
        }
    }
}

#[test]
#[ignore = "takes a minute and strace: `cargo test -p jtnt-agent --test audit -- --ignored --nocapture points`"]
fn wherever_it_is_killed_the_log_keeps_what_it_promised_at_all_points() {
    let mut all = 0;
    for scene in SCENES {
        let calls = scene.calls();
        let points: Vec<_> =
            calls.iter().flat_map(|(call, n)| (1..=*n).map(move |at| (call, at))).collect();
        let (next, met) = (AtomicUsize::new(0), Mutex::new(0));
        thread::scope(|scope| {
            for _ in 0..HANDS {
                scope.spawn(|| {
                    while let Some((call, at)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                        *met.lock().unwrap() += usize::from(scene.kill(call, *at));
                    }
                });
            }
        });
        let met = met.into_inner().unwrap();
        println!("{scene:?}: killed at {met} of {} points: {calls:?}", points.len());
        all += met;
    }
    println!("{all} points");
    assert!(all >= LEAST, "{all} points");
}
