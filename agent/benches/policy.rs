//! A policy decision on a resolved path, by number of rules. To reach: 1 µs at each.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has failed")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use jtnt_agent::domain::policy::{Engine, Surroundings, Target};
use jtnt_proto::policy::Access;
use serde_json::json;

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

criterion_group!(benches, decisions);
criterion_main!(benches);
