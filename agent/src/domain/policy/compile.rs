//! From the document to the engine, once per policy: ids, paths, patterns and pins are checked
//! here, so that a decision has nothing left to refuse.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use jtnt_proto::{
    bytes::Hash,
    identity::is_id,
    key::KeyId,
    policy::{Access, ArgsRule, Effect, Mode, Policy},
    policy_lint::MAX_RULES,
};

use super::{Engine, args::Args, confine::Areas, env, index::Index, pattern::Pattern};

/// Why a document cannot be compiled, with the rule at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct CompileError {
    /// The rule, or the part of the document.
    pub place: String,
    /// What is wrong.
    pub fault: String,
}

/// What every rule has.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) id: String,
    pub(super) effect: Effect,
    pub(super) mode: Option<Mode>,
    pub(super) run_as: Option<String>,
}

#[derive(Debug)]
pub(super) struct Exec {
    pub(super) common: Common,
    pub(super) args: Args,
    pub(super) env: BTreeSet<String>,
    pub(super) sha256: Option<Hash>,
}

#[derive(Debug)]
pub(super) struct Script {
    pub(super) common: Common,
    pub(super) args: Args,
    pub(super) env: BTreeSet<String>,
    pub(super) sha256: Option<Hash>,
    pub(super) signer: Option<KeyId>,
}

#[derive(Debug)]
pub(super) struct File {
    pub(super) common: Common,
    pub(super) access: BTreeSet<Access>,
}

struct Compiler<'a> {
    ids: BTreeSet<String>,
    resolved: BTreeMap<String, String>,
    resolve: &'a mut dyn FnMut(&Path) -> String,
}

type Rules<R> = Vec<(Pattern, R)>;

pub(super) fn engine(
    policy: Policy,
    resolve: &mut dyn FnMut(&Path) -> String,
) -> Result<Engine, CompileError> {
    let whole = |fault: &str| CompileError { place: "policy".into(), fault: fault.into() };
    if policy.exec.len() + policy.script.len() + policy.file.len() > MAX_RULES {
        return Err(whole(&format!("more than {MAX_RULES} rules")));
    }
    if policy.version == 0 {
        return Err(whole("version 0 means no policy; begin at 1"));
    }
    if !is_id(&policy.policy_id) {
        return Err(whole("policy_id is not of A-Z a-z 0-9 _ - (1 to 64)"));
    }
    policy.limits.check().map_err(|fault| whole(&fault))?;
    let (ids, resolved) = (BTreeSet::new(), BTreeMap::new());
    let mut compiler = Compiler { ids, resolved, resolve };
    let (exec, script, file) =
        (compiler.exec(&policy)?, compiler.script(&policy)?, compiler.file(&policy)?);
    let (exec, script, file) = (Index::new(exec), Index::new(script), Index::new(file));
    let mut engine = Engine { policy, exec, script, file, areas: BTreeMap::new() };
    engine.areas = Areas::by_user(&engine, compiler.resolve);
    Ok(engine)
}

impl Compiler<'_> {
    fn exec(&mut self, policy: &Policy) -> Result<Rules<Exec>, CompileError> {
        let rules = policy.exec.iter().map(|r| {
            let common = self.common(&r.id, r.effect, r.mode, r.run_as.as_ref())?;
            let (args, env) = surroundings(&r.id, &r.args, &r.env)?;
            let pattern = self.pattern(&r.id, &r.path)?;
            Ok((pattern, Exec { common, args, env, sha256: r.sha256 }))
        });
        rules.collect()
    }

    fn script(&mut self, policy: &Policy) -> Result<Rules<Script>, CompileError> {
        let rules = policy.script.iter().map(|r| {
            if r.effect == Effect::Allow && r.sha256.is_none() && r.signer.is_none() {
                return Err(at(&r.id, "an allow for scripts names a sha256 or a signer"));
            }
            let common = self.common(&r.id, r.effect, r.mode, r.run_as.as_ref())?;
            let (args, env) = surroundings(&r.id, &r.args, &r.env)?;
            let pattern = self.pattern(&r.id, &r.interpreter)?;
            Ok((pattern, Script { common, args, env, sha256: r.sha256, signer: r.signer }))
        });
        rules.collect()
    }

    fn file(&mut self, policy: &Policy) -> Result<Rules<File>, CompileError> {
        let rules = policy.file.iter().map(|r| {
            if r.access.is_empty() {
                return Err(at(&r.id, "access is empty; name read, write or execute"));
            }
            let common = self.common(&r.id, r.effect, r.mode, r.run_as.as_ref())?;
            Ok((self.pattern(&r.id, &r.path)?, File { common, access: r.access.clone() }))
        });
        rules.collect()
    }

    fn common(
        &mut self,
        id: &str,
        effect: Effect,
        mode: Option<Mode>,
        run_as: Option<&String>,
    ) -> Result<Common, CompileError> {
        if !is_id(id) {
            return Err(at(id, "an id is 1 to 64 of the characters A-Z a-z 0-9 _ -"));
        }
        if !self.ids.insert(id.to_owned()) {
            return Err(at(id, "another rule has this id"));
        }
        if run_as.is_some_and(|user| user.is_empty() || user.len() > 64) {
            return Err(at(id, "run_as is no user name"));
        }
        Ok(Common { id: id.to_owned(), effect, mode, run_as: run_as.cloned() })
    }

    /// The pattern, its literal part resolved as a request's path is.
    fn pattern(&mut self, id: &str, path: &str) -> Result<Pattern, CompileError> {
        let pattern = Pattern::parse(path).map_err(|e| at(id, &e.to_string()))?;
        let anchor = pattern.anchor().to_owned();
        let resolve = &mut self.resolve;
        let led =
            self.resolved.entry(anchor).or_insert_with_key(|anchor| resolve(Path::new(anchor)));
        Ok(pattern.with_anchor(led))
    }
}

fn surroundings(
    id: &str,
    args: &ArgsRule,
    names: &BTreeSet<String>,
) -> Result<(Args, BTreeSet<String>), CompileError> {
    if let Some(name) = names.iter().find(|n| !env::may_be_set(n)) {
        return Err(at(id, &format!("no rule may allow the variable {name:?}")));
    }
    Ok((Args::compile(args).map_err(|fault| at(id, &fault))?, names.clone()))
}

fn at(id: &str, fault: &str) -> CompileError {
    CompileError { place: format!("rule {id:?}"), fault: fault.to_owned() }
}
