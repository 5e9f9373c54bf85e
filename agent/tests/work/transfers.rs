//! Files to the machine and from it: whole, checked, and over connections that break.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use jtnt_agent::{platform::users::own_uid, runtime::durable};
use jtnt_hub_mock::{Hub, Kind, Route};
use jtnt_proto::{bytes::Hash, job::Artifact};
use serde_json::{Value, json};

use crate::support::{Site, owner};

fn content() -> Vec<u8> {
    (0..3_000_001_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect()
}

/// Transfers in and out of a folder are allowed.
fn rules(dir: &Path) -> Value {
    let dir = dir.canonicalize().unwrap();
    let mut rule = json!({"id": "files", "effect": "allow", "access": ["read", "write"],
        "path": format!("{}/**", dir.display())});
    if let Some(owner) = owner() {
        rule["run_as"] = json!(owner);
    }
    json!({"file": [rule]})
}

fn download(artifact: Artifact, dest: &Path) -> Value {
    json!({"type": "download", "command": {"artifact": artifact, "dest": dest, "mode": 0o640}})
}

fn upload(path: &Path) -> Value {
    json!({"type": "upload", "command": {"path": path, "name": "report.bin"}})
}

#[tokio::test]
async fn a_download_arrives_whole_though_the_connection_breaks() {
    let (site, files) = (Site::new(Hub::builder()).await, tempfile::tempdir().unwrap());
    let agent = site.agent(&rules(files.path()));
    let (bytes, dest) = (content(), files.path().join("app.bin"));
    let artifact = site.hub.put_artifact(&bytes).unwrap();
    site.hub.set_fault(Route::Artifact, Kind::Cut, Some(2)).unwrap();
    let view = site.run(download(artifact, &dest)).await;
    assert_eq!(view.state, "ok", "{view:?}");
    assert_eq!(view.result.unwrap().artifact, Some(artifact));
    assert!(std::fs::read(&dest).unwrap() == bytes);
    assert_eq!(std::fs::metadata(&dest).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(std::fs::read_dir(files.path()).unwrap().count(), 1, "no part stays behind");
    agent.stop().await;
}

#[tokio::test]
async fn an_artifact_that_is_not_what_was_signed_leaves_the_old_file() {
    let (site, files) = (Site::new(Hub::builder()).await, tempfile::tempdir().unwrap());
    let agent = site.agent(&rules(files.path()));
    let dest = files.path().join("app.conf");
    durable::replace(&dest, b"", 0o600).unwrap();
    site.hub.put_artifact(b"something else").unwrap();
    let absent = Artifact { sha256: Hash::of(b"never stored"), size: 12 };
    let view = site.run(download(absent, &dest)).await;
    let reason = view.result.unwrap().reason;
    assert_eq!((view.state.as_str(), reason.as_deref()), ("failed", Some("ARTIFACT_REFUSED")));
    let artifact = site.hub.put_artifact(&content()).unwrap();
    let longer = Artifact { size: artifact.size + 1, ..artifact };
    let id = site.order(download(longer, &dest), |job| job.limits.timeout_seconds = Some(1)).await;
    assert_ne!(site.end_of(&id).await.state, "ok");
    assert_eq!(std::fs::metadata(&dest).unwrap().len(), 0);
    assert_eq!(std::fs::read_dir(files.path()).unwrap().count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn an_upload_arrives_whole_though_the_connection_breaks() {
    let (site, files) = (Site::new(Hub::builder()).await, tempfile::tempdir().unwrap());
    let agent = site.agent(&rules(files.path()));
    let (bytes, path) = (content(), files.path().join("report"));
    durable::replace(&path, &bytes, 0o600).unwrap();
    site.hub.set_fault(Route::Artifact, Kind::InternalError, Some(2)).unwrap();
    let view = site.run(upload(&path)).await;
    assert_eq!(view.state, "ok", "{view:?}");
    let sha256 = Hash::of(&bytes);
    let sent = Some(Artifact { sha256, size: bytes.len() as u64 });
    assert_eq!(view.result.unwrap().artifact, sent);
    assert!(site.hub.artifact(sha256).unwrap() == bytes);
    assert_eq!(agent.metrics.upload_duration.get_sample_count(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn an_empty_file_is_a_file_too() {
    let (site, files) = (Site::new(Hub::builder()).await, tempfile::tempdir().unwrap());
    let agent = site.agent(&rules(files.path()));
    let (from, to) = (files.path().join("empty"), files.path().join("copy"));
    durable::replace(&from, b"", 0o600).unwrap();
    assert_eq!(site.run(upload(&from)).await.state, "ok");
    let artifact = site.hub.put_artifact(b"").unwrap();
    assert_eq!(site.run(download(artifact, &to)).await.state, "ok");
    assert_eq!(std::fs::metadata(&to).unwrap().len(), 0);
    agent.stop().await;
}

#[tokio::test]
async fn limits_hold_for_transfers() {
    let (site, files) = (Site::new(Hub::builder()).await, tempfile::tempdir().unwrap());
    let mut rules = rules(files.path());
    rules["limits"] = json!({"file_bytes": 1000});
    let agent = site.agent(&rules);
    let artifact = site.hub.put_artifact(&[0; 1001]).unwrap();
    let view = site.run(download(artifact, &files.path().join("x"))).await;
    assert_eq!(view.result.unwrap().reason.as_deref(), Some("TOO_LARGE"));
    let path = files.path().join("big");
    durable::replace(&path, &[0; 1001], 0o600).unwrap();
    let view = site.run(upload(&path)).await;
    assert_eq!(view.result.unwrap().reason.as_deref(), Some("TOO_LARGE"));
    agent.stop().await;
}

#[tokio::test]
async fn as_root_a_transfer_has_the_rights_of_the_jobs_own_user_and_no_more() {
    if own_uid() != 0 {
        eprintln!("not root: the rights of a job's own user were not tried");
        return;
    }
    let (site, files) = (Site::new(Hub::builder()).await, tempfile::tempdir().unwrap());
    let mut rules = rules(files.path());
    rules["file"][0].as_object_mut().unwrap().remove("run_as");
    let agent = site.agent(&rules);
    let private = files.path().join("private");
    durable::replace(&private, b"secret", 0o600).unwrap();
    let view = site.run(upload(&private)).await;
    assert_eq!(view.result.unwrap().reason.as_deref(), Some("READ_FAILED"));
    let artifact = site.hub.put_artifact(b"x").unwrap();
    let view = site.run(download(artifact, &files.path().join("x"))).await;
    assert_eq!(view.result.unwrap().reason.as_deref(), Some("WRITE_FAILED"));
    // A folder for all: what is written there belongs to no later job.
    let shared = files.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let view = site.run(download(artifact, &shared.join("x"))).await;
    assert_eq!(view.state, "ok", "{view:?}");
    let meta = std::fs::metadata(shared.join("x")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), 0);
    agent.stop().await;
}
