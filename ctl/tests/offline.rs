//! What needs no agent: files that are checked here, completions, manual pages.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper that fails fails its test"
)]

use std::{cell::RefCell, fs, io, path::Path, rc::Rc};

use clap::{CommandFactory as _, Parser as _};
use ed25519_dalek::{Signer as _, SigningKey};
use jtnt_proto::{
    audit::{Event, Line, ZERO, leaf_hash, prev_text, seal},
    key::PublicKey,
};
use jtntctl::{Channel, Cli, Exit, Failure, Global, Host, Io, Standalone, run};

#[derive(Clone, Default)]
struct Sink(Rc<RefCell<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn type_in(words: &[&str]) -> (Exit, String) {
    type_at(&Standalone, words)
}

fn type_at(host: &impl Host, words: &[&str]) -> (Exit, String) {
    let sink = Sink::default();
    let now = || "2026-01-02T12:00:00Z".parse().unwrap();
    let mut io = Io::new(Box::new(sink.clone()), Box::new(sink.clone()), now);
    let socket = ["jtntctl"];
    let cli = Cli::try_parse_from(socket.iter().chain(words)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let exit = runtime.block_on(run(cli.command, &cli.global, &mut io, host));
    let text = String::from_utf8(sink.0.borrow().clone()).unwrap();
    (exit, text)
}

fn line(seq: u64, prev: String, event: Event, public_key: Option<String>) -> Line {
    let details = public_key.map(|k| ("public_key".to_owned(), k.into())).into_iter().collect();
    Line {
        timestamp: "2026-01-02T03:04:05Z".parse().unwrap(),
        kind: "audit".into(),
        event: event.name(),
        agent_id: "agent-1".into(),
        job_id: None,
        command: None,
        status: None,
        user: None,
        policy_version: None,
        caller: None,
        origin: None,
        object: None,
        details,
        seq,
        prev,
    }
}

/// Two days of a log and its key.
fn log(dir: &Path) -> [String; 3] {
    let key = SigningKey::from_bytes(&[7; 32]);
    let public = PublicKey::of(&key).to_string();
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for seq in 0..6 {
        let prev = lines.last().map_or(ZERO, |l| leaf_hash(l));
        let (event, public) = match seq {
            0 => (Event::Genesis, Some(public.clone())),
            _ => (Event::Startup, None),
        };
        let line = line(seq, prev_text(prev), event, public);
        lines.push(seal(&line, |m| key.sign(m).to_bytes()).unwrap());
    }
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let file = |lines: &[Vec<u8>]| -> Vec<u8> {
        lines.iter().flat_map(|l| [l.as_slice(), b"\n"].concat()).collect()
    };
    let paths = [path("audit-2026-01-01.log"), path("audit-2026-01-02.log"), path("audit.pub")];
    write(&paths[0], &file(&lines[..3]));
    write(&paths[1], &file(&lines[3..]));
    write(&paths[2], format!("{public}\n").as_bytes());
    paths
}

#[expect(clippy::disallowed_methods, reason = "a test's own file in its own directory")]
fn write(path: impl AsRef<Path>, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_log_is_verified_without_an_agent_in_any_order_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, key] = log(dir.path());
    for files in [[&one, &two], [&two, &one]] {
        let (exit, text) = type_in(&["audit", "verify", files[0], files[1], "--key", &key]);
        assert_eq!(exit, Exit::Done, "{text}");
        assert!(text.contains("OK: 6 lines in 2 files, seq 0 to 5"), "{text}");
        assert!(text.contains("not known: whether lines after seq 5 were cut off"), "{text}");
    }
    let (exit, text) = type_in(&["audit", "verify", &one]);
    assert_eq!(exit, Exit::Done);
    assert!(text.contains("taken from the log itself"), "{text}");
    let (exit, text) = type_in(&["audit", "verify", &two]);
    assert_eq!(exit, Exit::Incomplete, "{text}");
    assert!(text.contains("UNKNOWN_KEY"), "{text}");
}

#[test]
fn a_changed_log_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, key] = log(dir.path());
    let text = fs::read_to_string(&two).unwrap();
    write(&two, text.replacen("startup", "shutdwn", 1).as_bytes());
    let (exit, text) = type_in(&["audit", "verify", &one, &two, "--key", &key, "-o", "json"]);
    assert_eq!(exit, Exit::No);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["verdict"], "TAMPERED");
    assert_eq!(report["findings"][0]["verdict"], "BAD_SIGNATURE");
    assert_eq!(report["findings"][0]["file"], two.as_str());
    assert_eq!(report["findings"][0]["line"], 1);
    assert_eq!(report["findings"][0]["seq"], 3);
}

#[test]
fn a_torn_tail_is_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, key] = log(dir.path());
    let bytes = fs::read(&two).unwrap();
    write(&two, &bytes[..bytes.len() - 9]);
    let (exit, text) = type_in(&["audit", "verify", &one, &two, "--key", &key]);
    assert_eq!(exit, Exit::Incomplete);
    assert!(text.contains("TORN_TAIL"), "{text}");
}

#[test]
fn a_file_that_is_no_key_or_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [one, _, _] = log(dir.path());
    let (exit, text) = type_in(&["audit", "verify", &one, "--key", &one]);
    assert_eq!(exit, Exit::Usage);
    assert!(text.contains("cannot") && text.contains(&one), "{text}");
    let (exit, text) = type_in(&["audit", "verify", "/nonexistent/x.log", "--key", "/nonexistent"]);
    assert_eq!(exit, Exit::Io);
    assert!(text.contains("/nonexistent"), "{text}");
}

#[test]
fn a_policy_is_linted_and_a_script_needs_its_interpreter() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.json");
    write(&policy, br#"{"version": 1, "expires_at": "2026-01-20T00:00:00Z", "exce": []}"#);
    let (exit, text) = type_in(&["policy", "lint", policy.to_str().unwrap()]);
    assert_eq!(exit, Exit::No);
    assert!(text.contains("line 1, column 59") && text.contains("unknown field `exce`"), "{text}");
    let script = dir.path().join("s");
    write(&script, b"ls\n");
    let (exit, text) = type_in(&["policy", "check-script", script.to_str().unwrap()]);
    assert_eq!(exit, Exit::Usage);
    assert!(text.contains("--interpreter"), "{text}");
}

#[test]
fn the_examples_of_the_policy_page_are_policies() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.json");
    let page = include_str!("../../docs/POLICY.md");
    let examples: Vec<_> =
        page.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        write(&file, example.as_bytes());
        let (exit, text) = type_in(&["policy", "lint", file.to_str().unwrap()]);
        assert_eq!(exit, Exit::Done, "{text}\n{example}");
    }
}

#[cfg(unix)]
#[test]
fn a_socket_that_nobody_serves_is_told_from_one_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (exit, text) = type_in(&["status", "--socket", path.to_str().unwrap()]);
    assert_eq!(exit, Exit::Unreachable);
    assert!(text.contains("no agent listens on it") && text.contains("admin.sock"), "{text}");
    let (exit, text) = type_in(&["status", "--socket", dir.path().join("x").to_str().unwrap()]);
    assert_eq!(exit, Exit::Unreachable);
    assert!(text.contains("no such socket"), "{text}");
}

/// An agent does that to whoever calls too often, before it has read a byte.
#[cfg(unix)]
#[test]
fn a_connection_that_is_cut_at_once_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let agent = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let (exit, text) = type_in(&["status", "--socket", path.to_str().unwrap()]);
    agent.join().unwrap();
    assert_eq!(exit, Exit::Unreachable, "{text}");
    assert!(text.contains("cut the connection"), "{text}");
    assert!(text.contains("calls too often"), "{text}");
}

#[test]
fn what_cannot_be_asked_is_refused_with_what_can() {
    let refused = |words: &[&str]| {
        Cli::try_parse_from(["jtntctl"].iter().chain(words)).unwrap_err().to_string()
    };
    assert!(refused(&["audit", "list", "--event", "strange"]).contains("policy_violation"));
    assert!(refused(&["audit", "list", "--limit", "0"]).contains("not in 1.."));
    assert!(refused(&["status", "--socket", "http://x"]).contains("a path is needed"));
}

/// A page of metrics, say.
#[test]
fn a_server_of_something_else_is_no_agent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // A client may try more than once.
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&over);
    let server = std::thread::spawn(move || {
        for caller in listener.incoming() {
            if seen.load(std::sync::atomic::Ordering::SeqCst) {
                return;
            }
            let mut caller = caller.unwrap();
            io::Write::write_all(&mut caller, b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
            // Until the caller has read it and left.
            io::copy(&mut caller, &mut io::sink()).ok();
        }
    });
    let (exit, text) = type_in(&["status", "--socket", &format!("http://{address}")]);
    over.store(true, std::sync::atomic::Ordering::SeqCst);
    drop(std::net::TcpStream::connect(address).unwrap());
    server.join().unwrap();
    assert_eq!(exit, Exit::Unreachable, "{text}");
    assert!(text.contains("no JTNT agent") && text.contains("path"), "{text}");
}

#[test]
fn completions_and_manual_pages_cover_the_whole_command_line() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (exit, text) = type_in(&["completions", shell]);
        assert_eq!(exit, Exit::Done);
        assert!(text.contains("check-exec"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (exit, _) = type_in(&["man", dir.path().to_str().unwrap()]);
    assert_eq!(exit, Exit::Done);
    for page in ["jtntctl.1", "jtntctl-jobs.1", "jtntctl-policy-check-exec.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
    assert_eq!(type_in(&["man", "/nonexistent"]).0, Exit::Io);
}

/// A program of another name, such as the agent's own.
struct Named(&'static str);

impl Host for Named {
    async fn connect(&self, global: &Global) -> Result<Channel, Failure> {
        Standalone.connect(global).await
    }

    fn command_line(&self) -> clap::Command {
        Cli::command().name(self.0)
    }
}

/// What bash offers for the last of `words`, by the script itself.
fn offered(script: &Path, words: &[&str]) -> Option<Vec<String>> {
    let line = r#"source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        by=$(complete -p "$1"); by=${by#*-F }; by=${by%% *}
        "$by" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let bash = std::process::Command::new("bash")
        .args(["--norc", "-c", line])
        .arg(script)
        .args(words)
        .output();
    let out = match bash {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        out => out.unwrap(),
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn bash_completes_every_word_of_a_program_whose_name_has_a_dash_too() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["jtntctl", "jtnt-agent"] {
        let (exit, text) = type_at(&Named(name), &["completions", "bash"]);
        assert_eq!(exit, Exit::Done);
        let script = dir.path().join(name);
        write(&script, text.as_bytes());
        for (words, wanted) in [
            (&["st"][..], "status"),
            (&["jobs", "ca"], "cancel"),
            (&["jobs", "list", "--st"], "--state"),
            (&["jobs", "list", "--state", "fa"], "failed"),
            (&["policy", "check-exec", "--run"], "--run-as"),
            (&["test-connection", "--time"], "--timeout"),
        ] {
            let words = [&[name], words].concat();
            let Some(offered) = offered(&script, &words) else { return };
            assert!(offered.iter().any(|o| o == wanted), "{words:?}: {offered:?}");
        }
    }
}

/// An export of this log, without a checkpoint.
fn export(dir: &Path, logs: &[&str]) -> String {
    let out = dir.join("out");
    fs::create_dir(&out).unwrap();
    let mut listed = Vec::new();
    for path in logs {
        let (name, bytes) = (path.rsplit('/').next().unwrap(), fs::read(path).unwrap());
        write(out.join(name), &bytes);
        let sha256 = jtnt_proto::bytes::Hash::of(&bytes).to_string();
        listed.push(serde_json::json!({"name": name, "bytes": bytes.len(), "sha256": sha256}));
    }
    let manifest = serde_json::json!({
        "type": "jtnt-audit-export/v1", "agent_id": "agent-1", "log_id": "l",
        "created_at": "2026-01-02T03:04:05Z", "files": listed,
    });
    write(out.join("manifest.json"), manifest.to_string().as_bytes());
    out.to_str().unwrap().to_owned()
}

#[test]
fn an_export_of_nothing_says_nothing_of_any_log() {
    let dir = tempfile::tempdir().unwrap();
    let (exit, text) = type_in(&["audit", "verify", &export(dir.path(), &[])]);
    assert_eq!(exit, Exit::Incomplete, "{text}");
    assert!(text.contains("it holds no log"), "{text}");
}

#[test]
fn a_witness_that_has_nothing_to_look_at_leaves_it_open() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, key] = log(dir.path());
    let out = export(dir.path(), &[&one, &two]);
    let public = PublicKey::of(&SigningKey::from_bytes(&[8; 32]));
    let witness = jtnt_proto::checkpoint::witness_vkey("jtnt-hub/r", &public);
    let (exit, text) = type_in(&["audit", "verify", &out, "--key", &key]);
    assert_eq!(exit, Exit::Done, "{text}");
    let by = ["audit", "verify", &out, "--key", &key, "--witness", &witness];
    let (exit, text) = type_in(&by);
    assert_eq!(exit, Exit::Incomplete, "{text}");
    assert!(text.contains("there is no checkpoint here"), "{text}");
}

#[test]
fn what_never_ends_is_no_file_of_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, key] = log(dir.path());
    let out = export(dir.path(), &[&one, &two]);
    for name in ["audit-2026-01-02.log", "manifest.json"] {
        let path = Path::new(&out).join(name);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let (exit, text) = type_in(&["audit", "verify", &out, "--key", &key]);
        assert!(exit == Exit::Io && text.contains("no plain file"), "{text}");
    }
}
