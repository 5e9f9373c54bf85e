//! Which paths of one run get file rules: each file by itself, a tree only where the kernel knows
//! nothing narrower.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use jtnt_proto::policy::Access;

use crate::domain::{
    policy::pattern::Pattern,
    seen::{Mark, Touched},
};

/// Paths of file rules, and for whom which note is.
#[derive(Default)]
pub(super) struct Wanted<'a> {
    files: BTreeMap<String, BTreeSet<Access>>,
    trees: BTreeMap<String, BTreeSet<Access>>,
    pub(super) told: Told<'a>,
}

#[derive(Default)]
pub(super) struct Told<'a> {
    pub(super) listed: Vec<&'a str>,
    pub(super) root: Vec<&'a str>,
    pub(super) moved: Vec<&'a str>,
    pub(super) made: Vec<&'a str>,
    pub(super) written: Vec<&'a str>,
    pub(super) loaded: Vec<&'a str>,
    pub(super) unguarded: Vec<&'a str>,
    pub(super) own: Vec<&'a str>,
}

impl Told<'_> {
    /// Of folders in each other only the one that has a rule.
    pub(super) fn only_outermost(&mut self) {
        let all: BTreeSet<_> = self.listed.iter().copied().collect();
        let is_inner = |path: &&str| {
            let above = Path::new(path).ancestors().skip(1);
            above.filter_map(Path::to_str).any(|folder| all.contains(folder))
        };
        self.listed.retain(|path| !is_inner(path));
    }
}

impl<'a> Wanted<'a> {
    pub(super) fn add(&mut self, file: &'a Touched, mut access: BTreeSet<Access>) {
        let (path, told) = (file.path.as_str(), &mut self.told);
        let is = |mark| file.marks.contains(&mark);
        if is(Mark::Folder) {
            if path == "/" {
                told.root.push(path);
            } else {
                told.listed.push(path);
                self.trees.entry(path.to_owned()).or_default().extend(access);
            }
            return;
        }
        if access.contains(&Access::Execute) && !file.access.contains(&Access::Execute) {
            told.loaded.push(path);
        }
        if access.contains(&Access::Execute) && is(Mark::Unguarded) {
            told.unguarded.push(path);
        }
        if !access.contains(&Access::Write) {
            self.files.entry(path.to_owned()).or_default().extend(access);
            return;
        }
        if is(Mark::Made) && !access.contains(&Access::Execute) {
            // How it was opened is not seen to the end, and what it made it may know.
            access.insert(Access::Read);
        }
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if is(Mark::Gone) && !folder.is_empty() {
            told.moved.push(path);
            self.trees.entry(folder.to_owned()).or_default().extend(access);
            return;
        }
        if is(Mark::Made) {
            told.made.push(path);
        } else if access == [Access::Write].into() {
            told.written.push(path);
        }
        self.files.entry(path.to_owned()).or_default().extend(access);
    }

    /// Every path with what no tree around it allows already.
    pub(super) fn least(self) -> impl Iterator<Item = (String, BTreeSet<Access>)> {
        let Self { files, trees, .. } = self;
        let around = trees.clone();
        let beyond = move |path: &str, access: BTreeSet<Access>| -> BTreeSet<Access> {
            let above = Path::new(path).ancestors().skip(1);
            let open: BTreeSet<_> =
                above.filter_map(|folder| around.get(folder.to_str()?)).flatten().collect();
            access.into_iter().filter(|one| !open.contains(one)).collect()
        };
        let trees = trees.into_iter().map(|(path, access)| (path, access, "/**"));
        let files = files.into_iter().map(|(path, access)| (path, access, ""));
        trees.chain(files).filter_map(move |(path, access, below)| {
            let access = beyond(&path, access);
            (!access.is_empty()).then(|| (format!("{path}{below}"), access))
        })
    }
}

/// Why a path cannot be that of a rule which means it alone.
pub(super) fn unfit(path: &str) -> Option<&'static str> {
    if path.contains('*') {
        return Some("a star in its name would stand for other files");
    }
    if path.chars().any(char::is_control) {
        return Some("it has a control character in its name");
    }
    match Pattern::parse(path) {
        Ok(_) => None,
        Err(_) => Some("it is too long or too deep"),
    }
}
