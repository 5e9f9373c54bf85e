//! `policy lint`: what an agent would refuse, or an author regret, found before it is signed.

use std::path::Path;

use jiff::Timestamp;
use jtnt_proto::policy_lint::{self, Level};
use serde::Serialize;

use super::{
    policy::{all_of, read},
    show,
};
use crate::{
    Exit,
    output::{
        table::{Table, Tone, toned, word},
        time::count,
    },
    run::{Outcome, Session},
};

/// A policy is a page or two; the agent's own bound is lower.
const MAX_POLICY_BYTES: u64 = 4 * 1024 * 1024;

/// The JSON of `policy lint`.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Report {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    rules: usize,
    problems: Vec<Problem>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Problem {
    /// error or warning.
    level: Level,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    message: String,
}

pub(super) fn run(session: &mut Session<'_>, file: &Path) -> Outcome {
    let bytes = if file == Path::new("-") {
        all_of(std::io::stdin(), Path::new("standard input"), MAX_POLICY_BYTES)?
    } else {
        read(file, MAX_POLICY_BYTES)?
    };
    let report = lint(&bytes, (session.io.now)());
    show(session, &report, |color| text(&report, color))?;
    Ok(Exit::of(report.ok))
}

fn text(report: &Report, color: bool) -> String {
    let mut table = Table::bare();
    for p in &report.problems {
        let tone = if p.level == Level::Error { Tone::Bad } else { Tone::Warn };
        let place = match (&p.rule, p.line, p.column) {
            (Some(rule), _, _) => format!("rule {rule}"),
            (None, Some(line), Some(column)) => format!("line {line}, column {column}"),
            (None, _, _) => "document".to_owned(),
        };
        table.row([toned(p.level.word(), tone), place.into(), p.message.as_str().into()]);
    }
    let problems = table.render(color);
    let verdict = if report.ok { "ok" } else { "not acceptable" };
    let verdict = word(verdict, Tone::of(report.ok), color);
    let version = report.version.map(|v| format!("version {v}, ")).unwrap_or_default();
    let rules = count(u64::try_from(report.rules).unwrap_or(u64::MAX), "rule");
    format!("{problems}{verdict}: {version}{rules}\n")
}

fn lint(bytes: &[u8], now: Timestamp) -> Report {
    let policy = match policy_lint::draft(bytes) {
        Ok(policy) => policy,
        Err(error) => {
            let place = |n: usize| (n > 0).then_some(n);
            let problem = Problem {
                level: Level::Error,
                rule: None,
                line: place(error.line()),
                column: place(error.column()),
                message: error.message(),
            };
            return Report { problems: vec![problem], ..Report::default() };
        }
    };
    let found = policy_lint::lint(&policy, now);
    let problems = found.into_iter().map(|p| {
        let policy_lint::Problem { level, rule, message } = p;
        Problem { level, rule, line: None, column: None, message }
    });
    let problems: Vec<_> = problems.collect();
    Report {
        ok: problems.iter().all(|p| p.level != Level::Error),
        version: Some(policy.version),
        rules: policy.exec.len() + policy.script.len() + policy.file.len(),
        problems,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{ "version": 7, "expires_at": "2026-01-20T00:00:00Z",
        "exec": [{"id": "uptime", "effect": "allow", "path": "/usr/bin/uptime"}] }"#;

    fn check(text: &str) -> Report {
        lint(text.as_bytes(), "2026-01-01T00:00:00Z".parse().unwrap())
    }

    fn first(text: &str) -> String {
        let report = check(text);
        assert!(!report.ok, "{report:?}");
        report.problems[0].message.clone()
    }

    #[test]
    fn a_policy_as_its_author_writes_it_is_ok() {
        assert_eq!(check(GOOD).problems, []);
        assert!(check(GOOD).ok);
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let report = check(&GOOD.replace("\"effect\"", "\"efect\""));
        assert_eq!(report.problems[0].line, Some(2));
        assert!(report.problems[0].message.contains("unknown field `efect`"), "{report:?}");
        assert!(first("{").contains("EOF"));
        assert!(first(&GOOD.replace("\"version\": 7,", "")).contains("version"));
        assert!(first(r#"{"version":1,"version":2}"#).contains("stands twice"));
    }

    #[test]
    fn arguments_that_are_none_are_told_with_what_may_stand_there() {
        let report = check(&GOOD.replace("/uptime\"", "/uptime\", \"args\": \"all\""));
        assert_eq!(report.problems[0].line, Some(2));
        assert!(report.problems[0].message.contains("args: \"any\", or a list"), "{report:?}");
    }

    #[test]
    fn a_problem_has_its_rule_and_a_warning_is_no_refusal() {
        let report = check(&GOOD.replace("/usr/bin/uptime", "uptime"));
        assert_eq!(report.problems[0].rule.as_deref(), Some("uptime"));
        assert!(text(&report, false).ends_with("not acceptable: version 7, 1 rule\n"));
        let report = check(&GOOD.replace("2026-01-20", "2026-06-20"));
        assert!(report.ok && report.problems[0].level == Level::Warning, "{report:?}");
    }
}
