//! Rules by path: the literal ones by the path itself, the others by the folder they are about.
//! A look-up walks the folders of a path, so its cost follows the depth, not the rules.
//!
//! Folders are found by a hash of their name that one pass over a path yields for all of them. It
//! only narrows the search: every rule it leads to is still compared by its pattern.

use super::pattern::Pattern;

/// Rules that can be found by the path of a request.
#[derive(Debug)]
pub(super) struct Index<R> {
    rules: Vec<(Pattern, R)>,
    literal: Positions,
    glob: Positions,
}

/// Positions in [`Index::rules`] by the hash of their anchor, in order of both.
type Positions = Vec<(u64, usize)>;

impl<R> Index<R> {
    pub(super) fn new(rules: Vec<(Pattern, R)>) -> Self {
        let (mut literal, mut glob) = (Positions::new(), Positions::new());
        for (at, (pattern, _)) in rules.iter().enumerate() {
            let by = if pattern.is_literal() { &mut literal } else { &mut glob };
            by.push((hash(pattern.anchor()), at));
        }
        literal.sort_unstable();
        glob.sort_unstable();
        Self { rules, literal, glob }
    }

    /// Every rule, as the document has them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Pattern, &R)> {
        self.rules.iter().map(|(pattern, rule)| (pattern, rule))
    }

    /// Every rule whose path matches: literal ones first, then globs from the deepest folder up.
    pub(super) fn about<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a R> {
        let literal = find(&self.literal, hash(path));
        let above = if self.glob.is_empty() { Vec::new() } else { folders(path) };
        let globs = above.into_iter().rev().flat_map(|folder| find(&self.glob, folder));
        literal
            .chain(globs)
            .filter_map(|at| self.rules.get(at))
            .filter(move |(pattern, _)| pattern.matches(path))
            .map(|(_, rule)| rule)
    }
}

fn find(positions: &Positions, wanted: u64) -> impl Iterator<Item = usize> {
    let first = positions.partition_point(|(hash, _)| *hash < wanted);
    let rest = positions.get(first..).unwrap_or_default();
    rest.iter().take_while(move |(hash, _)| *hash == wanted).map(|(_, at)| *at)
}

/// FNV-1a. It need not withstand anybody: who signs policies may make them slow anyway.
const START: u64 = 0xcbf2_9ce4_8422_2325;

const fn mix(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3)
}

fn hash(path: &str) -> u64 {
    path.bytes().fold(START, mix)
}

/// The hash of every folder above `path`, from `/` down.
fn folders(path: &str) -> Vec<u64> {
    let below = path.strip_prefix('/').unwrap_or_default();
    let mut found = Vec::with_capacity(8);
    if !below.is_empty() {
        found.push(hash("/"));
    }
    let mut at = mix(START, b'/');
    for byte in below.bytes() {
        if byte == b'/' {
            found.push(at);
        }
        at = mix(at, byte);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_begin_at_the_root() {
        assert_eq!(folders("/a/b/c"), ["/", "/a", "/a/b"].map(hash));
        assert_eq!(folders("/a"), ["/"].map(hash));
        assert!(folders("/").is_empty());
    }

    #[test]
    fn rules_of_one_path_are_found_in_the_order_of_the_document() {
        let rule = |n: usize| (Pattern::parse("/usr/bin/ls").unwrap(), n);
        let index = Index::new((0..5).map(rule).collect());
        assert_eq!(index.about("/usr/bin/ls").copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_path_finds_its_rules() {
        let rule = |p: &str| (Pattern::parse(p).unwrap(), p.to_owned());
        let index = Index::new(["/usr/bin/ls", "/usr/**", "/usr/bin/*", "/opt/*"].map(rule).into());
        let found: Vec<_> = index.about("/usr/bin/ls").collect();
        assert_eq!(found, ["/usr/bin/ls", "/usr/bin/*", "/usr/**"]);
        assert_eq!(index.about("/etc/passwd").count(), 0);
    }
}
