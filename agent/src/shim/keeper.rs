//! The shim's side: one thread, one loop, to the end of the job.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
    time::Duration,
};

use super::{
    carry::{Carrier, Report},
    launch::{DONE, GO, receive},
    order::{
        Answer, Carried, Cause, Exit, Kept, MAX_ORDER_BYTES, Order, Unstarted, WITH_COPY,
        WITH_LINE, WITH_SCRIPT,
    },
    output::{Sink, Stream},
    watcher::{self, Watcher},
};
use crate::{
    domain::enforcement::Abilities,
    platform::{
        cgroup::Group,
        process::{self, Errand, Hidden, Launch, Payload},
        sandbox::{Plan, Room},
        space::Space,
        supervise::{Signals, Timer, any_of, is_ready},
    },
    runtime::{
        clock::{Clock as _, SystemClock},
        lock::Lock,
    },
};

/// The word on the command line that makes a process a shim.
pub(super) const WORD: &str = "shim";
/// The word after it for one that only tries.
pub(super) const TRIAL: &str = "trial";
const CHUNK_BYTES: usize = 64 * 1024;
/// An agent without jobs needs nobody to keep them.
const IDLE: Duration = Duration::from_secs(20);
/// Two pipes of the size that the system allows at most.
const MOST_ON_THE_WAY: usize = 2 << 20;
const MOST_READS: usize = 1 << 16;

/// Runs as a shim if the command line says so.
#[must_use]
pub fn as_process(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    match (args.nth(1)?, args.next()) {
        (word, None) if word == WORD => Some(keep()),
        (word, Some(what)) if word == WORD && what == TRIAL => Some(trial()),
        _ => None,
    }
}

/// Enters a sandbox and ends: whether a system lets it cannot be told beforehand, since another of
/// its guards may stand in the way.
fn trial() -> ExitCode {
    let abilities = Abilities { namespaces: true, ..Abilities::default() };
    let plan = Plan { abilities, ..Plan::default() };
    match Room::enter(&plan, Some("/")) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_else_to_tell = io::stderr().write_all(error.to_string().as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Makes a shim of a copy of itself for every line that comes on standard input, until that is
/// closed or nothing came for a while. A copy is ready much sooner than a program that has to be
/// loaded.
#[must_use]
pub fn keep() -> ExitCode {
    // Whatever an agent, or who started that, has left open is none of a job's business.
    process::close_all();
    // A copy does the work: whoever started this has nothing to wait for.
    let asked = || io::stdin().as_fd().try_clone_to_owned().and_then(|fd| nursery(&fd.into()));
    match process::copy(|| asked().is_ok()) {
        Ok(_copy) => ExitCode::SUCCESS,
        Err(_nobody_to_tell) => ExitCode::FAILURE,
    }
}

fn nursery(asked: &UnixStream) -> io::Result<()> {
    process::forget_children(true)?;
    loop {
        let idle = Timer::after(IDLE)?;
        if let [false, _] = any_of([Some(asked.as_fd()), Some(idle.as_fd())])? {
            return Ok(());
        }
        let (_, lines) = receive(asked)?;
        for line in lines.into_iter().map(UnixStream::from) {
            process::copy(|| shim(&line).is_ok())?;
        }
    }
}

/// Becomes a shim: nothing of where it comes from stays open.
fn shim(line: &UnixStream) -> io::Result<()> {
    process::forget_children(false)?;
    rustix::stdio::dup2_stdin(line)?;
    process::close_all();
    serve()
}

/// What came with an order.
struct Things {
    program: File,
    copy: Option<File>,
    script: Option<File>,
    line: Option<UnixStream>,
    secrets: Vec<File>,
}

fn serve() -> io::Result<()> {
    let line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (order, things) = accept(&line)?;
    match Keeper::prepare(order, things) {
        Err(unstarted) => say(&line, &Answer::Failed(unstarted)),
        Ok(keeper) => {
            say(&line, &Answer::Ready(std::process::id()))?;
            let mut word = [0];
            match (&line).read(&mut word) {
                Ok(1) if word == [GO] => keeper.run(&line),
                // The agent is gone or thought better of it: nothing has begun.
                _ => keeper.leave(),
            }
        }
    }
}

fn say(mut line: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    line.write_all(&text)
}

fn accept(line: &UnixStream) -> io::Result<(Order, Things)> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no order came");
    let (with, fds) = receive(line)?;
    let mut fds = fds.into_iter().map(File::from);
    let mut next = |there: bool| there.then(|| fds.next().ok_or_else(malformed)).transpose();
    let order = next(true)?.ok_or_else(malformed)?;
    let program = next(true)?.ok_or_else(malformed)?;
    let (copy, script) = (next(with & WITH_COPY != 0)?, next(with & WITH_SCRIPT != 0)?);
    let line = next(with & WITH_LINE != 0)?.map(|line| UnixStream::from(OwnedFd::from(line)));
    let secrets: Vec<_> = fds.collect();
    let mut body = Vec::new();
    order.take(MAX_ORDER_BYTES).read_to_end(&mut body)?;
    let order: Order = serde_json::from_slice(&body)?;
    if secrets.len() != order.secrets.len() || line.is_some() != order.transfer.is_some() {
        return Err(malformed());
    }
    Ok((order, Things { program, copy, script, line, secrets }))
}

struct Keeper {
    order: Order,
    space: Space,
    payload: Payload,
    launch: Launch,
    signals: Signals,
    /// Of a transfer.
    report: Option<Report>,
    /// Of a monitored job.
    watcher: Option<io::Result<Watcher>>,
    /// Held to the end of this process.
    _lock: Lock,
}

impl Keeper {
    fn prepare(order: Order, things: Things) -> Result<Self, Unstarted> {
        let lock = order.attempt.lock().map_err(|e| Unstarted::start(e.to_string()))?;
        let system = |what: &str, e: &io::Error| Unstarted::start(format!("{what}: {e}"));
        // What is meant for the agent's terminal is not meant for its jobs.
        rustix::process::setsid().map_err(|e| system("setsid", &e.into()))?;
        let program = things.copy.as_ref().unwrap_or(&things.program);
        let watcher = Watcher::start(&order, program);
        let signals = Signals::new().map_err(|e| system("signals", &e))?;
        let space = Space::enter().map_err(|e| system("namespace", &e))?;
        // Other agents of this machine may know another job by the same name.
        let name = format!("{}.{}", order.attempt.job_id(), std::process::id());
        let group = Group::make(&name, &order.plan.limits, order.plan.abilities.limits)
            .map_err(|e| system("control group", &e))?;
        let (launch, report) = launch(&order, things, group, space.is_closed())
            .map_err(|e| system("socket pair", &e))?;
        let payload = process::fork(&launch)?;
        let view = order.plan.abilities.namespaces.then(|| payload.id());
        let begun = |watcher: Watcher| watcher.begin(view).map(|()| watcher);
        let watcher = watcher.map(|started| started.and_then(begun));
        Ok(Self { order, space, payload, launch, signals, report, watcher, _lock: lock })
    }

    /// Ends without having run anything.
    fn leave(self) -> io::Result<()> {
        drop(self.payload);
        self.space.end()
    }

    fn run(mut self, line: &UnixStream) -> io::Result<()> {
        let began = SystemClock.uptime();
        self.order.attempt.mark(self.order.timeout)?;
        let mut streams = Streams::of(&mut self.payload, &self.order)?;
        let cause = match self.payload.begin() {
            Err(error) => Cause::Unstarted(error.into()),
            Ok(()) => self.watch(&mut streams).unwrap_or_else(|e| Cause::Lost(e.to_string())),
        };
        self.space.kill();
        let end = self.payload.reap();
        let carried = self.settle();
        let duration = SystemClock.uptime().saturating_sub(began);
        if !self.space.is_closed() {
            // Now, since all that this process forked is ended next.
            watcher::write(&self.order, self.watcher.take());
        }
        let cause = match self.space.end() {
            Err(error) if cause == Cause::Ended => Cause::Lost(error.to_string()),
            _ => cause,
        };
        let (code, signal, cause) = match end {
            Ok(exit) => (exit.code, exit.signal, cause),
            Err(error) => (None, None, Cause::Lost(error.to_string())),
        };
        // Its process has nothing to say there.
        let [stdout, stderr] = streams.finish().map(|kept| kept.filter(|_| self.report.is_none()));
        let exit = Exit {
            cause,
            code: code.filter(|_| self.report.is_none()),
            signal,
            out_of_memory: self.launch.group.ran_out_of_memory(),
            timeout: self.order.timeout,
            finished_at: SystemClock.now(),
            duration,
            carried,
            stdout,
            stderr,
        };
        watcher::write(&self.order, self.watcher.take());
        // The other end is closed once the agent is gone, and nobody will take this over soon.
        let left = self.order.attempt.leave(&exit, is_ready(line.as_fd()));
        let word = match &left {
            Ok(()) => vec![DONE],
            // No file says it, so the agent is told, if one is there.
            Err(_) => serde_json::to_vec(&exit)?,
        };
        let _nobody_may_listen = (&mut &*line).write_all(&word);
        left
    }

    /// Of a transfer that has ended: what its process had not the rights for.
    fn settle(&self) -> Option<Carried> {
        let (transfer, report) = self.order.transfer.as_ref().zip(self.report.as_ref())?;
        report.settle(transfer, &self.launch.program, &self.order.account)
    }

    /// Stays with the program until it has ended or must be killed.
    fn watch(&self, streams: &mut Streams) -> io::Result<Cause> {
        let mut timer = Timer::after(self.order.timeout)?;
        let mut cause = Cause::Ended;
        loop {
            let asked = cause != Cause::Ended;
            let signals = (!asked).then(|| self.signals.as_fd());
            let [out, err] = streams.open();
            let [ended, due, told, out, err] =
                any_of([Some(self.payload.end()), Some(timer.as_fd()), signals, out, err])?;
            streams.take([out, err]);
            if ended || (due && asked) {
                return Ok(cause);
            }
            if due || told {
                cause = if due { Cause::Timeout } else { Cause::Terminated };
                self.payload.terminate();
                timer = Timer::after(self.order.grace)?;
            }
        }
    }
}

fn launch(
    order: &Order,
    things: Things,
    group: Group,
    closed: bool,
) -> io::Result<(Launch, Option<Report>)> {
    let Things { program, copy, script, line, secrets } = things;
    let carrier = order.transfer.clone().zip(line).map(|(what, line)| Carrier::new(what, line));
    let (errand, report) = match carrier.transpose()? {
        Some((carrier, report)) => (Some(Box::new(carrier) as Box<dyn Errand>), Some(report)),
        None => (None, None),
    };
    // The interpreter reads the script by its descriptor, so no folder of the agent's has to be
    // opened for the job's user.
    let by_descriptor = script.as_ref().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
    let launch = Launch {
        program,
        errand,
        copy,
        argv0: order.argv0.clone(),
        args: by_descriptor.into_iter().chain(order.args.iter().cloned()).collect(),
        env: order.env.clone(),
        secrets: order
            .secrets
            .iter()
            .zip(secrets)
            .map(|(secret, content)| Hidden {
                variable: secret.variable.clone(),
                file: secret.as_file.then(|| secret.name.clone()),
                content,
            })
            .collect(),
        cwd: order.cwd.clone(),
        account: order.account.clone(),
        keep: script,
        file_bytes: order.file_bytes,
        plan: order.plan.clone(),
        group,
        // The first process of a namespace takes the others with it.
        ends_with_parent: !closed,
    };
    Ok((launch, report))
}

/// Both outputs of the program, on their way to their files.
struct Streams {
    pipes: [Option<File>; 2],
    sinks: [Sink; 2],
    chunk: Vec<u8>,
}

impl Streams {
    fn of(payload: &mut Payload, order: &Order) -> io::Result<Self> {
        let pipes = payload.take_output().ok_or_else(|| io::Error::other("no output"))?;
        for pipe in &pipes {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let sink = |stream| Sink::new(order.attempt.dir(), stream, order.output_bytes);
        let sinks = [Stream::Stdout, Stream::Stderr].map(sink);
        let pipes = pipes.map(|pipe| Some(File::from(pipe)));
        Ok(Self { pipes, sinks, chunk: vec![0; CHUNK_BYTES] })
    }

    fn open(&self) -> [Option<BorrowedFd<'_>>; 2] {
        self.pipes.each_ref().map(|pipe| pipe.as_ref().map(File::as_fd))
    }

    /// Takes what there is, at most a chunk of each; how much it was.
    fn take(&mut self, ready: [bool; 2]) -> usize {
        let mut taken = 0;
        for ((pipe, sink), ready) in self.pipes.iter_mut().zip(&mut self.sinks).zip(ready) {
            let Some(open) = pipe.as_mut().filter(|_| ready) else { continue };
            match open.read(&mut self.chunk) {
                Ok(0) => *pipe = None,
                Ok(n) => {
                    taken += n;
                    sink.take(self.chunk.get(..n).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => *pipe = None,
            }
        }
        taken
    }

    /// What was still on its way when everything had ended; somebody beyond the job may hold the
    /// other end, so it is not read to its end.
    fn finish(mut self) -> [Option<Kept>; 2] {
        let mut left = MOST_ON_THE_WAY;
        // A pipe of packets gives one at a time, and each may be a byte.
        for _ in 0..MOST_READS {
            let ready = any_now(self.open());
            if ready == [false; 2] || left == 0 {
                break;
            }
            left = left.saturating_sub(self.take(ready));
        }
        self.sinks.map(Sink::finish)
    }
}

fn any_now(open: [Option<BorrowedFd<'_>>; 2]) -> [bool; 2] {
    open.map(|fd| fd.is_some_and(is_ready))
}
