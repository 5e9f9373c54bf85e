//! A policy decision on a resolved path, by number of rules (to reach: 1 µs at each), and from the
//! path on: opened once, its real name and who may change it, what it may do (to reach: 10 µs).
//! Beside it, what only opening, looking at and closing such a file costs here.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has failed")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use jtnt_agent::{
    domain::{
        asked::{Action, Asked},
        policy::{Engine, Surroundings, Target},
    },
    gate::{self, Gate},
    platform::sandbox,
    policy::candidate,
};
use jtnt_proto::policy::{Access, Limits};
use serde_json::json;
use tokio::sync::watch;

/// Half the rules are about programs, half about files; every eighth is a glob, every sixteenth a
/// deny. One kind of argument has a pattern that needs the regular expressions.
fn engine(rules: usize) -> Engine {
    let effect = |n: usize| if n % 16 == 15 { "deny" } else { "allow" };
    let exec: Vec<_> = (0..rules / 2)
        .map(|n| {
            let path = match n % 8 {
                7 => format!("/opt/vendor{n}/**/bin/*"),
                _ => format!("/usr/bin/tool{n}"),
            };
            json!({"id": format!("x{n}"), "effect": effect(n), "path": path,
                   "args": ["status", {"match": if n % 8 == 5 { r"[a-z]+\.service" } else { "[a-z0-9@.-]+" }}]})
        })
        .collect();
    let file: Vec<_> = (0..rules / 2)
        .map(|n| {
            let path = match n % 8 {
                7 => format!("/srv/app{n}/**"),
                _ => format!("/etc/app{n}/main.conf"),
            };
            json!({"id": format!("f{n}"), "effect": effect(n), "path": path,
                   "access": ["read", "write"]})
        })
        .collect();
    let policy = json!({
        "policy_id": "bench", "version": 1, "audience": {"root_id": "r"},
        "issued_at": "2026-06-01T00:00:00Z", "expires_at": "2026-06-30T00:00:00Z",
        "exec": exec, "file": file,
    });
    let policy = serde_json::from_value(policy).unwrap();
    Engine::compile(policy, &mut |p| p.display().to_string()).unwrap()
}

fn target(path: &str) -> Target {
    Target { canonical: path.into(), sha256: None, guarded: true, links: 1, native: true }
}

fn decisions(c: &mut Criterion) {
    let now: Timestamp = "2026-06-02T00:00:00Z".parse().unwrap();
    let args = ["status".to_owned(), "nginx.service".to_owned()];
    let around = Surroundings { args: &args, ..Surroundings::default() };
    let regex = target("/usr/bin/tool5");
    let (tool, deep) = (target("/usr/bin/tool4"), target("/srv/app7/releases/41/data/x.db"));
    let unknown = target("/usr/local/libexec/unknown");
    let mut group = c.benchmark_group("policy");
    for rules in [20, 200, 2_000] {
        let engine = engine(rules);
        assert!(engine.exec(&tool, around, now).allowed);
        assert!(engine.file(&deep, Access::Read, None, now).allowed);
        assert!(!engine.exec(&unknown, around, now).allowed);
        group.bench_function(BenchmarkId::new("exec", rules), |b| {
            b.iter(|| engine.exec(black_box(&tool), black_box(around), now));
        });
        group.bench_function(BenchmarkId::new("exec_regex", rules), |b| {
            b.iter(|| engine.exec(black_box(&regex), black_box(around), now));
        });
        group.bench_function(BenchmarkId::new("file_glob", rules), |b| {
            b.iter(|| engine.file(black_box(&deep), Access::Read, None, now));
        });
        group.bench_function(BenchmarkId::new("no_rule", rules), |b| {
            b.iter(|| engine.exec(black_box(&unknown), black_box(around), now));
        });
    }
    group.finish();
}

/// The whole way of a request, on a file of this machine.
fn from_the_path(c: &mut Criterion) {
    let path = std::fs::canonicalize("/usr/bin/true").unwrap();
    let path = path.to_str().unwrap();
    let document = json!({"version": 1, "expires_at": "2100-01-01T00:00:00Z",
        "exec": [{"id": "true", "effect": "allow", "path": path}],
        "file": [{"id": "logs", "effect": "allow", "access": ["read"], "path": "/var/log/**"}]});
    let now: Timestamp = "2026-06-02T00:00:00Z".parse().unwrap();
    let rules = candidate(&document.to_string(), now).unwrap();
    let abilities = sandbox::abilities();
    let config = gate::Config { abilities, ..gate::Config::default() };
    let gate = Gate::new(watch::channel(None).1, config).candidate(rules);
    let action = Action::Exec { path: path.to_owned(), args: Vec::new() };
    let (run_as, env, limits) = (None, Vec::new(), Limits::default());
    let asked = Asked { action, run_as, env, limits };
    let ruling = gate.ask(&asked, now);
    assert!(ruling.canonical.is_some(), "{ruling:?}");
    let mut group = c.benchmark_group("from the path");
    group.bench_function("limit: open, fstat, close", |b| {
        b.iter(|| std::fs::File::open(black_box(path)).unwrap().metadata().unwrap());
    });
    group.bench_function("decision", |b| b.iter(|| gate.ask(black_box(&asked), now)));
    group.finish();
}

criterion_group!(benches, decisions, from_the_path);
criterion_main!(benches);
