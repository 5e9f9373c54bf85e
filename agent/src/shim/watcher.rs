//! A process beside the shim of a monitored job, which notes what the job opens. To look at a file
//! can take as long as its file system likes, and a shim has time to keep, so it is a process of its
//! own: nobody waits for it longer than a little, and no job fails for it.
//!
//! ```text
//! shim                              watcher (a copy of it, forked before the job's namespaces)
//!   | which process waits  ------>   marks the mounts of its view
//!   |                      <------   goes on
//!   | the job runs                   takes the program's hash, and notes
//!   | all of it has ended  ------>   notes the rest, and leaves it in memory of both
//!   |                      <------   done
//! ```

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixStream},
    },
    time::Duration,
};

use jtnt_proto::{bytes::Hash, policy::Access};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{
        Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
    },
    thread::set_name,
};

use super::order::{MAX_SEEN_BYTES, Order};
use crate::{
    domain::{
        asked::{Action, Asked},
        policy::{Area, Shape, learn::Baseline},
        seen::{Mark, Seen, Sightings},
    },
    platform::{
        paths::{Opened, hash_of, resolve},
        process::{close_all_but, copy},
        supervise::{any_of, reap},
        watching::{Used, Watching},
    },
};

/// How long anybody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks at what came after the job's end.
const MOST_LOOKS: usize = 10_000;
/// That there is no view to watch.
const NO_VIEW: u32 = 0;
const GO_ON: u8 = b'+';
const ENDED: u8 = b'.';

/// The shim's side. Dropped, the process is ended.
#[derive(Debug)]
pub(super) struct Watcher {
    process: Pid,
    /// Readable at its end.
    end: OwnedFd,
    line: UnixStream,
    /// Where it leaves what it saw.
    left: File,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ended_already = pidfd_send_signal(&self.end, Signal::KILL);
        // Whoever takes over the shim's children may not look after them.
        let _nobody_else_to_tell = reap(self.process, self.end.as_fd(), PATIENCE);
    }
}

impl Watcher {
    /// Starts one, if this job is to be watched. What it forks afterwards may be in a namespace.
    pub(super) fn start(order: &Order, program: &File) -> Option<io::Result<Self>> {
        let asked = order.watch.as_ref()?;
        let started = || {
            let (line, theirs) = UnixStream::pair()?;
            line.set_read_timeout(Some(PATIENCE))?;
            line.set_write_timeout(Some(PATIENCE))?;
            let left = File::from(memfd_create("jtnt-seen", MemfdFlags::CLOEXEC)?);
            let process = copy(|| watch((order, asked), program, &theirs, &left).is_ok())?;
            let end = pidfd_open(process, PidfdFlags::empty())?;
            Ok(Self { process, end, line, left })
        };
        Some(started())
    }

    /// Has it watch the view of `process`, if that has one of its own.
    pub(super) fn begin(&self, process: Option<u32>) -> io::Result<()> {
        (&self.line).write_all(&process.unwrap_or(NO_VIEW).to_ne_bytes())?;
        (&self.line).read_exact(&mut [0])
    }

    /// What it saw. Nothing that it is to see may run any more.
    pub(super) fn end(mut self) -> io::Result<Seen> {
        (&self.line).write_all(&[ENDED])?;
        (&self.line).read_exact(&mut [0])?;
        self.left.rewind()?;
        let mut text = Vec::new();
        (&self.left).take(MAX_SEEN_BYTES).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Writes down what it saw, or why it did not. A job does not fail for it.
pub(super) fn write(order: &Order, watcher: Option<io::Result<Watcher>>) {
    let (Some(asked), Some(watcher)) = (&order.watch, watcher) else { return };
    let seen = watcher.and_then(Watcher::end).unwrap_or_else(|error| {
        let late = error.kind() == io::ErrorKind::WouldBlock;
        let why = if late { "it took too long".to_owned() } else { error.to_string() };
        Seen { unwatched: Some(why), ..of(order, asked) }
    });
    let _nobody_else_to_tell = order.attempt.see(&seen);
}

/// What is known without watching.
fn of(order: &Order, asked: &Asked) -> Seen {
    let everything = |area: &Area| {
        area.path == "/" && area.shape == Shape::Tree && area.access.len() == ALL.len()
    };
    let held = !order.plan.confinement.open.iter().any(everything);
    Seen { held, ..Seen::of(asked.clone(), order.argv0.clone()) }
}

const ALL: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

/// The other process.
fn watch(
    (order, asked): (&Order, &Asked),
    program: &File,
    line: &UnixStream,
    mut left: &File,
) -> io::Result<()> {
    set_name(c"jtnt-watcher")?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Nothing else of the shim's may be held open here: its line and its lock say that it lives.
    rustix::stdio::dup2_stdin(line)?;
    close_all_but(&[left.as_fd(), program.as_fd()]);
    let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut process = [0; 4];
    line.read_exact(&mut process)?;
    let watching = match u32::from_ne_bytes(process) {
        NO_VIEW => {
            let why = "a job has no view of its own here, by which it could be told from others; \
                       run the agent as root";
            Err(io::Error::other(why))
        }
        process => Watching::begin(process, &order.plan.hidden),
    };
    line.write_all(&[GO_ON])?;
    let mut seen = of(order, asked);
    // Before its user could change the file, as far as that can be.
    seen.sha256 = hash(asked, program);
    let baseline = Baseline::of(&mut |path| resolve(path));
    let mut notes = Notes { baseline, sightings: Sightings::default() };
    seen.unwatched = match watching.and_then(|watching| notes.take(watching, &line)) {
        Ok(unwatched) => unwatched,
        Err(error) => Some(error.to_string()),
    };
    // No word comes if the job never began, or its shim is gone.
    line.read_exact(&mut [0])?;
    let text = serde_json::to_vec(&seen.with(notes.end()))?;
    left.write_all(&text)?;
    line.write_all(&[ENDED])
}

/// Hash of the program; a script's is known, and an interpreter's is in no rule.
fn hash(asked: &Asked, program: &File) -> Option<Hash> {
    match asked.action {
        // Of one that its owner can change, this could be the hash of what never ran.
        Action::Exec { .. } if !is_guarded(program) => None,
        Action::Exec { .. } => hash_of(program).ok().flatten(),
        Action::Script { .. } | Action::Download { .. } | Action::Upload { .. } => None,
    }
}

fn is_guarded(program: &File) -> bool {
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    let path = fs::read_link(path).ok();
    let path = path.as_ref().and_then(|path| path.to_str());
    path.is_some_and(|path| Opened::program(path).is_ok_and(|opened| opened.guarded()))
}

struct Notes {
    baseline: Baseline,
    sightings: Sightings,
}

impl Notes {
    /// Notes everything until the job has ended; why not everything, if so.
    fn take(&mut self, mut watching: Watching, line: &UnixStream) -> io::Result<Option<String>> {
        let mut ended = false;
        while !ended {
            let [told, word] = any_of([Some(watching.as_fd()), Some(line.as_fd())])?;
            if told {
                self.look(&mut watching)?;
            }
            ended = word;
        }
        for _ in 0..MOST_LOOKS {
            if !self.look(&mut watching)? {
                return Ok(watching.unwatched().map(str::to_owned));
            }
        }
        self.sightings.lose();
        Ok(watching.unwatched().map(str::to_owned))
    }

    fn look(&mut self, watching: &mut Watching) -> io::Result<bool> {
        watching.take(|told| match told {
            Some(used) => self.note(&used),
            None => self.sightings.lose(),
        })
    }

    /// What every job may read is not worth its place.
    fn note(&mut self, used: &Used) {
        let executed = used.access().any(|access| access == Access::Execute);
        for access in used.access() {
            let open = used.path.to_str().is_some_and(|path| self.baseline.opens(path, access));
            if open && access != Access::Execute {
                continue;
            }
            let mark = if used.is_folder() {
                Some(Mark::Folder)
            } else if access == Access::Write {
                used.is_made().then_some(Mark::Made)
            } else {
                (!open && !executed && used.is_native()).then_some(Mark::Native)
            };
            self.sightings.add(used.path.as_os_str().as_bytes(), access, mark);
        }
    }

    /// All of it, after a last look at what the job left.
    fn end(self) -> Sightings {
        let Self { baseline, mut sightings } = self;
        sightings.mark(|path, access, marks| {
            let runs = access.contains(&Access::Execute) || marks.contains(&Mark::Native);
            let open = baseline.opens(path, Access::Execute);
            // A link stands where the file was, or led to it: others could have made it.
            let loose = || {
                fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink())
                    || !Opened::program(path).is_ok_and(|opened| opened.guarded())
            };
            let is_gone = || {
                let there = fs::symlink_metadata(path);
                there.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            };
            let unguarded = (runs && !open && loose()).then_some(Mark::Unguarded);
            let gone = (access.contains(&Access::Write) && is_gone()).then_some(Mark::Gone);
            unguarded.into_iter().chain(gone).collect()
        });
        sightings
    }
}
