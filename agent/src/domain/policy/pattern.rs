//! Paths of rules: literal, or with `*` inside one folder and `**` across folders.

use std::fmt;

pub use jtnt_proto::policy_lint::MAX_PATH_BYTES;
use jtnt_proto::policy_lint::MAX_PATH_PARTS as MAX_SEGMENTS;

/// Why a text is no rule path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternFault {
    /// It does not begin at the root.
    #[error("{0:?} is not absolute")]
    Relative(String),
    /// It has an empty, `.` or `..` part.
    #[error("{0:?} has an empty part, `.` or `..`")]
    NotNormal(String),
    /// `**` stands beside other characters.
    #[error("in {0:?}, `**` must be a part of its own")]
    DoubleStar(String),
    /// It is too long or too deep.
    #[error("a path of a rule has at most {MAX_PATH_BYTES} bytes and {MAX_SEGMENTS} parts")]
    TooLong,
}

/// A compiled rule path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// The leading literal parts; the whole path where there is no star.
    anchor: String,
    /// What follows the anchor; empty for a literal path.
    rest: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// `**`: any number of parts, at least one when it is the last.
    Any,
    /// One part; the pieces between its stars.
    One(Vec<String>),
}

impl Pattern {
    /// Compiles a rule path.
    ///
    /// # Errors
    /// When it is not absolute and normal.
    pub fn parse(text: &str) -> Result<Self, PatternFault> {
        let parts = parts_of(text)?;
        let literal = parts.iter().take_while(|p| !p.contains('*')).count();
        let (head, tail) = parts.split_at(literal);
        let rest = tail.iter().map(|p| Segment::parse(p, text)).collect::<Result<_, _>>()?;
        Ok(Self { anchor: join(head), rest })
    }

    /// The literal path, or the folder under which all that matches lies.
    #[must_use]
    pub fn anchor(&self) -> &str {
        &self.anchor
    }

    /// Whether it has no star.
    #[must_use]
    pub const fn is_literal(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether it is about everything below its anchor.
    #[must_use]
    pub fn is_tree(&self) -> bool {
        self.rest == [Segment::Any]
    }

    /// The same pattern below another folder, for an anchor that turned out to be a link.
    #[must_use]
    pub fn with_anchor(&self, anchor: &str) -> Self {
        Self { anchor: anchor.to_owned(), rest: self.rest.clone() }
    }

    /// Whether an absolute, normal path matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        if path == self.anchor {
            return self.rest.is_empty();
        }
        let root = if self.anchor == "/" { "" } else { self.anchor.as_str() };
        let below = path.strip_prefix(root).and_then(|below| below.strip_prefix('/'));
        below.is_some_and(|below| !self.rest.is_empty() && match_parts(&self.rest, below))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.anchor.strip_suffix('/').unwrap_or(&self.anchor))?;
        for segment in &self.rest {
            match segment {
                Segment::Any => f.write_str("/**")?,
                Segment::One(pieces) => write!(f, "/{}", pieces.join("*"))?,
            }
        }
        if self.anchor == "/" && self.rest.is_empty() { f.write_str("/") } else { Ok(()) }
    }
}

impl Segment {
    fn parse(part: &str, whole: &str) -> Result<Self, PatternFault> {
        match part {
            "**" => Ok(Self::Any),
            _ if part.contains("**") => Err(PatternFault::DoubleStar(whole.to_owned())),
            _ => Ok(Self::One(part.split('*').map(str::to_owned).collect())),
        }
    }
}

/// Checks the shape of an absolute, normal path and returns its parts.
///
/// # Errors
/// When it is not one.
pub fn parts_of(text: &str) -> Result<Vec<&str>, PatternFault> {
    if text.len() > MAX_PATH_BYTES {
        return Err(PatternFault::TooLong);
    }
    let below = text.strip_prefix('/').ok_or_else(|| PatternFault::Relative(text.to_owned()))?;
    if below.is_empty() {
        return Ok(Vec::new());
    }
    let parts: Vec<_> = below.split('/').collect();
    if parts.iter().any(|p| matches!(*p, "" | "." | "..") || p.contains('\0')) {
        return Err(PatternFault::NotNormal(text.to_owned()));
    }
    if parts.len() > MAX_SEGMENTS {
        return Err(PatternFault::TooLong);
    }
    Ok(parts)
}

fn join(parts: &[&str]) -> String {
    if parts.is_empty() { "/".to_owned() } else { format!("/{}", parts.join("/")) }
}

/// Matches the parts of `path` one by one. On a mismatch it goes back to the last `**` alone,
/// which is enough for patterns of this kind and keeps the work at parts times segments.
fn match_parts(segments: &[Segment], path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let (mut s, mut p) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while p < parts.len() {
        let here = match (segments.get(s), parts.get(p)) {
            (Some(Segment::Any), _) => {
                // A closing `**` stands for at least one part, and one is left.
                if s + 1 == segments.len() {
                    return true;
                }
                retry = Some((s, p));
                s += 1;
                continue;
            }
            (Some(Segment::One(pieces)), Some(part)) => match_part(pieces, part),
            _ => false,
        };
        if here {
            (s, p) = (s + 1, p + 1);
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            (s, p) = (star + 1, from + 1);
        } else {
            return false;
        }
    }
    s == segments.len()
}

/// Matches one part against the pieces between stars: the first and last are fixed, those between
/// are taken where they first fit.
fn match_part(pieces: &[String], part: &str) -> bool {
    let [first, middle @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| only == part);
    };
    let Some(mut left) =
        part.strip_prefix(first.as_str()).and_then(|r| r.strip_suffix(last.as_str()))
    else {
        return false;
    };
    for piece in middle {
        match left.split_once(piece.as_str()) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(path)
    }

    #[test]
    fn a_star_stays_within_a_folder() {
        assert!(matches("/etc/app/*.conf", "/etc/app/a.conf"));
        assert!(matches("/etc/app/*.conf", "/etc/app/.conf"));
        assert!(!matches("/etc/app/*.conf", "/etc/app/sub/a.conf"));
        assert!(!matches("/etc/app/*.conf", "/etc/app"));
        assert!(matches("/a/x*y*z", "/a/xyyz"));
        assert!(!matches("/a/x*x", "/a/x"), "the two x are not one");
    }

    #[test]
    fn two_stars_cross_folders() {
        assert!(matches("/var/log/**", "/var/log/a/b/c"));
        assert!(!matches("/var/log/**", "/var/log"), "the folder itself is not below itself");
        assert!(!matches("/var/log/**", "/var/logs/a"));
        assert!(matches("/srv/**/keys/*", "/srv/keys/a"), "no folder between is one way");
        assert!(matches("/srv/**/keys/*", "/srv/a/keys/b/keys/c"));
        assert!(!matches("/srv/**/keys/*", "/srv/a/keys"));
        assert!(matches("/**", "/anything"));
    }

    #[test]
    fn a_literal_path_is_only_itself() {
        assert!(matches("/usr/bin/ls", "/usr/bin/ls"));
        assert!(!matches("/usr/bin/ls", "/usr/bin/ls/x"));
        assert!(!matches("/usr/bin/ls", "/usr/bin/lsof"));
    }

    #[test]
    fn paths_that_are_not_normal_are_refused() {
        for bad in ["usr", "", "/a//b", "/a/", "/a/./b", "/a/../b", "/a/x**", "/a/b\0"] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Pattern::parse(&format!("/{}", "a".repeat(4095))), Err(PatternFault::TooLong));
    }
}
