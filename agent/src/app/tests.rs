//! The admin API of an agent that is put together as for a run, called by peers of every role over
//! pipes: what the guard lets through, what it records, and what it makes of hostile clients.

use std::{path::Path, sync::Arc, time::Duration};

use jtnt_proto::{admin::v1 as pb, audit::Line};
use jtntctl::{Channel, Exit};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tonic::{Code, IntoRequest as _, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;
use tracing::level_filters::LevelFilter;

use super::{
    certs,
    core::{Core, Held},
    daemon::cert_check,
    reload::{By, Reloader},
};
use crate::{
    admin::{Admin, Deps, METHODS, Method, Role, Trail},
    config::{Config, load},
    domain::enforcement::Abilities,
    platform::{peer::Peer, users},
    runtime::{durable, tasks::Class},
    telemetry::{
        log::{Level, LogLevel},
        overheard::overhear,
    },
};

/// Groups that the configuration gives a role.
const READERS: u32 = 4_000_001;
const OPERATORS: u32 = 4_000_002;
const ADMINS: u32 = 4_000_003;
const STRANGER: u32 = 4_000_009;

struct Agent {
    core: Core,
    admin: Admin,
    _dir: TempDir,
}

/// Writes a configuration and reads it.
fn config(path: &Path) -> Config {
    let dir = path.parent().unwrap();
    let document = serde_json::json!({
        "data_dir": dir.join("data"),
        "state_dir": dir.join("state"),
        "admin_socket": dir.join("run/admin.sock"),
        "reader_groups": [READERS.to_string()],
        "operator_groups": [OPERATORS.to_string()],
        "admin_groups": [ADMINS.to_string()],
    });
    durable::replace(path, document.to_string().as_bytes(), durable::PUBLIC).unwrap();
    load(path).unwrap()
}

impl Agent {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let mut core = Core::open(config(&path), path, "test", Abilities::default).await.unwrap();
        let (keeper, _) = core.work.take().unwrap();
        let stop = core.base.tasks.shutdown();
        core.base.tasks.spawn("policy", Class::Essential, keeper.run(stop));
        let log = LogLevel::detached(Level::Info);
        let reloader = Reloader::new(
            (core.base.path.clone(), core.base.config.clone()),
            Arc::clone(&core.published),
            log.clone(),
            core.state.audit.clone(),
        );
        let deps = Deps {
            overview: core.overview.clone(),
            jobs: core.jobs.clone(),
            renewal: core.renewal.clone(),
            proof: certs::proof(&core.published, &core.overview),
            authz: reloader.authz(),
            log,
            reload: Arc::new(move |caller| {
                let reloader = Arc::clone(&reloader);
                Box::pin(async move { reloader.reload(By::Caller(caller)).await })
            }),
            audit_dir: core.base.config.paths().audit(),
            tasks: core.base.tasks.clone(),
        };
        let admin = Admin::new(deps).await.unwrap();
        Self { core, admin, _dir: dir }
    }

    /// A pipe whose other end is served as that peer.
    fn pipe(&self, uid: u32, group: u32) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (admin, peer) = (self.admin.clone(), Peer { uid, pid: Some(77), groups: vec![group] });
        self.core.base.tasks.spawn("test peer", Class::OneShot, async move {
            admin.serve(theirs, peer).await;
        });
        ours
    }

    async fn channel(&self, uid: u32, group: u32) -> Channel {
        jtntctl::over(self.pipe(uid, group), "the test's agent").await.unwrap()
    }

    /// Calls a method with an empty message; the status of its first answer.
    async fn call(&self, group: u32, method: &Method) -> Result<(), Status> {
        let mut client = tonic::client::Grpc::new(self.channel(STRANGER, group).await);
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(method.path);
        let answer =
            client.server_streaming(().into_request(), path, ProstCodec::<(), ()>::default());
        answer.await.map(drop)
    }

    /// The same for a method whose answer ends, read to its end.
    async fn finish(&self, group: u32, method: &Method) -> Result<(), Status> {
        let mut client = tonic::client::Grpc::new(self.channel(STRANGER, group).await);
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(method.path);
        let codec = ProstCodec::<(), ()>::default();
        let answer = client.server_streaming(().into_request(), path, codec).await?;
        let mut messages = answer.into_inner();
        while messages.message().await?.is_some() {}
        Ok(())
    }

    /// The lines of the one call of a method that changes something. That nobody waits for an end
    /// is found out on the side.
    async fn both(&self, path: &str) -> [serde_json::Value; 2] {
        for _ in 0..10_000 {
            let lines = self.recorded("admin_call").await.into_iter();
            let about: Vec<_> = lines.filter(|line| line["command"] == path).collect();
            if let Ok(both) = about.try_into() {
                return both;
            }
        }
        panic!("not two lines of {path}");
    }

    /// Commands of audit lines of an event.
    async fn recorded(&self, event: &str) -> Vec<serde_json::Value> {
        let channel = self.channel(0, 0).await;
        let mut client = pb::audit_service_client::AuditServiceClient::new(channel);
        let wanted = pb::ListLinesRequest { event: event.to_owned(), ..Default::default() };
        let mut lines = client.list_lines(wanted).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(line) = lines.message().await.unwrap() {
            found.push(serde_json::from_slice(&line.line).unwrap());
        }
        found
    }
}

fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().filter(|i| i.domain == "jtnt").map(|info| info.reason)
}

#[tokio::test]
async fn each_role_may_call_what_its_table_says_and_nothing_else() {
    let agent = Agent::new().await;
    for (role, group) in [
        (Role::None, STRANGER),
        (Role::Read, READERS),
        (Role::Operate, OPERATORS),
        (Role::Admin, ADMINS),
    ] {
        for method in METHODS {
            let answer = agent.call(group, method).await;
            let code = answer.as_ref().err().map(Status::code);
            let (what, needed) = (method.path, method.role);
            if role >= needed {
                let let_in = !matches!(code, Some(Code::PermissionDenied | Code::Unimplemented));
                assert!(let_in, "{role} at {what}: {answer:?}");
            } else {
                assert_eq!(code, Some(Code::PermissionDenied), "{role} at {what}");
                let status = answer.unwrap_err();
                assert_eq!(reason(&status).as_deref(), Some("ROLE_MISSING"), "{status:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_refused_and_tells_a_stranger_nothing() {
    let agent = Agent::new().await;
    let unknown = Method {
        path: "/jtnt.admin.v1.AgentService/FormatDisk",
        role: Role::Read,
        trail: Trail::Nothing,
        within: Duration::from_secs(1),
    };
    let refused = agent.call(ADMINS, &unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(reason(&refused).as_deref(), Some("UNKNOWN_METHOD"));
    let refused = agent.call(STRANGER, &unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_refusal_says_who_is_missing_what_and_where_it_is_set() {
    let agent = Agent::new().await;
    let cancel = METHODS.iter().find(|m| m.path.ends_with("/CancelJob")).unwrap();
    let refused = agent.call(READERS, cancel).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "uid 4000009 has the role read: it is in one of reader_groups; \
         /jtnt.admin.v1.JobService/CancelJob needs the role operate (see operator_groups in the \
         agent's configuration)"
    );
    // Whoever has no role yet is not sent to get one that would not do.
    let refused = agent.call(STRANGER, cancel).await.unwrap_err();
    assert!(refused.message().contains("needs the role operate"), "{refused:?}");
}

#[tokio::test]
async fn a_user_that_is_not_mapped_is_told_so_whatever_its_groups() {
    let agent = Agent::new().await;
    let channel = agent.channel(users::UNMAPPED_UID, ADMINS).await;
    let mut client = pb::agent_service_client::AgentServiceClient::new(channel);
    let refused = client.get_status(pb::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(reason(&refused).as_deref(), Some("USER_NOT_MAPPED"));
    assert!(refused.message().contains("uid 65534"), "{refused:?}");
}

#[tokio::test]
async fn each_change_is_recorded_with_its_caller_and_a_refused_one_is_not() {
    let agent = Agent::new().await;
    let changes: Vec<_> = METHODS.iter().filter(|m| m.trail == Trail::Change).collect();
    for change in &changes {
        let _refused = agent.call(STRANGER, change).await.unwrap_err();
        assert!(
            agent.recorded("admin_call").await.iter().all(|line| line["command"] != change.path)
        );
        // Here nobody renews, so those answers do not end, and their caller leaves.
        let _whatever_it_said = match change.object() {
            "certificate" => agent.call(ADMINS, change).await,
            _ => agent.finish(ADMINS, change).await,
        };
    }
    for change in changes {
        let [begun, ended] = agent.both(change.path).await;
        for line in [&begun, &ended] {
            assert_eq!(line["object"], change.object());
            assert_eq!(line["caller"]["uid"], STRANGER);
            assert_eq!(line["caller"]["pid"], 77);
            let line: Line = serde_json::from_value(line.clone()).unwrap();
            assert_eq!(line.flaws(), <[String; 0]>::default(), "{line:?}");
        }
        let phases = (&begun["details"]["phase"], &ended["details"]["phase"]);
        assert_eq!(phases, (&"begun".into(), &"ended".into()));
        assert_eq!(
            (&begun["status"], &ended["details"]["began"]),
            (&"success".into(), &begun["seq"])
        );
        let ends = [
            ("CertService", "cancelled", "Cancelled"),
            ("RefreshPolicy", "error", "FailedPrecondition"),
            ("SetLogLevel", "error", "InvalidArgument"),
            ("CancelJob", "error", "InvalidArgument"),
        ];
        match ends.iter().find(|(method, ..)| change.path.contains(method)) {
            Some((_, status, code)) => {
                assert_eq!(
                    (&ended["status"], &ended["details"]["code"]),
                    (&(*status).into(), &(*code).into()),
                    "{ended}"
                );
            }
            None => assert_eq!(
                (&ended["status"], &ended["details"]["code"]),
                (&"success".into(), &serde_json::Value::Null)
            ),
        }
    }
}

#[tokio::test]
async fn a_configuration_that_is_gone_or_wrong_changes_nothing() {
    let agent = Agent::new().await;
    let path = agent.core.base.path.clone();
    let mut client =
        pb::agent_service_client::AgentServiceClient::new(agent.channel(STRANGER, ADMINS).await);
    durable::replace(&path, b"{\"log_levle\": \"debug\"}", durable::PUBLIC).unwrap();
    let refused = client.reload(pb::ReloadRequest {}).await.unwrap_err();
    assert_eq!(reason(&refused).as_deref(), Some("CONFIG_INVALID"));
    assert!(refused.message().contains("did you mean \"log_level\"?"), "{refused:?}");
    durable::remove(&path).unwrap();
    let refused = client.reload(pb::ReloadRequest {}).await.unwrap_err();
    assert!(refused.message().contains("No such file"), "{refused:?}");
    config(&path);
    let answer = client.reload(pb::ReloadRequest {}).await.unwrap().into_inner();
    assert!(answer.changed.is_empty(), "the caller's group kept its role: {answer:?}");
}

#[tokio::test]
async fn a_connection_that_was_refused_gets_no_second_try() {
    let agent = Agent::new().await;
    let channel = agent.channel(STRANGER, STRANGER).await;
    let mut client = pb::agent_service_client::AgentServiceClient::new(channel);
    let refused = client.get_status(pb::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let closed = client.get_status(pb::GetStatusRequest {}).await.unwrap_err();
    assert_ne!(closed.code(), Code::PermissionDenied, "{closed:?}");
}

#[tokio::test]
async fn a_client_of_http_1_reads_what_to_use_instead() {
    let agent = Agent::new().await;
    for request in ["GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "P", "PRI * HTTP/1.1\r\n"] {
        let mut pipe = agent.pipe(0, 0);
        pipe.write_all(request.as_bytes()).await.unwrap();
        pipe.shutdown().await.unwrap();
        let mut answer = String::new();
        pipe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 505 "), "{answer}");
        assert!(answer.contains("this socket speaks gRPC"), "{answer}");
    }
    let count = agent.core.base.metrics.admin_refused.with_label_values(&["protocol"]).get();
    assert_eq!(count, 3);
}

#[tokio::test]
async fn a_client_that_sends_too_much_is_told_the_limit() {
    let agent = Agent::new().await;
    let channel = agent.channel(0, 0).await;
    let mut client = pb::policy_service_client::PolicyServiceClient::new(channel);
    let path = "/".repeat(100 << 20);
    let asked = pb::CheckExecRequest { path, ..Default::default() };
    let refused = client.check_exec(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    assert!(refused.message().contains("1114112"), "{refused:?}");
    let version = pb::agent_service_client::AgentServiceClient::new(agent.channel(0, 0).await)
        .get_version(pb::GetVersionRequest {})
        .await;
    assert!(version.is_ok(), "the agent goes on");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_dropped() {
    let agent = Agent::new().await;
    for begun in ["", "PRI * HT"] {
        let mut pipe = agent.pipe(0, 0);
        pipe.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(6), pipe.read_to_end(&mut answer));
        ended.await.expect("dropped within its five seconds").unwrap();
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_with_what_would() {
    let agent = Agent::new().await;
    let root = agent.channel(0, 0).await;
    let mut policy = pb::policy_service_client::PolicyServiceClient::new(root.clone());
    let mut jobs = pb::job_service_client::JobServiceClient::new(root.clone());
    let mut own = pb::agent_service_client::AgentServiceClient::new(root);
    let script = pb::CheckScriptRequest { sha256: "xyz".into(), ..Default::default() };
    let file = pb::CheckFileRequest { path: "/etc/passwd".into(), ..Default::default() };
    let document = |text: &str| pb::DiffPolicyRequest { document: text.into() };
    let (long, torn) = (document(&" ".repeat((1 << 20) + 1)), document("{\"version\": 1,"));
    let old = document(r#"{"version": 1, "expires_at": "2020-01-01T00:00:00Z"}"#);
    let level = pb::SetLogLevelRequest { level: "loud".into() };
    let job = |id: &str| pb::GetJobRequest { job_id: id.into() };
    for (refused, code, says) in [
        (policy.check_script(script).await.err(), Code::InvalidArgument, "64 lower hex digits"),
        (policy.check_file(file).await.err(), Code::InvalidArgument, "say read or write"),
        (policy.diff_policy(long).await.err(), Code::InvalidArgument, "at most 1048576"),
        (policy.diff_policy(torn).await.err(), Code::InvalidArgument, "line 1 column 15"),
        (policy.diff_policy(old).await.err(), Code::InvalidArgument, "a later expires_at"),
        (own.set_log_level(level).await.err(), Code::InvalidArgument, "error, warn, info"),
        (jobs.get_job(job("../x")).await.err(), Code::InvalidArgument, "1 to 64"),
        (jobs.get_job(job("none")).await.err(), Code::NotFound, "jtntctl jobs list"),
        (
            own.test_connection(pb::TestConnectionRequest {}).await.err(),
            Code::FailedPrecondition,
            "jtnt-agent enroll",
        ),
    ] {
        let refused = refused.unwrap();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(says), "{refused:?}");
        assert!(reason(&refused).is_some(), "{refused:?}");
    }
}

#[tokio::test]
async fn where_there_is_no_policy_and_no_job_nothing_would_change() {
    let agent = Agent::new().await;
    let mut client = pb::policy_service_client::PolicyServiceClient::new(agent.channel(0, 0).await);
    let document = r#"{"version": 5, "expires_at": "9999-01-01T00:00:00Z"}"#.to_owned();
    let diff = client.diff_policy(pb::DiffPolicyRequest { document }).await.unwrap().into_inner();
    let now = agent.core.base.clock.now().as_second();
    assert!(diff.since.is_some_and(|since| (now - since.seconds).abs() < 60), "{diff:?}");
    let nothing =
        pb::DiffPolicyResponse { document_version: 5, since: diff.since, ..Default::default() };
    assert_eq!(diff, nothing);
}

#[tokio::test]
async fn a_machine_that_waits_to_be_enrolled_is_not_told_daily_that_it_has_no_cert() {
    let agent = Agent::new().await;
    for (level, heard) in [(LevelFilter::INFO, false), (LevelFilter::DEBUG, true)] {
        let (_listening, said) = overhear(level);
        (cert_check(&agent.core.base.config, &agent.core.overview).work)().await;
        let said = said.text();
        assert_eq!(said.contains("daily cert check: no certificate"), heard, "{said}");
    }
}

#[tokio::test]
async fn whoever_finds_the_files_taken_reads_once_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("config.json"));
    durable::create_dir(&config.data_dir, 0o755).unwrap();
    let lock = durable::create(&config.paths().lock(), durable::PRIVATE).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let unnamed = Held::take(&config, "test").await.unwrap_err();
    assert_eq!((unnamed.exit, unnamed.advice), (Exit::No, None));
    assert!(unnamed.why.contains("sudo fuser -v"), "{}", unnamed.why);
    drop(lock);
    let _held = Held::take(&config, "test").await.unwrap();
    let named = Held::take(&config, "test").await.unwrap_err();
    assert_eq!(named.exit, Exit::No);
    assert!(named.advice.unwrap().contains("service stop"), "{}", named.why);
}

#[tokio::test]
async fn readiness_is_told_as_grpc_health() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let agent = Agent::new().await;
    let mut client = HealthClient::new(agent.channel(0, 0).await);
    let mut seen = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let (not_serving, serving) = (2, 1);
    assert_eq!(seen.message().await.unwrap().unwrap().status, not_serving);
    agent.core.ready.send_replace(true);
    assert_eq!(seen.message().await.unwrap().unwrap().status, serving);
    let service = HealthCheckRequest { service: "jtnt.admin.v1.JobService".into() };
    assert_eq!(client.check(service).await.unwrap().into_inner().status, serving);
}

#[tokio::test]
async fn the_own_user_is_admin_and_a_watcher_sees_changes() {
    let agent = Agent::new().await;
    let channel = agent.channel(users::own_uid(), STRANGER).await;
    let mut client = pb::agent_service_client::AgentServiceClient::new(channel);
    let mut watch =
        client.watch_status(Request::new(pb::WatchStatusRequest {})).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap().status.unwrap();
    assert!(!first.enrolled);
    assert_eq!(first.advice[0].reason, "NOT_ENROLLED");
    agent.core.published.labels.send_replace([("site".to_owned(), "x".to_owned())].into());
    let second = watch.message().await.unwrap().unwrap().status.unwrap();
    assert_eq!(second.labels["site"], "x");
}
