//! The Merkle tree over the log, in a file beside it. It follows from the lines, so nothing here is
//! synced but for a checkpoint: what a crash took is made anew from them.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use jtnt_proto::{
    audit::{SealedLine, ZERO, frontier_of, leaf_hash},
    bytes::Hash,
    key::PublicKey,
    merkle::{self, Frontier, Kept},
};

use super::{
    FILE_MODE,
    files::{self, DayFile},
    reader::{self, Lines},
};
use crate::runtime::durable;

const HASH_BYTES: u64 = 32;
/// Lines that are added at once.
const AT_ONCE: usize = 4096;

/// The tree's file.
#[derive(Debug)]
struct Hashes(File);

impl Kept for Hashes {
    type Error = io::Error;

    fn at(&self, place: u64) -> io::Result<Hash> {
        let mut hash = [0; 32];
        self.0.read_exact_at(&mut hash, place.saturating_mul(HASH_BYTES))?;
        // Nothing has this hash: it is a hole, and a proof with one would look like a fork.
        let known = Some(Hash(hash)).filter(|hash| *hash != ZERO);
        known.ok_or_else(|| gone("the lines that it was made from are gone".to_owned()))
    }
}

/// The tree, as far as the log is on disk.
#[derive(Debug)]
pub(super) struct Tree {
    hashes: Hashes,
    frontier: Frontier,
}

/// Where the tree of a log is.
pub(super) fn path(dir: &Path, log_id: &str) -> PathBuf {
    dir.join(format!("{log_id}.tree"))
}

impl Tree {
    /// The tree over the `size` lines of the log in `dir`. `sure`: what a checkpoint said when the
    /// file was synced; only that much of the file is believed, and the rest is made from lines.
    ///
    /// # Errors
    /// When lines that are needed are gone, or the system fails.
    pub(super) fn open(
        dir: &Path,
        log_id: &str,
        size: u64,
        (sure, keys): (Option<(u64, Hash)>, &[PublicKey]),
    ) -> io::Result<Self> {
        let path = path(dir, log_id);
        if !path.exists() {
            durable::create(&path, FILE_MODE)?;
            durable::sync_parent(&path)?;
        }
        let hashes = Hashes(OpenOptions::new().read(true).write(true).open(&path)?);
        let believed = sure.filter(|(sure, _)| *sure <= size).and_then(|(sure, root)| {
            merkle::frontier(&hashes, sure).ok().filter(|frontier| frontier.root() == root)
        });
        let mut tree = Self { hashes, frontier: believed.unwrap_or_default() };
        let mut days = Vec::new();
        for day in files::list(dir)?.into_iter().rev() {
            let Some(first) = first_line(&day, keys)? else { continue };
            let last = first.seq <= tree.frontier.size();
            days.push((first, day));
            if last {
                break;
            }
        }
        // Days before the first were removed; what they came to stands in its first line.
        if let Some((first, day)) =
            days.last().filter(|(first, _)| first.seq > tree.frontier.size())
        {
            let known = first.frontier.clone();
            let gone = || gone(format!("the lines before {} are gone", day.name()));
            tree.begin(known.ok_or_else(gone)?)?;
        }
        while let Some((first, day)) = days.pop() {
            tree.add(&day, first.seq, size)?;
        }
        if tree.frontier.size() == size {
            return Ok(tree);
        }
        Err(gone(format!("{} of {size} lines are there", tree.frontier.size())))
    }

    /// A tree of which nothing but this is known.
    fn begin(&mut self, frontier: Frontier) -> io::Result<()> {
        for (place, peak) in merkle::peaks(frontier.size()).zip(frontier.peaks()) {
            self.hashes.0.write_all_at(&peak.0, place * HASH_BYTES)?;
        }
        self.frontier = frontier;
        Ok(())
    }

    /// Adds the lines of a day that begins with line `first`, those that are new, up to `size`.
    fn add(&mut self, day: &DayFile, first: u64, size: u64) -> io::Result<()> {
        let known = self.frontier.size().checked_sub(first);
        let known =
            known.ok_or_else(|| gone(format!("the lines before {} are gone", day.name())))?;
        let mut leaves = Vec::new();
        for line in Lines::of(&day.path)?.skip(usize::try_from(known).unwrap_or(usize::MAX)) {
            let line = line?;
            if line.whole && self.frontier.size() + (leaves.len() as u64) < size {
                leaves.push(leaf_hash(&line.bytes));
            }
            if leaves.len() == AT_ONCE {
                self.extend(&leaves)?;
                leaves.clear();
            }
        }
        self.extend(&leaves)
    }

    /// Lines that are on disk, by their leaf hashes.
    pub(super) fn extend(&mut self, leaves: &[Hash]) -> io::Result<()> {
        let at = merkle::kept(self.frontier.size()) * HASH_BYTES;
        let (mut frontier, mut bytes) = (self.frontier.clone(), Vec::new());
        for leaf in leaves {
            frontier.push(*leaf, |hash| bytes.extend_from_slice(&hash.0));
        }
        self.hashes.0.write_all_at(&bytes, at)?;
        self.frontier = frontier;
        Ok(())
    }

    /// Makes the file durable; from then on a checkpoint may say that it is.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.hashes.0.sync_data()
    }

    pub(super) const fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// That it was a tree of `old` lines once; nothing where it has fewer.
    pub(super) fn since(&self, old: u64) -> io::Result<Option<Vec<Hash>>> {
        merkle::consistency(&self.hashes, old, self.frontier.size())
    }

    /// The root over the first `size` lines, which it has.
    pub(super) fn root_of(&self, size: u64) -> io::Result<Hash> {
        merkle::frontier(&self.hashes, size).map(|frontier| frontier.root())
    }

    /// That line `seq` is one of the first `size`; nothing where it is not.
    pub(super) fn inclusion(&self, seq: u64, size: u64) -> io::Result<Option<Vec<Hash>>> {
        let size = size.min(self.frontier.size());
        merkle::inclusion(&self.hashes, seq, size)
    }
}

fn gone(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, why)
}

/// What the first line of a day's file says.
struct First {
    seq: u64,
    frontier: Option<Frontier>,
}

fn first_line(day: &DayFile, keys: &[PublicKey]) -> io::Result<Option<First>> {
    let Some(raw) = reader::first_line(&day.path)? else { return Ok(None) };
    let Ok(line) = SealedLine::parse(&raw) else { return Ok(None) };
    let seq = line.line.seq;
    let told = frontier_of(&line.line).filter(|_| keys.iter().any(|key| line.is_signed_by(key)));
    Ok(Some(First { seq, frontier: told }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(from: u64, to: u64) -> Vec<Hash> {
        (from..to).map(|n| leaf_hash(&n.to_be_bytes())).collect()
    }

    #[test]
    fn only_what_a_checkpoint_vouches_for_is_believed_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let key = PublicKey::of(&ed25519_dalek::SigningKey::from_bytes(&[7; 32]));
        let mut tree = Tree::open(dir.path(), "log", 0, (None, &[key])).unwrap();
        tree.extend(&leaves(0, 10)).unwrap();
        let (at_ten, root) = (tree.frontier().clone(), tree.frontier().root());
        let again = |size, sure| Tree::open(dir.path(), "log", size, (sure, &[key]));
        assert_eq!(*again(10, Some((10, root))).unwrap().frontier(), at_ten);
        // There are no lines here to make it from.
        for sure in [None, Some((9, root)), Some((10, Hash([1; 32]))), Some((11, root))] {
            assert!(again(10, sure).is_err(), "{sure:?}");
        }
        tree.extend(&leaves(10, 300)).unwrap();
        let proof = tree.since(10).unwrap().unwrap();
        let now = (300, tree.frontier().root());
        assert!(merkle::is_consistent((10, root), now, &proof));
        assert_eq!(tree.since(301).unwrap(), None);
    }
}
