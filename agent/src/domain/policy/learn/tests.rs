//! What is learned of runs as they could have been.

use jtnt_proto::policy_lint;
use serde_json::{Value, json};

use super::*;
use crate::domain::{asked::Asked, policy::Engine, seen::Sightings};

const READ: &[Access] = &[Access::Read];
const WRITE: &[Access] = &[Access::Write];
const RUN: &[Access] = &[Access::Execute, Access::Read];

/// What was opened: path, how, and what else there is to say.
type Opened<'a> = (&'a str, &'a [Access], &'a [Mark]);

fn asked(asked: Value) -> Asked {
    serde_json::from_value(asked).unwrap()
}

fn exec() -> Asked {
    asked(json!({"type": "exec", "path": "/opt/tool", "args": ["-a", "b"], "env": ["SITE"]}))
}

fn seen(asked: Asked, opened: &[Opened<'_>]) -> Seen {
    let mut sightings = Sightings::default();
    for (path, access, marks) in opened {
        for one in *access {
            sightings.add(path.as_bytes(), *one, marks.iter().copied());
        }
    }
    let sha256 = Some(Hash::of(b"tool"));
    Seen { sha256, ..Seen::of(asked, "/opt/tool".into()) }.with(sightings)
}

fn baseline() -> Baseline {
    Baseline::of(&mut |path| match path.to_str() {
        // As where `/bin` is a link, and a resolver writes elsewhere.
        Some("/bin") => "/usr/bin".to_owned(),
        Some("/etc/resolv.conf") => "/run/resolve/conf".to_owned(),
        path => path.unwrap().to_owned(),
    })
}

/// The file rules of a run, `access path` each, and the notes.
fn files(opened: &[Opened<'_>]) -> (Vec<String>, Learned) {
    let learned = learn(&seen(exec(), opened), &baseline());
    let rules = learned.rules.file.iter().map(|rule| {
        let access: Vec<_> =
            rule.access.iter().map(|a| format!("{a:?}").to_ascii_lowercase()).collect();
        format!("{} {}", access.join(","), rule.path)
    });
    (rules.collect(), learned)
}

fn told(learned: &Learned, words: &str) -> bool {
    learned.notes.iter().any(|note| note.contains(words))
}

/// A policy of these rules, as an agent takes it.
fn document(learned: &Learned) -> Value {
    let mut document = serde_json::to_value(&learned.rules).unwrap();
    document["version"] = 1.into();
    document["expires_at"] = "2026-01-10T00:00:00Z".into();
    let policy = policy_lint::draft(document.to_string().as_bytes()).unwrap();
    let problems = policy_lint::lint(&policy, "2026-01-01T00:00:00Z".parse().unwrap());
    assert!(problems.iter().all(|p| p.message.contains("runs as root")), "{problems:?}");
    Engine::compile(policy, &mut |p| p.display().to_string()).unwrap();
    document
}

#[test]
fn a_program_is_pinned_with_its_very_arguments_and_the_names_of_its_environment() {
    let learned = learn(&seen(exec(), &[]), &baseline());
    let rule = &document(&learned)["exec"][0];
    let id = rule["id"].as_str().unwrap();
    assert!(id.starts_with("tool-") && id.len() == 13, "{id}");
    let expected = json!({
        "id": id, "effect": "allow", "path": "/opt/tool", "args": ["-a", "b"],
        "sha256": Hash::of(b"tool"), "env": ["SITE"],
    });
    assert_eq!(rule, &expected);
    assert!(learned.complete && told(&learned, "not seen: use of the network"));

    let bare = asked(json!({"type": "exec", "path": "/opt/tool", "args": [], "run_as": "root"}));
    let learned = learn(&seen(bare, &[("/srv/a", READ, &[])]), &baseline());
    let document = document(&learned);
    assert_eq!(document["exec"][0].get("args"), None);
    assert_eq!(document["exec"][0]["run_as"], "root");
    assert_eq!(document["file"][0]["run_as"], "root", "files are opened for a user");
    assert!(told(&learned, "partial[root]"));
}

#[test]
fn a_script_is_pinned_and_a_transfer_gets_its_file() {
    let hash = Hash::of(b"script");
    let script = asked(json!({"type": "script", "interpreter": "/bin/sh", "sha256": hash,
        "args": ["x"], "signers": []}));
    let run = Seen { path: "/usr/bin/dash".into(), ..seen(script, &[]) };
    let rule = &document(&learn(&run, &baseline()))["script"][0];
    assert_eq!((&rule["interpreter"], &rule["sha256"]), (&json!("/usr/bin/dash"), &json!(hash)));
    for (transfer, access) in [
        (json!({"type": "download", "dest": "/srv/a"}), "write"),
        (json!({"type": "upload", "path": "/srv/a"}), "read"),
    ] {
        let learned = learn(&Seen::of(asked(transfer), "/srv/a".into()), &baseline());
        let document = document(&learned);
        assert_eq!(document["file"][0]["access"], json!([access]));
        assert!(learned.complete && learned.notes.is_empty());
    }
}

#[test]
fn what_is_open_to_every_job_needs_no_rule() {
    let (rules, learned) = files(&[
        ("/opt/tool", RUN, &[]),
        ("/usr/lib/x.so", READ, &[Mark::Native]),
        ("/usr/bin/ls", RUN, &[Mark::Native]),
        ("/etc/passwd", READ, &[]),
        ("/run/resolve/conf", READ, &[]),
        ("/tmp/x", WRITE, &[Mark::Made]),
        ("/dev/secrets/token", READ, &[]),
        ("/proc/self/status", READ, &[]),
    ]);
    assert_eq!((rules, learned.complete), (Vec::new(), true));
    let (rules, _) = files(&[("/usr/local/x", &[Access::Read, Access::Write], &[])]);
    assert_eq!(rules, ["write /usr/local/x"]);
}

#[test]
fn each_file_gets_its_own_rule_and_accesses_are_merged() {
    let (rules, learned) = files(&[
        ("/srv/b", READ, &[]),
        ("/srv/a", READ, &[]),
        ("/srv/a", WRITE, &[]),
        ("/srv/c", WRITE, &[]),
    ]);
    assert_eq!(rules, ["read,write /srv/a", "read /srv/b", "write /srv/c"]);
    assert!(learned.complete && told(&learned, "/srv/c: whether it was opened for reading"));
    document(&learned);
}

#[test]
fn a_folder_that_was_listed_is_a_tree_and_that_is_told() {
    let (rules, learned) = files(&[
        ("/srv", READ, &[Mark::Folder]),
        ("/srv/sub", READ, &[Mark::Folder]),
        ("/srv/a", READ, &[]),
        ("/srv/b", WRITE, &[]),
        ("/srvs/c", READ, &[]),
    ]);
    assert_eq!(rules, ["read /srv/**", "write /srv/b", "read /srvs/c"]);
    assert!(learned.complete && told(&learned, "/srv: a folder that is listed"));
    let (rules, learned) = files(&[("/", READ, &[Mark::Folder])]);
    assert!(rules.is_empty(), "never everything");
    assert!(learned.complete && told(&learned, "/: it was listed"));
}

#[test]
fn what_comes_and_goes_needs_its_folder() {
    let (rules, learned) = files(&[
        ("/srv/conf.new", WRITE, &[Mark::Made, Mark::Gone]),
        ("/srv/conf", READ, &[]),
        ("/var/x/report", WRITE, &[Mark::Made]),
    ]);
    assert_eq!(rules, ["read,write /srv/**", "read,write /var/x/report"]);
    assert!(told(&learned, "/srv/conf.new: it was written and was gone"));
    assert!(told(&learned, "/var/x/report: the job made it"));
}

#[test]
fn what_is_executed_or_loaded_beyond_the_system_may_be_executed() {
    let (rules, learned) = files(&[
        ("/opt/lib/libx.so", READ, &[Mark::Native]),
        ("/opt/helper", RUN, &[Mark::Native, Mark::Unguarded]),
    ]);
    assert_eq!(rules, ["execute /opt/helper", "execute /opt/lib/libx.so"]);
    assert!(told(&learned, "/opt/lib/libx.so: it was read and is a program or a library"));
    assert!(told(&learned, "/opt/helper: others than root can change it"));
    assert!(!told(&learned, "executed nothing but itself"));
}

#[test]
fn that_it_had_no_children_is_told_and_costs_nothing() {
    let loader = "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
    let (_, learned) = files(&[("/opt/tool", RUN, &[]), (loader, RUN, &[Mark::Native])]);
    assert!(told(&learned, "executed nothing but itself"));
    assert_eq!(document(&learned)["exec"][0].get("children"), None);
}

#[test]
fn a_name_that_would_mean_more_or_nothing_is_no_rule() {
    let deep = "/x".repeat(200);
    for name in ["/srv/*", "/srv/**", "/srv/a\nb", "/srv/\u{1b}[2J", &deep] {
        let (rules, learned) = files(&[(name, READ, &[]), ("/srv/a", READ, &[])]);
        assert_eq!(rules, ["read /srv/a"], "{name:?}");
        assert!(!learned.complete && told(&learned, "no rule"), "{name:?}");
        assert!(learned.notes.iter().all(|note| !note.contains(char::is_control)));
    }
    let mut sightings = Sightings::default();
    sightings.add(b"/srv/\xff", Access::Read, []);
    let learned = learn(&seen(exec(), &[]).with(sightings), &baseline());
    assert!(!learned.complete && told(&learned, "the name is no text"));
}

#[test]
fn what_is_missing_is_told() {
    let run = || seen(exec(), &[]);
    for (run, words) in [
        (Seen { more: true, ..run() }, "more files than are kept"),
        (
            Seen { unwatched: Some("no right".into()), ..run() },
            "not everything was watched: no right",
        ),
        (Seen { sha256: None, ..run() }, "hash of /opt/tool was not taken"),
    ] {
        let learned = learn(&run, &baseline());
        assert!(!learned.complete && told(&learned, words), "{:?}", learned.notes);
    }
    let held = learn(&Seen { held: true, ..run() }, &baseline());
    assert!(held.complete && told(&held, "held to the rules"));
    let many = vec!["x"; MAX_SLOTS + 1];
    let many = asked(json!({"type": "exec", "path": "/opt/tool", "args": many}));
    let learned = learn(&seen(many, &[]), &baseline());
    assert!(!learned.complete && learned.rules.exec.is_empty(), "never any arguments");
}

#[test]
fn many_names_are_told_in_short() {
    let names: Vec<_> = (0..20).map(|n| format!("/srv/{n:02}")).collect();
    let opened: Vec<_> = names.iter().map(|name| (name.as_str(), WRITE, &[][..])).collect();
    let (rules, learned) = files(&opened);
    assert_eq!(rules.len(), 20, "nothing is widened");
    assert!(told(&learned, "/srv/07 and 12 more: "));
}
