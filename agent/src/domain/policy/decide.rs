//! One decision: what can never be, then denies, then allows, then nothing.

use jiff::Timestamp;
use jtnt_proto::{
    policy::{Access, Effect, Mode},
    policy_programs::is_interpreter,
};

use super::{
    Considered, Decision, Engine, Reason, ScriptFacts, Surroundings, Target,
    compile::{Common, Exec, File, Script},
    env,
};

/// How a rule of some kind is compared with a request.
trait Rule {
    fn common(&self) -> &Common;
}

impl Rule for Exec {
    fn common(&self) -> &Common {
        &self.common
    }
}

impl Rule for Script {
    fn common(&self) -> &Common {
        &self.common
    }
}

impl Rule for File {
    fn common(&self) -> &Common {
        &self.common
    }
}

pub(super) fn exec(
    engine: &Engine,
    program: &Target,
    around: Surroundings<'_>,
    now: Timestamp,
) -> Decision {
    let never = if !program.native {
        Some(Reason::NotNative)
    } else if is_interpreter(&program.canonical) {
        Some(Reason::Interpreter)
    } else {
        never(engine, around.env, now)
    };
    if let Some(reason) = never {
        return refuse(reason, program, Vec::new());
    }
    let fits = |rule: &Exec| {
        arguments(rule.args.matches(around.args))?;
        let pinned = rule.sha256.is_some();
        content(rule.sha256.is_none_or(|h| program.sha256 == Some(h)))?;
        if rule.common.effect == Effect::Deny {
            return Ok(());
        }
        variables(around.env, |name| rule.env.contains(name))?;
        user(&rule.common, around.run_as)?;
        if pinned { Ok(()) } else { unchangeable(program) }
    };
    settle(engine, engine.exec.about(&program.canonical), fits, program, around.run_as)
}

pub(super) fn script(
    engine: &Engine,
    interpreter: &Target,
    script: ScriptFacts<'_>,
    around: Surroundings<'_>,
    now: Timestamp,
) -> Decision {
    let never =
        if interpreter.native { never(engine, around.env, now) } else { Some(Reason::NotNative) };
    if let Some(reason) = never {
        return refuse(reason, interpreter, Vec::new());
    }
    let fits = |rule: &Script| {
        arguments(rule.args.matches(around.args))?;
        content(
            rule.sha256.is_none_or(|h| h == script.sha256)
                && rule.signer.is_none_or(|s| script.signers.contains(&s)),
        )?;
        if rule.common.effect == Effect::Deny {
            return Ok(());
        }
        variables(around.env, |name| rule.env.contains(name))?;
        user(&rule.common, around.run_as)?;
        unchangeable(interpreter)
    };
    settle(engine, engine.script.about(&interpreter.canonical), fits, interpreter, around.run_as)
}

pub(super) fn file(
    engine: &Engine,
    target: &Target,
    access: Access,
    run_as: Option<&str>,
    now: Timestamp,
) -> Decision {
    if let Some(reason) = never(engine, &[], now) {
        return refuse(reason, target, Vec::new());
    }
    let rules = engine.file.about(&target.canonical).filter(|r| r.access.contains(&access));
    let fits = |rule: &File| match rule.common.effect {
        Effect::Deny => Ok(()),
        Effect::Allow => user(&rule.common, run_as),
    };
    settle(engine, rules, fits, target, run_as)
}

/// What no rule and no mode lets pass.
fn never(engine: &Engine, names: &[String], now: Timestamp) -> Option<Reason> {
    if engine.policy.expires_at <= now {
        return Some(Reason::PolicyExpired);
    }
    names.iter().any(|n| !env::may_be_set(n)).then_some(Reason::ForbiddenVariable)
}

fn arguments(same: bool) -> Result<(), Reason> {
    if same { Ok(()) } else { Err(Reason::Arguments) }
}

fn content(same: bool) -> Result<(), Reason> {
    if same { Ok(()) } else { Err(Reason::Content) }
}

fn variables(names: &[String], listed: impl Fn(&str) -> bool) -> Result<(), Reason> {
    if names.iter().all(|n| listed(n)) { Ok(()) } else { Err(Reason::Environment) }
}

/// An allow is for exactly its user; without one, for the job's own.
fn user(rule: &Common, asked: Option<&str>) -> Result<(), Reason> {
    if asked.is_none() || asked == rule.run_as.as_deref() { Ok(()) } else { Err(Reason::RunAs) }
}

/// A deny is for everybody unless it names a user: then for whoever would run as that user, and
/// not only for whoever asked to.
fn denies(rule: &Common, user: Option<&str>) -> bool {
    rule.run_as.as_deref().is_none_or(|named| Some(named) == user)
}

/// A path alone names a file only while nobody else can put another file there.
const fn unchangeable(target: &Target) -> Result<(), Reason> {
    if !target.guarded {
        Err(Reason::Unguarded)
    } else if target.links != 1 {
        Err(Reason::HardLink)
    } else {
        Ok(())
    }
}

fn settle<'r, R: Rule + 'r>(
    engine: &Engine,
    rules: impl Iterator<Item = &'r R>,
    fits: impl Fn(&R) -> Result<(), Reason>,
    target: &Target,
    asked: Option<&str>,
) -> Decision {
    let (mut allow, mut watched): (Option<&Common>, Option<&Common>) = (None, None);
    let (mut denying, mut considered) = (Vec::new(), Vec::new());
    for rule in rules {
        let common = rule.common();
        match (fits(rule), common.effect) {
            (Err(why), _) => considered.push(Considered { rule: common.id.clone(), why }),
            (Ok(()), Effect::Allow) => allow = allow.or(Some(common)),
            (Ok(()), Effect::Deny) => denying.push(common),
        }
    }
    let user = asked.or_else(|| allow?.run_as.as_deref());
    for deny in denying {
        if !denies(deny, user) {
            considered.push(Considered { rule: deny.id.clone(), why: Reason::RunAs });
        } else if deny.mode.unwrap_or(engine.policy.mode) == Mode::Monitor {
            watched = watched.or(Some(deny));
        } else {
            let rule = Some(deny.id.clone());
            return Decision { rule, ..refuse(Reason::DenyRule, target, considered) };
        }
    }
    if let Some(rule) = allow {
        let monitored = watched.is_some() || rule.mode == Some(Mode::Monitor);
        let decided = watched.unwrap_or(rule);
        return Decision {
            allowed: true,
            monitored,
            reason: Reason::Allowed,
            message: format!("rule {:?} allows {}", rule.id, target.canonical),
            rule: Some(decided.id.clone()),
            run_as: rule.run_as.clone(),
            considered,
        };
    }
    let near = considered.iter().map(|c| c.why).max().unwrap_or(Reason::NoRule);
    let reason = if watched.is_some() { Reason::DenyRule } else { near };
    let refused =
        Decision { rule: watched.map(|w| w.id.clone()), ..refuse(reason, target, considered) };
    // Monitor mode lets a request pass as the job's own user; it never hands out another one.
    let passes = engine.policy.mode == Mode::Monitor && asked.is_none();
    Decision { allowed: passes, monitored: passes, ..refused }
}

fn refuse(reason: Reason, target: &Target, considered: Vec<Considered>) -> Decision {
    let path = &target.canonical;
    let message = match reason {
        Reason::Allowed => format!("{path} is allowed"),
        Reason::NoRule => format!("no rule speaks of {path}; add one to the policy"),
        Reason::Arguments => format!("no rule for {path} has these arguments"),
        Reason::Content => format!("no rule for {path} pins this content or its signer"),
        Reason::Environment => {
            format!("no rule for {path} lists all of these variables; add them to its \"env\"")
        }
        Reason::RunAs => format!("no rule for {path} runs as this user; see \"run_as\""),
        Reason::Unguarded => format!(
            "{path}, or a folder above it, can be changed by others than root; \
             pin its sha256 in the rule, or correct owner and mode"
        ),
        Reason::HardLink => format!(
            "{path} has other names (hard links) too; pin its sha256 in the exec rule, or, if it \
             is a script's interpreter, replace it by a copy that has this name only"
        ),
        Reason::DenyRule => format!("a rule forbids {path}"),
        Reason::NotNative => {
            format!("{path} is no native executable; send it as a script job")
        }
        Reason::Interpreter => {
            format!("{path} runs whatever it is given; use a script job and a script rule")
        }
        Reason::ForbiddenVariable => {
            "a variable steers a loader or an interpreter; no rule can allow it".to_owned()
        }
        Reason::PolicyExpired => "the policy has expired; publish a newer one".to_owned(),
    };
    Decision {
        allowed: false,
        monitored: false,
        reason,
        message,
        rule: None,
        run_as: None,
        considered,
    }
}
