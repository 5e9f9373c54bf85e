//! A disk that forgets: what was not synced may be there after a power cut, or a part of it, or
//! nothing. A file's bytes are sure after a sync of the file, its name after a sync of the folder.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use crate::work::Said;

/// What a process did to files, or told. All paths are within its data folder.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Create(PathBuf),
    Mkdir(PathBuf),
    /// At a place, or at the end.
    Write(PathBuf, Option<u64>, Vec<u8>),
    Cut(PathBuf, u64),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    Said(Said),
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Folder,
    File(usize),
}

/// Names of a folder, and what was done to them since its last sync.
#[derive(Debug, Clone, Default)]
struct Folder {
    synced: BTreeMap<PathBuf, Entry>,
    since: Vec<Turn>,
}

/// One change of a folder; a rename is one, too.
#[derive(Debug, Clone)]
struct Turn {
    gone: Option<PathBuf>,
    come: Option<(PathBuf, Entry)>,
}

#[derive(Debug, Clone)]
enum Edit {
    Write(usize, Vec<u8>),
    Cut(usize),
}

#[derive(Debug, Clone, Default)]
struct Content {
    synced: Vec<u8>,
    since: Vec<Edit>,
}

/// What of a file's last bytes has reached the disk.
#[derive(Debug, Clone, Copy)]
enum Reached {
    Nothing,
    All,
    /// So many bytes, in order.
    Bytes(usize),
    /// The length, and of what was new only the bytes before, or behind, this one; zeros else.
    Before(usize),
    Behind(usize),
}

/// Files by their path, as they are after a power cut.
pub(crate) type State = BTreeMap<PathBuf, Option<Vec<u8>>>;

#[derive(Debug, Clone)]
pub(crate) struct Disk {
    folders: BTreeMap<PathBuf, Folder>,
    files: Vec<Content>,
}

impl Disk {
    /// Empty, but for its one folder.
    pub(crate) fn new() -> Self {
        let folders = BTreeMap::from([(PathBuf::new(), Folder::default())]);
        Self { folders, files: Vec::new() }
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(path) => {
                self.files.push(Content::default());
                self.turn(path, None, Some(Entry::File(self.files.len() - 1)));
            }
            Change::Mkdir(path) => {
                self.folders.insert(path.clone(), Folder::default());
                self.turn(path, None, Some(Entry::Folder));
            }
            Change::Rename(from, to) => {
                assert_eq!(from.parent(), to.parent(), "the model knows no other");
                let entry = self.now(from);
                self.turn(to, Some(from), entry);
            }
            Change::Unlink(path) => self.turn(path, Some(path), None),
            Change::Write(path, at, bytes) => {
                let file = self.file(path);
                let at = at.map_or_else(|| file.all().len(), |at| usize::try_from(at).unwrap());
                file.since.push(Edit::Write(at, bytes.clone()));
            }
            Change::Cut(path, to) => {
                self.file(path).since.push(Edit::Cut(usize::try_from(*to).unwrap()));
            }
            Change::Sync(path) => match self.folders.get_mut(path) {
                Some(folder) => {
                    let turns = std::mem::take(&mut folder.since);
                    turns.iter().for_each(|turn| turn.happen(&mut folder.synced));
                }
                None => {
                    let file = self.file(path);
                    *file = Content { synced: file.all(), since: Vec::new() };
                }
            },
            Change::Said(_) => {}
        }
    }

    fn turn(&mut self, path: &Path, gone: Option<&Path>, come: Option<Entry>) {
        let folder = self.folders.get_mut(path.parent().unwrap()).unwrap();
        let come = come.map(|entry| (path.to_owned(), entry));
        folder.since.push(Turn { gone: gone.map(Path::to_owned), come });
    }

    /// What stands there now, for who looks before the power is cut.
    fn now(&self, path: &Path) -> Option<Entry> {
        let folder = self.folders.get(path.parent()?)?;
        let mut names = folder.synced.clone();
        folder.since.iter().for_each(|turn| turn.happen(&mut names));
        names.get(path).copied()
    }

    fn file(&mut self, path: &Path) -> &mut Content {
        match self.now(path) {
            Some(Entry::File(n)) => &mut self.files[n],
            other => panic!("{}: {other:?}", path.display()),
        }
    }

    /// As whoever looks now sees it.
    pub(crate) fn seen(&self) -> State {
        let names = self.namings().pop().unwrap();
        self.state(&names, None, Reached::All)
    }

    /// All that may be left when the power is cut now.
    pub(crate) fn states(&self) -> Vec<State> {
        let mut found = Vec::new();
        for names in self.namings() {
            for others in [Reached::Nothing, Reached::All] {
                found.push(self.state(&names, None, others));
                for entry in names.values() {
                    let Entry::File(n) = *entry else { continue };
                    let ways = self.files[n].ways().into_iter();
                    found.extend(ways.map(|way| self.state(&names, Some((n, way)), others)));
                }
            }
        }
        found
    }

    fn state(
        &self,
        names: &BTreeMap<PathBuf, Entry>,
        one: Option<(usize, Reached)>,
        others: Reached,
    ) -> State {
        let content = |entry: &Entry| match entry {
            Entry::Folder => None,
            Entry::File(n) => {
                let way = one.filter(|(m, _)| m == n).map_or(others, |(_, way)| way);
                Some(self.files[*n].left(way))
            }
        };
        names.iter().map(|(path, entry)| (path.clone(), content(entry))).collect()
    }

    /// Every choice of the changes of folders that are not synced.
    fn namings(&self) -> Vec<BTreeMap<PathBuf, Entry>> {
        let open: Vec<_> = self.folders.values().flat_map(|folder| &folder.since).collect();
        assert!(open.len() < 8, "the log syncs its folders: {open:?}");
        let sure: BTreeMap<_, _> =
            self.folders.values().flat_map(|folder| folder.synced.clone()).collect();
        let choices = 0..1_usize << open.len();
        let chosen = choices.map(|choice| {
            let mut names = sure.clone();
            for (n, turn) in open.iter().enumerate() {
                if choice >> n & 1 == 1 {
                    turn.happen(&mut names);
                }
            }
            reachable(&names)
        });
        chosen.collect()
    }
}

/// Without what is in folders that are gone.
fn reachable(names: &BTreeMap<PathBuf, Entry>) -> BTreeMap<PathBuf, Entry> {
    let is_there = |path: &Path| {
        let mut folders = path.ancestors().skip(1).filter(|dir| *dir != Path::new(""));
        folders.all(|dir| names.contains_key(dir))
    };
    names.iter().filter(|(path, _)| is_there(path)).map(|(p, e)| (p.clone(), *e)).collect()
}

impl Turn {
    fn happen(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((path, entry)) = &self.come {
            names.insert(path.clone(), *entry);
        }
    }
}

impl Content {
    /// As whoever looks before the power is cut sees it.
    fn all(&self) -> Vec<u8> {
        self.left(Reached::All)
    }

    fn written(&self) -> usize {
        let lengths = self.since.iter().map(|edit| match edit {
            Edit::Write(_, bytes) => bytes.len(),
            Edit::Cut(_) => 0,
        });
        lengths.sum()
    }

    /// Where it is worth a look: at the edges of lines and blocks, and between.
    fn ways(&self) -> Vec<Reached> {
        let total = self.written();
        if total == 0 {
            return Vec::new();
        }
        let bytes: Vec<_> = self.since.iter().flat_map(Edit::bytes).copied().collect();
        let ends = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(n, _)| n);
        let edges = ends.take(3).flat_map(|end| [end, end + 1]);
        let mut cuts: Vec<_> = [1, total / 2, total - 1].into_iter().chain(edges).collect();
        cuts.retain(|cut| (1..total).contains(cut));
        cuts.sort_unstable();
        cuts.dedup();
        let grown = self.all().len().saturating_sub(self.synced.len());
        let mut ways: Vec<_> = cuts.into_iter().map(Reached::Bytes).collect();
        ways.extend([Reached::Before(0), Reached::Before(grown / 2), Reached::Behind(grown / 2)]);
        ways.extend(
            [Reached::Before(512), Reached::Behind(512)].into_iter().filter(|_| grown > 512),
        );
        ways
    }

    fn left(&self, way: Reached) -> Vec<u8> {
        let mut room = match way {
            Reached::Nothing => return self.synced.clone(),
            Reached::Bytes(n) => n,
            Reached::All | Reached::Before(_) | Reached::Behind(_) => usize::MAX,
        };
        let mut content = self.synced.clone();
        for edit in &self.since {
            match edit {
                Edit::Cut(to) => content.resize(*to, 0),
                Edit::Write(at, bytes) => {
                    let bytes = &bytes[..bytes.len().min(room)];
                    room -= bytes.len();
                    content.resize(content.len().max(at + bytes.len()), 0);
                    content[*at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
            if room == 0 {
                break;
            }
        }
        let new = self.synced.len().min(content.len());
        match way {
            Reached::Before(n) => content[new..].iter_mut().skip(n).for_each(|byte| *byte = 0),
            Reached::Behind(n) => content[new..].iter_mut().take(n).for_each(|byte| *byte = 0),
            Reached::Nothing | Reached::All | Reached::Bytes(_) => {}
        }
        content
    }
}

impl Edit {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Write(_, bytes) => bytes,
            Self::Cut(_) => &[],
        }
    }
}

/// Makes the state a folder.
pub(crate) fn put(state: &State, data: &Path) {
    for (path, content) in state {
        match content {
            None => fs::create_dir(data.join(path)).unwrap(),
            Some(bytes) => {
                let mut file = fs::File::create(data.join(path)).unwrap();
                file.write_all(bytes).unwrap();
            }
        }
    }
}
