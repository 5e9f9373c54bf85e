//! The proof that a log only grew, from a file of its tree as the agent keeps it.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    time::Duration,
};

use jtnt_proto::{
    audit::leaf_hash,
    bytes::Hash,
    merkle::{self, Frontier, Kept},
};
use rustix::fs::{Advice, fadvise};
use tokio::time::Instant;

use crate::{
    Outcome,
    table::{Row, Table, mb, ms, percentile},
};

const ROUNDS: u64 = 1000;
const HASH_BYTES: u64 = 32;
const GOAL: Duration = Duration::from_millis(5);

struct Hashes(File);

impl Kept for Hashes {
    type Error = io::Error;

    fn at(&self, place: u64) -> io::Result<Hash> {
        let mut hash = [0; 32];
        self.0.read_exact_at(&mut hash, place * HASH_BYTES)?;
        Ok(Hash(hash))
    }
}

/// The tree as the agent keeps it, and some of what it was on its way.
struct Grown {
    hashes: Hashes,
    now: Frontier,
    before: Vec<Frontier>,
}

/// Proofs from places all over the log.
pub(crate) fn measure(dir: &Path, lines: u64, table: &mut Table) -> Outcome<()> {
    let grown = Grown::new(&dir.join("tree"), lines)?;
    let (mut warm, mut cold, mut longest) = (Vec::new(), Vec::new(), 0);
    for before in &grown.before {
        let (taken, length) = grown.prove(before)?;
        warm.push(taken);
        longest = longest.max(length);
    }
    let warm_read = grown.read(false)?;
    for before in grown.before.iter().step_by(10) {
        grown.forget()?;
        cold.push(grown.prove(before)?.0);
    }
    let cold_read = grown.read(true)?;
    let size = mb(merkle::kept(lines) * HASH_BYTES);
    for (what, times, read) in
        [("in memory", &mut warm, warm_read), ("from disk", &mut cold, cold_read)]
    {
        let (median, worst) = (percentile(times, 50), percentile(times, 100));
        let row = Row::new(format!("proof, {lines} lines, {what}: most"), ms(worst))
            .goal("5 ms", worst < GOAL)
            .limit(format!(
                "median {}; {longest} hashes at most of {size}, to read one {:.1} \u{b5}s",
                ms(median),
                read.as_secs_f64() * 1e6
            ));
        table.show(&row);
    }
    Ok(())
}

impl Grown {
    fn new(path: &Path, lines: u64) -> Outcome<Self> {
        let mut file = BufWriter::new(File::create_new(path)?);
        let (mut now, mut before) = (Frontier::default(), Vec::new());
        for n in 0..lines {
            if n > 0 && n % (lines / ROUNDS).max(1) == 0 {
                before.push(now.clone());
            }
            let mut done = Ok(());
            now.push(leaf_hash(&n.to_be_bytes()), |hash| {
                if done.is_ok() {
                    done = file.write_all(&hash.0);
                }
            });
            done?;
        }
        file.flush()?;
        Ok(Self { hashes: Hashes(File::open(path)?), now, before })
    }

    /// How long it takes, and of how many hashes it is.
    fn prove(&self, before: &Frontier) -> Outcome<(Duration, usize)> {
        let begun = Instant::now();
        let proof = merkle::consistency(&self.hashes, before.size(), self.now.size())?;
        let taken = begun.elapsed();
        let proof = proof.ok_or("no proof")?;
        let (old, new) = ((before.size(), before.root()), (self.now.size(), self.now.root()));
        if merkle::is_consistent(old, new, &proof) {
            Ok((taken, proof.len()))
        } else {
            Err("the proof shows nothing".into())
        }
    }

    /// Nothing of the file is in memory any more.
    fn forget(&self) -> Outcome<()> {
        self.hashes.0.sync_data()?;
        Ok(fadvise(&self.hashes.0, 0, None, Advice::DontNeed)?)
    }

    /// One hash from somewhere.
    fn read(&self, cold: bool) -> Outcome<Duration> {
        let mut times = Vec::new();
        for before in self.before.iter().step_by(10) {
            if cold {
                self.forget()?;
            }
            let begun = Instant::now();
            self.hashes.at(before.size())?;
            times.push(begun.elapsed());
        }
        Ok(percentile(&mut times, 50))
    }
}
