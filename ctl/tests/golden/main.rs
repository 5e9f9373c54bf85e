//! Every command against a daemon with fixed answers, read as an operator or a script would: what
//! was printed where, and the exit code. A change of a snapshot is a change of what users see.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod daemon;
mod harness;

use clap::CommandFactory as _;
use harness::{World, transcript};
use insta::assert_snapshot;

#[test]
fn help_of_every_command() {
    fn collect(command: &mut clap::Command, path: &str, out: &mut String) {
        out.push_str(&format!("$ {path} --help\n{}\n", command.render_long_help()));
        let subs: Vec<String> = command
            .get_subcommands()
            .map(|c| c.get_name().to_owned())
            .filter(|n| n != "help")
            .collect();
        for name in subs {
            let sub = command.find_subcommand_mut(&name).unwrap();
            collect(sub, &format!("{path} {name}"), out);
        }
    }
    let mut cli = jtntctl::Cli::command().term_width(100).mut_args(|arg| {
        // The globals are the same everywhere; once is enough to read.
        if arg.is_global_set() { arg.hide(true) } else { arg }
    });
    let mut out = format!("{}\n", jtntctl::Cli::command().term_width(100).render_long_help());
    cli.build();
    collect(&mut cli, "jtntctl", &mut out);
    assert_snapshot!(out);
}

#[test]
fn agent() {
    assert_snapshot!(transcript(
        World::Well,
        &[
            "status",
            "status -o json",
            "status --watch",
            "status --watch -o json",
            "health",
            "health -o json",
            "health --live",
            "health --ready -o json",
            "test-connection",
            "test-connection -o json",
            "version",
            "version -o json",
            "log level",
            "log level debug",
            "log level debug -o json",
            "authz explain alice JobService/CancelJob",
            "authz explain alice JobService/CancelJob -o json",
            "reload",
            "reload -o json",
        ]
    ));
}

#[test]
fn cert() {
    assert_snapshot!(transcript(
        World::Well,
        &[
            "cert check",
            "cert check -o json",
            "cert check --prove",
            "cert check --prove -o json",
            "cert plan",
            "cert plan -o json",
            "cert renew",
            "cert renew --force -o json",
            "cert rollback",
            "cert rollback --no-probe",
        ]
    ));
}

#[test]
fn policy() {
    assert_snapshot!(transcript(
        World::Well,
        &[
            "policy show",
            "policy show -o json",
            "policy refresh",
            "policy refresh -o json",
            "policy check-exec /usr/bin/uptime",
            "policy check-exec --run-as root /usr/bin/rm -rf / --output json",
            "policy check-file read /etc/shadow",
            "policy check-file -o json write /tmp/x",
            "policy diff tests/golden/policies/other.json",
            "policy diff -o json tests/golden/policies/other.json",
            "policy diff tests/golden/policies/same.json",
            "policy diff tests/golden/policies/late.json",
            "policy diff tests/golden/policies/none.json",
            "policy learn job-1",
            "policy learn job-1 -o json",
            "policy learn cut",
            "policy learn cut -o json",
            "policy learn held",
        ]
    ));
}

#[test]
fn audit() {
    assert_snapshot!(transcript(
        World::Well,
        &[
            "audit list --since 2h --event startup",
            "audit list --since 2h --event policy_violation",
            "audit list -o json",
            "audit list --since yesterday",
            "audit tail -n 1",
            "audit verify",
            "audit verify -o json",
            "audit verify --witness x+y+z audit-2026-01-02.log",
            "audit prove 7",
            "audit prove 7 -o json",
            "audit export --out /",
            "audit rotate-key",
            "audit rotate-key -o json",
            "audit clean",
            "audit clean -o json",
        ]
    ));
}

#[test]
fn jobs() {
    assert_snapshot!(transcript(
        World::Well,
        &[
            "jobs list --recent 10",
            "jobs list --state failed -o json",
            "jobs show job-1",
            "jobs show job-1 -o json",
            "jobs show none",
            "jobs show none -o json",
            "jobs logs job-1",
            "jobs logs job-1 --follow -o json",
            "jobs cancel job-1",
            "jobs cancel job-1 -o json",
        ]
    ));
}

#[test]
fn an_export_stays_in_its_folder_whatever_the_daemon_names() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let said = transcript(World::Well, &[&format!("audit export --out {}", out.display())]);
    assert!(said.contains("it sends a file that is named \"../audit.pub\""), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the folder itself");
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 0);
}

#[test]
fn cache() {
    assert_snapshot!(transcript(
        World::Well,
        &["cache status", "cache status -o json", "cache clean", "cache clean -o json"]
    ));
}

const ONE_OF_EACH: [&str; 29] = [
    "status",
    "status --watch",
    "health",
    "test-connection",
    "version",
    "log level",
    "authz explain a b",
    "reload",
    "cert check",
    "cert plan",
    "cert check --prove",
    "cert renew",
    "cert renew --force",
    "cert rollback",
    "policy show",
    "policy refresh",
    "policy check-exec /x",
    "policy check-file read /x",
    "policy diff tests/golden/policies/same.json",
    "policy learn j",
    "audit list",
    "audit verify",
    "audit prove 7",
    "audit rotate-key",
    "audit clean",
    "jobs list",
    "jobs logs j",
    "cache status",
    "cache clean",
];

#[test]
fn what_a_refused_caller_reads() {
    assert_snapshot!(transcript(World::Refusing, &ONE_OF_EACH));
}

#[test]
fn what_a_caller_reads_where_no_agent_runs() {
    let out = transcript(World::Absent, &ONE_OF_EACH);
    assert_eq!(out.matches("exit 3").count(), ONE_OF_EACH.len(), "{out}");
    assert_snapshot!(transcript(World::Absent, &["status", "version", "audit verify"]));
}

#[test]
fn colour_marks_words_and_a_terminal_gets_harmless_bytes() {
    assert_snapshot!(transcript(World::Terminal, &["jobs list", "health", "jobs logs job-1"]));
}

#[cfg(unix)]
#[test]
fn a_unix_socket_gives_the_same_answers() {
    assert_eq!(harness::over_a_socket("status"), transcript(World::Well, &["status"]));
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    assert_eq!(harness::closed_pipe("status"), (jtntctl::Exit::Done, String::new()));
}

#[test]
fn a_daemon_that_does_not_answer_is_given_up() {
    assert_snapshot!(transcript(World::Silent, &["status --timeout 2", "jobs list --timeout 2"]));
}
