//! Another user of the machine at the admin socket. Only root can become another user, so elsewhere
//! there is nothing to try.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use jtnt_hub_mock::Hub;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    site::{Site, exec},
    support::{Home, Ran, binary, is_root, run},
};

/// Below the range of jobs, in no user database.
const STRANGER: u32 = 61_100;

/// What the kernel calls users that it cannot name.
const NOT_MAPPED: u32 = 65_534;

/// `jtntctl ARGS...` as the stranger, who may enter the folder but has no role.
async fn stranger(site: &Site, args: &[&str]) -> Ran {
    as_user(STRANGER, site, args).await
}

async fn as_user(uid: u32, site: &Site, args: &[&str]) -> Ran {
    let mut command = Command::new(site.home.path().join("jtntctl"));
    command.current_dir("/").arg("--socket").arg(site.home.socket()).args(args);
    run(command.uid(uid).gid(uid)).await.unwrap()
}

#[tokio::test]
async fn a_stranger_may_nothing_and_a_reader_may_read() {
    if !is_root() {
        eprintln!("not root: another user was not tried");
        return;
    }
    let site = Site::ready(Hub::builder()).await;
    // The build folder may be closed to others.
    fs::copy(binary("jtntctl").unwrap(), site.home.path().join("jtntctl")).unwrap();
    fs::set_permissions(site.home.path(), Permissions::from_mode(0o755)).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let id = site.order(exec("/usr/bin/sleep", &["300"]), |_| {}).await;
    site.running(&id).await;

    for args in [&["status"][..], &["jobs", "list"], &["jobs", "cancel", &id], &["reload"]] {
        let ran = stranger(&site, args).await.exits(4).unwrap();
        assert!(ran.stderr.contains("reader_groups"), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{args:?}");
    }
    let ran = as_user(NOT_MAPPED, &site, &["status"]).await.exits(4).unwrap();
    assert!(ran.stderr.contains("uid 65534") && ran.stderr.contains("nobody"), "{}", ran.stderr);
    site.home.configure(&json!({"reader_groups": [STRANGER.to_string()]})).unwrap();
    site.home.asked(&["reload"]).await.unwrap();
    stranger(&site, &["status"]).await.exits(0).unwrap();
    stranger(&site, &["jobs", "show", &id]).await.exits(0).unwrap();
    for args in [&["jobs", "cancel", &id][..], &["jobs", "logs", &id], &["cache", "clean"]] {
        stranger(&site, args).await.exits(4).unwrap();
    }
    assert_eq!(site.home.asked(&["jobs", "show", &id]).await.unwrap()["state"], "running");

    site.home.configure(&json!({"operator_groups": [STRANGER.to_string()]})).unwrap();
    site.home.asked(&["reload"]).await.unwrap();
    stranger(&site, &["jobs", "cancel", &id]).await.exits(0).unwrap();
    assert_eq!(site.end_of(&id).await.state, "cancelled");
    let lines = site.audit();
    let by = lines.iter().filter(|l| l["event"] == "admin_call").map(|l| &l["caller"]["uid"]);
    let by: Vec<_> = by.filter(|uid| **uid == STRANGER).collect();
    assert_eq!(by.len(), 2, "the cancel that was allowed, and its outcome: {lines:?}");
    let refused = |uid| {
        let about = |l: &&Value| l["event"] == "refused" && l["caller"]["uid"] == uid;
        lines.iter().filter(about).count()
    };
    // Those of the minute that is not over come at the end.
    assert!(refused(STRANGER) <= 1 && refused(NOT_MAPPED) <= 1, "{lines:?}");
    agent.stop().await.unwrap();
    let lines = site.audit();
    assert!(lines.iter().any(|l| l["event"] == "refused" && l["caller"]["uid"] == STRANGER));
}

#[tokio::test]
async fn everybody_learns_the_version_and_why_there_is_no_more() {
    if !is_root() {
        eprintln!("not root: another user was not tried");
        return;
    }
    let home = Home::new().unwrap();
    let program = home.path().join("jtnt-agent");
    fs::copy(binary("jtnt-agent").unwrap(), &program).unwrap();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(home.config(), Permissions::from_mode(0o600)).unwrap();
    let as_stranger = async |args: &[&str]| {
        let mut command = Command::new(&program);
        command.current_dir("/").arg("--config").arg(home.config()).args(args);
        run(command.uid(STRANGER).gid(STRANGER)).await.unwrap()
    };
    let ran = as_stranger(&["version"]).await;
    assert!(ran.stdout.contains(env!("CARGO_PKG_VERSION")), "{ran:?}");
    assert!(ran.stderr.contains("default address") && ran.stderr.contains("denied"), "{ran:?}");
    let ran = as_stranger(&["config", "show"]).await.exits(4).unwrap();
    assert!(ran.stderr.contains("Permission denied"), "{}", ran.stderr);

    fs::set_permissions(home.config(), Permissions::from_mode(0o644)).unwrap();
    // Nobody has given this user a name, so nothing of its own can lie in a home folder.
    let ran = as_stranger(&["config", "show"]).await.exits(6).unwrap();
    assert!(ran.stderr.contains("is not in the user database"), "{}", ran.stderr);
}
