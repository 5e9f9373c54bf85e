//! The decision on a real file: opens what a request names, once, and asks the engine about what
//! was opened. What is started, written or read afterwards is that very descriptor.
//!
//! Refusals come in a fixed order: the path itself, what is protected from every job, no policy,
//! the policy's answer, and at last what the operating system could not enforce. Monitor mode
//! softens the policy's answer alone.

mod rehearsal;
mod ruling;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::Arc,
};

use jiff::Timestamp;
use jtnt_proto::{
    bytes::Hash,
    job::{Download, Exec, Script, Upload},
    key::KeyId,
    policy::{Access, Limits, Network, RequireEnforcement},
};
use tokio::sync::watch;

pub use rehearsal::Rehearsal;
pub use ruling::{Refusal, Ruling};

use crate::{
    domain::{
        enforcement::{Abilities, Enforcement, Gap},
        policy::{Area, Confinement, Decision, Engine, Found, ScriptFacts, Surroundings, Target},
    },
    platform::{
        paths::{Inode, Opened, Place, hash, sealed_copy},
        sandbox::Plan,
    },
    trust::Verified,
};

/// The policy in force: what was verified, compiled.
#[derive(Debug)]
pub struct InForce {
    /// The compiled document.
    pub engine: Arc<Engine>,
    /// The document with its proof.
    pub verified: Verified<jtnt_proto::policy::Policy>,
}

/// The policy that everybody watches; `None` before the first.
pub type PolicyWatch = watch::Receiver<Option<Arc<InForce>>>;

/// What the gate needs to know beside the policy.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Folders and files that no job may use, whatever a rule says: data, state, config, socket,
    /// binary, units. Compared by inode and by name, and as ancestors.
    pub protected: Vec<PathBuf>,
    /// The machine's own minimum.
    pub require_enforcement: Option<RequireEnforcement>,
    /// What this machine can hold a job by.
    pub abilities: Abilities,
}

/// Asks the policy in force about real files. Its methods open files and may read them whole, so
/// they block.
#[derive(Debug, Clone)]
pub struct Gate {
    rules: Rules,
    config: Arc<Config>,
}

/// Which rules are asked.
#[derive(Debug, Clone)]
enum Rules {
    /// Those in force at that moment, which somebody signed.
    InForce(PolicyWatch),
    /// Always these, whoever wrote them: only within a [`Rehearsal`], which opens nothing.
    Rehearsed(Option<Arc<Engine>>),
}

/// A program to execute by its descriptor.
#[derive(Debug)]
pub struct Program {
    /// The file that was matched.
    pub file: File,
    /// Where others could change it: a sealed copy, to be executed instead.
    pub copy: Option<File>,
    /// The file's path.
    pub canonical: String,
    /// What holds it once it runs.
    pub plan: Plan,
}

/// A file to read, not yet open for reading: that is for the job's user to try.
#[derive(Debug)]
pub struct Source {
    /// What was matched.
    pub file: File,
    /// The file's path.
    pub canonical: String,
    /// What holds whoever reads it.
    pub plan: Plan,
}

/// Where a download goes: an open folder and a name in it.
#[derive(Debug)]
pub struct Destination {
    /// The folder, opened without following a link.
    pub dir: File,
    /// The file's name.
    pub name: String,
    /// The file's path.
    pub canonical: String,
    /// What holds whoever writes it.
    pub plan: Plan,
}

impl Destination {
    /// The folder's path.
    #[must_use]
    pub fn folder(&self) -> &str {
        parent(&self.canonical)
    }
}

impl Gate {
    /// A gate before the policy that `policy` tells of.
    #[must_use]
    pub fn new(policy: PolicyWatch, config: Config) -> Self {
        Self { rules: Rules::InForce(policy), config: Arc::new(config) }
    }

    /// A program with its arguments.
    #[must_use]
    pub fn exec(&self, request: &Exec, now: Timestamp) -> Ruling<Program> {
        let rules = self.rules();
        let ruled = self.program(&request.path, rules.as_deref(), |rules, opened| {
            let fixed = opened.guarded() && opened.links() == 1;
            // A hash says nothing of a file that changes after it was taken: then it is the copy
            // that is hashed, and the copy that runs.
            let (sha256, copy) = match rules.pins_content(opened.canonical()) {
                false => (None, None),
                true if fixed => (Some(hash(opened)?), None),
                true => sealed_copy(opened).map(|(copy, hash)| (Some(hash), Some(copy)))?,
            };
            let names: Vec<_> = request.env.keys().cloned().collect();
            let run_as = request.run_as.as_deref();
            let around = Surroundings { args: &request.args, env: &names, run_as };
            let target = target(opened, sha256, opened.is_native()?);
            Ok((rules.exec(&target, around, now), sha256, copy))
        });
        Ruling::of(ruled, rules.as_deref())
    }

    /// A script; `signers` are keys whose endorsement of it, for its interpreter, was verified.
    /// What is opened is the interpreter.
    #[must_use]
    pub fn script(&self, request: &Script, signers: &[KeyId], now: Timestamp) -> Ruling<Program> {
        let rules = self.rules();
        let ruled = self.program(&request.interpreter, rules.as_deref(), |rules, opened| {
            let names: Vec<_> = request.env.keys().cloned().collect();
            let run_as = request.run_as.as_deref();
            let around = Surroundings { args: &request.args, env: &names, run_as };
            let facts = ScriptFacts { sha256: request.content.sha256, signers };
            let target = target(opened, None, opened.is_native()?);
            Ok((rules.script(&target, facts, around, now), None, None))
        });
        Ruling::of(ruled, rules.as_deref())
    }

    /// A download's destination.
    #[must_use]
    pub fn download(&self, request: &Download, now: Timestamp) -> Ruling<Destination> {
        self.write(&request.dest, request.run_as.as_deref(), now)
    }

    /// An upload's source.
    #[must_use]
    pub fn upload(&self, request: &Upload, now: Timestamp) -> Ruling<Source> {
        self.read(&request.path, request.run_as.as_deref(), now)
    }

    /// The same ruling for a job that asks for limits of its own: who asks for one has it held, too.
    #[must_use]
    pub fn with_limits<T>(&self, ruling: Ruling<T>, asked: &Limits) -> Ruling<T> {
        let unheld: BTreeSet<_> = self.config.abilities.unheld(asked).collect();
        if !ruling.allowed || unheld.is_empty() {
            return ruling;
        }
        let enforcement = ruling.enforcement.clone().without(unheld);
        let required = self.require_enforcement();
        if enforcement.meets(required) {
            return Ruling { enforcement, ..ruling };
        }
        let canonical = ruling.canonical.unwrap_or_default();
        let refusal = Refusal::enforcement(&canonical, required, &enforcement);
        Ruling::of(Err(refusal.ruled_by(ruling.rule)), self.rules().as_deref())
    }

    /// What a transfer would meet. Nothing executes a file but by a job of another kind, so for
    /// [`Access::Execute`] it is a program that is looked up.
    #[must_use]
    pub fn check_file(
        &self,
        access: Access,
        path: &str,
        run_as: Option<&str>,
        now: Timestamp,
    ) -> Ruling<()> {
        match access {
            Access::Read => self.read(path, run_as, now).without_file(),
            Access::Write => self.write(path, run_as, now).without_file(),
            Access::Execute => {
                let rules = self.rules();
                let ruled = self.program(path, rules.as_deref(), |rules, opened| {
                    let target = target(opened, None, false);
                    Ok((rules.file(&target, access, run_as, now), None, None))
                });
                Ruling::of(ruled, rules.as_deref()).without_file()
            }
        }
    }

    /// What the operating system enforces on this machine for a job whose policy leaves nothing
    /// open by itself.
    #[must_use]
    pub fn enforcement(&self) -> Enforcement {
        Enforcement::of(BTreeSet::new(), &self.config.abilities, Network::Any)
    }

    /// What a job must be able to rely on: the stricter of policy and machine.
    #[must_use]
    pub fn require_enforcement(&self) -> RequireEnforcement {
        let local = self.config.require_enforcement.unwrap_or(RequireEnforcement::None);
        self.rules().map_or(local, |rules| rules.require_enforcement(local))
    }

    fn read(&self, path: &str, run_as: Option<&str>, now: Timestamp) -> Ruling<Source> {
        let rules = self.rules();
        let rule = || {
            let opened = Opened::source(path)?;
            self.unprotected(opened.canonical(), opened.inodes())?;
            let rules = known(rules.as_deref(), opened.canonical())?;
            let decision = rules.file(&target(&opened, None, false), Access::Read, run_as, now);
            let canonical = opened.canonical().to_owned();
            let enforcement = self.enough(self.of_transfer(&decision), &decision, &canonical)?;
            let only = Area::file(&canonical, Access::Read);
            let (file, plan) = (opened.into_file(), self.plan(Confinement::to(only)));
            let source = Source { file, canonical: canonical.clone(), plan };
            Ok(Ruling::decided(decision, enforcement, canonical, Some(source)))
        };
        Ruling::of(rule(), rules.as_deref())
    }

    fn write(&self, path: &str, run_as: Option<&str>, now: Timestamp) -> Ruling<Destination> {
        let rules = self.rules();
        let rule = || {
            let place = Place::open(path)?;
            self.unprotected(place.canonical(), place.inodes())?;
            let rules = known(rules.as_deref(), place.canonical())?;
            let canonical = place.canonical().to_owned();
            let target = Target {
                canonical: canonical.clone(),
                sha256: None,
                guarded: place.guarded(),
                links: place.links(),
                native: false,
            };
            let decision = rules.file(&target, Access::Write, run_as, now);
            let enforcement = self.enough(self.of_transfer(&decision), &decision, &canonical)?;
            let Place { dir, name, .. } = place;
            let plan = self.plan(Confinement::to(Area::folder(parent(&canonical), Access::Write)));
            let to = Destination { dir, name, canonical: canonical.clone(), plan };
            Ok(Ruling::decided(decision, enforcement, canonical, Some(to)))
        };
        Ruling::of(rule(), rules.as_deref())
    }

    /// What exec and script have in common; `decide` gives the answer, the hash that it was based
    /// on, and a copy to run instead of the file.
    fn program<D>(
        &self,
        path: &str,
        rules: Option<&Engine>,
        decide: D,
    ) -> Result<Ruling<Program>, Refusal>
    where
        D: FnOnce(&Engine, &Opened) -> Result<(Decision, Option<Hash>, Option<File>), Refusal>,
    {
        let opened = Opened::program(path)?;
        let canonical = opened.canonical().to_owned();
        self.unprotected(&canonical, opened.inodes())?;
        let rules = known(rules, &canonical)?;
        let (decision, sha256, copy) = decide(rules, &opened)?;
        if decision.allowed
            && decision.run_as.as_deref() != Some("root")
            && opened.changes_rights()?
        {
            return Err(Refusal::set_id(&canonical).ruled_by(decision.rule));
        }
        let (confinement, gaps) = rules.confine(&decision, &look);
        let enforcement = self.enough(self.of_program(rules, gaps), &decision, &canonical)?;
        let plan = self.plan(confinement);
        let program =
            Program { file: opened.into_file(), copy, canonical: canonical.clone(), plan };
        let ruling = Ruling::decided(decision, enforcement, canonical, Some(program));
        Ok(Ruling { sha256, ..ruling })
    }

    fn plan(&self, confinement: Confinement) -> Plan {
        Plan {
            confinement,
            hidden: self.config.protected.clone(),
            limits: Limits::default(),
            abilities: self.config.abilities,
        }
    }

    fn rules(&self) -> Option<Arc<Engine>> {
        match &self.rules {
            Rules::InForce(policy) => policy.borrow().as_ref().map(|p| Arc::clone(&p.engine)),
            Rules::Rehearsed(rules) => rules.clone(),
        }
    }

    /// What is protected may not exist yet, or may have been replaced, so it is looked up each
    /// time: by inode for other names of it, by name for what is not there yet.
    fn unprotected(&self, canonical: &str, inodes: &[Inode]) -> Result<(), Refusal> {
        let covers = |protected: &PathBuf| {
            let by_inode =
                || fs::metadata(protected).is_ok_and(|m| inodes.contains(&Inode::of(&m)));
            std::path::Path::new(canonical).starts_with(protected) || by_inode()
        };
        if self.config.protected.iter().any(covers) {
            return Err(Refusal::protected(canonical));
        }
        Ok(())
    }

    /// What the operating system will hold a program to that leaves `gaps` by itself.
    fn of_program(&self, rules: &Engine, gaps: BTreeSet<Gap>) -> Enforcement {
        let (abilities, limits) = (&self.config.abilities, rules.limits());
        let gaps = gaps.into_iter().chain(abilities.unheld(&limits)).collect();
        Enforcement::of(gaps, abilities, rules.policy().network)
    }

    fn of_transfer(&self, decision: &Decision) -> Enforcement {
        let as_root = decision.run_as.as_deref() == Some("root");
        Enforcement::of_transfer(as_root, &self.config.abilities)
    }

    /// Turns an allowed request down where more is required than it would get.
    fn enough(
        &self,
        enforcement: Enforcement,
        decision: &Decision,
        canonical: &str,
    ) -> Result<Enforcement, Refusal> {
        let required = self.require_enforcement();
        if decision.allowed && !enforcement.meets(required) {
            let refusal = Refusal::enforcement(canonical, required, &enforcement);
            return Err(refusal.ruled_by(decision.rule.clone()));
        }
        Ok(enforcement)
    }
}

/// The folder of a canonical path.
fn parent(canonical: &str) -> &str {
    match canonical.rsplit_once('/') {
        Some((folder, _)) if !folder.is_empty() => folder,
        _ => "/",
    }
}

/// What is at a path now.
fn look(path: &str) -> Found {
    // By a link, what was meant can be another file at any time.
    let passes_link = || std::path::Path::new(path).ancestors().any(std::path::Path::is_symlink);
    match fs::symlink_metadata(path) {
        _ if passes_link() => Found::Linked,
        Err(_) => Found::Nothing,
        Ok(meta) if meta.is_file() && meta.nlink() > 1 => Found::Linked,
        Ok(_) => Found::Sole,
    }
}

fn known<'a>(rules: Option<&'a Engine>, canonical: &str) -> Result<&'a Engine, Refusal> {
    rules.ok_or_else(|| Refusal::no_policy(canonical))
}

fn target(opened: &Opened, sha256: Option<Hash>, native: bool) -> Target {
    Target {
        canonical: opened.canonical().to_owned(),
        sha256,
        guarded: opened.guarded(),
        links: opened.links(),
        native,
    }
}

#[cfg(test)]
mod tests;
