//! What is kept of an output stream: its first bytes, its last bytes, the number and the hash of
//! all. Memory holds the last bytes only; the first go to whoever stores them.

use std::collections::VecDeque;

use jtnt_proto::bytes::Hash;
use sha2::{Digest as _, Sha256};

/// The most that is kept of the end.
const MAX_TAIL_BYTES: u64 = 256 * 1024;

/// Sees a stream go by.
#[derive(Debug)]
pub(super) struct Capture {
    head_cap: u64,
    tail_cap: usize,
    total: u64,
    hash: Sha256,
    tail: VecDeque<u8>,
}

/// What it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// All bytes.
    pub(super) total: u64,
    /// Those that went to the head.
    pub(super) head: u64,
    /// Their hash.
    pub(super) sha256: Hash,
    /// The last bytes of those beyond the head.
    pub(super) tail: Vec<u8>,
}

impl Capture {
    /// Keeps at most `limit` bytes, a quarter of them (and no more than 256 KiB) from the end.
    pub(super) fn of(limit: u64) -> Self {
        let tail = (limit / 4).min(MAX_TAIL_BYTES);
        Self {
            head_cap: limit - tail,
            tail_cap: usize::try_from(tail).unwrap_or(usize::MAX),
            total: 0,
            hash: Sha256::new(),
            tail: VecDeque::new(),
        }
    }

    /// Takes the next bytes and returns those that belong to the head.
    pub(super) fn push<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        self.hash.update(bytes);
        let room = usize::try_from(self.head_cap.saturating_sub(self.total)).unwrap_or(usize::MAX);
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        let (_, kept) = rest.split_at(rest.len().saturating_sub(self.tail_cap));
        let over = (self.tail.len() + kept.len()).saturating_sub(self.tail_cap);
        self.tail.drain(..over);
        self.tail.extend(kept);
        head
    }

    /// What was seen in all.
    pub(super) fn end(self) -> Seen {
        let sha256 = Hash(self.hash.finalize().into());
        let head = self.total.min(self.head_cap);
        Seen { total: self.total, head, sha256, tail: self.tail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn head_tail_and_hash_are_those_of_the_whole(
            limit in 0_u64..300,
            chunks in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..120), 0..12),
        ) {
            let mut capture = Capture::of(limit);
            let mut head = Vec::new();
            for chunk in &chunks {
                head.extend_from_slice(capture.push(chunk));
            }
            let whole = chunks.concat();
            let tail_cap = usize::try_from(limit / 4).unwrap();
            let head_cap = usize::try_from(limit).unwrap() - tail_cap;
            let beyond = &whole[head_cap.min(whole.len())..];
            let seen = capture.end();
            prop_assert_eq!(&head[..], &whole[..head_cap.min(whole.len())]);
            prop_assert_eq!(&seen.tail[..], &beyond[beyond.len().saturating_sub(tail_cap)..]);
            prop_assert_eq!((seen.total, seen.head), (whole.len() as u64, head.len() as u64));
            prop_assert_eq!(seen.sha256, Hash::of(&whole));
        }
    }
}
