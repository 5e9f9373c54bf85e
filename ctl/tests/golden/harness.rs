//! Runs a command line in this process, over a pipe instead of a socket.

use std::{
    cell::RefCell,
    io::{self, Write},
    rc::Rc,
};

use clap::{CommandFactory as _, Parser as _};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use jtntctl::{Cli, Exit, Failure, Global, Host, Io, Standalone, run};
use tokio::io::DuplexStream;
use tonic::transport::{Channel, Endpoint};

use crate::daemon::{self, Mood};

/// Where a command is typed.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum World {
    /// A daemon answers.
    Well,
    /// A daemon refuses.
    Refusing,
    /// A daemon takes the request and says nothing.
    Silent,
    /// There is no daemon.
    Absent,
    /// A daemon answers, and the streams are terminals.
    Terminal,
}

/// Everything that was typed and printed.
pub(crate) fn transcript(world: World, lines: &[&str]) -> String {
    lines.iter().map(|line| one(world, line)).collect()
}

fn one(world: World, line: &str) -> String {
    let (out, err) = (Sink::default(), Sink::default());
    let mut io = Io::new(Box::new(out.clone()), Box::new(err.clone()), now);
    io.color = world == World::Terminal;
    io.out_is_terminal = world == World::Terminal;
    io.err_is_terminal = world == World::Terminal;
    let exit = execute(world, line, &mut io);
    let err = err.text();
    let err = if err.is_empty() { err } else { format!("[stderr]\n{err}") };
    format!("$ jtntctl {line}\n{}{err}[exit {}]\n\n", out.text(), exit.code())
}

/// A command whose reader is gone; the exit code, and what was complained about.
pub(crate) fn closed_pipe(line: &str) -> (Exit, String) {
    let err = Sink::default();
    let mut io = Io::new(Box::new(Closed), Box::new(err.clone()), now);
    (execute(World::Well, line, &mut io), err.text())
}

/// The same as a transcript of a daemon that is well, through a socket in the file system.
#[cfg(unix)]
pub(crate) fn over_a_socket(line: &str) -> String {
    let out = Sink::default();
    let mut io = Io::new(Box::new(out.clone()), Box::new(out.clone()), now);
    let mut cli = Cli::try_parse_from(["jtntctl"].into_iter().chain(line.split(' '))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    cli.global.socket = jtntctl::Target::Socket(path.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let exit = runtime.block_on(async {
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        tokio::select! {
            exit = run(cli.command, &cli.global, &mut io, &Standalone) => exit,
            () = daemon::serve_all(Mood::Well, incoming) => panic!("the daemon ended"),
        }
    });
    format!("$ jtntctl {line}\n{}[exit {}]\n\n", out.text(), exit.code())
}

fn execute(world: World, line: &str, io: &mut Io) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(world == World::Silent)
        .build()
        .unwrap();
    let words = ["jtntctl"].into_iter().chain(line.split_whitespace());
    let mut cli = Cli::try_parse_from(words).unwrap();
    runtime.block_on(async {
        if world == World::Absent {
            cli.global.socket = jtntctl::Target::parse("/nonexistent/admin.sock").unwrap();
            return run(cli.command, &cli.global, io, &Standalone).await;
        }
        let mood = match world {
            World::Refusing => Mood::Refusing,
            World::Silent => Mood::Silent,
            World::Well | World::Terminal | World::Absent => Mood::Well,
        };
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let host = Piped(RefCell::new(Some(ours)));
        tokio::select! {
            exit = run(cli.command, &cli.global, io, &host) => exit,
            () = daemon::serve(mood, theirs) => panic!("the daemon ended"),
        }
    })
}

fn now() -> Timestamp {
    "2026-01-02T12:00:00Z".parse().unwrap()
}

/// A host with one connection to give.
struct Piped(RefCell<Option<DuplexStream>>);

impl Host for Piped {
    async fn connect(&self, _: &Global) -> Result<Channel, Failure> {
        let mut pipe = self.0.take().map(TokioIo::new);
        let connector = tower::service_fn(move |_| {
            let pipe = pipe.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            async move { pipe }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        Ok(endpoint.connect_with_connector(connector).await.unwrap())
    }

    fn command_line(&self) -> clap::Command {
        Cli::command()
    }
}

#[derive(Clone, Default)]
struct Sink(Rc<RefCell<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.borrow()).into_owned()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
