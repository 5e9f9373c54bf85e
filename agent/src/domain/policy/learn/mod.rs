//! From what was seen of one monitored run to the least rules under which it does the same again.
//!
//! The program, or the script, is pinned by its hash; a file gets a rule of its own. Wider than
//! what was seen is a rule only where the kernel knows nothing narrower, and then a note says so.
//! What cannot be learned, or cannot be a rule, is a note too: nothing is left out in silence.

mod wanted;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use jtnt_proto::{
    bytes::Hash,
    policy::{
        Access, ArgSlot, ArgsRule, Children, Effect, ExecRule, FileRule, MAX_SLOTS, ScriptRule,
    },
};
use serde::Serialize;

use self::wanted::{Told, Wanted, unfit};
use super::{NETWORK, OWN, SYSTEM};
use crate::domain::{
    asked::Action,
    seen::{Mark, Seen, Touched},
};

/// Names that a note tells one by one.
const MOST_TOLD: usize = 8;
/// Of the program's name in the id of a rule.
const MAX_NAME: usize = 32;

/// A part of a policy document, to be put into one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Rules {
    /// Programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<ExecRule>,
    /// Scripts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<ScriptRule>,
    /// Files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub file: Vec<FileRule>,
}

/// What a run taught.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Learned {
    /// The rules.
    pub rules: Rules,
    /// What their author should know, for people.
    pub notes: Vec<String>,
    /// Whether everything was seen, and the rules allow all of it but to list `/`.
    pub complete: bool,
}

/// What is open to every job without a rule.
#[derive(Debug)]
pub struct Baseline(Vec<(String, &'static [Access])>);

impl Baseline {
    /// That of this machine; `resolve` as for [`super::Engine::compile`].
    pub fn of(resolve: &mut dyn FnMut(&Path) -> String) -> Self {
        let places = SYSTEM.iter().chain(NETWORK);
        Self(places.map(|(path, access)| (resolve(Path::new(path)), *access)).collect())
    }

    /// Whether a job may use this file so. Secrets, which stand below `/dev`, are its own.
    #[must_use]
    pub fn opens(&self, path: &str, access: Access) -> bool {
        let path = Path::new(path);
        OWN.iter().any(|own| path.starts_with(own))
            || self.0.iter().any(|(open, these)| path.starts_with(open) && these.contains(&access))
    }
}

/// Works the rules out.
#[must_use]
pub fn learn(seen: &Seen, baseline: &Baseline) -> Learned {
    let mut lesson = Lesson {
        seen,
        baseline,
        stem: stem(seen),
        learned: Learned { complete: true, ..Learned::default() },
    };
    lesson.request();
    if matches!(seen.asked.action, Action::Exec { .. } | Action::Script { .. }) {
        lesson.files();
        lesson.surroundings();
    }
    lesson.learned
}

struct Lesson<'a> {
    seen: &'a Seen,
    baseline: &'a Baseline,
    /// With what the ids of its rules begin.
    stem: String,
    learned: Learned,
}

impl Lesson<'_> {
    fn note(&mut self, text: impl Into<String>) {
        self.learned.notes.push(text.into());
    }

    /// A note about something that the rules do not allow, or that was not seen.
    fn lack(&mut self, text: impl Into<String>) {
        self.note(text);
        self.learned.complete = false;
    }

    /// The rule about what was asked.
    fn request(&mut self) {
        let Seen { asked, path, sha256, .. } = self.seen;
        let (id, run_as) = (self.stem.clone(), asked.run_as.clone());
        let env = asked.env.iter().cloned().collect();
        match &asked.action {
            Action::Exec { args, .. } => {
                let Some(args) = self.args(args) else { return };
                let Some(sha256) = *sha256 else {
                    self.lack(format!(
                        "the hash of {path} was not taken, so no rule pins it: others than root can \
                         change it, or it cannot be read; make it root's alone and run the job \
                         again"
                    ));
                    return;
                };
                self.learned.rules.exec.push(ExecRule {
                    id,
                    effect: Effect::Allow,
                    path: path.clone(),
                    args,
                    sha256: Some(sha256),
                    env,
                    run_as,
                    children: Children::System,
                    ipc: false,
                    mode: None,
                });
            }
            Action::Script { args, sha256, .. } => {
                let Some(args) = self.args(args) else { return };
                self.learned.rules.script.push(ScriptRule {
                    id,
                    effect: Effect::Allow,
                    interpreter: path.clone(),
                    sha256: Some(*sha256),
                    signer: None,
                    args,
                    env,
                    run_as,
                    children: Children::System,
                    ipc: false,
                    mode: None,
                });
            }
            Action::Download { .. } => self.transfer(id, Access::Write),
            Action::Upload { .. } => self.transfer(id, Access::Read),
        }
    }

    fn args(&mut self, args: &[String]) -> Option<ArgsRule> {
        if args.len() > MAX_SLOTS {
            self.lack(format!(
                "it has {} arguments, and a rule names at most {MAX_SLOTS}, so there is no rule \
                 for it; one with \"args\": \"any\" would allow all others, too",
                args.len()
            ));
            return None;
        }
        Some(ArgsRule::Slots(args.iter().cloned().map(ArgSlot::Literal).collect()))
    }

    fn transfer(&mut self, id: String, access: Access) {
        let path = &self.seen.path;
        match unfit(path) {
            Some(why) => {
                self.lack(format!("{}: {why}, so there is no rule for it", some(&[path.as_str()])));
            }
            None => self.allow(id, path.clone(), [access].into()),
        }
    }

    fn allow(&mut self, id: String, path: String, access: BTreeSet<Access>) {
        let (effect, run_as) = (Effect::Allow, self.seen.asked.run_as.clone());
        self.learned.rules.file.push(FileRule { id, effect, access, path, run_as, mode: None });
    }

    /// The rules about what it touched.
    fn files(&mut self) {
        let seen = self.seen;
        let mut wanted = Wanted::default();
        let mut unfits: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for file in &seen.files {
            let access = self.beyond_baseline(file);
            if access.is_empty() {
                continue;
            }
            if file.path == "/run" || file.path.starts_with("/run/") {
                wanted.told.own.push(&file.path);
            } else if let Some(why) = unfit(&file.path) {
                unfits.entry(why).or_default().push(&file.path);
            } else {
                wanted.add(file, access);
            }
        }
        let mut told = std::mem::take(&mut wanted.told);
        told.only_outermost();
        for (n, (path, access)) in (1..).zip(wanted.least()) {
            self.allow(format!("{}-file-{n}", self.stem), path, access);
        }
        self.tell(&told);
        for (why, paths) in unfits {
            self.lack(format!("{}: {why}, so there is no rule for it", some(&paths)));
        }
    }

    /// How it used a file as no job may without a rule. What may be executed may be read, and a
    /// library is loaded only from where it may be executed.
    fn beyond_baseline(&self, file: &Touched) -> BTreeSet<Access> {
        let mut access = file.access.clone();
        if access.contains(&Access::Execute) || file.marks.contains(&Mark::Native) {
            access.remove(&Access::Read);
            access.insert(Access::Execute);
        }
        if file.path == self.seen.path {
            access.remove(&Access::Execute);
            access.remove(&Access::Read);
        }
        access.retain(|one| !self.baseline.opens(&file.path, *one));
        access
    }

    fn tell(&mut self, told: &Told<'_>) {
        let mut tell = |paths: &[&str], text: &str, lack: bool| {
            if paths.is_empty() {
                return;
            }
            let text = format!("{}: {text}", some(paths));
            if lack { self.lack(text) } else { self.note(text) }
        };
        tell(
            &told.listed,
            "a folder that is listed can be opened only with all that is below it, so these rules \
             open more than was used",
            false,
        );
        tell(
            &told.root,
            "it was listed, as interpreters do that look for modules; a rule for that would open \
             every file to reading, so there is none",
            false,
        );
        tell(
            &told.moved,
            "it was written and was gone at the end; a job makes, moves and removes files only in \
             trees that it may write, so these rules open the folders that they were in to reading and \
             writing",
            false,
        );
        tell(
            &told.made,
            "the job made it; its rule holds as long as it is there. Where it is made anew each \
             time, allow its folder as a tree: FOLDER/**",
            false,
        );
        tell(
            &told.written,
            "whether it was opened for reading, too, was not seen; where the job fails at it, add \
             \"read\"",
            false,
        );
        tell(
            &told.loaded,
            "it was read and is a program or a library, which is loaded only where it may be \
             executed; where it is mere data, write \"read\"",
            false,
        );
        tell(
            &told.unguarded,
            "others than root can change it, and no rule pins what a job executes itself",
            false,
        );
        tell(
            &told.own,
            "a job has a /run of its own, which is empty; a rule for this has to be written by hand",
            true,
        );
    }

    /// What is to be said of any run of a program.
    fn surroundings(&mut self) {
        let seen = self.seen;
        if !seen.odd.is_empty() {
            let odd: Vec<_> = seen.odd.iter().map(String::as_str).collect();
            self.lack(format!("{}: the name is no text, so there is no rule for it", some(&odd)));
        }
        if let Some(why) = &seen.unwatched {
            self.lack(format!("not everything was watched: {why}"));
        }
        if seen.more {
            self.lack("it opened more files than are kept, or faster than they could be noted");
        }
        if seen.held {
            self.note(
                "its files were held to the rules then in force, so what these refused is missing \
                 here; under \"mode\": \"monitor\" of the whole policy every file is open",
            );
        }
        if seen.asked.run_as.as_deref() == Some("root") {
            self.note(
                "a job of root is partial[root]: the policy has to say \"require_enforcement\": \
                 \"partial\"",
            );
        }
        if seen.unwatched.is_none() && !seen.more && !self.has_children() {
            self.note(
                "it executed nothing but itself; if that was once only, \"children\": \"none\" holds \
                 it to that",
            );
        }
        self.note(
            "not seen: use of the network and of Unix sockets (\"ipc\"), and where a job made, moved \
             or removed a file without opening it",
        );
    }

    /// Whether it executed a program; a loader comes with each.
    fn has_children(&self) -> bool {
        let is_loader = |path: &str| {
            let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
            name.starts_with("ld-") && name.contains(".so")
        };
        self.seen.files.iter().any(|file| {
            file.access.contains(&Access::Execute)
                && file.path != self.seen.path
                && !is_loader(&file.path)
        })
    }
}

/// Some of these, as they can be shown, and how many more there are.
fn some(paths: &[&str]) -> String {
    let shown: Vec<_> =
        paths.iter().take(MOST_TOLD).map(|path| path.escape_debug().to_string()).collect();
    match paths.len().saturating_sub(MOST_TOLD) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// The program's name and what tells this request from others, so that rules of several runs can
/// stand in one document.
fn stem(seen: &Seen) -> String {
    let name = seen.path.rsplit_once('/').map_or("", |(_, name)| name);
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = name.chars().take(MAX_NAME).map(plain).collect();
    let asked = serde_json::to_vec(&seen.asked).unwrap_or_default();
    let hash: String = Hash::of(&asked).to_string().chars().take(8).collect();
    format!("{name}-{hash}")
}

#[cfg(test)]
mod tests;
