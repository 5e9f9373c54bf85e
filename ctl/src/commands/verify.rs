//! `audit verify`: by the daemon over its own files, or here over any files with any key.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread::available_parallelism,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jtnt_proto::{
    admin::v1::{self as pb, verify_log_response::Event},
    audit::{MAX_LINE_BYTES, SealedLine},
    audit_verify::{Verdict, Verifier},
    checkpoint::{MAX_BYTES, Note, parse_witness},
    key::PublicKey,
};
use tokio::time::Instant;

use super::{evidence, policy::read, show};
use crate::{
    Exit, Failure,
    output::audit::Report,
    run::{Outcome, Session},
};

/// A public key is 44 characters, and an agent has a new one now and then.
const MAX_KEY_BYTES: u64 = 4096;
const MAX_NOTE_BYTES: u64 = MAX_BYTES as u64;
/// What is read at once for each thread, and the most for all.
const CHUNK_BYTES: usize = 1 << 20;
const MAX_CHUNK_BYTES: usize = 8 << 20;
/// Shorter work is done before a bar could be read.
const QUIET: Duration = Duration::from_secs(1);

/// What files are checked by.
#[derive(Debug, Default)]
pub(super) struct By {
    pub(super) key: Option<PathBuf>,
    pub(super) anchor: Option<PathBuf>,
    pub(super) witness: Vec<String>,
    /// What keys that come with the log cannot tell.
    pub(super) from_export: Vec<&'static str>,
}

impl By {
    fn verifier(&self) -> Result<Verifier, Failure> {
        let keys = self.keys()?;
        let verifier = Verifier::new(keys.last().copied()).trusting(keys);
        let Some(anchor) = &self.anchor else { return Ok(verifier) };
        let what = format!("take the checkpoint from {}", anchor.display());
        let wrong = |why: &str| Failure::new(Exit::Usage, what.clone(), why);
        let text = String::from_utf8(read(anchor, MAX_NOTE_BYTES)?);
        let text = text.map_err(|_not_text| wrong("it is not text"))?;
        let note = Note::parse(&text).map_err(wrong)?;
        Ok(verifier.with_anchor(note, self.witnesses()?))
    }

    /// The keys in its file, the newest last.
    pub(super) fn keys(&self) -> Result<Vec<PublicKey>, Failure> {
        self.key.as_deref().map_or_else(|| Ok(Vec::new()), read_keys)
    }

    /// Those who may have seen the log, each by its key or by a file of such.
    pub(super) fn witnesses(&self) -> Result<Vec<(String, PublicKey)>, Failure> {
        let mut witnesses = Vec::new();
        for given in &self.witness {
            if let Some(witness) = parse_witness(given) {
                witnesses.push(witness);
                continue;
            }
            let wrong = || {
                Failure::new(Exit::Usage, "use --witness", "it is no key of a witness").advise(
                    "NAME+HASH+KEY, as `jtnt-hub-mock witness` prints it, or a file of such lines",
                )
            };
            let path = Path::new(given);
            if !path.is_file() {
                return Err(wrong());
            }
            let text = String::from_utf8_lossy(&read(path, MAX_NOTE_BYTES)?).into_owned();
            for line in text.lines() {
                witnesses.push(parse_witness(line).ok_or_else(wrong)?);
            }
        }
        Ok(witnesses)
    }
}

pub(super) async fn run(session: &mut Session<'_>, mut files: Vec<PathBuf>, mut by: By) -> Outcome {
    let (mut found, mut export) = (Vec::new(), false);
    if let [dir] = files.as_slice()
        && dir.is_dir()
    {
        (files, by, found) = evidence::opened(dir, by)?;
        export = true;
    } else if by.anchor.is_none() && !by.witness.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "use --witness",
            "there is no checkpoint to look at",
        )
        .advise("it goes with --anchor, --proof or the folder of an export")
        .into());
    }
    // A bare name is a file of the daemon's; a path is the caller's own.
    let bare = |file: &PathBuf| file.components().count() == 1;
    let own = export || by.key.is_some() || by.anchor.is_some() || !files.iter().all(bare);
    let mut report = if own { here(session, files, &by)? } else { daemon(session, &files).await? };
    report.add_files(found.into_iter().map(Into::into));
    tell(session, &report)
}

/// Shows what a check came to, and ends accordingly.
pub(super) fn tell(session: &mut Session<'_>, report: &Report) -> Outcome {
    show(session, report, |color| report.text(color))?;
    Ok(match report.verdict.as_str() {
        "OK" => Exit::Done,
        "INCOMPLETE" => Exit::Incomplete,
        _ => Exit::No,
    })
}

async fn daemon(session: &Session<'_>, files: &[PathBuf]) -> Result<Report, Failure> {
    const WHAT: &str = "verify the audit log";
    let channel = session.channel().map_err(|failure| match failure.exit {
        Exit::Unreachable => failure.advise(
            "without an agent: jtntctl audit verify /PATH/TO/audit-*.log --key /PATH/TO/audit.pub",
        ),
        Exit::Done | Exit::No | Exit::Usage | Exit::Denied | Exit::Incomplete | Exit::Io => failure,
    })?;
    let mut client = pb::audit_service_client::AuditServiceClient::new(channel);
    let files = files.iter().map(|file| file.to_string_lossy().into_owned()).collect();
    let answer = session.call(WHAT, client.verify_log(pb::VerifyLogRequest { files })).await;
    let mut stream = answer.map_err(|mut failure| {
        // A file that is not there is no verdict.
        if failure.reason.as_deref() == Some("UNKNOWN_FILE") {
            failure.exit = Exit::Io;
        }
        failure
    })?;
    let mut bar = Bar::new(session, 0);
    let mut report = Report::default();
    while let Some(answer) = session.next(WHAT, &mut stream).await? {
        match answer.event {
            Some(Event::Progress(progress)) => bar.show(progress.bytes_done, progress.bytes_total),
            Some(Event::Finding(finding)) => report.add(finding.into()),
            Some(Event::Summary(summary)) => {
                report.conclude(summary);
                return Ok(report);
            }
            None => {}
        }
    }
    Err(Failure::new(Exit::Incomplete, WHAT, "the daemon's answer ends before its verdict"))
}

fn here(session: &Session<'_>, files: Vec<PathBuf>, by: &By) -> Result<Report, Failure> {
    let mut verifier = by.verifier()?;
    let files = in_order(files)?;
    let total = files.iter().map(|file| file.bytes).sum();
    let mut bar = Bar::new(session, total);
    let mut report = Report::default();
    let threads = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let at_once = threads.get().saturating_mul(CHUNK_BYTES).min(MAX_CHUNK_BYTES);
    let mut done = 0;
    for LogFile { path, .. } in files {
        let fault = |error| Failure::file("read", &path, &error);
        verifier.begin_file(&path.display().to_string());
        let file = File::open(&path).map_err(fault)?;
        let mut reader = BufReader::with_capacity(at_once, file);
        loop {
            let chunk = reader.fill_buf().map_err(fault)?;
            if chunk.is_empty() {
                break;
            }
            let (taken, found) = verifier.feed_with(threads, chunk);
            found.into_iter().for_each(|finding| report.add(finding.into()));
            reader.consume(taken);
            done += u64::try_from(taken).unwrap_or(0);
            bar.show(done, total);
        }
        verifier.end_file().into_iter().for_each(|finding| report.add(finding.into()));
    }
    verifier.end().into_iter().for_each(|finding| report.add(finding.into()));
    let mut summary = verifier.finish();
    if by.anchor.is_none() && !by.witness.is_empty() {
        summary.unknown.push("what a witness has seen: there is no checkpoint here".to_owned());
        if summary.verdict == Verdict::Ok {
            summary.verdict = Verdict::Incomplete;
        }
    }
    summary.unknown.extend(by.from_export.iter().map(|what| (*what).to_owned()));
    report.conclude_here(summary);
    Ok(report)
}

struct LogFile {
    first_seq: Option<u64>,
    path: PathBuf,
    bytes: u64,
}

/// The order of the log, whatever the order of the arguments; what has no number keeps its place
/// at the end.
fn in_order(paths: Vec<PathBuf>) -> Result<Vec<LogFile>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        let fault = |error| Failure::file("read", &path, &error);
        let file = File::open(&path).map_err(fault)?;
        let bytes = file.metadata().map_err(fault)?.len();
        let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX) + 1;
        let mut line = Vec::new();
        BufReader::new(file).take(limit).read_until(b'\n', &mut line).map_err(fault)?;
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let first_seq = SealedLine::parse(line).ok().map(|sealed| sealed.line.seq);
        files.push(LogFile { first_seq, path, bytes });
    }
    files.sort_by_key(|file| file.first_seq.unwrap_or(u64::MAX));
    Ok(files)
}

/// Reads `audit.pub`: a line of base64 for each key that the agent has had, the newest last.
fn read_keys(path: &Path) -> Result<Vec<PublicKey>, Failure> {
    let text = String::from_utf8(read(path, MAX_KEY_BYTES)?).unwrap_or_default();
    let keys: Option<Vec<_>> = text.lines().map(|line| PublicKey::parse(line.trim())).collect();
    keys.filter(|keys| !keys.is_empty()).ok_or_else(|| {
        let why = "it is not 44 characters of base64 with an Ed25519 public key";
        Failure::new(Exit::Usage, format!("take the key from {}", path.display()), why)
            .advise("the agent writes it to audit/audit.pub in its data directory")
    })
}

/// A bar that only a terminal sees, and only when there is time to look at it.
struct Bar {
    bar: ProgressBar,
    shown: bool,
    terminal: bool,
    since: Instant,
}

impl Bar {
    fn new(session: &Session<'_>, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(
            "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        let terminal = session.io.err_is_terminal && !session.json;
        Self { bar, shown: false, terminal, since: Instant::now() }
    }

    fn show(&mut self, done: u64, total: u64) {
        if self.terminal && !self.shown && self.since.elapsed() > QUIET {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
