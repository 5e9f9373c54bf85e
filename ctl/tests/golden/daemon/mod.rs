//! A daemon with fixed answers.

mod policy;

use std::{io, vec};

use jtnt_proto::admin::v1::{self as pb, verify_log_response::Event};
use prost_types::{Duration, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio_stream::{Iter, Stream, StreamExt as _};
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, server::Connected},
};
use tonic_types::{ErrorDetails, StatusExt as _};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mood {
    Well,
    Refusing,
    Silent,
}

#[derive(Clone, Copy)]
struct Fake(Mood);

type Answer<T> = Result<Response<T>, Status>;
type Many<T> = Iter<vec::IntoIter<Result<T, Status>>>;

/// Serves one pipe.
pub(crate) async fn serve(mood: Mood, pipe: DuplexStream) {
    let once = tokio_stream::once(Ok(pipe));
    serve_all(mood, once.chain(tokio_stream::pending())).await;
}

/// Serves whoever comes.
pub(crate) async fn serve_all<C>(mood: Mood, incoming: impl Stream<Item = io::Result<C>>)
where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let fake = Fake(mood);
    let (_reporter, health) = tonic_health::server::health_reporter();
    Server::builder()
        .add_service(health)
        .add_service(pb::agent_service_server::AgentServiceServer::new(fake))
        .add_service(pb::cert_service_server::CertServiceServer::new(fake))
        .add_service(pb::policy_service_server::PolicyServiceServer::new(fake))
        .add_service(pb::audit_service_server::AuditServiceServer::new(fake))
        .add_service(pb::job_service_server::JobServiceServer::new(fake))
        .add_service(pb::cache_service_server::CacheServiceServer::new(fake))
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}

impl Fake {
    async fn one<T>(self, answer: T) -> Answer<T> {
        match self.0 {
            Mood::Well => Ok(Response::new(answer)),
            Mood::Refusing => {
                let details = ErrorDetails::with_error_info("ROLE_MISSING", "jtnt", []);
                let message = "uid 1000 has the role read, operate is needed";
                Err(Status::with_error_details(Code::PermissionDenied, message, details))
            }
            Mood::Silent => std::future::pending().await,
        }
    }

    async fn many<T>(self, answers: Vec<T>) -> Answer<Many<T>> {
        let answers: Vec<_> = answers.into_iter().map(Ok).collect();
        self.one(tokio_stream::iter(answers)).await
    }
}

/// Noon of 2026-01-02 and so many seconds.
fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: 1_767_355_200 + seconds, nanos: 0 })
}

fn took(millis: i32) -> Option<Duration> {
    Some(Duration { seconds: 0, nanos: millis * 1_000_000 })
}

const DAY: i64 = 86_400;

fn status() -> pb::Status {
    pb::Status {
        agent_id: "1f3a5c77-0000-8000-8000-000000000001".into(),
        version: "0.1.0".into(),
        started_at: at(-3 * DAY),
        enrolled: true,
        hub_url: "https://hub.example:8443".into(),
        hub: Some(pb::HubStatus {
            connected: false,
            last_success_at: at(-600),
            last_error: "connection refused \u{202e}evil\x1b[2J".into(),
            breaker: pb::BreakerState::Open.into(),
            next_attempt_at: at(45),
            clock_offset: took(250),
            key_exchange: "X25519MLKEM768".into(),
        }),
        certificate: Some(pb::CertStatus {
            serial: "0a1b2c".into(),
            not_before: at(-345 * DAY),
            not_after: at(20 * DAY),
            expires_in_days: 20,
        }),
        policy: Some(pb::PolicyStatus {
            version: 7,
            policy_id: "p-7".into(),
            expires_at: at(10 * DAY),
            expired: false,
            mode: "enforce".into(),
            require_enforcement: "full".into(),
        }),
        jobs: Some(pb::JobStatus { queued: 1, running: 2, pending_results: 3 }),
        audit: Some(pb::AuditStatus {
            log_id: "L1".into(),
            size: 1234,
            writable: true,
            last_error: String::new(),
            witnessed: 1200,
            witness_refusal: String::new(),
            superseded: Vec::new(),
            held: 1190,
        }),
        disk: Some(pb::DiskStatus { total_bytes: 1 << 40, used_bytes: 1 << 39 }),
        root: Some(pb::RootStatus {
            version: 1,
            source: "trusted_hub".into(),
            expires_at: at(300 * DAY),
        }),
        enforcement: "partial[uid]".into(),
        advice: vec![pb::Advice {
            reason: "HUB_UNREACHABLE".into(),
            message: "the hub does not answer".into(),
            command: "jtntctl test-connection".into(),
        }],
        labels: [("site".to_owned(), "berlin".to_owned())].into(),
        now: at(0),
    }
}

#[tonic::async_trait]
impl pb::agent_service_server::AgentService for Fake {
    type WatchStatusStream = Many<pb::WatchStatusResponse>;

    async fn get_status(&self, _: Request<pb::GetStatusRequest>) -> Answer<pb::GetStatusResponse> {
        self.one(pb::GetStatusResponse { status: Some(status()) }).await
    }

    async fn watch_status(
        &self,
        _: Request<pb::WatchStatusRequest>,
    ) -> Answer<Self::WatchStatusStream> {
        let fresh = pb::Status { version: "0.1.0".into(), now: at(0), ..pb::Status::default() };
        let later = pb::Status { enrolled: true, hub_url: "https://hub".into(), ..fresh.clone() };
        let answers =
            [fresh.clone(), fresh, later].map(|s| pb::WatchStatusResponse { status: Some(s) });
        self.many(answers.into()).await
    }

    async fn get_health(&self, _: Request<pb::GetHealthRequest>) -> Answer<pb::GetHealthResponse> {
        let check = |status: &str, message: &str, expires_in_days| pb::HealthCheck {
            status: status.into(),
            message: message.into(),
            expires_in_days,
        };
        let checks = [
            ("hub_connection", check("fail", "no heartbeat for 600s", None)),
            ("certificates", check("warn", "certificate expires in 20 days", Some(20))),
            ("enrolled", check("pass", "agent enrolled", None)),
        ];
        self.one(pb::GetHealthResponse {
            status: "unhealthy".into(),
            timestamp: at(0),
            checks: checks.map(|(name, check)| (name.to_owned(), check)).into(),
            version: "0.1.0".into(),
            agent_id: String::new(),
        })
        .await
    }

    async fn get_version(
        &self,
        _: Request<pb::GetVersionRequest>,
    ) -> Answer<pb::GetVersionResponse> {
        let api_version = "jtnt.admin.v1".into();
        self.one(pb::GetVersionResponse { api_version, version: "0.1.1".into() }).await
    }

    async fn test_connection(
        &self,
        _: Request<pb::TestConnectionRequest>,
    ) -> Answer<pb::TestConnectionResponse> {
        let dns = pb::ConnectionStep {
            name: "dns".into(),
            ok: true,
            detail: "hub.example is 192.0.2.1".into(),
            took: took(12),
            ..pb::ConnectionStep::default()
        };
        let tcp = pb::ConnectionStep {
            name: "tcp".into(),
            detail: "connection refused".into(),
            reason: "TCP_REFUSED".into(),
            advice: "is the hub running, and is port 8443 open?".into(),
            ..pb::ConnectionStep::default()
        };
        self.one(pb::TestConnectionResponse { steps: vec![dns, tcp], ok: false }).await
    }

    async fn get_log_level(
        &self,
        _: Request<pb::GetLogLevelRequest>,
    ) -> Answer<pb::GetLogLevelResponse> {
        self.one(pb::GetLogLevelResponse { level: "info".into() }).await
    }

    async fn set_log_level(
        &self,
        _: Request<pb::SetLogLevelRequest>,
    ) -> Answer<pb::SetLogLevelResponse> {
        self.one(pb::SetLogLevelResponse { previous: "info".into() }).await
    }

    async fn reload(&self, _: Request<pb::ReloadRequest>) -> Answer<pb::ReloadResponse> {
        let changed = vec!["log_level".into(), "labels".into()];
        let needs_restart = vec!["data_dir".into()];
        self.one(pb::ReloadResponse { changed, needs_restart }).await
    }

    async fn explain_authz(
        &self,
        request: Request<pb::ExplainAuthzRequest>,
    ) -> Answer<pb::ExplainAuthzResponse> {
        let pb::ExplainAuthzRequest { user, method } = request.into_inner();
        self.one(pb::ExplainAuthzResponse {
            allowed: false,
            user_role: "read".into(),
            needed_role: "operate".into(),
            why: format!("{user} is in a reader group; {method} needs more"),
            method: "/jtnt.admin.v1.JobService/CancelJob".into(),
        })
        .await
    }
}

/// A certificate took the place of another.
fn replaced() -> impl Iterator<Item = pb::Replacement> {
    let step = |step: pb::ReplacementStep, message: &str| pb::Replacement {
        step: step.into(),
        message: message.into(),
        ..pb::Replacement::default()
    };
    let done = pb::Replacement {
        before: "0a1b2c".into(),
        serial: "0d0e0f".into(),
        not_after: at(90 * DAY),
        ..step(pb::ReplacementStep::Done, "the cert 0d0e0f counts now")
    };
    [step(pb::ReplacementStep::Asking, "asking the hub for a cert"), done].into_iter()
}

#[tonic::async_trait]
impl pb::cert_service_server::CertService for Fake {
    async fn get_certificate(
        &self,
        _: Request<pb::GetCertificateRequest>,
    ) -> Answer<pb::GetCertificateResponse> {
        self.one(pb::GetCertificateResponse {
            serial: "0a1b2c".into(),
            subject: "CN=agent".into(),
            issuer: "CN=hub".into(),
            not_before: at(-DAY),
            not_after: at(-3600),
            expires_in_days: 0,
            status: "fail".into(),
            chain_ok: true,
            key_matches: false,
            problems: vec!["the key belongs to another certificate".into()],
            key_store: "tpm2:/dev/tpmrm0".into(),
            path: "/var/lib/jtnt-agent/certs/client.crt".into(),
            backup: Some(pb::CertBackup {
                serial: "070809".into(),
                not_after: at(DAY),
                kept_until: at(6 * DAY),
            }),
        })
        .await
    }

    async fn prove_certificate(
        &self,
        _: Request<pb::ProveCertificateRequest>,
    ) -> Answer<pb::ProveCertificateResponse> {
        self.one(pb::ProveCertificateResponse {
            serial: "0a1b2c".into(),
            seen_serial: "0a1b2c".into(),
            key_exchange: "X25519MLKEM768".into(),
        })
        .await
    }

    type RenewCertificateStream = Many<pb::RenewCertificateResponse>;
    type ForceRenewalStream = Many<pb::ForceRenewalResponse>;
    type RollBackCertificateStream = Many<pb::RollBackCertificateResponse>;

    async fn renew_certificate(
        &self,
        _: Request<pb::RenewCertificateRequest>,
    ) -> Answer<Self::RenewCertificateStream> {
        let answer = |news| pb::RenewCertificateResponse { news: Some(news) };
        self.many(replaced().map(answer).collect()).await
    }

    async fn force_renewal(
        &self,
        _: Request<pb::ForceRenewalRequest>,
    ) -> Answer<Self::ForceRenewalStream> {
        let answer = |news| pb::ForceRenewalResponse { news: Some(news) };
        self.many(replaced().map(answer).collect()).await
    }

    async fn roll_back_certificate(
        &self,
        request: Request<pb::RollBackCertificateRequest>,
    ) -> Answer<Self::RollBackCertificateStream> {
        if !request.into_inner().no_probe && self.0 == Mood::Well {
            let why = "there is no cert to go back to; enrol again";
            let details = ErrorDetails::with_error_info("NO_BACKUP", "jtnt", []);
            return Err(Status::with_error_details(Code::FailedPrecondition, why, details));
        }
        let answer = |news| pb::RollBackCertificateResponse { news: Some(news) };
        self.many(replaced().map(answer).collect()).await
    }

    async fn plan_renewal(
        &self,
        _: Request<pb::PlanRenewalRequest>,
    ) -> Answer<pb::PlanRenewalResponse> {
        self.one(pb::PlanRenewalResponse {
            renew_at: at(5 * DAY),
            rule: pb::RenewalRule::ThirtyDays.into(),
            last_failure_at: at(-600),
            last_failure_reason: "CERTIFICATE_REVOKED".into(),
            last_failure_message: "the hub answered 403".into(),
            why: "30 days before it expires".into(),
            not_after: at(35 * DAY),
            hub_asked_at: at(-60),
            held_back_until: at(3 * DAY),
        })
        .await
    }
}

const LINES: [&str; 3] = [
    r#"{"timestamp":"2026-01-02T11:00:00Z","type":"audit","event":"startup","agent_id":"a","seq":0,"prev":"AA=="}"#,
    r#"{"timestamp":"2026-01-02T11:30:00Z","type":"audit","event":"job_executed","agent_id":"a","job_id":"job-1","command":"/bin/echo \u001b[2J","status":"error","user":"nobody","caller":{"uid":0},"seq":1,"prev":"AA=="}"#,
    r#"{"timestamp":"2026-01-02T11:40:00Z","type":"audit","event":"policy_violation","agent_id":"a","job_id":"job-2","command":"/usr/bin/rm","status":"denied","details":{"rule":"no-rm","reason":"DENIED"},"seq":2,"prev":"AA=="}"#,
];

#[tonic::async_trait]
impl pb::audit_service_server::AuditService for Fake {
    type ListLinesStream = Many<pb::ListLinesResponse>;
    type TailLinesStream = Many<pb::TailLinesResponse>;
    type ExportLogStream = Many<pb::ExportLogResponse>;
    type VerifyLogStream = Many<pb::VerifyLogResponse>;

    async fn list_lines(
        &self,
        request: Request<pb::ListLinesRequest>,
    ) -> Answer<Self::ListLinesStream> {
        let r = request.into_inner();
        assert_eq!(r.since, if r.event.is_empty() { None } else { at(-7200) });
        let lines = LINES.iter().filter(|l| l.contains(&r.event));
        self.many(lines.map(|l| pb::ListLinesResponse { line: (*l).into() }).collect()).await
    }

    async fn tail_lines(&self, _: Request<pb::TailLinesRequest>) -> Answer<Self::TailLinesStream> {
        self.many(vec![pb::TailLinesResponse { line: LINES[1].into() }]).await
    }

    async fn verify_log(&self, _: Request<pb::VerifyLogRequest>) -> Answer<Self::VerifyLogStream> {
        let events = [
            Event::Progress(pb::VerifyProgress { bytes_done: 1, bytes_total: 2 }),
            Event::Finding(pb::Finding {
                verdict: "CHAIN".into(),
                file: "audit-2026-01-02.log".into(),
                line: 3,
                seq: Some(2),
                message: "it does not follow".into(),
            }),
            Event::Summary(pb::VerifySummary {
                verdict: "TAMPERED".into(),
                lines: 9,
                files: 1,
                first_seq: Some(0),
                last_seq: Some(8),
                unknown: vec!["whether lines were cut off".into()],
            }),
        ];
        self.many(events.map(|e| pb::VerifyLogResponse { event: Some(e) }).into()).await
    }

    async fn prove_line(
        &self,
        request: Request<pb::ProveLineRequest>,
    ) -> Answer<pb::ProveLineResponse> {
        let proof = format!("c2sp.org/tlog-proof@v1\nindex {}\n\n", request.into_inner().seq);
        self.one(pb::ProveLineResponse { proof }).await
    }

    /// An answer that would write outside of the folder.
    async fn export_log(&self, _: Request<pb::ExportLogRequest>) -> Answer<Self::ExportLogStream> {
        let file = pb::ExportFile { name: "../audit.pub".into(), bytes: 1 };
        let part = Some(pb::export_log_response::Part::File(file));
        self.many(vec![pb::ExportLogResponse { part }]).await
    }

    async fn rotate_key(&self, _: Request<pb::RotateKeyRequest>) -> Answer<pb::RotateKeyResponse> {
        let public_key = "6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=".into();
        self.one(pb::RotateKeyResponse { seq: 41, public_key }).await
    }

    async fn clean_log(&self, _: Request<pb::CleanLogRequest>) -> Answer<pb::CleanLogResponse> {
        let removed = vec!["audit-2025-11-01.log".into()];
        let kept = vec!["audit-2025-11-02.log".into()];
        self.one(pb::CleanLogResponse { removed, bytes: 4096, kept }).await
    }
}

fn job(id: &str, state: pb::JobState) -> pb::Job {
    pb::Job {
        job_id: id.into(),
        r#type: "exec".into(),
        state: state.into(),
        command: "/bin/echo \u{202e}hello".into(),
        user: "nobody".into(),
        received_at: at(-300),
        started_at: at(-299),
        finished_at: at(-298),
        duration: took(234),
        exit_code: Some(3),
        reason: "EXIT_CODE".into(),
        message: "ended with exit code 3".into(),
        rule: "echo".into(),
        policy_version: 7,
        enforcement: "full".into(),
        delivered: true,
        attempt: 1,
        stdout_bytes: 2048,
        expires_at: at(3600),
        ..pb::Job::default()
    }
}

#[tonic::async_trait]
impl pb::job_service_server::JobService for Fake {
    type ReadLogsStream = Many<pb::ReadLogsResponse>;
    type WatchJobsStream = Many<pb::WatchJobsResponse>;

    async fn list_jobs(
        &self,
        request: Request<pb::ListJobsRequest>,
    ) -> Answer<pb::ListJobsResponse> {
        let waiting = pb::Job {
            job_id: "job-2".into(),
            r#type: "script".into(),
            state: pb::JobState::Queued.into(),
            received_at: at(-5),
            ..pb::Job::default()
        };
        let wanted = request.into_inner().state();
        let mut jobs = vec![waiting, job("job-1", pb::JobState::Failed)];
        jobs.retain(|j| wanted == pb::JobState::Unspecified || j.state() == wanted);
        self.one(pb::ListJobsResponse { jobs }).await
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Answer<pb::GetJobResponse> {
        match request.into_inner().job_id.as_str() {
            "none" => {
                let details = ErrorDetails::with_error_info("JOB_NOT_FOUND", "jtnt", []);
                Err(Status::with_error_details(Code::NotFound, "no such job", details))
            }
            id => self.one(pb::GetJobResponse { job: Some(job(id, pb::JobState::Failed)) }).await,
        }
    }

    async fn read_logs(&self, _: Request<pb::ReadLogsRequest>) -> Answer<Self::ReadLogsStream> {
        let chunk = |stream: pb::Stream, data: &[u8], offset| pb::ReadLogsResponse {
            stream: stream.into(),
            data: data.into(),
            offset,
        };
        self.many(vec![
            chunk(pb::Stream::Stdout, b"caf\xc3", 0),
            chunk(pb::Stream::Stdout, b"\xa9 \x1b[31mred\n", 4),
            chunk(pb::Stream::Stderr, b"warning\n", 0),
        ])
        .await
    }

    async fn cancel_job(&self, _: Request<pb::CancelJobRequest>) -> Answer<pb::CancelJobResponse> {
        self.one(pb::CancelJobResponse {
            state: pb::JobState::Cancelled.into(),
            before: pb::JobState::Queued.into(),
        })
        .await
    }

    async fn watch_jobs(&self, _: Request<pb::WatchJobsRequest>) -> Answer<Self::WatchJobsStream> {
        self.many(Vec::new()).await
    }
}

#[tonic::async_trait]
impl pb::cache_service_server::CacheService for Fake {
    async fn get_cache(&self, _: Request<pb::GetCacheRequest>) -> Answer<pb::GetCacheResponse> {
        self.one(pb::GetCacheResponse {
            pending_results: 3,
            pending_bytes: 4096,
            oldest_pending_at: at(-7200),
            max_bytes: 1 << 30,
            delivered_jobs: 12,
            delivered_bytes: 1 << 20,
        })
        .await
    }

    async fn clean_cache(
        &self,
        _: Request<pb::CleanCacheRequest>,
    ) -> Answer<pb::CleanCacheResponse> {
        let (removed_jobs, removed_bytes, kept_pending) = (12, 1 << 20, 3);
        self.one(pb::CleanCacheResponse { removed_jobs, removed_bytes, kept_pending }).await
    }
}
