//! The agent's side: starting a shim, finding one again, and learning how its job ended.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jtnt_proto::job::MAX_SECRETS;
use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
    },
    process::Signal,
};

use super::{
    files::Attempt,
    keeper::{TRIAL, WORD},
    order::{Answer, Exit, MAX_EXIT_BYTES, Order, Unstarted, WITH_COPY, WITH_LINE, WITH_SCRIPT},
};
use crate::{
    domain::job::Process,
    platform::{
        process::sealed,
        watch::{Watched, readable},
    },
    runtime::lock::LockError,
};

/// How long a shim may take to get everything ready. It opens folders as the job's user, who may
/// have made them slow.
const READY_TIME: Duration = Duration::from_secs(30);
/// The agent's word that the program may begin.
pub(super) const GO: u8 = b'!';
/// The shim's word that it has written down how it ended.
pub(super) const DONE: u8 = b'.';
/// Descriptors of one message.
const MAX_FDS: usize = 5 + MAX_SECRETS;

/// What goes with an order, open.
#[derive(Debug, Clone, Copy)]
pub struct Things<'a> {
    /// The program, or what a transfer reads from or writes in.
    pub file: &'a File,
    /// To be executed instead.
    pub copy: Option<&'a File>,
    /// A script.
    pub script: Option<&'a File>,
    /// Where the bytes of a transfer go.
    pub line: Option<&'a UnixStream>,
    /// In the order of their names.
    pub secrets: &'a [File],
}

impl<'a> Things<'a> {
    /// This file, and nothing else.
    #[must_use]
    pub const fn only(file: &'a File) -> Self {
        Self { file, copy: None, script: None, line: None, secrets: &[] }
    }
}

/// Starts shims. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Launcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    args: Vec<OsString>,
    /// Where lines are sent to for which a shim is wanted; its process ends when this is closed.
    nursery: Mutex<Option<UnixStream>>,
}

impl Launcher {
    /// Shims of the very binary that runs, even if another has taken its name meanwhile.
    #[must_use]
    pub fn of_this_binary() -> Self {
        Self::of("/proc/self/exe".into())
    }

    /// Shims of another binary of the agent.
    #[must_use]
    pub fn of(program: PathBuf) -> Self {
        Self::with(program, vec![WORD.into()])
    }

    /// Tries whether a job can have namespaces here, in a process of its own.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn try_out(&self) -> io::Result<Trial> {
        let mut command = Command::new(&self.inner.program);
        let command = command.arg0("jtnt-agent").args(&self.inner.args).arg(TRIAL).env_clear();
        let streams = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        streams.spawn().map(Trial)
    }

    fn with(program: PathBuf, args: Vec<OsString>) -> Self {
        Self { inner: Arc::new(Inner { program, args, nursery: Mutex::default() }) }
    }

    /// Shims of a binary of tests.
    #[cfg(test)]
    pub(crate) fn of_tests() -> Self {
        let args = ["shim::tests::a_shim", "--exact", "--ignored", "--test-threads=1"];
        Self::with(std::env::current_exe().unwrap(), args.map(OsString::from).into())
    }

    /// Has the nursery end; `seen` if it shall be noticed before the next line is sent.
    #[cfg(test)]
    pub(crate) fn end_nursery(&self, seen: bool) {
        let how = if seen { std::net::Shutdown::Both } else { std::net::Shutdown::Write };
        let nursery = self.inner.lock();
        let there = nursery.as_ref().unwrap();
        there.shutdown(how).unwrap();
    }

    /// Starts a shim, which makes everything ready that the program needs. Blocks.
    ///
    /// # Errors
    /// When the program cannot run; nothing of it is left then.
    pub fn prepare(&self, order: &Order, things: Things<'_>) -> Result<Prepared, Unstarted> {
        let broken = |error| Unstarted::start(format!("no shim: {error}"));
        let (line, reused) = self.inner.shim().map_err(broken)?;
        let mut answer = ask(&line, order, things);
        let mut line = line;
        if reused && answer.is_err() {
            // Its nursery has ended just now, for want of work.
            self.inner.lock().take();
            line = self.inner.shim().map_err(broken)?.0;
            answer = ask(&line, order, things);
        }
        match answer {
            Ok(Answer::Ready(pid)) => Ok(Prepared { pid, line, attempt: order.attempt.clone() }),
            Ok(Answer::Failed(unstarted)) => Err(unstarted),
            Err(error) => Err(Unstarted::start(format!("its shim does not answer: {error}"))),
        }
    }
}

/// A trial under way.
#[derive(Debug)]
pub struct Trial(Child);

impl Trial {
    /// Waits for its end.
    ///
    /// # Errors
    /// What the system did not let it do.
    pub fn end(self) -> io::Result<()> {
        let output = self.0.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.nursery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line to a new shim, and whether it comes from a nursery that was there before.
    fn shim(&self) -> io::Result<(UnixStream, bool)> {
        let (line, theirs) = UnixStream::pair()?;
        line.set_read_timeout(Some(READY_TIME))?;
        line.set_write_timeout(Some(READY_TIME))?;
        let mut nursery = self.lock();
        if let Some(there) = &*nursery
            && send(there, &[0], &[theirs.as_fd()]).is_ok()
        {
            return Ok((line, true));
        }
        let new = nursery.insert(self.start()?);
        send(new, &[0], &[theirs.as_fd()])?;
        Ok((line, false))
    }

    fn start(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_write_timeout(Some(READY_TIME))?;
        let mut command = Command::new(&self.program);
        // Nothing here may make the library fork: an agent has much to copy.
        command
            .arg0("jtnt-agent")
            .args(&self.args)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // It leaves a copy of itself and ends.
        let status = command.status()?;
        if !status.success() {
            return Err(io::Error::other(format!("it ended with {status}")));
        }
        Ok(ours)
    }
}

/// Hands an order over, and waits for the answer.
fn ask(line: &UnixStream, order: &Order, things: Things<'_>) -> io::Result<Answer> {
    let body = sealed("jtnt-order", &serde_json::to_vec(order)?)?;
    let mut with = 0;
    let mut fds = vec![body.as_fd(), things.file.as_fd()];
    for (bit, fd) in [
        (WITH_COPY, things.copy.map(File::as_fd)),
        (WITH_SCRIPT, things.script.map(File::as_fd)),
        (WITH_LINE, things.line.map(UnixStream::as_fd)),
    ] {
        if let Some(fd) = fd {
            with |= bit;
            fds.push(fd);
        }
    }
    fds.extend(things.secrets.iter().map(File::as_fd));
    send(line, &[with], &fds)?;
    let mut text = Vec::new();
    BufReader::new(line.take(MAX_EXIT_BYTES)).read_until(b'\n', &mut text)?;
    if text.is_empty() {
        return Err(io::Error::other("it ended"));
    }
    Ok(serde_json::from_slice(&text)?)
}

/// Sends a few bytes, with descriptors.
pub(super) fn send(line: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(line, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// The first byte that came, and the descriptors with it.
pub(super) fn receive(line: &UnixStream) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    let came = recvmsg(line, buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    if came.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((byte[0], fds))
}

/// A program that waits for its "go". Dropped, it never runs.
#[derive(Debug)]
pub struct Prepared {
    pid: u32,
    line: UnixStream,
    attempt: Attempt,
}

impl Prepared {
    /// Lets the program begin. From now on it may have run.
    ///
    /// # Errors
    /// When the shim is gone; then it did not.
    pub fn go(self) -> io::Result<Shim> {
        let Self { pid, mut line, attempt } = self;
        let shim = Shim::of(pid, attempt)?;
        // Only a shim that lives takes the word, so its number was its own a moment before.
        line.write_all(&[GO])?;
        Ok(Shim { line: Some(line), ..shim })
    }
}

/// A job that is kept by its shim.
#[derive(Debug)]
pub struct Shim {
    end: Watched,
    process: Process,
    attempt: Attempt,
    /// Closed, it tells the shim that nobody will read at once how the job ended.
    line: Option<UnixStream>,
}

impl Shim {
    fn of(pid: u32, attempt: Attempt) -> io::Result<Self> {
        let (end, process) = Watched::process(pid)?;
        Ok(Self { end, process, attempt, line: None })
    }

    /// Finds the shim that keeps this run, if there is one.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn find(attempt: Attempt) -> Result<Option<Self>, LockError> {
        let Some(pid) = attempt.keeper()? else { return Ok(None) };
        let Ok(shim) = Self::of(pid, attempt) else { return Ok(None) };
        // The number was its own before and after the descriptor was opened.
        let still = shim.attempt.keeper()? == Some(pid);
        Ok(still.then_some(shim))
    }

    /// The process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Waits until the job has ended and that is written down.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub async fn ended(&self) -> io::Result<()> {
        if let Some(line) = &self.line {
            readable(line.as_fd()).await?;
            // The shim's own end takes a moment more, which is nothing to wait for.
            if let Ok(1) = recv(line, &mut [0], RecvFlags::DONTWAIT | RecvFlags::PEEK).map(|r| r.1)
            {
                return Ok(());
            }
        }
        self.end.ended().await
    }

    /// How the job ended, from a shim that could not write it down.
    #[must_use]
    pub fn told(&self) -> Option<Exit> {
        let line = self.line.as_ref()?;
        line.set_nonblocking(true).ok()?;
        let mut said = Vec::new();
        // It has ended by now, so all that it said is here.
        let _what_came_counts = line.take(MAX_EXIT_BYTES).read_to_end(&mut said);
        serde_json::from_slice(&said).ok()
    }

    /// Has the job ended: politely first, by force after its grace.
    pub fn terminate(&self) {
        self.end.signal(Signal::TERM);
    }

    /// Ends the shim at once, and the job with it.
    pub fn kill(&self) {
        self.end.signal(Signal::KILL);
    }
}
