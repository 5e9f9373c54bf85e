//! Content that a hash pins: taken once, and where others could change it meanwhile, from a copy
//! that nobody can change.

use std::{
    fs::File,
    io::{self, Read as _},
};

use jtnt_proto::bytes::Hash;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{Opened, PathFault, reopen};

/// Larger files are not copied into memory.
const MAX_COPY_BYTES: u64 = 256 << 20;
const CHUNK_BYTES: usize = 64 * 1024;

/// The hash of what was opened.
///
/// # Errors
/// When it cannot be read.
pub fn hash(opened: &Opened) -> Result<Hash, PathFault> {
    let mut source = opened.reader()?;
    pump(&mut source, &mut io::sink()).map_err(|e| PathFault::from_io(opened.canonical(), &e))
}

/// The hash of an open file, if it is not larger than what a copy could be made of.
///
/// # Errors
/// When it cannot be read.
pub fn hash_of(file: &File) -> io::Result<Option<Hash>> {
    let mut source = reopen(file)?.take(MAX_COPY_BYTES + 1);
    let hash = pump(&mut source, &mut io::sink())?;
    Ok((source.limit() > 0).then_some(hash))
}

/// A copy in memory that is sealed against every change, and the hash of that copy.
///
/// # Errors
/// When the file cannot be read or is too large.
pub fn sealed_copy(opened: &Opened) -> Result<(File, Hash), PathFault> {
    let fault = |e: io::Error| PathFault::from_io(opened.canonical(), &e);
    let mut source = opened.reader()?.take(MAX_COPY_BYTES + 1);
    let mut copy = memory().map_err(|e| fault(e.into()))?;
    let hash = pump(&mut source, &mut copy).map_err(fault)?;
    if source.limit() == 0 {
        let path = opened.canonical().to_owned();
        return Err(PathFault::TooLarge { path, limit: MAX_COPY_BYTES });
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&copy, seals).map_err(|e| fault(e.into()))?;
    Ok((copy, hash))
}

/// A file in memory that may be executed. Kernels before 6.3 have no word for that.
fn memory() -> rustix::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("jtnt-program", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create("jtnt-program", flags),
        other => other,
    }
    .map(File::from)
}

fn pump(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<Hash> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n = match from.read(&mut chunk) {
            Ok(0) => return Ok(Hash(hasher.finalize().into())),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let read = chunk.get(..n).unwrap_or_default();
        hasher.update(read);
        to.write_all(read)?;
    }
}
