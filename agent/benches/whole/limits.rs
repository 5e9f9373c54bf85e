//! What this machine can do at best. A figure of the agent says little without it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Outcome,
    table::{ms, percentile},
};

const ROUNDS: usize = 200;

/// The floor of a job, by its parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) fork_exec: Duration,
    pub(crate) fdatasync: Duration,
    pub(crate) loopback: Duration,
}

impl Limits {
    /// On the file system of `dir`.
    pub(crate) fn measure(dir: &Path) -> Outcome<Self> {
        Ok(Self { fork_exec: fork_exec()?, fdatasync: fdatasync(dir)?, loopback: loopback()? })
    }

    pub(crate) fn text(self) -> String {
        format!(
            "fork+exec {}, fdatasync {}, loopback {}",
            ms(self.fork_exec),
            ms(self.fdatasync),
            ms(self.loopback)
        )
    }
}

fn median(mut round: impl FnMut() -> Outcome<()>) -> Outcome<Duration> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        round()?;
        times.push(begun.elapsed());
    }
    Ok(percentile(&mut times, 50))
}

/// Starting `/bin/true` and seeing its end.
pub(crate) fn fork_exec() -> Outcome<Duration> {
    median(|| {
        let status = Command::new("/bin/true").stdin(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err("/bin/true failed".into()) }
    })
}

/// Appending 512 bytes, durably.
fn fdatasync(dir: &Path) -> Outcome<Duration> {
    let mut file = File::create(dir.join("limit"))?;
    median(|| {
        file.write_all(&[b'x'; 512])?;
        Ok(file.sync_data()?)
    })
}

/// One byte there and back, between two threads.
fn loopback() -> Outcome<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let taken = median(|| {
        stream.write_all(&[1])?;
        Ok(stream.read_exact(&mut [0])?)
    });
    drop(stream);
    echo.join().map_err(|_panicked| "the echo failed")??;
    taken
}
