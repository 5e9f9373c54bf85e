//! `audit verify FILE`, the command itself, beside bare signatures on all cores.

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    path::Path,
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use clap::Parser as _;
use jiff::Timestamp;
use jtnt_agent::runtime::signer::AuditSigner as _;
use jtnt_proto::{audit::SealedLine, key::PublicKey};
use jtntctl::{Cli, Exit, Io, Standalone};
use tokio::time::Instant;

use crate::{
    Outcome,
    log::{Key, Written},
    table::{Row, Table, mib, percentile},
};

const ROUNDS: usize = 7;
/// Signatures that a thread takes at once.
const AT_ONCE: usize = 16;
/// What a check of any log may take.
const MAX_KIB: u64 = 64 * 1024;

/// Lines a second, and how near that is to what the cores can do.
pub(crate) fn measure(dir: &Path, lines: u64, table: &mut Table) -> Outcome<()> {
    let written = Written::new(dir, lines, u64::MAX)?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    // In turns, so that whatever else the machine does meets both.
    for _ in 0..ROUNDS {
        bare.push(signatures(&written)?);
        let begun = Instant::now();
        verify(&written.log, &written.key)?;
        ours.push(begun.elapsed());
    }
    let a_second = |times: &mut [Duration]| lines as f64 / percentile(times, 50).as_secs_f64();
    let (ours, bare) = (a_second(&mut ours), a_second(&mut bare));
    let share = ours / bare * 100.0;
    let cores = available_parallelism()?;
    let row = Row::new(format!("verify, {lines} lines"), format!("{ours:.0}/s"))
        .goal("90 %", share >= 90.0)
        .limit(format!("{share:.1} % of {bare:.0} strict signatures/s on {cores} cores"));
    table.show(&row);
    Ok(())
}

/// A log of many MiB, by a process of its own.
pub(crate) fn large(dir: &Path, size: u64, table: &mut Table) -> Outcome<()> {
    let written = Written::new(dir, u64::MAX, size << 20)?;
    let begun = Instant::now();
    let child = Command::new(std::env::current_exe()?)
        .arg("--check")
        .args([&written.log, &written.key])
        .output()?;
    let taken = begun.elapsed();
    if !child.status.success() {
        return Err(String::from_utf8_lossy(&child.stderr).into());
    }
    let peak: u64 = String::from_utf8(child.stdout)?.trim().parse()?;
    let rate = written.lines as f64 / taken.as_secs_f64();
    let row =
        Row::new(format!("verify, {size} MiB: time"), format!("{:.1} s", taken.as_secs_f64()))
            .limit(format!("{} lines, {rate:.0}/s", written.lines));
    table.show(&row);
    let row = Row::new(format!("verify, {size} MiB: memory at most"), mib(peak))
        .goal("64 MiB", peak < MAX_KIB)
        .limit("VmHWM of the process");
    table.show(&row);
    Ok(())
}

/// The other process: prints the most memory it had, in KiB.
#[expect(clippy::print_stdout, reason = "the answer")]
pub(crate) fn child(log: &Path, key: &Path) -> Outcome<()> {
    verify(log, key)?;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")).ok_or("no VmHWM")?;
    println!("{peak}");
    Ok(())
}

/// As it is typed.
fn verify(log: &Path, key: &Path) -> Outcome<()> {
    let words = ["jtntctl", "audit", "verify", "--key"].map(Into::into);
    let cli =
        Cli::try_parse_from(words.into_iter().chain([key.into(), log.as_os_str().to_owned()]))?;
    let mut io = Io::new(Box::new(io::sink()), Box::new(io::stderr()), || Timestamp::UNIX_EPOCH);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(jtntctl::run(cli.command, &cli.global, &mut io, &Standalone));
    if exit == Exit::Done { Ok(()) } else { Err(format!("the check came to {exit:?}").into()) }
}

/// All signatures of the log and nothing else, on all cores.
fn signatures(written: &Written) -> Outcome<Duration> {
    let lines: Vec<_> =
        BufReader::new(fs::File::open(&written.log)?).split(b'\n').collect::<io::Result<_>>()?;
    let sealed = lines.iter().map(|line| SealedLine::parse(line)).collect::<Result<Vec<_>, _>>()?;
    let (key, good) = (Key::new().public_key(), AtomicU64::new(0));
    let parts = Mutex::new(sealed.chunks(AT_ONCE));
    let cores = available_parallelism()?.get();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(part) = next(&parts) {
                    good.fetch_add(signed(part, &key), Ordering::Relaxed);
                }
            });
        }
    });
    let taken = begun.elapsed();
    if good.into_inner() == written.lines { Ok(taken) } else { Err("a signature is bad".into()) }
}

fn next<T>(parts: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    parts.lock().unwrap_or_else(PoisonError::into_inner).next()
}

fn signed(part: &[SealedLine<'_>], key: &PublicKey) -> u64 {
    part.iter().map(|line| u64::from(line.is_signed_by(key))).sum()
}
