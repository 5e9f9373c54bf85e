//! A job is told secrets, and nobody and nothing else is: neither by a file, nor by what the
//! system shows of processes.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use jtnt_hub_mock::{Hub, operator::Operator};
use jtnt_proto::{
    bytes::{Base64, Hash},
    job::SecretDelivery,
};
use serde_json::json;

use crate::{
    site::{Site, rules},
    support::{eventually, put},
};

/// Stands nowhere but in the sealed secrets.
const CANARY: &str = "canary-5f0c1d7e-of-the-secrets-test";
/// Proves that it knows them, and stays until a file is there.
const SCRIPT: &[u8] = b"sha256sum < /proc/self/fd/$JTNT_SECRET_TOKEN_FD
sha256sum < \"$JTNT_SECRET_KEY_FILE\"
echo told >&2
while [ ! -e \"$1\" ]; do sleep 0.02; done
";

async fn ready() -> Site {
    let mut site = Site::new(Hub::builder()).await;
    site.enrol().await;
    let mut rules = rules(&site.home);
    let path = format!("{}/**", site.home.files().display());
    rules["file"] = json!([{"id": "f", "effect": "allow", "access": ["read"], "path": path}]);
    rules["script"] = json!([{"id": "s", "effect": "allow", "interpreter": "/bin/sh",
        "sha256": Hash::of(SCRIPT), "args": "any"}]);
    site.publish(1, &rules).await;
    fs::set_permissions(site.home.path(), fs::Permissions::from_mode(0o711)).unwrap();
    site
}

async fn order(site: &Site, key: &Base64, go: &Path) -> String {
    let content = site.hub.put_artifact(SCRIPT).unwrap();
    let work = json!({"type": "script", "command":
        {"interpreter": "/bin/sh", "content": content, "args": [go]}});
    let tell = |job: &mut jtnt_proto::job::Job| {
        for secret in [("token", SecretDelivery::Fd), ("key", SecretDelivery::File)] {
            let sealed = Operator::seal(job, secret, key, CANARY.as_bytes()).unwrap();
            job.secrets.push(sealed);
        }
    };
    site.order(work, tell).await
}

#[tokio::test]
async fn a_secret_reaches_its_job_and_nothing_else() {
    let site = ready().await;
    let key = site.hub.agents().pop().unwrap().seal_key.unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let go = site.home.files().join("go");
    let id = order(&site, &key, &go).await;
    eventually("the job has read them", async || {
        let said = site.home.ctl(&["jobs", "logs", &id]).await.map_err(|f| f.to_string())?;
        if said.stderr.contains("told") { Ok(()) } else { Err(said.stderr) }
    })
    .await
    .unwrap();
    let hub = site.hub.root_file().parent().unwrap().to_owned();
    let found =
        [found_in_files(site.home.path()), found_in_files(&hub), found_in_processes()].concat();
    assert!(found.is_empty(), "{found:?}");
    put(&go, b"").unwrap();
    let view = site.end_of(&id).await;
    let result = view.result.unwrap();
    let out = String::from_utf8(result.stdout.unwrap().head.0).unwrap();
    let line = format!("{}  -\n", Hash::of(CANARY.as_bytes()));
    assert_eq!((view.state.as_str(), out), ("ok", line.repeat(2)));
    agent.stop().await.unwrap();
    let found = found_in_files(site.home.path());
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn what_was_sealed_to_another_key_never_begins() {
    let site = ready().await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let other = Base64(vec![9; 32]);
    let id = order(&site, &other, &site.home.files().join("go")).await;
    let view = site.end_of(&id).await;
    let result = view.result.unwrap();
    assert_eq!((view.state.as_str(), result.reason.as_deref()), ("failed", Some("SECRET")));
    assert!(result.message.unwrap().contains("seal it again"));
    assert_eq!(result.exit_code, None);
    agent.stop().await.unwrap();
}

/// Files below a folder that hold the canary.
fn found_in_files(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && holds(&entry.path()) {
                found.push(entry.path());
            }
        }
    }
    found
}

/// What the system shows of any process: how it was called, and with what.
fn found_in_processes() -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let numbers = processes.filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    });
    let shown = numbers.flat_map(|path| ["cmdline", "environ", "comm"].map(|name| path.join(name)));
    shown.filter(|path| holds(path)).collect()
}

fn holds(path: &Path) -> bool {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).contains(CANARY)
}
