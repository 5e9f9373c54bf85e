//! A process that does with an audit log all that an agent ever does, and tells each thing as soon as
//! it is sure. It is this test binary itself, started again.

use std::{
    env,
    ffi::OsStr,
    io::{self, IoSlice, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use ed25519_dalek::{Signer as _, SigningKey};
use jiff::{Timestamp, tz::TimeZone};
use jtnt_agent::{
    audit::{Audit, AuditError, Config, Record},
    domain::retention::{Profile, Retention},
    runtime::{clock::Clock, entropy::SystemEntropy, signer::AuditSigner},
};
use jtnt_proto::{
    audit::Event,
    bytes::Hash,
    checkpoint::{Note, witness_name},
    key::PublicKey,
};
use serde::{Deserialize, Serialize};

/// Noon of the first day.
const BEGIN: i64 = 1_780_315_200;
const DAY: i64 = 86_400;
/// What the process is to do, on its way into it: plan, part and folder.
const ORDER: &str = "JTNT_CRASH";
/// The test that is the process.
const ENTRY: &str = "work::is_told_what_to_do";

/// What the process has told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Said {
    /// The log is about to be opened.
    Opening,
    /// It is open.
    Opened,
    /// A line is durable; with its leaf hash, where it is the last one.
    Line(u64, Option<Hash>),
    /// The hub has cosigned this checkpoint.
    Seen(String),
    /// The agent has kept one of so many lines.
    Kept(u64),
    /// Bytes with this hash stood torn behind the last line.
    Torn(Hash),
}

/// What is done with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Everything, from the first line on.
    Life,
    /// Two days, as a beginning for what follows.
    Youth,
    /// Going on with what is there.
    Again,
}

/// What of it is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The opening, and no more is done.
    Opening,
    /// What follows it.
    Rest,
    All,
}

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

/// It is always noon.
#[derive(Debug)]
pub(crate) struct Calendar(AtomicI64);

impl Calendar {
    pub(crate) fn at(day: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(day)))
    }

    pub(crate) fn turn_to(&self, day: i64) {
        self.0.store(day, Ordering::Relaxed);
    }
}

/// The number of the day that a file is named after.
pub(crate) fn number_of(day: jiff::civil::Date) -> i64 {
    let noon = TimeZone::UTC.to_timestamp(day.at(12, 0, 0, 0)).unwrap();
    (noon.as_second() - BEGIN) / DAY
}

impl Clock for Calendar {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(BEGIN + DAY * self.0.load(Ordering::Relaxed)).unwrap()
    }

    fn uptime(&self) -> Duration {
        Duration::ZERO
    }
}

pub(crate) fn key() -> PublicKey {
    PublicKey::of(&SigningKey::from_bytes(&[7; 32]))
}

/// Name and key of the hub that cosigns.
pub(crate) fn witness() -> (String, PublicKey) {
    (witness_name("root"), PublicKey::of(&SigningKey::from_bytes(&[8; 32])))
}

pub(crate) fn cosign(note: &str) -> String {
    let (secret, (name, key)) = (SigningKey::from_bytes(&[8; 32]), witness());
    let checkpoint = Note::parse(note).unwrap().checkpoint;
    note.to_owned() + &checkpoint.cosign(&name, &key, 1, |text| secret.sign(text).to_bytes())
}

/// Where the log is in the data folder.
pub(crate) fn audit_dir(data: &Path) -> PathBuf {
    data.join("audit")
}

pub(crate) fn open(data: &Path, calendar: &Arc<Calendar>) -> Result<Audit, AuditError> {
    let config = Config {
        dir: audit_dir(data),
        agent_id: "agent".to_owned(),
        retention: Retention::of(Profile::Default, 1),
        zone: TimeZone::UTC,
    };
    let key = Arc::new(Key(SigningKey::from_bytes(&[7; 32])));
    Audit::open(config, key, Arc::<Calendar>::clone(calendar), &SystemEntropy)
}

pub(crate) fn record(n: u64) -> Record {
    Record::of(Event::Startup).detail("n", n)
}

/// A log at work, and who is told of it.
struct Work<'a> {
    audit: Audit,
    calendar: Arc<Calendar>,
    tell: &'a mut dyn FnMut(Said),
}

impl<'a> Work<'a> {
    fn open(data: &Path, day: i64, tell: &'a mut dyn FnMut(Said)) -> Self {
        let calendar = Calendar::at(day);
        tell(Said::Opening);
        let audit = open(data, &calendar).unwrap();
        let head = audit.head();
        tell(Said::Line(head.size - 1, Some(head.head)));
        tell(Said::Opened);
        Self { audit, calendar, tell }
    }

    async fn append(&mut self) {
        let seq = self.audit.append(record(1)).await.unwrap();
        let head = self.audit.head();
        assert_eq!(head.size, seq + 1, "nobody else writes");
        (self.tell)(Said::Line(seq, Some(head.head)));
    }

    /// Lines that share a sync, or two.
    async fn append_many(&mut self) {
        let all = (0..4).map(|n| self.audit.append(record(n)));
        for seq in futures_util::future::join_all(all).await {
            (self.tell)(Said::Line(seq.unwrap(), None));
        }
    }

    /// A heartbeat.
    async fn beat(&mut self) {
        let offer = self.audit.checkpoint(None).await.unwrap();
        let note = cosign(&offer.note);
        (self.tell)(Said::Seen(note.clone()));
        self.audit.witnessed(note).await.unwrap();
        (self.tell)(Said::Kept(offer.size));
    }

    async fn life(&mut self) {
        self.append().await;
        self.append().await;
        self.beat().await;
        self.append().await;
        self.calendar.turn_to(1);
        self.append().await;
        self.append_many().await;
        self.beat().await;
        self.append().await;
        self.beat().await;
        // The hub is away for some days, and nothing goes that it has not seen.
        self.append().await;
        self.append().await;
        self.calendar.turn_to(2);
        self.append().await;
        self.append().await;
        self.calendar.turn_to(4);
        self.append().await;
        assert_eq!(self.audit.clean().await.unwrap().kept.len(), 2);
        self.beat().await;
        assert_eq!(self.audit.clean().await.unwrap().files.len(), 2);
        self.append().await;
        self.beat().await;
        self.append().await;
    }

    async fn youth(&mut self) {
        self.append().await;
        self.beat().await;
        self.calendar.turn_to(1);
        self.append().await;
        self.append().await;
    }

    async fn again(&mut self) {
        self.append().await;
        self.beat().await;
        self.append().await;
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// Does it here, and tells.
pub(crate) fn work(plan: Plan, part: Part, data: &Path, tell: &mut dyn FnMut(Said)) {
    let day = if plan == Plan::Again { 4 } else { 0 };
    let mut work = Work::open(data, day, tell);
    if part == Part::Opening {
        return;
    }
    runtime().block_on(async {
        match plan {
            Plan::Life => work.life().await,
            Plan::Youth => work.youth().await,
            Plan::Again => work.again().await,
        }
    });
}

/// What a power cut leaves behind the last line: half a line, and a block that was never written.
pub(crate) fn torn() -> Vec<u8> {
    [&b"{\"timestamp\":\"2026"[..], &[0; 512]].concat()
}

/// How the process is started. It waits for a line on its input where the part begins.
pub(crate) fn process(plan: Plan, part: Part, data: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(env::current_exe().unwrap());
    command.args(["--exact", ENTRY, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(ORDER, format!("{plan:?} {part:?} {}", data.display()));
    command
}

/// The process. By `writev`, which nothing else makes, so that its other calls are the log's alone.
#[test]
#[ignore = "what other tests here start; does nothing else"]
fn is_told_what_to_do() {
    let Some(order) = env::var_os(ORDER) else { return };
    let order = order.to_str().unwrap();
    let mut words = order.splitn(3, ' ');
    let plan = match words.next().unwrap() {
        "Life" => Plan::Life,
        "Youth" => Plan::Youth,
        "Again" => Plan::Again,
        other => panic!("{other}"),
    };
    let part = match words.next().unwrap() {
        "Opening" => Part::Opening,
        "Rest" => Part::Rest,
        "All" => Part::All,
        other => panic!("{other}"),
    };
    // Where only a parent may trace, the tracer is none.
    let _unguarded = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    work(plan, part, Path::new(OsStr::new(words.next().unwrap())), &mut |said| {
        let text = serde_json::to_string(&said).unwrap() + "\n";
        let told = io::stderr().write_vectored(&[IoSlice::new(text.as_bytes())]).unwrap();
        assert_eq!(told, text.len());
        let waits = match said {
            Said::Opening => part != Part::Rest,
            Said::Opened => part == Part::Rest,
            Said::Line(..) | Said::Seen(_) | Said::Kept(_) | Said::Torn(_) => false,
        };
        if waits {
            let mut go = [0];
            io::stdin().read_exact(&mut go).unwrap();
        }
    });
}

/// What is owed to whoever was told this.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    /// The newest checkpoint that the hub has.
    pub(crate) anchor: Option<Note>,
    pub(crate) lines: Vec<(u64, Option<Hash>)>,
    /// Lines of the newest checkpoint that the agent has kept.
    pub(crate) kept: u64,
    pub(crate) torn: Vec<Hash>,
}

impl Owed {
    pub(crate) fn to(said: &[Said]) -> Self {
        let mut owed = Self::default();
        for said in said {
            match said {
                Said::Opening | Said::Opened => {}
                Said::Line(seq, hash) => owed.lines.push((*seq, *hash)),
                Said::Seen(note) => owed.anchor = Some(Note::parse(note).unwrap()),
                Said::Kept(size) => owed.kept = *size,
                Said::Torn(hash) => owed.torn.push(*hash),
            }
        }
        owed
    }
}
