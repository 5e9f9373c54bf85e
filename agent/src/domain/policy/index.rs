//! Rules by path: the literal ones by the path itself, the others by the folder they are about.
//! A look-up walks the ancestors of a path, so its cost follows the depth, not the rules.

use std::collections::BTreeMap;

use super::pattern::Pattern;

/// Rules that can be found by the path of a request.
#[derive(Debug)]
pub(super) struct Index<R> {
    rules: Vec<(Pattern, R)>,
    /// Positions in `rules`, by anchor: literal paths and globs.
    literal: BTreeMap<String, Vec<usize>>,
    glob: BTreeMap<String, Vec<usize>>,
}

impl<R> Index<R> {
    pub(super) fn new(rules: Vec<(Pattern, R)>) -> Self {
        let (mut literal, mut glob) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
        for (at, (pattern, _)) in rules.iter().enumerate() {
            let by = if pattern.is_literal() { &mut literal } else { &mut glob };
            by.entry(pattern.anchor().to_owned()).or_default().push(at);
        }
        Self { rules, literal, glob }
    }

    /// Every rule whose path matches: literal ones first, then globs from the deepest folder up.
    pub(super) fn about<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a R> {
        let literal = self.literal.get(path).into_iter().flatten();
        let globs = ancestors(path)
            .filter(|_| !self.glob.is_empty())
            .filter_map(|folder| self.glob.get(folder))
            .flatten();
        literal
            .chain(globs)
            .filter_map(|at| self.rules.get(*at))
            .filter(move |(pattern, _)| pattern.matches(path))
            .map(|(_, rule)| rule)
    }
}

/// The folders above `path`, nearest first, down to `/`.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(parent(path), |p| parent(p))
}

fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/') {
        Some(("", "")) | None => None,
        Some(("", _)) => Some("/"),
        Some((above, _)) => Some(above),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_end_at_the_root() {
        assert_eq!(ancestors("/a/b/c").collect::<Vec<_>>(), ["/a/b", "/a", "/"]);
        assert_eq!(ancestors("/a").collect::<Vec<_>>(), ["/"]);
        assert_eq!(ancestors("/").count(), 0);
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
