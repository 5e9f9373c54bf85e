//! A control group per job: limits of memory, processes, processors and input and output for all
//! of its processes together, and the word of the kernel when memory was what ended it.
//!
//! Groups stand side by side in one folder at the top of each hierarchy, outside of the agent's
//! own unit, so that a job is not ended with it. Version 2 is used where it has the controllers;
//! where a host keeps them in version 1, those are used.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use jtnt_proto::policy::Limits;

use crate::domain::enforcement::Controls;

const ROOT: &str = "/sys/fs/cgroup";
/// Where hosts that use both versions have the second.
const UNIFIED: &str = "unified";
/// The folder of all jobs' groups.
const JOBS: &str = "jtnt-jobs";
/// Of processor time, in microseconds; shares are of this.
const PERIOD: u64 = 100_000;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Pids,
    Cpu,
    Io,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Memory, Self::Pids, Self::Cpu, Self::Io];

    /// Its controller in version 2, and its folder in version 1.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Memory => ("memory", "memory"),
            Self::Pids => ("pids", "pids"),
            Self::Cpu => ("cpu", "cpu"),
            Self::Io => ("io", "blkio"),
        }
    }

    const fn of(self, limits: &Limits) -> Option<u64> {
        match self {
            Self::Memory => limits.memory_bytes,
            Self::Pids => limits.pids,
            Self::Cpu => limits.cpu_percent,
            Self::Io => limits.io_weight,
        }
    }
}

/// A hierarchy, by the folder of all jobs' groups in it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hierarchy {
    /// Version 2.
    Two(PathBuf),
    /// Version 1 of one kind.
    One(Kind, PathBuf),
}

/// Makes the folders of all jobs' groups, takes away groups that earlier jobs left empty, and
/// tells what can be limited.
#[must_use]
pub fn prepare() -> Controls {
    hand_on(Path::new(ROOT));
    let has = |kind| find(kind, Path::new(ROOT)).is_some();
    let controls = Controls {
        memory: has(Kind::Memory),
        pids: has(Kind::Pids),
        cpu: has(Kind::Cpu),
        io: has(Kind::Io),
    };
    for folder in folders(Path::new(ROOT)) {
        let groups = fs::read_dir(folder).into_iter().flatten().flatten();
        for group in groups.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())) {
            if !is_kept(&group.file_name().to_string_lossy(), Path::new("/proc")) {
                // The kernel keeps one that has processes.
                let _in_use = fs::remove_dir(group.path());
            }
        }
    }
    controls
}

/// Whether the process that made a group is still there: it may be about to put its job there, and
/// be another agent's.
fn is_kept(group: &str, processes: &Path) -> bool {
    let keeper = group.rsplit_once('.').and_then(|(_, pid)| pid.parse::<u32>().ok());
    keeper.is_some_and(|pid| processes.join(pid.to_string()).exists())
}

fn folders(root: &Path) -> impl Iterator<Item = PathBuf> {
    let ones = Kind::ALL.map(|kind| root.join(kind.names().1));
    [root.to_owned(), root.join(UNIFIED)].into_iter().chain(ones).map(|place| place.join(JOBS))
}

/// Has version 2 hand every controller on that it has.
fn hand_on(root: &Path) {
    let Some(jobs) = two(root) else { return };
    for controller in words(&jobs.join("cgroup.controllers")) {
        if Kind::ALL.iter().any(|kind| kind.names().0 == controller) {
            let to = jobs.join("cgroup.subtree_control");
            // Whether it did is read there afterwards.
            let _not_handed_on = tell(&to, &format!("+{controller}"));
        }
    }
}

/// The folder of version 2, made if need be.
fn two(root: &Path) -> Option<PathBuf> {
    let top = [root.to_owned(), root.join(UNIFIED)];
    let top = top.into_iter().find(|place| place.join("cgroup.controllers").exists())?;
    let jobs = top.join(JOBS);
    made(&jobs)?;
    Some(jobs)
}

/// Where one kind can be limited.
fn find(kind: Kind, root: &Path) -> Option<Hierarchy> {
    let (controller, folder) = kind.names();
    if let Some(jobs) = two(root)
        && words(&jobs.join("cgroup.subtree_control")).iter().any(|word| word == controller)
    {
        return Some(Hierarchy::Two(jobs));
    }
    let jobs = root.join(folder).join(JOBS);
    made(&jobs)?;
    jobs.join(setting(kind, 1, false).0).exists().then_some(Hierarchy::One(kind, jobs))
}

fn made(folder: &Path) -> Option<()> {
    match fs::create_dir(folder) {
        Ok(()) => Some(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).ok()
        }
        Err(_no_right_or_no_hierarchy) => None,
    }
}

/// Writes to a file of the kernel's, which is there or is not made.
fn tell(file: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(text.as_bytes())
}

fn words(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The file that limits a kind, and what to write there.
fn setting(kind: Kind, value: u64, two: bool) -> (&'static str, String) {
    let quota = value.saturating_mul(PERIOD) / 100;
    match (kind, two) {
        (Kind::Memory, true) => ("memory.max", value.to_string()),
        (Kind::Memory, false) => ("memory.limit_in_bytes", value.to_string()),
        (Kind::Pids, _) => ("pids.max", value.to_string()),
        (Kind::Cpu, true) => ("cpu.max", format!("{quota} {PERIOD}")),
        (Kind::Cpu, false) => ("cpu.cfs_quota_us", quota.to_string()),
        (Kind::Io, true) => ("io.weight", format!("default {value}")),
        // Its scale is another: 10 to 1,000.
        (Kind::Io, false) => ("blkio.bfq.weight", value.div_ceil(10).clamp(1, 1000).to_string()),
    }
}

/// The groups of one job, one in each hierarchy that limits something of it.
#[derive(Debug, Default)]
pub struct Group {
    at: Vec<PathBuf>,
}

impl Group {
    /// Makes them, with their limits. What `controls` does not have is not limited.
    ///
    /// # Errors
    /// When the system does not take one that it said it can hold.
    pub fn make(name: &str, limits: &Limits, controls: Controls) -> io::Result<Self> {
        let mut group = Self { at: Vec::new() };
        for kind in Kind::ALL {
            let held = match kind {
                Kind::Memory => controls.memory,
                Kind::Pids => controls.pids,
                Kind::Cpu => controls.cpu,
                Kind::Io => controls.io,
            };
            if let Some(value) = kind.of(limits).filter(|_| held) {
                group.limit(kind, value, name).inspect_err(|_| group.clear())?;
            }
        }
        Ok(group)
    }

    fn limit(&mut self, kind: Kind, value: u64, name: &str) -> io::Result<()> {
        let (controller, _) = kind.names();
        let said = |error: io::Error| {
            io::Error::new(error.kind(), format!("limit of {controller}: {error}"))
        };
        let gone = || said(io::Error::other("its hierarchy is gone"));
        let (dir, two) = match find(kind, Path::new(ROOT)).ok_or_else(gone)? {
            Hierarchy::Two(jobs) => (jobs.join(name), true),
            Hierarchy::One(_, jobs) => (jobs.join(name), false),
        };
        made(&dir).ok_or_else(|| said(io::Error::last_os_error()))?;
        if !self.at.contains(&dir) {
            self.at.push(dir.clone());
        }
        let (file, text) = setting(kind, value, two);
        tell(&dir.join(file), &text).map_err(said)?;
        if kind == Kind::Memory {
            // Or it would go on in swap. Not every kernel counts that.
            let (file, text) = match two {
                true => ("memory.swap.max", "0".to_owned()),
                false => ("memory.memsw.limit_in_bytes", value.to_string()),
            };
            let _not_counted = tell(&dir.join(file), &text);
            // Half a job is of no use.
            let _not_known = tell(&dir.join("memory.oom.group"), "1");
        }
        Ok(())
    }

    /// Takes this process in, and all that it starts from now on.
    ///
    /// # Errors
    /// As the system's.
    pub fn join(&self) -> io::Result<()> {
        self.at.iter().try_for_each(|dir| tell(&dir.join("cgroup.procs"), "0"))
    }

    /// Whether the kernel ended something of it for want of memory.
    #[must_use]
    pub fn ran_out_of_memory(&self) -> bool {
        self.at.iter().any(|dir| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
                text.lines()
                    .filter_map(|line| line.strip_prefix("oom_kill "))
                    .any(|count| count.trim() != "0")
            })
        })
    }

    fn clear(&self) {
        for dir in &self.at {
            let _in_use = fs::remove_dir(dir);
        }
    }
}

impl Drop for Group {
    /// Empty by then; what is not, a later start of an agent takes away.
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::durable;

    fn file(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        durable::put(path, text.as_bytes(), 0o600).unwrap();
    }

    #[test]
    fn version_two_is_used_where_it_has_the_controller() {
        let root = tempfile::tempdir().unwrap();
        let jobs = root.path().join(JOBS);
        file(&root.path().join("cgroup.controllers"), "memory pids\n");
        file(&jobs.join("cgroup.subtree_control"), "memory\n");
        assert_eq!(find(Kind::Memory, root.path()), Some(Hierarchy::Two(jobs)));
        assert_eq!(find(Kind::Pids, root.path()), None);
    }

    #[test]
    fn version_one_is_used_where_a_host_keeps_controllers_there() {
        let root = tempfile::tempdir().unwrap();
        file(&root.path().join("unified/cgroup.controllers"), "\n");
        let jobs = root.path().join("pids").join(JOBS);
        file(&jobs.join("pids.max"), "max\n");
        assert_eq!(find(Kind::Pids, root.path()), Some(Hierarchy::One(Kind::Pids, jobs)));
        assert_eq!(find(Kind::Cpu, root.path()), None);
    }

    #[test]
    fn a_group_is_left_to_who_made_it() {
        let processes = tempfile::tempdir().unwrap();
        fs::create_dir(processes.path().join("77")).unwrap();
        let kept = |group| is_kept(group, processes.path());
        assert!(kept("job-1.77") && kept("a.b.77"));
        assert!(!kept("job-1.78") && !kept("job-1") && !kept("77.x"));
    }

    #[test]
    fn limits_are_written_in_the_words_of_each_version() {
        for (kind, value, two, one) in [
            (
                Kind::Memory,
                1 << 20,
                ("memory.max", "1048576"),
                ("memory.limit_in_bytes", "1048576"),
            ),
            (Kind::Pids, 7, ("pids.max", "7"), ("pids.max", "7")),
            (Kind::Cpu, 150, ("cpu.max", "150000 100000"), ("cpu.cfs_quota_us", "150000")),
            (Kind::Io, 10_000, ("io.weight", "default 10000"), ("blkio.bfq.weight", "1000")),
        ] {
            for (version, (name, text)) in [(true, two), (false, one)] {
                assert_eq!(setting(kind, value, version), (name, text.to_owned()));
            }
        }
    }
}
