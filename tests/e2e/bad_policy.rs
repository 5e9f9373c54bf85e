//! Policies that must not take effect: each is refused with its reason, and the one before stays,
//! in force and on disk.

use jtnt_hub_mock::{Hub, operator::Role};
use jtnt_proto::envelope::PayloadType;
use serde_json::{Value, json};

use crate::{
    site::{Site, exec, hence, rules},
    support::eventually,
};

#[tokio::test]
async fn each_bad_policy_is_refused_and_the_one_before_stays() {
    let mut site = Site::new(Hub::builder()).await;
    site.enrol().await;
    site.publish(3, &rules(&site.home)).await;
    let agent = site.home.start().await.unwrap();
    site.in_force(3).await;
    let before = site.kept();
    assert!(before.contains_key("data/policy/policy.json"), "{before:?}");
    let nothing = json!({"exec": []});
    let others = json!({"root_id": site.operator().root().root_id, "labels": {"site": "other"}});
    let relative = json!([{"id": "a", "effect": "allow", "path": "usr/bin/true"}]);
    for (role, changes, reason, words) in [
        (Role::Policy, json!({"version": 4, "exce": []}), "MALFORMED", "exce"),
        (Role::Policy, json!({"version": 4, "exec": relative}), "MALFORMED", "usr/bin/true"),
        (Role::Policy, json!({"version": 2}), "VERSION_TOO_OLD", "version 2 is older than 3"),
        (Role::Policy, json!({"version": 3}), "VERSION_REUSED", "give it a new number"),
        (Role::Job, json!({"version": 4}), "BAD_SIGNATURE", "signature"),
        (Role::Root, json!({"version": 4}), "BAD_SIGNATURE", "signature"),
        (
            Role::Policy,
            json!({"version": 4, "expires_at": hence(-60), "issued_at": hence(-120)}),
            "EXPIRED",
            "publish a newer one",
        ),
        (
            Role::Policy,
            json!({"version": 4, "issued_at": hence(3600)}),
            "ISSUED_IN_FUTURE",
            "set the clocks",
        ),
        (
            Role::Policy,
            json!({"version": 4, "expires_at": hence(40 * 86_400)}),
            "VALID_TOO_LONG",
            "30 days",
        ),
        (Role::Policy, json!({"version": 4, "audience": others}), "NOT_FOR_ME", "site=other"),
    ] {
        let document: Value = site.document(&changes, &nothing);
        let signed = site.operator().sign(role, PayloadType::Policy, &document);
        site.hub.publish_policy(signed).await.unwrap();
        let ran = site.home.ctl(&["policy", "refresh"]).await.unwrap().exits(1).unwrap();
        for part in [reason, words] {
            assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
        }
        assert_eq!(site.kept(), before, "{reason}");
        site.in_force(3).await;
        assert_eq!(site.run(exec("/usr/bin/true", &[])).await.state, "ok", "{reason}");
    }
    let denied = site.audit().into_iter().filter(|line| line["event"] == "policy_changed");
    let denied: Vec<_> = denied.filter(|line| line["status"] == "denied").collect();
    assert_eq!(denied[0]["details"]["reason"], "MALFORMED");

    // The next start judges what is stored, not what the hub says.
    agent.stop().await.unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(3).await;
    site.publish(5, &nothing).await;
    site.in_force(5).await;
    let view = site.run(exec("/usr/bin/true", &[])).await;
    assert_eq!(view.status.unwrap().reason.as_deref(), Some("DENIED"));
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn without_a_policy_and_where_it_asks_for_more_nothing_runs() {
    let mut site = Site::new(Hub::builder()).await;
    site.enrol().await;
    let agent = site.home.start().await.unwrap();
    let reason = async |site: &Site| {
        let view = site.run(exec("/usr/bin/true", &[])).await;
        view.status.unwrap().reason.unwrap()
    };
    assert_eq!(reason(&site).await, "DENIED");
    // `require_enforcement` is `full` where nothing is said, and the system cannot hold a program
    // that may reach its Unix sockets.
    let mut rules = rules(&site.home);
    rules["exec"][0]["ipc"] = json!(true);
    let mut document = site.document(&json!({"version": 1}), &rules);
    document.as_object_mut().unwrap().remove("require_enforcement");
    let signed = site.operator().sign(Role::Policy, PayloadType::Policy, &document);
    site.hub.publish_policy(signed).await.unwrap();
    site.in_force(1).await;
    assert_eq!(reason(&site).await, "ENFORCEMENT");
    let held = site.run(exec("/usr/bin/echo", &["x"])).await;
    match held.result {
        Some(result) => assert_eq!(result.enforcement, "full"),
        // On a machine that can do less.
        None => assert_eq!(held.status.unwrap().reason.as_deref(), Some("ENFORCEMENT")),
    }
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_policy_that_expires_denies_from_then_on_and_the_agent_is_unhealthy() {
    let mut site = Site::new(Hub::builder()).await;
    site.enrol().await;
    let soon = json!({"version": 1, "expires_at": hence(3)});
    let signed = site.policy(&soon, &rules(&site.home));
    site.hub.publish_policy(signed).await.unwrap();
    let agent = site.home.start().await.unwrap();
    site.in_force(1).await;
    let unhealthy = eventually("health notices", async || {
        let health = agent.get("health_listen", "/health").await.map_err(|f| f.to_string())?;
        let health = health.json().map_err(|f| f.to_string())?;
        let policy = &health["checks"]["policy"];
        if policy["status"] == "fail" { Ok(health) } else { Err(policy.to_string()) }
    });
    assert_eq!(unhealthy.await.unwrap()["status"], "unhealthy");
    let view = site.run(exec("/usr/bin/true", &[])).await;
    let status = view.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("DENIED"));
    assert!(status.message.unwrap().contains("expired"));
    let shown = site.home.asked(&["policy", "show"]).await.unwrap();
    assert_eq!(shown["expired"], true);
    agent.stop().await.unwrap();
}
