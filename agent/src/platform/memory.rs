//! Gives memory back that a start or a busy hour has left behind.
//!
//! Most of a resting agent's memory is its own program: pages that were needed once, at the start
//! or for a job. They can go, since the file still has them, and come back when they are needed.

use std::{io, ops::Range, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// Work in one look's time that makes the agent busy: its pages would only come back at once.
const BUSY: Duration = Duration::from_millis(100);

/// What can be given back whenever the agent rests.
#[derive(Debug)]
pub struct Spare {
    program: Vec<Range<usize>>,
    used: Duration,
}

impl Spare {
    /// Looks what there is. It stays the same to the end of the process.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn find() -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        let program = as_in_the_file(
            &std::fs::read_to_string("/proc/self/smaps")?,
            &std::env::current_exe()?.to_string_lossy(),
        );
        #[cfg(not(target_os = "linux"))]
        let program = Vec::new();
        Ok(Self { program, used: Duration::ZERO })
    }

    /// Gives back the pages of the program's code and constants, and what the allocator holds for
    /// nobody, unless the agent was busy since the last call. Costs well under a millisecond, and
    /// about as much again when the code is next used.
    ///
    /// # Errors
    /// When the system does not take it. Nothing is lost by that.
    pub fn give_back(&mut self) -> io::Result<()> {
        let used = processor_time();
        let since = used.saturating_sub(std::mem::replace(&mut self.used, used));
        if since > BUSY {
            return Ok(());
        }
        trim_heap();
        self.program.iter().cloned().try_for_each(forget)
    }
}

/// What this process has used of the processors.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Mappings of `program` that nobody can write to and of which no page differs from the file.
/// Pages that the loader changed are kept from being written to as well, but they count as
/// anonymous.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux tells so much"))]
fn as_in_the_file(smaps: &str, program: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some((range, writable, name)) = header(line) {
            candidate = (!writable && name == program).then_some(range);
        } else if let Some(size) = line.strip_prefix("Anonymous:")
            && size.trim() == "0 kB"
        {
            found.extend(candidate.take());
        }
    }
    found
}

/// The first line of a mapping: `FROM-TO PERMISSIONS OFFSET DEVICE INODE NAME`.
fn header(line: &str) -> Option<(Range<usize>, bool, &str)> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.split_once(' ')?;
        rest = after;
        Some(word)
    };
    let (from, to) = word()?.split_once('-')?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    let (range, permissions) = (parse(from)?..parse(to)?, word()?);
    let (_offset, _device, _inode) = (word()?, word()?, word()?);
    Some((range, permissions.contains('w'), rest.trim_start()))
}

#[cfg(not(target_os = "linux"))]
fn forget(_range: Range<usize>) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "there is no safe call for it")]
fn forget(range: Range<usize>) -> io::Result<()> {
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the range is a whole mapping of this program's own file, which stays mapped to the
    // end; nothing can write to it and no page of it differs from the file, so that reading it
    // again from there, as happens at the next access, gives the same bytes.
    let answer = unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no safe call for it")]
fn trim_heap() {
    // SAFETY: the allocator takes its own locks and gives back only what is free.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn trim_heap() {}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55a9c9493000-55a9c96ef000 r--p 00000000 fe:00 247857                     /opt/a b/agent
Size:               2416 kB
Anonymous:             0 kB
55a9c96ef000-55a9c9dc9000 r-xp 0025b000 fe:00 247857                     /opt/a b/agent
Anonymous:             0 kB
55a9c9dc9000-55a9c9e08000 r--p 00934000 fe:00 247857                     /opt/a b/agent
Anonymous:           252 kB
55a9c9e08000-55a9c9e0d000 rw-p 00972000 fe:00 247857                     /opt/a b/agent
Anonymous:             0 kB
7f7494000000-7f7494021000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f749f28c000-7f749f3e2000 r-xp 00026000 fe:00 1234                       /usr/lib/libc.so.6
Anonymous:             0 kB
";

    #[test]
    fn only_what_the_file_still_has_is_given_back() {
        let found = as_in_the_file(SMAPS, "/opt/a b/agent");
        assert_eq!(found, [0x55a9_c949_3000..0x55a9_c96e_f000, 0x55a9_c96e_f000..0x55a9_c9dc_9000]);
        assert!(as_in_the_file(SMAPS, "/opt/a").is_empty());
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let mut spare = Spare { used: processor_time(), ..Spare::find().unwrap() };
        spare.give_back().unwrap();
        assert_eq!("1 2 3".split(' ').filter_map(|n| n.parse::<u32>().ok()).sum::<u32>(), 6);
        if cfg!(target_os = "linux") {
            assert!(!spare.program.is_empty());
        }
    }
}
