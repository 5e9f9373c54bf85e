//! What was seen of a monitored job while it ran: the files it opened, and how. Bounded, since a
//! job opens what it likes; what is beyond a bound is told as missing, never guessed.

use std::collections::{BTreeMap, BTreeSet};

use jtnt_proto::{bytes::Hash, policy::Access};
use serde::{Deserialize, Serialize};

use super::asked::Asked;

/// The most that is kept, in pairs of a path and an access.
pub const MAX_PAIRS: usize = 4096;
/// The same in bytes of all paths.
const MAX_BYTES: usize = 512 << 10;
/// Names that are no text, for people.
const MAX_ODD: usize = 32;

/// One run of one job. It stands in a file of the job's: fields are added, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What it asked, and whom it ran as.
    pub asked: Asked,
    /// The program, a script's interpreter, or the file of a transfer, without links in its path.
    pub path: String,
    /// Hash of the program, where it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Hash>,
    /// Whether its files were held to rules meanwhile, so that it got no further than these.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// What it touched, by path.
    #[serde(default)]
    pub files: Vec<Touched>,
    /// Files whose names are no text, as far as they can be shown.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub odd: BTreeSet<String>,
    /// Whether there was more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Why it was not watched, or not everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwatched: Option<String>,
}

/// A file or folder that it opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Its path.
    pub path: String,
    /// How it was opened.
    pub access: BTreeSet<Access>,
    /// What else there is to say of it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub marks: BTreeSet<Mark>,
}

/// What else there is to say of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// It is a folder.
    Folder,
    /// It was made while the job ran.
    Made,
    /// It was not there any more at the end.
    Gone,
    /// It is a program or a library.
    Native,
    /// Others than root could change it.
    Unguarded,
}

impl Seen {
    /// A run of which nothing was seen but itself.
    #[must_use]
    pub const fn of(asked: Asked, path: String) -> Self {
        Self {
            asked,
            path,
            sha256: None,
            held: false,
            files: Vec::new(),
            odd: BTreeSet::new(),
            more: false,
            unwatched: None,
        }
    }

    /// The same with what was seen.
    #[must_use]
    pub fn with(self, sightings: Sightings) -> Self {
        let Sightings { files, odd, more, .. } = sightings;
        let files =
            files.into_iter().map(|(path, (access, marks))| Touched { path, access, marks });
        Self { files: files.collect(), odd, more, ..self }
    }
}

/// Gathers what is seen.
#[derive(Debug, Default)]
pub struct Sightings {
    files: BTreeMap<String, (BTreeSet<Access>, BTreeSet<Mark>)>,
    odd: BTreeSet<String>,
    more: bool,
    pairs: usize,
    bytes: usize,
}

impl Sightings {
    /// A file was opened.
    pub fn add(&mut self, path: &[u8], access: Access, marks: impl IntoIterator<Item = Mark>) {
        let Ok(path) = std::str::from_utf8(path) else {
            let shown = String::from_utf8_lossy(path).into_owned();
            if self.odd.len() < MAX_ODD {
                self.odd.insert(shown);
            } else {
                self.lose();
            }
            return;
        };
        match self.files.get_mut(path) {
            Some((all, known)) if all.contains(&access) => known.extend(marks),
            _ if self.pairs == MAX_PAIRS => self.lose(),
            Some((all, known)) => {
                all.insert(access);
                known.extend(marks);
                self.pairs += 1;
            }
            None if self.bytes + path.len() > MAX_BYTES => self.lose(),
            None => {
                self.pairs += 1;
                self.bytes += path.len();
                let new = ([access].into(), marks.into_iter().collect());
                self.files.insert(path.to_owned(), new);
            }
        }
    }

    /// Something was opened that is not kept.
    pub const fn lose(&mut self) {
        self.more = true;
    }

    /// Looks at everything once more, to mark it.
    pub fn mark(&mut self, look: impl Fn(&str, &BTreeSet<Access>, &BTreeSet<Mark>) -> Vec<Mark>) {
        for (path, (access, marks)) in &mut self.files {
            let more = look(path, access, marks);
            marks.extend(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Access::{Execute, Read, Write};

    fn seen(sightings: Sightings) -> Seen {
        let asked = serde_json::from_str(r#"{"type": "exec", "path": "/x", "args": []}"#).unwrap();
        Seen::of(asked, "/x".into()).with(sightings)
    }

    #[test]
    fn a_file_is_kept_once_with_all_its_accesses() {
        let mut sightings = Sightings::default();
        sightings.add(b"/b", Read, []);
        sightings.add(b"/a", Write, [Mark::Made]);
        sightings.add(b"/b", Execute, []);
        sightings.add(b"/b", Read, [Mark::Native]);
        sightings.mark(|path, _, _| if path == "/a" { vec![Mark::Gone] } else { Vec::new() });
        let seen = seen(sightings);
        let [a, b] = &seen.files[..] else { panic!("{:?}", seen.files) };
        assert_eq!((&*a.path, &a.marks), ("/a", &[Mark::Made, Mark::Gone].into()));
        assert_eq!((&b.access, &b.marks), (&[Read, Execute].into(), &[Mark::Native].into()));
        assert!(!seen.more);
        let text = serde_json::to_vec(&seen).unwrap();
        assert_eq!(serde_json::from_slice::<Seen>(&text).unwrap(), seen);
    }

    #[test]
    fn what_is_beyond_a_bound_is_told() {
        let mut sightings = Sightings::default();
        for n in 0..MAX_PAIRS {
            sightings.add(format!("/{n}").as_bytes(), Read, []);
        }
        sightings.add(b"/0", Read, [Mark::Native]);
        assert!(!sightings.more, "that was known");
        sightings.add(b"/0", Write, []);
        sightings.add(b"/new", Read, []);
        let full = seen(sightings);
        assert_eq!((full.files.len(), full.more), (MAX_PAIRS, true));

        let mut sightings = Sightings::default();
        let long = "x".repeat(4000);
        for n in 0..200 {
            sightings.add(format!("/{long}/{n}").as_bytes(), Read, []);
        }
        let full = seen(sightings);
        assert!(full.more && full.files.len() < 140);
        assert!(serde_json::to_vec(&full).unwrap().len() < 1 << 20);
    }

    #[test]
    fn a_name_that_is_no_text_is_shown_and_bounded() {
        let mut sightings = Sightings::default();
        for n in 0..=u8::try_from(MAX_ODD).unwrap() {
            sightings.add(&[b'/', 0xff, b'a' + n], Read, []);
        }
        let seen = seen(sightings);
        assert_eq!((seen.files.len(), seen.odd.len(), seen.more), (0, MAX_ODD, true));
        assert_eq!(seen.odd.first().unwrap(), "/\u{fffd}a");
    }
}
