//! Arguments: position by position, anchored, and a variable one is never an option.

use jtnt_proto::policy::{ArgSlot, ArgsRule, MAX_SLOTS};
use regex_lite::Regex;

use super::class::Class;

/// Compiled arguments of a rule.
#[derive(Debug)]
pub(super) enum Args {
    Any,
    Slots(Vec<Slot>),
}

#[derive(Debug)]
pub(super) enum Slot {
    Literal(String),
    Class(Class),
    Pattern(Regex),
}

impl Args {
    pub(super) fn compile(rule: &ArgsRule) -> Result<Self, String> {
        let slots = match rule {
            ArgsRule::Any(_) => return Ok(Self::Any),
            ArgsRule::Slots(slots) => slots,
        };
        if slots.len() > MAX_SLOTS {
            return Err(format!("more than {MAX_SLOTS} arguments"));
        }
        slots.iter().map(Slot::compile).collect::<Result<_, _>>().map(Self::Slots)
    }

    /// Whether it says nothing about them.
    pub(super) const fn takes_any(&self) -> bool {
        matches!(self, Self::Any)
    }

    pub(super) fn matches(&self, args: &[String]) -> bool {
        match self {
            Self::Any => true,
            Self::Slots(slots) => {
                slots.len() == args.len() && slots.iter().zip(args).all(|(s, a)| s.matches(a))
            }
        }
    }
}

impl Slot {
    fn compile(slot: &ArgSlot) -> Result<Self, String> {
        match slot {
            ArgSlot::Literal(text) => Ok(Self::Literal(text.clone())),
            ArgSlot::Pattern(p) => {
                let regex = p.compile()?;
                Ok(Class::parse(&p.pattern).map_or(Self::Pattern(regex), Self::Class))
            }
        }
    }

    fn matches(&self, arg: &str) -> bool {
        match self {
            Self::Literal(text) => text == arg,
            Self::Class(class) => !arg.starts_with('-') && class.matches(arg),
            Self::Pattern(pattern) => !arg.starts_with('-') && pattern.is_match(arg),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(json: &str) -> Args {
        Args::compile(&serde_json::from_str(json).unwrap()).unwrap()
    }

    fn allows(rule: &str, given: &[&str]) -> bool {
        args(rule).matches(&given.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_match_by_position_and_number() {
        let rule = r#"["status", {"match": "[a-z0-9@.-]+"}]"#;
        assert!(allows(rule, &["status", "nginx.service"]));
        assert!(!allows(rule, &["status"]));
        assert!(!allows(rule, &["status", "nginx", "sshd"]));
        assert!(!allows(rule, &["stop", "nginx"]));
        assert!(allows("[]", &[]));
        assert!(!allows("[]", &["x"]));
        assert!(allows("\"any\"", &["-rf", "/"]));
    }

    #[test]
    fn a_variable_argument_is_never_an_option() {
        assert!(!allows(r#"[{"match": ".*"}]"#, &["--root=/tmp"]));
        assert!(allows(r#"["--now"]"#, &["--now"]), "a literal may be");
    }

    #[test]
    fn patterns_are_anchored_whatever_they_say() {
        assert!(!allows(r#"[{"match": "a|b"}]"#, &["ax"]));
        assert!(!allows(r#"[{"match": "(?m)^a$"}]"#, &["a\nb"]));
        assert!(!allows(r#"[{"match": "a"}]"#, &["a\n"]));
        let escaping: ArgsRule = serde_json::from_str(r#"[{"match": "a)|(?:.*"}]"#).unwrap();
        assert!(Args::compile(&escaping).is_err());
    }
}
