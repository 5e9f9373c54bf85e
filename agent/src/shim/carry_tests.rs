//! Transfers by real shims, with the agent's end of the line in the hands of the test.

use std::{io::Seek as _, time::Duration};

use super::*;
use crate::{
    domain::policy::{Area, Confinement},
    platform::sandbox::{Plan, abilities},
    runtime::durable,
    shim::{
        Cause, Exit, Fault, Launcher, Left, Prepared, Shim, Source as Reader, Things, Unstarted,
        tests::{Job, left},
    },
};
use jtnt_proto::policy::Access;

const CONTENT: &[u8] = b"content of the artifact";

/// What each download is to make.
fn target() -> Target {
    Target {
        part: ".part".into(),
        name: "app.conf".into(),
        mode: 0o640,
        artifact: Artifact { sha256: Hash::of(CONTENT), size: CONTENT.len() as u64 },
        disown: false,
    }
}

/// A transfer, and this end of its line.
struct Carrying {
    job: Job,
    file: File,
    line: UnixStream,
    theirs: UnixStream,
}

impl Carrying {
    fn of(transfer: Transfer, file: File, path: &std::path::Path) -> Self {
        let mut job = Job::of("");
        job.order.transfer = Some(transfer);
        job.order.argv0 = path.to_str().unwrap().to_owned();
        job.order.cwd = "/".to_owned();
        let (line, theirs) = UnixStream::pair().unwrap();
        Self { job, file, line, theirs }
    }

    fn download(place: &Place) -> Self {
        let folder = File::open(&place.path).unwrap();
        Self::of(Transfer::Download(target()), folder, &place.path)
    }

    fn upload(path: &std::path::Path) -> Self {
        Self::of(Transfer::Upload, File::open(path).unwrap(), path)
    }

    fn target(&mut self) -> &mut Target {
        match &mut self.job.order.transfer {
            Some(Transfer::Download(target)) => target,
            other => panic!("{other:?}"),
        }
    }

    /// As a user of its own, in all that this machine has to hold it by.
    fn held(&mut self, uid: u32, area: Area) {
        let abilities = abilities();
        self.job.order.account = Account::numbered(uid);
        self.job.order.plan =
            Plan { confinement: Confinement::to(area), abilities, ..Plan::default() };
    }

    fn prepare(&self) -> Result<Prepared, Unstarted> {
        let things = Things { line: Some(&self.theirs), ..Things::only(&self.file) };
        Launcher::of_tests().prepare(&self.job.order, things)
    }

    fn go(self) -> (Shim, UnixStream, Job) {
        let shim = self.prepare().unwrap().go().unwrap();
        (shim, self.line, self.job)
    }

    /// Says this and closes the line.
    async fn say(self, bytes: &[u8]) -> Exit {
        let (shim, mut line, job) = self.go();
        line.write_all(bytes).unwrap();
        drop(line);
        exit(&job, &shim).await
    }
}

async fn exit(job: &Job, shim: &Shim) -> Exit {
    match left(job, shim).await {
        Left::Exit(exit) => *exit,
        other @ (Left::Nothing | Left::Started) => panic!("{other:?}"),
    }
}

/// A folder that every user reaches.
struct Place {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().canonicalize().unwrap().join("place");
        std::fs::create_dir(&path).unwrap();
        Self { _dir: dir, path }
    }

    fn belonging_to(uid: u32) -> Self {
        let place = Self::new();
        std::os::unix::fs::chown(&place.path, Some(uid), Some(uid)).unwrap();
        place
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.path).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn file(&self) -> std::path::PathBuf {
        self.path.join("app.conf")
    }
}

fn put(path: &std::path::Path, content: &[u8]) {
    durable::put(path, content, 0o644).unwrap();
}

fn fault(exit: &Exit) -> Snag {
    exit.carried.clone().unwrap().unwrap_err().fault
}

#[tokio::test]
async fn what_comes_whole_takes_its_name() {
    let place = Place::new();
    put(&place.path.join(".part"), b"of an earlier run");
    put(&place.file(), b"old");
    let exit = Carrying::download(&place).say(CONTENT).await;
    assert_eq!(
        (exit.cause, exit.carried.unwrap().unwrap().sha256),
        (Cause::Ended, Hash::of(CONTENT))
    );
    assert_eq!((exit.code, exit.stdout, exit.stderr), (None, None, None));
    assert_eq!(place.names(), ["app.conf"]);
    assert_eq!(std::fs::read(place.file()).unwrap(), CONTENT);
    assert_eq!(std::fs::metadata(place.file()).unwrap().mode() & 0o7777, 0o640);
}

#[tokio::test]
async fn what_does_not_come_whole_leaves_what_was_there() {
    let place = Place::new();
    put(&place.file(), b"old");
    let short = Carrying::download(&place).say(&CONTENT[1..]).await;
    assert_eq!(fault(&short), Snag::Cut);
    let mut other = CONTENT.to_vec();
    other[0] ^= 1;
    let wrong = Carrying::download(&place).say(&other).await;
    assert_eq!(fault(&wrong), Snag::Mismatch);
    assert_eq!(place.names(), ["app.conf"]);
    assert_eq!(std::fs::read(place.file()).unwrap(), b"old");
}

#[tokio::test]
async fn a_transfer_that_takes_too_long_leaves_nothing_behind() {
    let place = Place::new();
    let mut carrying = Carrying::download(&place);
    carrying.job.order.timeout = Duration::from_millis(100);
    let (shim, _line, job) = carrying.go();
    let exit = exit(&job, &shim).await;
    assert_eq!((exit.cause, exit.carried), (Cause::Timeout, None));
    assert_eq!(place.names(), [""; 0]);
}

#[tokio::test]
async fn a_file_that_was_put_in_its_place_is_no_success() {
    let place = Place::new();
    let (shim, mut line, job) = Carrying::download(&place).go();
    line.write_all(&CONTENT[..1]).unwrap();
    let part = place.path.join(".part");
    while std::fs::metadata(&part).map_or(0, |meta| meta.len()) == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    put(&place.path.join("other"), b"other");
    std::fs::rename(place.path.join("other"), &part).unwrap();
    line.write_all(&CONTENT[1..]).unwrap();
    let exit = exit(&job, &shim).await;
    assert_eq!(fault(&exit), Snag::Write);
    let why = exit.carried.unwrap().unwrap_err().message;
    assert!(why.contains("another file"), "{why}");
}

#[tokio::test]
async fn a_user_of_its_own_writes_inside_of_the_sandbox_and_owns_nothing_after_it() {
    if !abilities().root {
        eprintln!("not root: a user of the job's own was not tried");
        return;
    }
    const USER: u32 = 65_510;
    let place = Place::belonging_to(USER);
    let area = Area::folder(place.path.to_str().unwrap(), Access::Write);
    let mut carrying = Carrying::download(&place);
    carrying.held(USER, area.clone());
    carrying.target().disown = true;
    let exit = carrying.say(CONTENT).await;
    assert!(exit.carried.clone().unwrap().is_ok(), "{exit:?}");
    let meta = std::fs::metadata(place.file()).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, 0o640));
    // What its policy does not open is not there.
    let mut elsewhere = Carrying::download(&place);
    elsewhere.held(USER, Area::file("/etc/hostname", Access::Read));
    assert_eq!(elsewhere.prepare().unwrap_err().fault, Fault::Start);
    // Nor what is not its user's.
    let closed = Place::new();
    let mut carrying = Carrying::download(&closed);
    carrying.held(USER, Area::folder(closed.path.to_str().unwrap(), Access::Write));
    assert_eq!(fault(&carrying.say(CONTENT).await), Snag::Write);
    assert_eq!((place.names(), closed.names()), (vec!["app.conf".to_owned()], vec![]));
    // A mode that would give its user's rights away is none.
    let mut setid = Carrying::download(&place);
    setid.held(USER, area);
    setid.target().mode = 0o4755;
    assert_eq!(fault(&setid.say(CONTENT).await), Snag::Write);
}

#[tokio::test]
async fn a_folder_that_the_user_cannot_enter_is_out_of_reach() {
    if !abilities().root {
        eprintln!("not root: another user's reach was not tried");
        return;
    }
    let place = Place::belonging_to(65_509);
    let above = place.path.parent().unwrap();
    std::fs::set_permissions(above, Permissions::from_mode(0o700)).unwrap();
    let mut carrying = Carrying::download(&place);
    carrying.held(65_509, Area::folder(place.path.to_str().unwrap(), Access::Write));
    assert_eq!(carrying.prepare().unwrap_err().fault, Fault::Unreachable);
}

/// The agent's end, as the agent has it.
async fn reader(line: UnixStream) -> Reader {
    line.set_nonblocking(true).unwrap();
    Reader::new(tokio::net::UnixStream::from_std(line).unwrap()).await.unwrap()
}

async fn all(reader: &Reader, offset: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut pipe = reader.from(offset).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut pipe, &mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn a_file_is_read_from_anywhere_and_hashed_as_a_whole() {
    let place = Place::new();
    let content: Vec<u8> =
        (0..3 * CHUNK_BYTES + 7).map(|n| u8::try_from(n % 251).unwrap()).collect();
    put(&place.file(), &content);
    let (shim, line, job) = Carrying::upload(&place.file()).go();
    let mut source = reader(line).await;
    assert_eq!(source.size(), content.len() as u64);
    // The hub has some of it, loses the connection, and goes on.
    drop(source.from(9).await.unwrap());
    assert_eq!(all(&source, 300_000).await, &content[300_000..]);
    assert_eq!(source.hash().await.unwrap(), Hash::of(&content));
    assert_eq!(all(&source, 0).await, content);
    assert_eq!(source.hash().await.unwrap(), Hash::of(&content));
    source.done().await.unwrap();
    let carried = exit(&job, &shim).await.carried.unwrap().unwrap();
    assert_eq!((carried.sha256, carried.size), (Hash::of(&content), content.len() as u64));
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_no_success() {
    for (shorter, how) in [(false, "written to"), (true, "shorter")] {
        let place = Place::new();
        put(&place.file(), CONTENT);
        let (shim, line, job) = Carrying::upload(&place.file()).go();
        let mut source = reader(line).await;
        let mut file = File::options().write(true).open(place.file()).unwrap();
        if shorter {
            file.set_len(1).unwrap();
            file.rewind().unwrap();
        } else {
            file.write_all(b"C").unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
        source.hash().await.unwrap_err();
        let exit = exit(&job, &shim).await;
        assert_eq!(fault(&exit), Snag::Changed);
        let why = exit.carried.unwrap().unwrap_err().message;
        assert!(why.contains(how), "{why}");
    }
}

#[tokio::test]
async fn an_upload_without_its_agent_is_cut_short() {
    let place = Place::new();
    put(&place.file(), CONTENT);
    let (shim, line, job) = Carrying::upload(&place.file()).go();
    let mut source = reader(line).await;
    source.hash().await.unwrap();
    drop(source);
    assert_eq!(fault(&exit(&job, &shim).await), Snag::Cut);
    // Words that nobody of ours would say end it, too.
    for words in [&b"?"[..], b".", b"<"] {
        let carrying = Carrying::upload(&place.file());
        assert_eq!(fault(&carrying.say(words).await), Snag::Cut);
    }
}

#[tokio::test]
async fn what_its_user_may_not_read_is_not_sent() {
    if !abilities().root {
        eprintln!("not root: another user's rights were not tried");
        return;
    }
    let place = Place::new();
    put(&place.file(), CONTENT);
    std::fs::set_permissions(place.file(), Permissions::from_mode(0o600)).unwrap();
    let mut carrying = Carrying::upload(&place.file());
    carrying.held(65_508, Area::file(place.file().to_str().unwrap(), Access::Read));
    assert_eq!(fault(&carrying.say(b"").await), Snag::Read);
}

/// What the shim makes of a process that said this and ended, with `.part` in the folder.
fn settled(place: &Place, words: &[u8], with_file: bool, last: Option<Carried>) -> Option<Carried> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let part = File::open(place.path.join(".part")).or_else(|_| File::open(place.file())).unwrap();
    let fds: &[_] = if with_file { &[part.as_fd()] } else { &[] };
    let mut text = words.to_vec();
    text.extend(last.map(|last| serde_json::to_vec(&last).unwrap()).unwrap_or_default());
    send(&theirs, &text, fds).unwrap();
    let folder = File::open(&place.path).unwrap();
    Report(ours).settle(&Transfer::Download(target()), &folder, &Account::own())
}

#[test]
fn what_was_in_its_place_before_the_process_was_killed_is_a_success() {
    let place = Place::new();
    put(&place.file(), CONTENT);
    let carried = settled(&place, &[BEGUN, WHOLE], true, None).unwrap();
    assert_eq!(carried.unwrap().sha256, Hash::of(CONTENT));
    assert_eq!(place.names(), ["app.conf"]);
}

#[test]
fn what_somebody_else_gave_the_name_is_none() {
    let place = Place::new();
    put(&place.file(), b"half");
    assert_eq!(settled(&place, &[BEGUN], true, None), None);
    let cut = settled(&place, &[BEGUN], true, Some(Err(cut()))).unwrap().unwrap_err();
    assert_eq!(cut.fault, Snag::Cut);
}

#[test]
fn what_was_killed_before_it_was_in_its_place_is_removed() {
    let place = Place::new();
    put(&place.path.join(".part"), CONTENT);
    put(&place.file(), b"old");
    assert_eq!(settled(&place, &[BEGUN, WHOLE], true, None), None);
    assert_eq!(place.names(), ["app.conf"]);
    assert_eq!(std::fs::read(place.file()).unwrap(), b"old");
}

#[test]
fn nothing_stays_behind_of_what_never_was() {
    let place = Place::new();
    put(&place.path.join(".part"), b"somebody else's");
    let why = unwritten(&io::Error::other("read-only"));
    let told = settled(&place, &[], false, Some(Err(why.clone()))).unwrap();
    assert_eq!((told, place.names()), (Err(why), vec![".part".to_owned()]));
}

#[test]
fn what_a_killed_shim_left_is_nobodys() {
    let place = Place::new();
    let clear = |number| {
        let folder = File::open(&place.path).unwrap();
        clear_up(&folder, ".part", "app.conf", number).unwrap();
    };
    put(&place.path.join(".part"), b"half");
    clear(None);
    assert_eq!(place.names(), [""; 0]);
    if !abilities().root {
        eprintln!("not root: another user's file was not tried");
        return;
    }
    let owner = || std::fs::metadata(place.file()).unwrap().uid();
    put(&place.file(), CONTENT);
    std::os::unix::fs::chown(place.file(), Some(65_507), Some(65_507)).unwrap();
    clear(Some(65_506));
    assert_eq!(owner(), 65_507, "that of another job");
    clear(Some(65_507));
    assert_eq!(owner(), 0);
}
