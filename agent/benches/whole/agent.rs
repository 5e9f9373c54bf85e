//! One run of the agent's process: started as a service manager would, asked as its users do, and
//! measured from outside.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};

use crate::Outcome;

/// Between two looks at something that is awaited.
const LOOK: Duration = Duration::from_micros(250);
const PATIENCE: Duration = Duration::from_secs(30);
/// How HTTP/2 begins, with settings that say nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const SETTINGS_FRAME: u8 = 4;

/// Where an agent of one site listens.
#[derive(Debug, Clone)]
pub(crate) struct Doors {
    pub(crate) socket: PathBuf,
    pub(crate) metrics: SocketAddr,
    pub(crate) health: SocketAddr,
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    doors: Doors,
    began: Instant,
    log: PathBuf,
}

impl Agent {
    pub(crate) fn start(program: &Path, config: &Path, doors: Doors, log: &Path) -> Outcome<Self> {
        let stderr = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let began = Instant::now();
        Ok(Self { child: command.spawn()?, doors, began, log: log.to_owned() })
    }

    /// Waits until the socket answers, health is served and so are the metrics; tells how long
    /// the first two took from the start.
    pub(crate) async fn ready(&self) -> Outcome<Duration> {
        let there = async {
            tokio::join!(until(|| self.admin_answers()), until(|| self.serves("/health")));
            let took = self.began.elapsed();
            until(|| get(self.doors.metrics, "/metrics")).await;
            took
        };
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        timeout(PATIENCE, there).await.map_err(|_late| format!("not ready: {}", log()).into())
    }

    async fn admin_answers(&self) -> Option<()> {
        let mut stream = UnixStream::connect(&self.doors.socket).await.ok()?;
        stream.write_all(PREFACE).await.ok()?;
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).await.ok()?;
        frame.get(3).is_some_and(|kind| *kind == SETTINGS_FRAME).then_some(())
    }

    async fn serves(&self, path: &str) -> Option<()> {
        get(self.doors.health, path).await
    }

    fn proc(&self, file: &str) -> Outcome<String> {
        Ok(fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?)
    }

    /// Where it tells how it is.
    pub(crate) const fn health(&self) -> SocketAddr {
        self.doors.health
    }

    /// KiB of memory, shared pages by share.
    pub(crate) fn pss(&self) -> Outcome<u64> {
        pss(self.child.id())
    }

    pub(crate) fn descriptors(&self) -> Outcome<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    pub(crate) fn threads(&self) -> Outcome<u64> {
        number_after(&self.proc("status")?, "Threads:")
    }

    /// What all threads have used of a processor.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        cpu(self.child.id())
    }

    /// Ends it as a service manager would.
    pub(crate) async fn stop(mut self) -> Outcome<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or("no pid")?;
        kill_process(pid, Signal::TERM)?;
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begun.elapsed() > PATIENCE {
                return Err("the agent does not stop".into());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Either fails only for a process that has ended.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

async fn until<F: Future<Output = Option<()>>>(look: impl Fn() -> F) {
    while look().await.is_none() {
        sleep(LOOK).await;
    }
}

async fn get(address: SocketAddr, path: &str) -> Option<()> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    answer.starts_with(b"HTTP/1.1 ").then_some(())
}

/// What the threads of a process have used of a processor.
pub(crate) fn cpu(pid: u32) -> Outcome<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let ran = text.split_whitespace().next().unwrap_or_default();
        nanos += ran.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

pub(crate) fn pss(pid: u32) -> Outcome<u64> {
    number_after(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Pss:")
}

fn number_after(text: &str, name: &str) -> Outcome<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number.ok_or_else(|| format!("the kernel does not tell {name}"))?.parse()?)
}
