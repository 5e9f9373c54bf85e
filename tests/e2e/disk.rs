//! The audit log's disk is full, or read-only: no job runs, everybody can see why, and when it can
//! be written again the agent goes on by itself. Needs to mount, so root; elsewhere it says so.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use jtnt_hub_mock::{Hub, JobView};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use serde_json::{Value, json};

use crate::{
    site::{Site, exec},
    support::{Agent, eventually, is_root},
};

/// A mount that goes with this, whatever still uses it.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _gone_already = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A small disk at `small`, and the same one at `at`; nothing where this is not permitted.
fn small_disk(small: &Path, at: &Path) -> Option<[Mounted; 2]> {
    if !is_root() {
        eprintln!("not root: a full disk was not tried");
        return None;
    }
    fs::create_dir(small).unwrap();
    fs::create_dir_all(at).unwrap();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    if let Err(error) = mount("tmpfs", small, "tmpfs", flags, c"size=256k,mode=750") {
        eprintln!("{error}: a full disk was not tried");
        return None;
    }
    let disk = Mounted(small.to_owned());
    mount_bind(small, at).unwrap();
    Some([Mounted(at.to_owned()), disk])
}

/// Takes all the room there is.
fn fill(small: &Path) -> PathBuf {
    let path = small.join("filler");
    let mut filler = File::create(&path).unwrap();
    while filler.write_all(&[0; 512]).is_ok() {}
    path
}

/// A program would leave a word and an exit code.
async fn job(site: &Site) -> (JobView, bool) {
    let view = site.run(exec("/usr/bin/echo", &["it ran"])).await;
    let result = view.result.as_ref();
    let ran = result.is_some_and(|r| r.stdout.is_some() || r.exit_code.is_some());
    (view, ran)
}

/// Runs jobs until one is refused for want of a log; the page that the log is in may have room left.
async fn refused(site: &Site) {
    for _ in 0..50 {
        let (view, ran) = job(site).await;
        if view.state != "ok" {
            assert!(!ran, "a job ran without a line: {view:?}");
            let result = view.result.unwrap();
            assert_eq!(result.reason.as_deref(), Some("CANNOT_RECORD"), "{result:?}");
            assert!(!site.audited(&view.job_id).contains(&"job_started".to_owned()));
            return;
        }
        assert!(ran);
    }
    panic!("no job is refused");
}

/// Status, health and metrics say why no job runs.
async fn shown(site: &Site, agent: &Agent, why: &str) {
    let status = eventually("the status says why", async || {
        let status = site.home.asked(&["status"]).await.map_err(|f| f.to_string())?;
        let error = status["audit"]["last_error"].to_string();
        if error.contains(why) { Ok(status) } else { Err(error) }
    });
    let status = status.await.unwrap();
    assert_eq!(status["audit"]["writable"], false, "{status}");
    assert!(status["advice"].to_string().contains("AUDIT_NOT_WRITABLE"), "{status}");
    let people = site.home.ctl(&["status"]).await.unwrap().exits(0).unwrap().stdout;
    assert!(people.contains(why), "{people}");
    let health = agent.get("health_listen", "/health").await.unwrap().json().unwrap();
    let disk = &health["checks"]["disk_space"];
    let message = disk["message"].as_str().unwrap();
    assert_eq!(disk["status"], "warn", "{health}");
    assert!(message.contains("no job starts") && message.contains(why), "{message}");
    let ready = agent.get("health_listen", "/readyz").await.unwrap();
    assert!(ready.status == 503 && ready.body.contains(why), "{ready:?}");
    assert_eq!(metric(agent).await, "0");
    // Nor does anybody change anything without a line.
    let renew = site.home.ctl(&["cert", "renew", "--force"]).await.unwrap();
    assert!(renew.code != Some(0) && renew.stderr.contains("CANNOT_RECORD"), "{renew:?}");
}

async fn metric(agent: &Agent) -> String {
    let page = agent.get("metrics_listen", "/metrics").await.unwrap().body;
    let line = page.lines().find_map(|l| l.strip_prefix("jtnt_agent_audit_writable "));
    line.unwrap().to_owned()
}

/// Nobody does anything, and the log takes lines again; the first one says what was.
async fn mended(site: &Site, agent: &Agent, why: &str, before: &[Value]) {
    let status = eventually("the agent sees that it can write", async || {
        let status = site.home.asked(&["status"]).await.map_err(|f| f.to_string())?;
        if status["audit"]["writable"] == true { Ok(()) } else { Err(status["audit"].to_string()) }
    });
    status.await.unwrap();
    assert_eq!(metric(agent).await, "1");
    assert_eq!(agent.get("health_listen", "/readyz").await.unwrap().status, 200);
    let (view, ran) = job(site).await;
    assert!(view.state == "ok" && ran, "{view:?}");
    let lines = site.audit();
    assert!(lines.starts_with(before), "a line that was there is not there any more");
    let told = lines.iter().skip(before.len()).find(|line| line["event"] == "degraded").unwrap();
    assert_eq!((&told["object"], &told["status"]), (&json!("audit log"), &json!("success")));
    assert!(told["details"]["message"].as_str().unwrap().contains(why), "{told}");
    let report = site.home.asked(&["audit", "verify"]).await.unwrap();
    assert_eq!(report["verdict"], "OK", "{report}");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_jobs_and_nothing_else_until_it_can() {
    stops_and_goes_on("data/audit").await;
}

#[tokio::test]
async fn nor_does_a_job_run_where_all_of_the_agents_disk_is_full() {
    stops_and_goes_on("data").await;
}

/// `part` of the agent's folder is a disk of its own.
async fn stops_and_goes_on(part: &str) {
    let mut site = Site::new(Hub::builder()).await;
    let (small, disk) = (site.home.path().join("small"), site.home.path().join(part));
    let Some(_disk) = small_disk(&small, &disk) else { return };
    site.enrol().await;
    site.publish(1, &crate::site::rules(&site.home)).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let (view, ran) = job(&site).await;
    assert!(view.state == "ok" && ran, "{view:?}");

    let full = "No space left on device";
    let filler = fill(&small);
    refused(&site).await;
    shown(&site, &agent, full).await;
    let before = site.audit();
    fs::remove_file(filler).unwrap();
    mended(&site, &agent, full, &before).await;

    // A disk that is written to cannot be made read-only, but one whose log is closed after a
    // failure can.
    let filler = fill(&small);
    refused(&site).await;
    let before = site.audit();
    mount_bind(&small, &disk).unwrap();
    let over = Mounted(disk.clone());
    mount_remount(&disk, MountFlags::BIND | MountFlags::RDONLY, c"").unwrap();
    fs::remove_file(filler).unwrap();
    refused(&site).await;
    let read_only = "Read-only file system";
    shown(&site, &agent, read_only).await;
    assert_eq!(site.audit(), before);
    drop(over);
    // It began with the full disk.
    mended(&site, &agent, full, &before).await;
    agent.stop().await.unwrap();
}
