//! `AuditService`.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread::available_parallelism,
};

use futures_util::stream;
use jiff::Timestamp;
use jtnt_proto::{
    admin::v1::{self as pb, audit_service_server::AuditService, verify_log_response::Event},
    audit_verify::{Finding, Verifier},
    checkpoint::{Note, witness_name},
    key::PublicKey,
};
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};
use tonic::{Request, Response, Status};

use super::{
    Answer, Deps, Many, blocking,
    evidence::{self, Export},
    while_running,
};
use crate::{
    admin::error,
    audit::{
        Head,
        query::{Filter, Follow, Scan},
        reader::snapshot,
    },
    identity::Paths,
    runtime::durable,
};

/// Old lines that a follower may begin with.
const MAX_TAIL_LINES: u32 = 10_000;
/// How often a check tells how far it is.
const PROGRESS: Duration = Duration::from_millis(500);
/// So many bytes at most are checked before the caller has its turn again.
const STEP_BYTES: usize = 1 << 20;
const MAX_KEY_BYTES: u64 = 4096;

pub(super) struct Audit(pub(super) Deps);

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
pub(super) fn unreadable(error: io::Error) -> Status {
    error::internal(format!("the audit log cannot be read: {error}"))
}

#[tonic::async_trait]
impl AuditService for Audit {
    type ListLinesStream = Many<pb::ListLinesResponse>;
    type TailLinesStream = Many<pb::TailLinesResponse>;
    type ExportLogStream = Many<pb::ExportLogResponse>;
    type VerifyLogStream = Many<pb::VerifyLogResponse>;

    async fn list_lines(
        &self,
        request: Request<pb::ListLinesRequest>,
    ) -> Answer<Self::ListLinesStream> {
        let asked = request.into_inner();
        let optional = |text: String| Some(text).filter(|text| !text.is_empty());
        let since = asked.since.map(|t| {
            Timestamp::new(t.seconds, t.nanos)
                .map_err(|e| error::invalid(format!("since: no time: {e}")))
        });
        let filter = Filter {
            since: since.transpose()?,
            event: optional(asked.event),
            job_id: optional(asked.job_id),
            text: optional(asked.text),
        };
        let (dir, limit) = (self.0.audit_dir.clone(), u64::from(asked.limit));
        let scan = blocking(move || Scan::new(&dir, filter, limit)).await?.map_err(unreadable)?;
        let state = (scan, VecDeque::new());
        Ok(Response::new(Box::pin(stream::try_unfold(state, |(mut scan, mut ready)| async {
            while ready.is_empty() {
                let (back, batch) = blocking(move || {
                    let batch = scan.next();
                    (scan, batch)
                })
                .await?;
                scan = back;
                match batch.map_err(unreadable)? {
                    Some(batch) => ready = VecDeque::from(batch),
                    None => return Ok(None),
                }
            }
            let line = ready.pop_front().unwrap_or_default();
            Ok(Some((pb::ListLinesResponse { line }, (scan, ready))))
        }))))
    }

    async fn tail_lines(
        &self,
        request: Request<pb::TailLinesRequest>,
    ) -> Answer<Self::TailLinesStream> {
        let wanted = request.into_inner().lines.min(MAX_TAIL_LINES);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        // The head is watched before the files are read, so that no line is missed in between.
        let head = self.0.overview.sources().audit.watch();
        let dir = self.0.audit_dir.clone();
        let begun = blocking(move || Follow::begin(&dir, wanted)).await?;
        let (last, follow) = begun.map_err(unreadable)?;
        let tail = Tail { head, follow: Some(follow), ready: last.into() };
        let all = stream::try_unfold(tail, |mut tail| async {
            Ok(tail.next().await?.map(|line| (pb::TailLinesResponse { line }, tail)))
        });
        Ok(Response::new(while_running(&self.0, all)))
    }

    async fn verify_log(
        &self,
        request: Request<pb::VerifyLogRequest>,
    ) -> Answer<Self::VerifyLogStream> {
        let (names, dir) = (request.into_inner().files, self.0.audit_dir.clone());
        let data_dir = self.0.overview.sources().data_dir.clone();
        let head = self.0.overview.sources().audit.head();
        let torn = head.error.is_some();
        let anchor = self.anchor(names.is_empty());
        let check = blocking(move || {
            // Before the files are looked at, or it might cover lines that come after that.
            let verifier = anchor();
            let check = Check::of(&dir, &names, &Paths { data_dir }, torn)?;
            Ok::<_, Status>(Check { superseded: head.superseded, ..check.by(verifier) })
        });
        let check = check.await??;
        Ok(Response::new(Box::pin(stream::try_unfold(check, |mut check| async {
            loop {
                if let Some(event) = check.ready.pop_front() {
                    let event = Some(event);
                    return Ok(Some((pb::VerifyLogResponse { event }, check)));
                }
                if check.over {
                    return Ok(None);
                }
                let (back, stepped) = blocking(move || {
                    let stepped = check.step();
                    (check, stepped)
                })
                .await?;
                check = back;
                stepped.map_err(unreadable)?;
            }
        }))))
    }

    async fn prove_line(
        &self,
        request: Request<pb::ProveLineRequest>,
    ) -> Answer<pb::ProveLineResponse> {
        let proof = evidence::prove(&self.0, request.into_inner().seq).await?;
        Ok(Response::new(pb::ProveLineResponse { proof }))
    }

    async fn export_log(&self, _: Request<pb::ExportLogRequest>) -> Answer<Self::ExportLogStream> {
        let deps = self.0.clone();
        let begun = blocking(move || Export::of(&deps)).await?;
        let export = begun.map_err(unreadable)?;
        Ok(Response::new(Box::pin(stream::try_unfold(export, |mut export| async {
            let (export, part) = blocking(move || {
                let part = export.next();
                (export, part)
            })
            .await?;
            let part = part.map_err(unreadable)?;
            Ok(part.map(|part| (pb::ExportLogResponse { part: Some(part) }, export)))
        }))))
    }

    async fn rotate_key(&self, _: Request<pb::RotateKeyRequest>) -> Answer<pb::RotateKeyResponse> {
        let audit = &self.0.overview.sources().audit;
        let (seq, key) = audit.rotate_key().await.map_err(|e| error::audit(&e))?;
        Ok(Response::new(pb::RotateKeyResponse { seq, public_key: key.to_string() }))
    }

    async fn clean_log(&self, _: Request<pb::CleanLogRequest>) -> Answer<pb::CleanLogResponse> {
        let audit = &self.0.overview.sources().audit;
        let cleaned = audit.clean().await.map_err(|e| error::audit(&e))?;
        let (removed, bytes, kept) = (cleaned.files, cleaned.bytes, cleaned.kept);
        Ok(Response::new(pb::CleanLogResponse { removed, bytes, kept }))
    }
}

impl Audit {
    /// What gives a check the newest checkpoint that the hub has cosigned, where all files are checked.
    fn anchor(&self, all: bool) -> impl FnOnce() -> Option<Anchor> + Send + 'static {
        let s = self.0.overview.sources();
        let (audit, agent_id) = (s.audit.clone(), s.agent_id.clone());
        let identity = s.identity.borrow().clone();
        move || {
            let note = Note::parse(&audit.anchor(&agent_id).filter(|_| all)?).ok()?;
            let root = identity.ok()?.keyring.root().clone();
            let name = witness_name(&root.root_id);
            let keys = root.roles.witness.keyids.iter().filter_map(|id| root.keys.get(id));
            Some((note, keys.map(|key| (name.clone(), *key)).collect()))
        }
    }
}

/// A checkpoint, and who may have cosigned it.
type Anchor = (Note, Vec<(String, PublicKey)>);

/// A reader that waits for the log to grow.
struct Tail {
    head: watch::Receiver<Head>,
    /// Elsewhere while a thread reads with it.
    follow: Option<Follow>,
    ready: VecDeque<Vec<u8>>,
}

impl Tail {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Status> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            self.head.mark_unchanged();
            let Some(mut follow) = self.follow.take() else { return Ok(None) };
            let (back, lines) = blocking(move || {
                let lines = follow.next();
                (follow, lines)
            })
            .await?;
            self.follow = Some(back);
            self.ready = lines.map_err(unreadable)?.into();
            if self.ready.is_empty() && self.head.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

/// A check of files under way.
struct Check {
    verifier: Verifier,
    /// Each with the bytes of it that are checked.
    files: VecDeque<(PathBuf, u64)>,
    open: Option<BufReader<io::Take<File>>>,
    threads: NonZeroUsize,
    done: u64,
    total: u64,
    told: Instant,
    ready: VecDeque<Event>,
    /// Logs that are kept aside, by their ids.
    superseded: Vec<String>,
    over: bool,
}

impl Check {
    /// The log as it is now. The agent may be writing the next line, which is no torn one: that
    /// there is none the writer knows, unless a write of its own has failed.
    fn of(dir: &Path, names: &[String], paths: &Paths, torn: bool) -> Result<Self, Status> {
        let all = snapshot(dir, torn).map_err(unreadable)?;
        let known = |name: &String| all.iter().any(|(day, _)| day.name() == *name);
        if let Some(strange) = names.iter().find(|name| !known(name)) {
            let why = format!(
                "{} has no file {strange:?}; a file elsewhere is checked with --key",
                dir.display()
            );
            return Err(error::not_found("UNKNOWN_FILE", why));
        }
        let wanted =
            all.into_iter().filter(|(day, _)| names.is_empty() || names.contains(&day.name()));
        let files: VecDeque<_> = wanted.map(|(day, bytes)| (day.path, bytes)).collect();
        let total = files.iter().map(|(_, bytes)| bytes).sum();
        let key = durable::read(&paths.audit_pub(), MAX_KEY_BYTES).map_err(unreadable)?;
        let key =
            std::str::from_utf8(&key).ok().and_then(|text| PublicKey::parse(text.lines().last()?));
        let key = key.ok_or_else(|| {
            error::internal(format!("{} is no public key", paths.audit_pub().display()))
        })?;
        Ok(Self {
            verifier: Verifier::new(Some(key)),
            files,
            open: None,
            threads: half_of_the_cores(),
            done: 0,
            total,
            told: Instant::now(),
            ready: VecDeque::new(),
            superseded: Vec::new(),
            over: false,
        })
    }

    fn by(self, anchor: Option<Anchor>) -> Self {
        let Some((note, witnesses)) = anchor else { return self };
        Self { verifier: self.verifier.with_anchor(note, witnesses), ..self }
    }

    /// Checks a piece, or ends.
    fn step(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.open else {
            match self.files.pop_front() {
                Some((path, bytes)) => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    self.verifier.begin_file(&name);
                    let file = File::open(&path)?.take(bytes);
                    self.open = Some(BufReader::with_capacity(STEP_BYTES, file));
                }
                None => self.conclude(),
            }
            return Ok(());
        };
        let (taken, found) = self.verifier.feed_with(self.threads, file.fill_buf()?);
        file.consume(taken);
        self.ready.extend(found.into_iter().map(finding));
        if taken == 0 {
            self.open = None;
            self.ready.extend(self.verifier.end_file().into_iter().map(finding));
        }
        self.done += taken as u64;
        if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            let (bytes_done, bytes_total) = (self.done, self.total.max(self.done));
            self.ready.push_back(Event::Progress(pb::VerifyProgress { bytes_done, bytes_total }));
        }
        Ok(())
    }

    fn conclude(&mut self) {
        let mut verifier = std::mem::replace(&mut self.verifier, Verifier::new(None));
        self.ready.extend(verifier.end().into_iter().map(finding));
        let mut summary = verifier.finish();
        let aside = |id: &String| {
            format!(
                "why the log {id} was put back: it is kept in superseded-{id}, and no part of this"
            )
        };
        summary.unknown.extend(self.superseded.iter().map(aside));
        self.ready.push_back(Event::Summary(pb::VerifySummary {
            verdict: summary.verdict.name().to_owned(),
            lines: summary.lines,
            files: summary.files,
            first_seq: summary.first_seq,
            last_seq: summary.last_seq,
            unknown: summary.unknown,
        }));
        self.over = true;
    }
}

/// Jobs need the others.
fn half_of_the_cores() -> NonZeroUsize {
    let half = available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    NonZeroUsize::new(half).unwrap_or(NonZeroUsize::MIN)
}

fn finding(found: Finding) -> Event {
    Event::Finding(pb::Finding {
        verdict: found.verdict.name().to_owned(),
        file: found.file,
        line: found.line,
        seq: found.seq,
        message: found.message,
    })
}
