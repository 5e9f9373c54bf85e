//! The commonest pattern of an argument, `[a-z0-9@.-]+`, without an engine for patterns: one look
//! in a table a byte. Whatever is written in another way is left to the regular expression.

/// A set of ASCII characters, any number of which is an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    set: u128,
    may_be_empty: bool,
}

impl Class {
    /// Reads `[...]+` or `[...]*` of letters, digits, ranges of these and harmless signs; `None`
    /// for everything else.
    pub(super) fn parse(pattern: &str) -> Option<Self> {
        let (body, may_be_empty) = match pattern.strip_suffix("]+") {
            Some(body) => (body, false),
            None => (pattern.strip_suffix("]*")?, true),
        };
        let mut set = 0;
        let mut rest = body.strip_prefix('[')?.as_bytes();
        let mut first = true;
        while let Some((&from, after)) = rest.split_first() {
            let (to, after) = match after {
                [b'-', to, after @ ..] => (*to, after),
                _ => (from, after),
            };
            let literal_dash = from == b'-' && to == from && (first || after.is_empty());
            let range = from <= to && same_kind(from, to);
            let sign = from == to && b"@._:/+=,%".contains(&from);
            if !(literal_dash || range || sign) {
                return None;
            }
            set = (from..=to).fold(set, |set, byte| set | 1 << byte);
            (rest, first) = (after, false);
        }
        (set != 0).then_some(Self { set, may_be_empty })
    }

    pub(super) fn matches(self, text: &str) -> bool {
        let holds = |byte: u8| byte.is_ascii() && self.set >> byte & 1 == 1;
        (self.may_be_empty || !text.is_empty()) && text.bytes().all(holds)
    }
}

const fn same_kind(from: u8, to: u8) -> bool {
    (from.is_ascii_lowercase() && to.is_ascii_lowercase())
        || (from.is_ascii_uppercase() && to.is_ascii_uppercase())
        || (from.is_ascii_digit() && to.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn simple_classes_are_read_and_others_are_not() {
        for simple in ["[a-z]+", "[a-z0-9@.-]+", "[-a]*", "[A-Za-z0-9_:/-]+", "[x]+"] {
            assert!(Class::parse(simple).is_some(), "{simple}");
        }
        for other in [
            "",
            "a+",
            "[]+",
            "[^a]+",
            "[a",
            "a]+",
            "[a-z]",
            "[z-a]+",
            "[a-Z]+",
            r"[\d]+",
            "[a]]+",
            "[a&&b]+",
            "[[:alpha:]]+",
            "[a]+[b]+",
            "[.--]+",
            "[a-c-e]+",
            "[\u{e9}]+",
        ] {
            assert_eq!(Class::parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn it_says_what_the_regular_expression_says(
            pattern in r"\[[-a-d0-3@.:^\\&\[\]]{1,6}\][+*]",
            text in r"[-a-e0-4@.:\n\u{e9}]{0,5}",
        ) {
            if let Some(class) = Class::parse(&pattern) {
                let regex = regex_lite::Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap();
                prop_assert_eq!(class.matches(&text), regex.is_match(&text), "{} {:?}", pattern, text);
            }
        }
    }
}
