//! Real processes that try to stay.

use std::os::fd::AsFd as _;

use super::*;
use crate::platform::{
    account::Account,
    process::tests::{await_end, end_of, is_gone, line, sh, start},
};

const NOBODY: u32 = 65_519;

#[test]
fn what_left_the_session_is_found_by_the_jobs_name() {
    let mut escaped = sh("setsid sh -c 'echo $$; sleep 600; :' & wait");
    escaped.env.insert(JOB_VARIABLE.to_owned(), "t-escaped".to_owned());
    let (mut payload, mut out) = start(escaped).unwrap();
    let pid: u32 = line(&mut out).parse().unwrap();
    let end = end_of(pid);
    payload.reap().unwrap();
    assert!(!is_gone(pid), "a group's end does not reach another session");
    assert!(kill_leftovers(None, "t-escaped") >= 1);
    await_end(end.as_fd());
    assert!(is_gone(pid));
}

#[test]
fn as_root_everything_of_a_jobs_user_can_be_ended() {
    if Account::own().uid != 0 {
        eprintln!("not root: ending another user's processes was not tried");
        return;
    }
    let uid = 65_511;
    let mut other = sh("setsid sh -c 'echo $$; sleep 600; :' & wait");
    other.account = Account::numbered(uid);
    let (mut payload, mut out) = start(other).unwrap();
    let pid: u32 = line(&mut out).parse().unwrap();
    let end = end_of(pid);
    payload.reap().unwrap();
    let swept = end_all_of(uid, NOBODY);
    assert!(swept.ended >= 1 && swept.clean, "{swept:?}");
    await_end(end.as_fd());
    assert!(is_gone(pid));
    assert_eq!(end_all_of(uid, NOBODY), Swept { ended: 0, clean: true });
}

#[test]
fn a_name_with_parentheses_does_not_hide_the_start_time() {
    let fields = (4..=21).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let stat = Stat::parse(&format!("12 (a) b (c)) S {fields} 777 0")).unwrap();
    assert_eq!((stat.start_time, stat.zombie), (777, false));
    assert!(Stat::parse("no stat").is_none());
}

/// Each process lives for the moment of a fork, in a session of its own and without the job's
/// name: no look into `/proc` finds it in time.
#[test]
fn as_root_a_chain_of_forks_does_not_outrun_the_end() {
    if Account::own().uid != 0 {
        eprintln!("not root: ending another user's processes was not tried");
        return;
    }
    let uid = 65_513;
    let mut other = sh("exec setsid perl -e '%ENV = (); $| = 1; print \"go\n\"; \
                        for (;;) { fork and exit }'");
    other.account = Account::numbered(uid);
    let (mut payload, mut out) = start(other).unwrap();
    assert_eq!(line(&mut out), "go");
    payload.reap().unwrap();
    assert!(runs_anything(uid), "it runs on, out of its first session");
    assert!(end_all_of(uid, NOBODY).clean);
    assert!(processes().all(|pid| alive_of(uid, pid).is_none()));
}

/// Its own processes are of one user, so each may stop each: the sweeper must be none of them.
#[test]
fn as_root_a_job_that_stops_all_it_may_does_not_stop_its_end() {
    if Account::own().uid != 0 {
        eprintln!("not root: ending another user's processes was not tried");
        return;
    }
    let uid = 65_515;
    let mut other = sh("exec setsid perl -e '$| = 1; $SIG{TERM} = \"IGNORE\"; print \"go\\n\"; \
                        for (;;) { kill \"STOP\", -1 }'");
    other.account = Account::numbered(uid);
    let (mut payload, mut out) = start(other).unwrap();
    assert_eq!(line(&mut out), "go");
    let swept = end_all_of(uid, NOBODY);
    payload.reap().unwrap();
    assert!(swept.clean, "{swept:?}");
}
