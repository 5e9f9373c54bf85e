//! The engine's naive twin: no index, no compiled form, one straight reading of the document. The
//! two must agree on everything that a generator can think of.

use jtnt_proto::policy::{ArgSlot, ArgsRule, Effect, ExecRule, Mode, Policy};
use proptest::prelude::*;

use super::{Engine, Surroundings, Target};

/// `pattern` and `path` part by part, by recursion.
fn glob(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        (["**"], rest) => !rest.is_empty(),
        (["**", more @ ..], rest) => (0..=rest.len()).any(|n| glob(more, &rest[n..])),
        ([first, more @ ..], [part, rest @ ..]) => star(first, part) && glob(more, rest),
        _ => false,
    }
}

fn star(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|n| rest.get(n..).is_some_and(|rest| star(tail, rest)))
        }),
    }
}

fn split(path: &str) -> Vec<&str> {
    path.split('/').skip(1).collect()
}

fn args_fit(rule: &ArgsRule, args: &[String]) -> bool {
    match rule {
        ArgsRule::Any(_) => true,
        ArgsRule::Slots(slots) => {
            slots.len() == args.len()
                && slots.iter().zip(args).all(|(slot, arg)| match slot {
                    ArgSlot::Literal(text) => text == arg,
                    // The generator's only pattern is one lower-case word.
                    ArgSlot::Pattern(_) => arg.bytes().all(|b| b.is_ascii_lowercase()),
                })
        }
    }
}

fn naive(policy: &Policy, target: &Target, around: Surroundings<'_>) -> (bool, bool) {
    let speaks = |r: &&ExecRule| {
        glob(&split(&r.path), &split(&target.canonical))
            && args_fit(&r.args, around.args)
            && r.sha256.is_none_or(|h| target.sha256 == Some(h))
    };
    let mode = |r: &ExecRule| r.mode.unwrap_or(policy.mode);
    let allow = policy.exec.iter().filter(speaks).filter(|r| r.effect == Effect::Allow).find(|r| {
        around.env.iter().all(|n| r.env.contains(n))
            && (around.run_as.is_none() || r.run_as.as_deref() == around.run_as)
            && (r.sha256.is_some() || (target.guarded && target.links == 1))
    });
    let user = around.run_as.or(allow.and_then(|r| r.run_as.as_deref()));
    let denies: Vec<_> = policy
        .exec
        .iter()
        .filter(speaks)
        .filter(|r| r.effect == Effect::Deny)
        .filter(|r| r.run_as.is_none() || r.run_as.as_deref() == user)
        .collect();
    if denies.iter().any(|r| mode(r) == Mode::Enforce) {
        return (false, false);
    }
    let allow = allow.is_some();
    match (allow, policy.mode == Mode::Monitor && around.run_as.is_none()) {
        (true, _) => (true, !denies.is_empty()),
        (false, passes) => (passes, passes),
    }
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "ab", "x"]), 1..4)
        .prop_map(|parts| format!("/{}", parts.join("/")))
}

fn pattern() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "ab", "x", "*", "a*", "*b", "**", "*a*"]);
    prop::collection::vec(part, 1..5).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn args_rule() -> impl Strategy<Value = ArgsRule> {
    let slot = prop::sample::select(vec![r#""on""#, r#""-x""#, r#"{"match":"[a-z]*"}"#]);
    let slots = prop::collection::vec(slot, 0..3).prop_map(|s| format!("[{}]", s.join(",")));
    prop_oneof![Just("\"any\"".to_owned()), slots]
        .prop_map(|text| serde_json::from_str(&text).unwrap())
}

fn rule() -> impl Strategy<Value = ExecRule> {
    (
        pattern(),
        any::<bool>(),
        args_rule(),
        prop::option::of(0..2_u8),
        any::<bool>(),
        prop::option::of(Just("web".to_owned())),
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(path, allow, args, pin, env, run_as, mode)| ExecRule {
            id: String::new(),
            effect: if allow { Effect::Allow } else { Effect::Deny },
            path,
            args,
            sha256: pin.map(|n| jtnt_proto::bytes::Hash([n; 32])),
            env: env.then(|| "SITE".to_owned()).into_iter().collect(),
            run_as,
            children: jtnt_proto::policy::Children::default(),
            ipc: false,
            // A monitored allow is a record beside the decision; the twin leaves it out.
            mode: mode.filter(|_| !allow).map(|m| if m { Mode::Monitor } else { Mode::Enforce }),
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn engine_and_reference_agree(
        rules in prop::collection::vec(rule(), 0..8),
        monitor in any::<bool>(),
        canonical in path(),
        (hash, guarded, links) in (0..3_u8, any::<bool>(), 1..3_u64),
        args in prop::collection::vec(prop::sample::select(vec!["on", "-x", "off", "A"]), 0..3),
        env in any::<bool>(),
        run_as in prop::option::of(prop::sample::select(vec!["web", "root"])),
    ) {
        let mut policy = super::tests::policy("{}");
        policy.mode = if monitor { Mode::Monitor } else { Mode::Enforce };
        policy.exec = rules;
        for (n, rule) in policy.exec.iter_mut().enumerate() {
            rule.id = format!("r{n}");
        }
        let sha256 = Some(jtnt_proto::bytes::Hash([hash; 32]));
        let target = Target { canonical, sha256, guarded, links, native: true };
        let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
        let env: Vec<_> = env.then(|| "SITE".to_owned()).into_iter().collect();
        let around = Surroundings { args: &args, env: &env, run_as };
        let expected = naive(&policy, &target, around);
        let engine = Engine::compile(policy, &mut |p| p.display().to_string()).unwrap();
        let found = engine.exec(&target, around, super::tests::now());
        prop_assert_eq!((found.allowed, found.monitored), expected, "{:?}", found);
    }
}
