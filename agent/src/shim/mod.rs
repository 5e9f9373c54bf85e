//! A process per job that outlives the agent: it starts the job's program, keeps its output, ends
//! it in time, and writes down how it ended. The agent may be restarted, killed or replaced
//! meanwhile; it finds the job again by files.
//!
//! ```text
//! agent                                 shim (same binary, session and life of its own; a copy of
//!   |                                   an idle one, the nursery, that the agent starts on demand)
//!   | order, program, script  ------>   takes the lock  shim.N
//!   |                                   forks the payload, which waits
//!   |                        <------    ready
//!   | "starting" is durable
//!   | go                      ------>   creates the marker  started.N, only once ever
//!   |                                   the payload executes its program
//!   |                                   stdout, stderr; timeout; SIGTERM ends the job
//!   | sees the end of the process       writes  exit.N.json  and ends
//! ```
//!
//! A shim that hears no "go" before its agent ends runs nothing. So the files tell, for attempt `N`
//! of a job: lock held, it is kept; no marker, nothing ran; an exit, how it ended; a marker alone,
//! nobody can tell.
//!
//! Of a transfer the payload is no program: see `carry`.
//!
//! Of a monitored job there is also  seen.N.json , what a process beside the shim saw it open.
//!
//! These files need not survive a power cut: the journal knows before which boot a job was to
//! start, and after another nothing of it can run. Only an exit that no agent is there to take
//! over is synced.

mod capture;
mod carry;
mod files;
mod keeper;
mod launch;
mod order;
mod output;
mod source;
mod watcher;

pub use self::{
    carry::clear_up,
    files::{Attempt, Left},
    keeper::{as_process, keep},
    launch::{Launcher, Prepared, Shim, Things, Trial},
    order::{
        Carried, Cause, Exit, Fault, Kept, Order, Secret, Snag, Target, Transfer, Uncarried,
        Unstarted,
    },
    output::{Part, Stream, kept, output, read},
    source::Source,
};

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod escapes;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod watcher_tests;
