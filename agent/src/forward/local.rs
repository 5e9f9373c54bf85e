//! The machine's own collectors: systemd's journal by its native protocol, and syslog by its socket
//! (RFC 3164, as local daemons take it). The message is the line as it was signed.
//!
//! Neither confirms anything. How far it is stands in a file, so that a restart goes on where it was;
//! after a crash some lines may come twice, and their `seq` tells.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use tokio::{net::UnixDatagram, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Deps, Fault, GATHER, follow, grown, on_disk, read};
use crate::{
    audit::query::seq_of,
    runtime::{clock::SharedClock, durable},
};

/// Between two tries to reach a collector that is not there.
const AGAIN: Duration = Duration::from_secs(10);
const MAX_MARK_BYTES: u64 = 1024;
const MARK_MODE: u32 = 0o640;
const TAG: &str = "jtnt-audit";
/// Facility 13 (log audit), severity 5 (notice).
const PRIORITY: u8 = 13 * 8 + 5;

/// A collector on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// systemd's journal.
    Journald,
    /// syslog.
    Syslog,
}

impl Local {
    /// Its name in configuration and metric.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Journald => "journald",
            Self::Syslog => "syslog",
        }
    }

    /// Where it listens.
    const fn socket(self) -> &'static str {
        match self {
            Self::Journald => "/run/systemd/journal/socket",
            Self::Syslog => "/dev/log",
        }
    }

    fn datagram(self, line: &[u8], time: &str) -> Vec<u8> {
        match self {
            Self::Journald => {
                let seq =
                    seq_of(line).map_or_else(String::new, |n| format!("JTNT_AUDIT_SEQ={n}\n"));
                let fields = format!("SYSLOG_IDENTIFIER={TAG}\nPRIORITY=5\n{seq}MESSAGE=");
                // A line holds no newline, so the short form of a field is enough.
                [fields.as_bytes(), line, b"\n"].concat()
            }
            Self::Syslog => {
                let head = format!("<{PRIORITY}>{time} {TAG}[{}]: ", std::process::id());
                [head.as_bytes(), line].concat()
            }
        }
    }
}

/// How far a collector is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    log_id: String,
    next: u64,
}

impl Mark {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&durable::read(path, MAX_MARK_BYTES).ok()?).ok()
    }

    fn keep(&self, path: &Path) -> io::Result<()> {
        durable::replace(path, &serde_json::to_vec(self)?, MARK_MODE)
    }
}

/// Forwards to a collector, until the stop. What was written before it was asked for stays out.
pub async fn to_local(
    deps: Deps,
    to: Local,
    (clock, zone): (SharedClock, TimeZone),
    stop: CancellationToken,
) {
    let mark = deps.audit.dir().join(format!("forwarded-{}.json", to.word()));
    let sink = Sink { to, socket: to.socket().into(), mark, clock, zone };
    deps.metrics.show_forwarded(to.word(), false, None);
    let all = async {
        let mut told = None;
        loop {
            let Err(fault) = sink.run(&deps).await else { continue };
            deps.metrics.show_forwarded(to.word(), false, None);
            let why = Some(fault.to_string());
            if why != told {
                let to = to.word();
                tracing::warn!(%fault, to, "audit lines are not forwarded; it is tried again");
                told = why;
            }
            sleep(AGAIN).await;
        }
    };
    tokio::select! {
        () = all => {}
        () = stop.cancelled() => {}
    }
}

struct Sink {
    to: Local,
    socket: PathBuf,
    mark: PathBuf,
    clock: SharedClock,
    zone: TimeZone,
}

impl Sink {
    /// Ends when another log begins.
    async fn run(&self, deps: &Deps) -> Result<(), Fault> {
        let mut head = deps.audit.watch();
        let (log_id, size) = {
            let head = head.borrow_and_update();
            (head.log_id.clone(), head.size)
        };
        let path = self.mark.clone();
        let mark = on_disk(move || Ok(Mark::read(&path))).await?;
        // A log that took the place of another is new from its first line on.
        let mut next = match mark {
            Some(mark) if mark.log_id == log_id => mark.next,
            Some(_) => 0,
            None => size,
        };
        self.keep(&log_id, next).await?;
        let socket = UnixDatagram::unbound().map_err(|e| Fault::Log(e.to_string()))?;
        let (first, mut follow) = follow(deps.audit.dir().to_owned(), next).await?;
        next = first;
        loop {
            let (back, lines) = read(follow).await?;
            follow = back;
            if head.borrow_and_update().log_id != log_id {
                return Ok(());
            }
            if lines.is_empty() {
                if grown(&mut head, next).await.is_err() {
                    // The writer has ended, and so will this.
                    std::future::pending::<()>().await;
                }
                continue;
            }
            for line in &lines {
                if let Err(error) = self.send(&socket, line).await {
                    self.keep(&log_id, next).await?;
                    return Err(error);
                }
                next += 1;
            }
            self.keep(&log_id, next).await?;
            deps.metrics.show_forwarded(self.to.word(), true, Some(next));
            sleep(GATHER).await;
        }
    }

    async fn send(&self, socket: &UnixDatagram, line: &[u8]) -> Result<(), Fault> {
        let now = self.zone.to_datetime(self.clock.now());
        let time = now.strftime("%b %e %H:%M:%S").to_string();
        let sent = socket.send_to(&self.to.datagram(line, &time), &self.socket).await;
        sent.map(drop).map_err(|e| Fault::Log(format!("{}: {e}", self.socket.display())))
    }

    async fn keep(&self, log_id: &str, next: u64) -> Result<(), Fault> {
        let (path, mark) = (self.mark.clone(), Mark { log_id: log_id.to_owned(), next });
        on_disk(move || mark.keep(&path)).await
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use ed25519_dalek::{Signer as _, SigningKey};
    use jtnt_proto::{audit::Event, key::PublicKey};

    use super::*;
    use crate::{
        audit::{Audit, Config, Record, query::Follow},
        domain::retention::Retention,
        runtime::{clock::FixedClock, entropy::SeededEntropy, signer::AuditSigner},
        telemetry::metrics::Metrics,
    };

    #[derive(Debug)]
    struct Key(SigningKey);

    impl AuditSigner for Key {
        fn public_key(&self) -> PublicKey {
            PublicKey::of(&self.0)
        }

        fn sign(&self, message: &[u8]) -> [u8; 64] {
            self.0.sign(message).to_bytes()
        }
    }

    struct Desk {
        dir: tempfile::TempDir,
        deps: Deps,
        sink: Sink,
    }

    fn desk(to: Local) -> Desk {
        let dir = tempfile::tempdir().unwrap();
        let clock: SharedClock = FixedClock::at("2026-06-01T12:00:00Z");
        let config = Config {
            dir: dir.path().join("audit"),
            agent_id: "agent".into(),
            retention: Retention::default(),
            zone: TimeZone::UTC,
        };
        let key = Arc::new(Key(SigningKey::from_bytes(&[7; 32])));
        let entropy = SeededEntropy::new(1);
        let audit = Audit::open(config, key, Arc::clone(&clock), &*entropy).unwrap();
        let mark = dir.path().join("mark.json");
        let socket = dir.path().join("socket");
        let deps = Deps { audit, entropy, metrics: Metrics::new("test").unwrap() };
        Desk { dir, deps, sink: Sink { to, socket, mark, clock, zone: TimeZone::UTC } }
    }

    impl Desk {
        async fn append(&self, n: u64) {
            let record = Record::of(Event::Startup).detail("n", n);
            self.deps.audit.append(record).await.unwrap();
        }

        fn lines(&self) -> Vec<Vec<u8>> {
            Follow::from(&self.dir.path().join("audit"), 0).unwrap().1.next().unwrap()
        }

        /// Forwards until as many datagrams have come.
        async fn collected(&self, wanted: usize) -> Vec<Vec<u8>> {
            let _old = fs::remove_file(&self.sink.socket);
            let socket = UnixDatagram::bind(&self.sink.socket).unwrap();
            let mut all = Vec::new();
            let collect = async {
                while all.len() < wanted {
                    let mut datagram = vec![0; 1 << 17];
                    let n = socket.recv(&mut datagram).await.unwrap();
                    datagram.truncate(n);
                    all.push(datagram);
                }
            };
            tokio::select! {
                ended = self.sink.run(&self.deps) => panic!("{ended:?}"),
                () = collect => {}
            }
            all
        }

        /// Without a collector the place is kept.
        async fn fails(&self) {
            let _old = fs::remove_file(&self.sink.socket);
            self.sink.run(&self.deps).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn each_line_comes_as_it_was_signed_and_a_restart_goes_on() {
        let desk = desk(Local::Syslog);
        // What was there before is not sent.
        desk.sink.keep(&desk.deps.audit.head().log_id, 1).await.unwrap();
        for n in 0..3 {
            desk.append(n).await;
        }
        let lines = desk.lines();
        let first = desk.collected(3).await;
        for (datagram, line) in first.iter().zip(lines.iter().skip(1)) {
            assert!(datagram.starts_with(b"<109>Jun  1 12:00:00 jtnt-audit["));
            assert!(datagram.ends_with(line));
        }
        for n in 3..6 {
            desk.append(n).await;
        }
        desk.fails().await;
        // Some may come twice, and none is left out.
        let (lines, again) = (desk.lines(), desk.collected(3).await);
        let begun = lines.iter().position(|line| again[0].ends_with(line)).unwrap();
        assert!((1..=4).contains(&begun), "{begun}");
        for (datagram, line) in again.iter().zip(lines.iter().skip(begun)) {
            assert!(datagram.ends_with(line));
        }
    }

    #[tokio::test]
    async fn the_journal_gets_fields_and_the_line() {
        let desk = desk(Local::Journald);
        desk.sink.keep(&desk.deps.audit.head().log_id, 0).await.unwrap();
        let datagram = desk.collected(1).await.remove(0);
        let line = desk.lines().remove(0);
        let head = b"SYSLOG_IDENTIFIER=jtnt-audit\nPRIORITY=5\nJTNT_AUDIT_SEQ=0\nMESSAGE=";
        assert_eq!(datagram, [head.as_slice(), &line, b"\n"].concat());
    }

    #[tokio::test]
    async fn what_is_asked_for_anew_begins_with_what_comes() {
        let desk = desk(Local::Syslog);
        desk.append(1).await;
        let (size, before) = (desk.deps.audit.head().size, desk.lines().len());
        let appended = async {
            // The mark is there once it watches.
            while Mark::read(&desk.sink.mark).is_none() {
                tokio::task::yield_now().await;
            }
            desk.append(2).await;
            std::future::pending::<()>().await;
        };
        let datagram = tokio::select! {
            all = desk.collected(1) => all.into_iter().next().unwrap(),
            () = appended => unreachable!(),
        };
        assert_eq!(before as u64, size);
        assert!(datagram.ends_with(desk.lines().last().unwrap()));
    }
}
