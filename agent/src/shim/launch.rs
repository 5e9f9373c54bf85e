//! The agent's side: starting a shim, finding one again, and learning how its job ended.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
    },
    process::Signal,
};

use super::{
    files::Attempt,
    keeper::WORD,
    order::{Answer, MAX_EXIT_BYTES, Order, Unstarted, WITH_COPY, WITH_SCRIPT},
};
use crate::{
    domain::job::Process,
    gate::Program,
    platform::{
        process::{JOB_VARIABLE, sealed},
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
const MAX_FDS: usize = 4;

/// Starts shims.
#[derive(Debug, Clone)]
pub struct Launcher {
    program: PathBuf,
    args: Vec<OsString>,
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
        Self { program, args: vec![WORD.into()] }
    }

    /// Shims of a binary of tests.
    #[cfg(test)]
    pub(crate) fn of_tests() -> Self {
        let args = ["shim::tests::a_shim", "--exact", "--ignored", "--test-threads=1"];
        let program = std::env::current_exe().unwrap();
        Self { program, args: args.map(OsString::from).into() }
    }

    /// Starts a shim, which makes everything ready that the program needs. Blocks.
    ///
    /// # Errors
    /// When the program cannot run; nothing of it is left then.
    pub fn prepare(
        &self,
        order: &Order,
        program: &Program,
        script: Option<&File>,
    ) -> Result<Prepared, Unstarted> {
        let shim = self.start(order, program, script);
        let prepared = shim.map_err(|error| Unstarted::start(format!("no shim: {error}")))?;
        match prepared.answer() {
            Ok(Answer::Ready) => Ok(prepared),
            Ok(Answer::Failed(unstarted)) => Err(unstarted),
            Err(error) => Err(Unstarted::start(format!("its shim does not answer: {error}"))),
        }
    }

    fn start(
        &self,
        order: &Order,
        program: &Program,
        script: Option<&File>,
    ) -> io::Result<Prepared> {
        let (line, theirs) = UnixStream::pair()?;
        line.set_read_timeout(Some(READY_TIME))?;
        line.set_write_timeout(Some(READY_TIME))?;
        let body = sealed("jtnt-order", &serde_json::to_vec(order)?)?;
        let mut command = Command::new(&self.program);
        // Nothing here may make the library fork: an agent has much to copy.
        command
            .args(&self.args)
            .arg(order.attempt.job_id())
            .env_clear()
            .env(JOB_VARIABLE, order.attempt.job_id())
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn()?;
        drop(command);
        let mut prepared = Prepared { child: Some(child), line, attempt: order.attempt.clone() };
        let mut with = 0;
        let mut fds = vec![body.as_fd(), program.file.as_fd()];
        if let Some(copy) = &program.copy {
            with |= WITH_COPY;
            fds.push(copy.as_fd());
        }
        if let Some(script) = script {
            with |= WITH_SCRIPT;
            fds.push(script.as_fd());
        }
        send(&mut prepared.line, with, &fds)?;
        Ok(prepared)
    }
}

fn send(line: &mut UnixStream, with: u8, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    sendmsg(line, &[IoSlice::new(&[with])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The byte that came, and the descriptors with it.
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
    child: Option<Child>,
    line: UnixStream,
    attempt: Attempt,
}

impl Prepared {
    fn answer(&self) -> io::Result<Answer> {
        let mut text = Vec::new();
        BufReader::new((&self.line).take(MAX_EXIT_BYTES)).read_until(b'\n', &mut text)?;
        if text.is_empty() {
            return Err(io::Error::other("it ended"));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Lets the program begin. From now on it may have run.
    ///
    /// # Errors
    /// When the shim is gone; then it did not.
    pub fn go(mut self) -> io::Result<Shim> {
        let child = self.child.take().ok_or_else(|| io::Error::other("no shim"))?;
        let shim = Shim::of(child.id(), self.attempt.clone())?;
        let line = self.line.try_clone()?;
        self.line.write_all(&[GO])?;
        Ok(Shim { child: Some(child), line: Some(line), ..shim })
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take()
            && let Err(error) = child.kill().and_then(|()| child.wait())
        {
            tracing::warn!(%error, "a shim that is not needed does not end");
        }
    }
}

/// A job that is kept by its shim.
#[derive(Debug)]
pub struct Shim {
    end: Watched,
    process: Process,
    attempt: Attempt,
    child: Option<Child>,
    /// Closed, it tells the shim that nobody will read at once how the job ended.
    line: Option<UnixStream>,
}

impl Shim {
    fn of(pid: u32, attempt: Attempt) -> io::Result<Self> {
        let (end, process) = Watched::process(pid)?;
        Ok(Self { end, process, attempt, child: None, line: None })
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

    /// Has the job ended: politely first, by force after its grace.
    pub fn terminate(&self) {
        self.end.signal(Signal::TERM);
    }

    /// Ends the shim at once, and the job with it.
    pub fn kill(&self) {
        self.end.signal(Signal::KILL);
    }

    /// Takes leave of a shim whose job has ended, and removes its files. Blocks until it is gone.
    pub fn forget(mut self) {
        if let Some(child) = &mut self.child
            && let Err(error) = child.wait()
        {
            tracing::warn!(%error, "a shim was not reaped");
        }
        self.attempt.forget();
    }
}
