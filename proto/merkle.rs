//! The Merkle tree over an audit log's lines (RFC 6962, 2.1): its root, proofs that a line is in it
//! and that it only grew, and where a file of it keeps what.
//!
//! Hashes of complete subtrees never change, so a tree is kept as all of them in the order in
//! which they become complete: a file that is only ever appended to, in which each has its place.

use sha2::{Digest as _, Sha256};

use crate::bytes::Hash;

/// The longest proof: two hashes for each doubling of a log of 2^63 lines.
pub const MAX_PROOF: usize = 128;

/// The hash of an inner node: SHA-256(0x01 || left || right).
#[must_use]
pub fn node(left: Hash, right: Hash) -> Hash {
    Hash(
        Sha256::new()
            .chain_update([1])
            .chain_update(left.0)
            .chain_update(right.0)
            .finalize()
            .into(),
    )
}

/// The root of the tree without a line.
#[must_use]
pub fn empty() -> Hash {
    Hash::of(&[])
}

/// How many hashes a tree of `size` lines keeps.
#[must_use]
pub const fn kept(size: u64) -> u64 {
    size.saturating_mul(2).saturating_sub(size.count_ones() as u64)
}

/// Where the root of the complete subtree over the lines `n << level` to `(n + 1) << level` is kept.
#[must_use]
const fn place(level: u32, n: u64) -> u64 {
    // It becomes complete with its last line.
    let last = ((n + 1) << level) - 1;
    kept(last) + level as u64
}

/// A tree as its complete subtrees, the largest first: what is needed to go on, and no more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// A tree of `size` lines with these peaks; nothing where their number does not fit, or no log
    /// could have so many.
    #[must_use]
    pub fn of(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        let fits =
            size >> 62 == 0 && u32::try_from(peaks.len()).is_ok_and(|n| n == size.count_ones());
        fits.then_some(Self { size, peaks })
    }

    /// Lines so far.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the complete subtrees.
    #[must_use]
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Adds a line by its leaf hash. What becomes complete by it goes to `kept`, in order.
    pub fn push(&mut self, leaf: Hash, mut kept: impl FnMut(Hash)) {
        let (mut top, mut rest) = (leaf, self.size);
        kept(top);
        while rest & 1 == 1
            && let Some(left) = self.peaks.pop()
        {
            top = node(left, top);
            kept(top);
            rest >>= 1;
        }
        self.peaks.push(top);
        self.size += 1;
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev().copied();
        peaks.next().map_or_else(empty, |last| peaks.fold(last, |right, left| node(left, right)))
    }
}

/// Reads kept hashes by their place.
pub trait Kept {
    /// Why one cannot be read.
    type Error;

    /// The hash at this place.
    ///
    /// # Errors
    /// When it cannot be read.
    fn at(&self, place: u64) -> Result<Hash, Self::Error>;
}

/// There is no hash at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tree keeps no hash at place {0}")]
pub struct NotKept(u64);

impl Kept for Vec<Hash> {
    type Error = NotKept;

    fn at(&self, place: u64) -> Result<Hash, NotKept> {
        let at = usize::try_from(place).ok().and_then(|at| self.get(at));
        at.copied().ok_or(NotKept(place))
    }
}

/// The frontier of the tree over the first `size` lines.
///
/// # Errors
/// When a hash cannot be read.
pub fn frontier<K: Kept>(tree: &K, size: u64) -> Result<Frontier, K::Error> {
    let peaks = peaks(size).map(|at| tree.at(at)).collect::<Result<_, _>>()?;
    Ok(Frontier { size, peaks })
}

/// Where the peaks of the tree over `size` lines are kept, the largest first.
pub fn peaks(size: u64) -> impl Iterator<Item = u64> {
    let levels = (0..u64::BITS).rev().filter(move |level| size >> level & 1 == 1);
    levels.scan(0, |from, level| {
        let at = place(level, *from >> level);
        *from += 1 << level;
        Some(at)
    })
}

/// The root of the subtree over the lines `from` to `to`.
fn subtree<K: Kept>(tree: &K, from: u64, to: u64) -> Result<Hash, K::Error> {
    let lines = to - from;
    let level = lines.trailing_zeros();
    if lines.is_power_of_two() && from.trailing_zeros() >= level {
        return tree.at(place(level, from >> level));
    }
    let middle = from + split(lines);
    Ok(node(subtree(tree, from, middle)?, subtree(tree, middle, to)?))
}

/// The largest power of two below `lines`, which are two or more.
const fn split(lines: u64) -> u64 {
    1 << (u64::BITS - 1 - (lines - 1).leading_zeros())
}

/// That line `index` is in the tree over the first `size` lines (RFC 6962, 2.1.1); nothing where it
/// is not.
///
/// # Errors
/// When a hash cannot be read.
pub fn inclusion<K: Kept>(tree: &K, index: u64, size: u64) -> Result<Option<Vec<Hash>>, K::Error> {
    if index >= size {
        return Ok(None);
    }
    let (mut from, mut to, mut proof) = (0, size, Vec::new());
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            proof.push(subtree(tree, middle, to)?);
            to = middle;
        } else {
            proof.push(subtree(tree, from, middle)?);
            from = middle;
        }
    }
    proof.reverse();
    Ok(Some(proof))
}

/// That the tree over the first `old` lines is the beginning of that over the first `size` (RFC 6962,
/// 2.1.2); nothing where `old` is beyond that.
///
/// # Errors
/// When a hash cannot be read.
pub fn consistency<K: Kept>(tree: &K, old: u64, size: u64) -> Result<Option<Vec<Hash>>, K::Error> {
    if old > size {
        return Ok(None);
    }
    if old == 0 || old == size {
        return Ok(Some(Vec::new()));
    }
    let (mut from, mut to, mut proof) = (0, size, Vec::new());
    // Down to the subtree that ends where the old tree ends.
    while to != old {
        let middle = from + split(to - from);
        if old <= middle {
            proof.push(subtree(tree, middle, to)?);
            to = middle;
        } else {
            proof.push(subtree(tree, from, middle)?);
            from = middle;
        }
    }
    // Its root is known to whoever knows the old tree, if it is all of that.
    if from != 0 {
        proof.push(subtree(tree, from, to)?);
    }
    proof.reverse();
    Ok(Some(proof))
}

/// Whether `proof` shows that the line of this leaf hash is number `index` in the tree of this size and
/// root (RFC 9162, 2.1.3.2).
#[must_use]
pub fn is_included(leaf: Hash, index: u64, (size, root): (u64, Hash), proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, leaf);
    for part in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            hash = node(*part, hash);
            let up = if at & 1 == 0 { at.trailing_zeros() } else { 0 };
            // A tree of one line is at its root: zeros only.
            let up = up.min(u64::BITS - 1);
            (at, last) = (at >> up, last >> up);
        } else {
            hash = node(hash, *part);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && hash == root
}

/// Whether `proof` shows that a tree of the first size and root is the beginning of one of the second
/// (RFC 9162, 2.1.4.2).
#[must_use]
pub fn is_consistent(
    (old, old_root): (u64, Hash),
    (size, root): (u64, Hash),
    proof: &[Hash],
) -> bool {
    if old == size || old == 0 {
        let known = if old == 0 { old_root == empty() } else { old_root == root };
        return old <= size && proof.is_empty() && known;
    }
    if old > size {
        return false;
    }
    let (first, rest) = if old.is_power_of_two() {
        (old_root, proof)
    } else {
        let Some((first, rest)) = proof.split_first() else { return false };
        (*first, rest)
    };
    let (mut at, mut last) = (old - 1, size - 1);
    let up = at.trailing_ones();
    (at, last) = (at >> up, last >> up);
    let (mut before, mut now) = (first, first);
    for part in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            before = node(*part, before);
            now = node(*part, now);
            if at & 1 == 0 {
                let up = at.trailing_zeros().min(u64::BITS - 1);
                (at, last) = (at >> up, last >> up);
            }
        } else {
            now = node(now, *part);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && before == old_root && now == root
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::audit::leaf_hash;

    fn leaf(n: u64) -> Hash {
        leaf_hash(&n.to_be_bytes())
    }

    /// The definition of RFC 6962, 2.1, word by word.
    fn naive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty(),
            [one] => *one,
            more => {
                let mut k = 1;
                while k * 2 < more.len() {
                    k *= 2;
                }
                node(naive(&more[..k]), naive(&more[k..]))
            }
        }
    }

    fn tree(size: u64) -> (Vec<Hash>, Frontier) {
        let (mut kept, mut frontier) = (Vec::new(), Frontier::default());
        for n in 0..size {
            frontier.push(leaf(n), |hash| kept.push(hash));
        }
        (kept, frontier)
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        // Inputs and roots that implementations of RFC 6962 have tested with from the beginning.
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut frontier = Frontier::default();
        for (input, root) in inputs.iter().zip(roots) {
            frontier.push(leaf_hash(input), |_| {});
            assert_eq!(frontier.root().to_string(), root);
        }
    }

    #[test]
    fn every_proof_of_small_trees_holds_and_no_other() {
        for size in 0..40 {
            let (kept, grown) = tree(size);
            assert_eq!(kept.len() as u64, super::kept(size));
            assert_eq!(frontier(&kept, size).unwrap(), grown);
            let root = grown.root();
            let leaves: Vec<_> = (0..size).map(leaf).collect();
            assert_eq!(root, naive(&leaves));
            assert_eq!(inclusion(&kept, size, size).unwrap(), None);
            for index in 0..size {
                let proof = inclusion(&kept, index, size).unwrap().unwrap();
                assert!(is_included(leaf(index), index, (size, root), &proof), "{index} of {size}");
                for other in (0..size + 2).filter(|other| *other != index) {
                    assert!(!is_included(leaf(index), other, (size, root), &proof));
                }
            }
            for old in 0..=size {
                let old_root = naive(&leaves[..usize::try_from(old).unwrap()]);
                assert_eq!(frontier(&kept, old).unwrap().root(), old_root);
                let proof = consistency(&kept, old, size).unwrap().unwrap();
                assert!(is_consistent((old, old_root), (size, root), &proof), "{old} to {size}");
                for other in (0..size + 2).filter(|other| *other != old) {
                    assert!(!is_consistent((other, old_root), (size, root), &proof));
                }
            }
        }
    }

    #[test]
    fn proofs_of_a_large_log_are_short() {
        // As if each complete subtree of ten million lines had the same root.
        struct Flat;
        impl Kept for Flat {
            type Error = Infallible;
            fn at(&self, place: u64) -> Result<Hash, Infallible> {
                assert!(place < kept(10_000_000));
                Ok(Hash([7; 32]))
            }
        }
        let proof = consistency(&Flat, 9_999_990, 10_000_000).unwrap().unwrap();
        assert!(proof.len() <= 2 * 24, "{}", proof.len());
        assert!(inclusion(&Flat, 1234, 10_000_000).unwrap().unwrap().len() <= 24);
    }

    proptest! {
        #[test]
        fn no_proof_survives_a_change(
            size in 2..300_u64, old in 1..300_u64, at in any::<prop::sample::Index>(), bit in 0..256_usize,
        ) {
            let old = old.min(size - 1);
            let (kept, frontier) = tree(size);
            let root = frontier.root();
            let old_root = super::frontier(&kept, old).unwrap().root();
            let flipped = |mut hash: Hash| { hash.0[bit / 8] ^= 1 << (bit % 8); hash };
            let proof = consistency(&kept, old, size).unwrap().unwrap();
            let holds = |proof: &[Hash], old_root, root| is_consistent((old, old_root), (size, root), proof);
            prop_assert!(holds(&proof, old_root, root));
            prop_assert!(!holds(&proof, flipped(old_root), root));
            prop_assert!(!holds(&proof, old_root, flipped(root)));
            let mut longer = proof.clone();
            longer.push(root);
            prop_assert!(!holds(&longer, old_root, root));
            let mut changed = proof;
            let n = at.index(changed.len());
            changed[n] = flipped(changed[n]);
            prop_assert!(!holds(&changed, old_root, root));
            changed.remove(n);
            prop_assert!(!holds(&changed, old_root, root));

            let proof = inclusion(&kept, old, size).unwrap().unwrap();
            prop_assert!(is_included(leaf(old), old, (size, root), &proof));
            prop_assert!(!is_included(flipped(leaf(old)), old, (size, root), &proof));
            let mut changed = proof;
            let n = at.index(changed.len());
            changed[n] = flipped(changed[n]);
            prop_assert!(!is_included(leaf(old), old, (size, root), &changed));
        }
    }
}
