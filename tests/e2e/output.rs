//! Output on its way to the hub: as it comes, and after the result where it is large.

use std::{fs, time::Duration};

use jtnt_hub_mock::{Hub, JobView, Kind, Route};
use jtnt_proto::{bytes::Hash, hub::OutputStream};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    crash::kill,
    site::{Site, exec, rules},
    support::{eventually, is_root, put},
};

/// More than a result holds, and no byte pattern that a lost or doubled piece would leave alone.
fn numbers(count: usize) -> String {
    (0..count).map(|n| format!("{n}\n")).collect()
}

/// A site whose jobs may print a file of their own.
async fn site_with(content: &str, output_bytes: u64) -> (Site, serde_json::Value) {
    let site = Site::ready(Hub::builder()).await;
    fs::create_dir_all(site.home.files()).unwrap();
    let file = site.home.files().join("numbers");
    put(&file, content.as_bytes()).unwrap();
    let mut cat = json!({"id": "cat", "effect": "allow", "path": "/usr/bin/cat", "args": "any"});
    if is_root() {
        cat["run_as"] = json!("root");
    }
    let mut rules = rules(&site.home);
    rules["exec"].as_array_mut().unwrap().push(cat);
    rules["limits"] = json!({"output_bytes": output_bytes});
    site.publish(2, &rules).await;
    let work = exec("/usr/bin/cat", &[file.to_str().unwrap()]);
    (site, work)
}

fn artifact(site: &Site, view: &JobView, name: &str) -> Vec<u8> {
    site.hub.artifact(view.artifacts[name].sha256).unwrap()
}

async fn with_parts(site: &Site, id: &str, count: usize) -> JobView {
    let there = |view: &JobView| view.ended && view.artifacts.len() == count;
    let came = timeout(Duration::from_secs(60), site.hub.await_job(id, there)).await;
    came.unwrap_or_else(|_late| panic!("it does not come: {:?}", site.hub.job(id)))
}

#[tokio::test]
async fn large_output_follows_its_result_over_a_bad_line_and_an_end_of_the_agent() {
    let all = numbers(200_000);
    let (site, work) = site_with(&all, 4 << 20).await;
    site.home.configure(&json!({"breaker_failures": 1000, "retry_max_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(2).await;
    site.hub.set_fault(Route::Artifact, Kind::InternalError, None).unwrap();
    let id = site.order(work, |_| {}).await;
    let view = site.end_of(&id).await;
    let stdout = view.result.unwrap().stdout.unwrap();
    assert_eq!((stdout.total_bytes, stdout.parts.len()), (all.len() as u64, 1));
    assert_eq!(stdout.head.0[..], all.as_bytes()[..stdout.head.0.len()]);
    eventually("the output waits", async || {
        let shown = site.home.asked(&["jobs", "show", &id]).await.map_err(|f| f.to_string())?;
        let waits = shown["output_pending_bytes"] == all.len() && shown["delivered"] == false;
        if waits { Ok(()) } else { Err(shown.to_string()) }
    })
    .await
    .unwrap();
    kill(agent).await;
    site.hub.clear_faults();
    // An answer that is cut off leaves the hub ahead of what the agent knows.
    site.hub.set_fault(Route::Artifact, Kind::Cut, Some(2)).unwrap();
    let agent = site.home.start().await.unwrap();
    let view = with_parts(&site, &id, 1).await;
    assert!(artifact(&site, &view, "stdout") == all.as_bytes(), "another output");
    eventually("nothing waits", async || {
        let shown = site.home.asked(&["jobs", "show", &id]).await.map_err(|f| f.to_string())?;
        if shown["delivered"] == true { Ok(()) } else { Err(shown.to_string()) }
    })
    .await
    .unwrap();
    assert_eq!(site.audited(&id), ["job_started", "job_executed"]);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn of_output_that_was_cut_both_ends_follow() {
    let all = numbers(400_000);
    let (site, work) = site_with(&all, 1 << 20).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(2).await;
    let id = site.order(work, |_| {}).await;
    let view = with_parts(&site, &id, 2).await;
    let (head, tail) = (artifact(&site, &view, "stdout"), artifact(&site, &view, "stdout.tail"));
    assert!(all.as_bytes().starts_with(&head) && all.as_bytes().ends_with(&tail));
    assert_eq!(head.len() + tail.len(), 1 << 20);
    let parts = &view.result.as_ref().unwrap().stdout.as_ref().unwrap().parts;
    assert_eq!(parts[1].offset, (all.len() - tail.len()) as u64);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn output_that_is_lost_meanwhile_leaves_a_mark_and_blocks_nothing() {
    let (site, work) = site_with(&numbers(100_000), 4 << 20).await;
    site.home.configure(&json!({"breaker_failures": 1000, "retry_max_seconds": 1})).unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(2).await;
    site.hub.set_fault(Route::Artifact, Kind::InternalError, None).unwrap();
    let (lost, kept) = (site.order(work.clone(), |_| {}).await, site.order(work, |_| {}).await);
    for id in [&lost, &kept] {
        assert_eq!(site.end_of(id).await.state, "ok");
    }
    fs::remove_file(site.home.state().join("jobs").join(&lost).join("stdout")).unwrap();
    site.hub.clear_faults();
    with_parts(&site, &kept, 1).await;
    let shown = eventually("it is given up", async || {
        let shown = site.home.asked(&["jobs", "show", &lost]).await.map_err(|f| f.to_string())?;
        if shown["delivered"] == true { Ok(shown) } else { Err(shown.to_string()) }
    });
    assert_eq!(shown.await.unwrap()["output_dropped"], "LOST");
    let page = agent.get("metrics_listen", "/metrics").await.unwrap();
    let dropped = "jtnt_agent_output_dropped_total{reason=\"LOST\"} 1";
    assert!(page.body.lines().any(|line| line == dropped), "{}", page.body);
    assert_eq!(site.audited(&lost), ["job_started", "job_executed", "output_dropped"]);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn who_asks_for_it_hears_a_job_while_it_runs() {
    let site = Site::ready(Hub::builder()).await;
    let script = b"echo first; sleep 5; echo last >&2\n";
    let mut rules = rules(&site.home);
    rules["script"] = json!([{"id": "s", "effect": "allow", "interpreter": "/bin/sh",
        "sha256": Hash::of(script)}]);
    site.publish(2, &rules).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(2).await;
    let quiet = site.run(exec("/usr/bin/echo", &["nobody asked"])).await;
    assert!(site.hub.live_output(&quiet.job_id).await.unwrap().is_empty());

    let content = site.hub.put_artifact(script).unwrap();
    let work = json!({"type": "script", "command": {"interpreter": "/bin/sh", "content": content}});
    let id = site.order(work, |job| job.stream_output = true).await;
    let said = eventually("the first word is heard", async || {
        let pieces = site.hub.live_output(&id).await.map_err(|e| e.to_string())?;
        if pieces.is_empty() { Err(format!("{:?}", site.hub.job(&id))) } else { Ok(pieces) }
    });
    assert_eq!(said.await.unwrap()[0].data.0, b"first\n");
    assert!(!site.hub.job(&id).unwrap().ended, "it was heard too late");
    kill(agent).await;
    let agent = site.home.start().await.unwrap();
    assert_eq!(site.end_of(&id).await.state, "ok");
    let all = eventually("both streams end", async || {
        let pieces = site.hub.live_output(&id).await.map_err(|e| e.to_string())?;
        let ends = pieces.iter().filter(|piece| piece.end).count();
        if ends == 2 { Ok(pieces) } else { Err(format!("{pieces:?}")) }
    });
    let all = all.await.unwrap();
    for (stream, said) in
        [(OutputStream::Stdout, &b"first\n"[..]), (OutputStream::Stderr, &b"last\n"[..])]
    {
        let of = all.iter().filter(|piece| piece.stream == stream);
        assert_eq!(of.flat_map(|piece| piece.data.0.clone()).collect::<Vec<_>>(), said);
    }
    agent.stop().await.unwrap();
}
