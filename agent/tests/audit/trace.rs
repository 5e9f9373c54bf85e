//! What strace tells of the process, and how it is made to kill it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    disk::Change,
    work::{self, Part, Plan, Said},
};

/// Calls that change files, or tell something.
const CHANGES: &str = "trace=openat,write,writev,pwrite64,ftruncate,fsync,fdatasync,\
    ?rename,renameat,renameat2,?unlink,unlinkat,?mkdir,mkdirat,?rmdir,truncate,pwritev,linkat";

/// Those of them that name a file by its number.
const BY_OPEN_FILE: &[&str] = &["write", "pwrite64", "pwritev", "ftruncate", "fsync", "fdatasync"];

/// What became of one run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) said: Vec<Said>,
    pub(crate) killed: bool,
    /// The trace, as strace wrote it.
    pub(crate) text: String,
}

/// How a run is traced.
#[derive(Debug, Clone)]
pub(crate) enum Tracing {
    /// Each call that concerns a file.
    All,
    /// Those that change one, with their bytes.
    Changes,
    /// Killed when a thread makes the call for the time of this number.
    Kill(String, usize),
}

impl Tracing {
    fn args(&self) -> Vec<String> {
        match self {
            Self::All => vec!["-e".into(), "trace=%file,%desc".into()],
            Self::Changes => ["-y", "-xx", "-s", "1048576", "-e", CHANGES].map(String::from).into(),
            Self::Kill(call, at) => {
                let kill = format!("inject={call}:signal=KILL:when={at}");
                vec!["-e".into(), format!("trace={call}"), "-e".into(), kill]
            }
        }
    }
}

/// Runs the process once. `log` is where strace writes.
pub(crate) fn run(plan: Plan, part: Part, data: &Path, log: &Path, tracing: &Tracing) -> Run {
    let mut process = work::process(plan, part, data);
    process.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let gate = if part == Part::Rest { "\"Opened\"" } else { "\"Opening\"" };
    let mut told = Vec::new();
    loop {
        let line = lines.next().expect("it comes to its gate").unwrap();
        let is_gate = line == gate;
        told.push(line);
        if is_gate {
            break;
        }
    }
    let mut tracer = Command::new("strace");
    tracer.args(["-f", "-p", &child.id().to_string(), "-o"]).arg(log).args(tracing.args());
    let mut tracer = tracer.stderr(Stdio::piped()).spawn().unwrap();
    let mut attached = BufReader::new(tracer.stderr.take().unwrap()).lines();
    let begun = attached.by_ref().map(Result::unwrap).any(|line| line.contains("attached"));
    assert!(begun, "strace does not trace");
    match child.stdin.take().unwrap().write_all(b"\n") {
        // Killed at the very call that waits for this.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    told.extend(lines.map(Result::unwrap));
    let status = child.wait().unwrap();
    attached.for_each(drop);
    tracer.wait().unwrap();
    let killed = status.signal() == Some(9);
    assert!(killed || status.success(), "{status}: {told:?}");
    let said = told.iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    Run { said, killed, text: fs::read_to_string(log).unwrap() }
}

/// Every call by its thread, the halves of those that others interrupted put together.
fn calls(text: &str) -> Vec<(&str, String)> {
    let mut begun = BTreeMap::new();
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((thread, what)) = line.split_once(' ') else { continue };
        let what = what.trim_start();
        if let Some(begin) = what.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, begin);
        } else if let Some((_, end)) = what.split_once(" resumed>") {
            let begin = begun.remove(thread).unwrap_or_default();
            found.push((thread, format!("{begin}{end}")));
        } else if !what.starts_with(['-', '+']) {
            found.push((thread, what.to_owned()));
        }
    }
    found
}

/// How often the busiest thread made each call.
pub(crate) fn counts(text: &str) -> BTreeMap<String, usize> {
    let mut all: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for (thread, call) in calls(text) {
        if let Some((name, _)) = call.split_once('(') {
            *all.entry((thread, name.to_owned())).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, name), count) in all {
        let known = most.entry(name).or_insert(0);
        *known = count.max(*known);
    }
    most
}

/// What was changed in `data`, by paths in it, and told, in order.
pub(crate) fn changes(text: &str, data: &Path) -> Vec<Change> {
    calls(text).iter().filter_map(|(_, call)| change(call, data)).collect()
}

fn change(call: &str, data: &Path) -> Option<Change> {
    let (name, rest) = call.split_once('(')?;
    let (args, result) = rest.rsplit_once(") = ")?;
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    let args: Vec<_> = args.split(", ").collect();
    if name == "writev" {
        let told = quoted(args.iter().filter_map(|arg| Some(arg.split_once("iov_base=")?.1)));
        let text = String::from_utf8(told.flatten().collect()).unwrap();
        return Some(Change::Said(serde_json::from_str(&text).expect(&text)));
    }
    let named = |n| quoted(args.iter().copied()).nth(n).map(path);
    let open = || Some(path(unhex(args.first()?.split_once('<')?.1.strip_suffix('>')?)));
    let target = if BY_OPEN_FILE.contains(&name) { open() } else { named(0) };
    // Whoever holds the log's lock is of no account after a crash.
    let inner = |path: PathBuf| path.strip_prefix(data).ok().map(Path::to_owned);
    let target = inner(target?).filter(|path| !path.ends_with("lock"))?;
    let number = |n: usize| args[n].parse::<u64>().unwrap();
    let bytes = || {
        let mut bytes = quoted(args.iter().copied()).next().unwrap();
        bytes.truncate(result.parse().unwrap());
        bytes
    };
    Some(match name {
        "openat" if args[2].contains("O_CREAT") => {
            assert!(args[2].contains("O_EXCL"), "{call}");
            Change::Create(target)
        }
        "openat" => {
            assert!(!args[2].contains("O_TRUNC"), "{call}");
            return None;
        }
        "write" => Change::Write(target, None, bytes()),
        "pwrite64" => Change::Write(target, Some(number(3)), bytes()),
        "ftruncate" => Change::Cut(target, number(1)),
        "fsync" | "fdatasync" => Change::Sync(target),
        "rename" | "renameat" | "renameat2" => Change::Rename(target, inner(named(1)?)?),
        "unlink" | "unlinkat" => Change::Unlink(target),
        "mkdir" | "mkdirat" => Change::Mkdir(target),
        _ => panic!("the model does not know {call}"),
    })
}

/// The texts in quotes, all of whose bytes are escaped.
fn quoted<T: AsRef<str>>(args: impl Iterator<Item = T>) -> impl Iterator<Item = Vec<u8>> {
    args.filter_map(|arg| Some(unhex(arg.as_ref().strip_prefix('"')?.split_once('"')?.0)))
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.replace("\\x", "");
    hex::decode(&digits).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(String::from_utf8(bytes).unwrap())
}
