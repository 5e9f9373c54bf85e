//! Real processes: what they are given, and that nothing of them stays.

use std::{
    io::Read as _,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::Command,
};

use super::{
    super::{
        entry::Deadline,
        sweep::{Stat, pid_of},
    },
    *,
};

const JOB: &str = "t-process";

fn launch(path: &str, args: &[&str]) -> Launch {
    Launch {
        program: File::open(path).unwrap(),
        errand: None,
        copy: None,
        argv0: std::fs::canonicalize(path).unwrap().to_str().unwrap().to_owned(),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        env: [(JOB_VARIABLE.to_owned(), JOB.to_owned()), ("PATH".into(), "/usr/bin:/bin".into())]
            .into(),
        cwd: "/".to_owned(),
        account: Account::own(),
        keep: None,
        secrets: Vec::new(),
        file_bytes: None,
        plan: Plan::default(),
        group: Group::default(),
        ends_with_parent: false,
    }
}

pub(in crate::platform) fn sh(script: &str) -> Launch {
    launch("/bin/sh", &["-c", script])
}

/// Starts one, with the reading end of its standard output.
pub(in crate::platform) fn start(launch: Launch) -> Result<(Payload, File), LaunchError> {
    let mut payload = fork(&launch)?;
    drop(launch);
    let out = standard_output(&mut payload);
    payload.begin()?;
    Ok((payload, out))
}

/// Standard error stays open: what a program says there must not end it.
fn standard_output(payload: &mut Payload) -> File {
    let [out, err] = payload.take_output().unwrap();
    payload.output = Some([err, File::open("/dev/null").unwrap().into()]);
    out.into()
}

/// Runs to the end; what it wrote to standard output, and how it ended.
fn run(launch: Launch) -> (String, Exit) {
    let (mut payload, mut out) = start(launch).unwrap();
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    await_end(payload.end());
    (text, payload.reap().unwrap())
}

/// Reads lines of a process that goes on.
pub(in crate::platform) fn line(pipe: &mut File) -> String {
    let mut out = Vec::new();
    let mut byte = [0];
    while pipe.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        out.push(byte[0]);
    }
    String::from_utf8(out).unwrap()
}

/// Becomes readable at the end of a process.
pub(in crate::platform) fn end_of(pid: u32) -> OwnedFd {
    pidfd_open(pid_of(pid).unwrap(), PidfdFlags::empty()).unwrap()
}

pub(in crate::platform) fn await_end(end: BorrowedFd<'_>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::from_borrowed_fd(end, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ended, 1, "a process was not ended");
}

pub(in crate::platform) fn is_gone(pid: u32) -> bool {
    Stat::of(pid).map_or(true, |stat| stat.zombie)
}

#[test]
fn a_program_is_told_the_name_of_its_path_and_gets_nothing_else_of_the_agents() {
    // A descriptor without close-on-exec would reach the program.
    let (text, exit) = run(sh("echo \"$0\"; env | sort; ls /proc/self/fd | wc -l; pwd; umask"));
    assert_eq!(exit, Exit { code: Some(0), signal: None });
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(Path::new(lines[0]), std::fs::canonicalize("/bin/sh").unwrap());
    let environment: Vec<_> =
        lines.iter().filter(|l| l.contains('=') && !l.starts_with("PWD=")).copied().collect();
    // Shells add PWD, and bash `_` and SHLVL.
    let own: Vec<_> =
        environment.iter().filter(|l| !l.starts_with("_=") && !l.starts_with("SHLVL=")).collect();
    assert_eq!(own, [&"JTNT_JOB_ID=t-process", &"PATH=/usr/bin:/bin"]);
    // Standard streams, and the folder that ls itself has open.
    assert!(lines.contains(&"4"), "{text}");
    assert!(lines.contains(&"/"), "{text}");
    assert!(lines.contains(&"0022"), "{text}");
}

#[test]
fn standard_input_is_empty_and_core_dumps_are_off() {
    let (text, _) = run(sh("cat; ulimit -c"));
    assert_eq!(text, "0\n");
}

#[test]
fn a_limit_on_files_is_the_systems_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut limited = sh("head -c 4096 /dev/zero > big; exit $?");
    limited.cwd = dir.path().to_str().unwrap().to_owned();
    limited.file_bytes = Some(1024);
    let (_, exit) = run(limited);
    assert_ne!(exit.code, Some(0));
    assert_eq!(std::fs::metadata(dir.path().join("big")).unwrap().len(), 1024);
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    assert_eq!(run(sh("exit 7")).1, Exit { code: Some(7), signal: None });
    assert_eq!(run(sh("kill -9 $$")).1, Exit { code: None, signal: Some(9) });
}

#[test]
fn a_working_directory_that_is_gone_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut lost = sh("true");
    lost.cwd = dir.path().join("gone").to_str().unwrap().to_owned();
    let error = start(lost).unwrap_err();
    assert!(matches!(error, LaunchError::Cwd { .. }), "{error}");
}

#[test]
fn what_is_no_program_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    crate::runtime::durable::replace(&path, b"\x7fELF but not really", 0o755).unwrap();
    let error = start(launch(path.to_str().unwrap(), &[])).unwrap_err();
    assert!(matches!(error, LaunchError::Start { .. }), "{error}");
}

#[test]
fn as_root_a_working_directory_behind_a_closed_folder_is_not_entered() {
    if Account::own().uid != 0 {
        eprintln!("not root: another user's reach was not tried");
        return;
    }
    let closed = tempfile::tempdir().unwrap();
    let open = closed.path().join("open");
    std::fs::create_dir(&open).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(closed.path(), private).unwrap();
    for cwd in [open.to_str().unwrap().to_owned(), format!("/proc/self/root{}", open.display())] {
        let mut behind = sh("pwd");
        behind.account = Account::numbered(65_514);
        behind.cwd = cwd;
        let error = start(behind).unwrap_err();
        assert!(matches!(error, LaunchError::Cwd { .. }), "{error}");
    }
}

/// Another process of its user may stop it before it executes anything.
#[test]
fn what_is_stopped_before_it_begins_does_not_hold_its_starter() {
    let mut stopped = Command::new("/bin/true");
    #[expect(unsafe_code, reason = "a hook between fork and exec is unsafe by its nature")]
    // SAFETY: the hook makes system calls on plain numbers.
    unsafe {
        stopped.pre_exec(|| {
            let _soon = Deadline::set()?;
            kill_process(rustix::process::getpid(), Signal::STOP)?;
            Ok(())
        })
    };
    let status = stopped.spawn().unwrap().wait().unwrap();
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn a_program_that_was_replaced_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    std::fs::copy("/bin/true", &path).unwrap();
    let replaced = launch(path.to_str().unwrap(), &[]);
    std::fs::remove_file(&path).unwrap();
    std::fs::copy("/bin/false", &path).unwrap();
    let error = start(replaced).unwrap_err();
    assert!(error.to_string().contains("moved or replaced"), "{error}");
}

#[test]
fn as_root_a_program_in_a_closed_folder_does_not_start_for_another_user() {
    if Account::own().uid != 0 {
        eprintln!("not root: another user's reach was not tried");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    std::fs::copy("/bin/true", &path).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(dir.path(), private).unwrap();
    let mut closed = launch(path.to_str().unwrap(), &[]);
    closed.account = Account::numbered(65_514);
    let error = start(closed).unwrap_err();
    assert!(matches!(error, LaunchError::Unreachable { .. }), "{error}");
}

#[test]
fn the_whole_group_ends_before_its_leader_is_forgotten() {
    let script = "sleep 600 & echo $!; (sleep 600 & echo $!); wait";
    let (mut payload, mut out) = start(sh(script)).unwrap();
    let pids: Vec<u32> = (0..2).map(|_| line(&mut out).parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| !is_gone(*pid)));
    let ends: Vec<_> = pids.iter().map(|pid| end_of(*pid)).collect();
    payload.reap().unwrap();
    // A process closes its pipe a moment before it is gone, so the pipe's end would not do.
    ends.iter().for_each(|end| await_end(end.as_fd()));
    assert!(pids.iter().all(|pid| is_gone(*pid)));
}

#[test]
fn a_polite_signal_can_be_answered_and_a_second_is_not_needed() {
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 600 & wait; done";
    let (mut payload, mut out) = start(sh(script)).unwrap();
    assert_eq!(line(&mut out), "ready");
    payload.terminate();
    await_end(payload.end());
    assert_eq!(payload.reap().unwrap().code, Some(3));
    assert_eq!(line(&mut out), "bye");
}

#[test]
fn as_root_a_job_has_a_user_without_rights_or_groups() {
    if Account::own().uid != 0 {
        eprintln!("not root: running as another user was not tried");
        return;
    }
    let uid = 65_510;
    let mut other = sh("id -u; id -G; grep NoNewPrivs /proc/self/status; cat /etc/shadow");
    other.account = Account::numbered(uid);
    let (text, exit) = run(other);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["65510", "65510"]);
    assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["NoNewPrivs:", "1"]);
    assert_eq!((lines.len(), exit.code), (3, Some(1)), "shadow stays closed: {text}");
}

#[test]
fn one_descriptor_is_handed_over_and_cannot_be_changed() {
    let script = sealed("t", b"echo from the copy $1").unwrap();
    let path = format!("/proc/self/fd/{}", script.as_raw_fd());
    let mut launch = launch("/bin/sh", &[&path, "x"]);
    launch.keep = Some(script);
    if Account::own().uid == 0 {
        launch.account = Account::numbered(65_512);
    }
    assert_eq!(run(launch).0, "from the copy x\n");
}

#[test]
fn what_is_dropped_takes_everything_with_it() {
    let (payload, mut out) = start(sh("echo $$; sleep 600")).unwrap();
    let end = end_of(line(&mut out).parse().unwrap());
    drop(payload);
    await_end(end.as_fd());
}

#[test]
fn what_never_may_begin_executes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut traces = sh("echo > trace");
    traces.cwd = dir.path().to_str().unwrap().to_owned();
    let mut payload = fork(&traces).unwrap();
    // As if whoever started it had died.
    payload.go = None;
    await_end(payload.end());
    assert_eq!(payload.reap().unwrap().code, Some(127));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn signals_are_the_systems_own() {
    let (text, _) = run(sh("grep -E 'SigBlk|SigIgn' /proc/self/status"));
    let masks = text.lines().map(|l| l.rsplit('\t').next().unwrap());
    let masks = masks.map(|mask| u64::from_str_radix(mask, 16).unwrap());
    // Two numbers are the C library's own.
    let library = 0b11 << 31;
    assert_eq!(masks.map(|mask| mask & !library).collect::<Vec<_>>(), [0, 0], "{text}");
}
