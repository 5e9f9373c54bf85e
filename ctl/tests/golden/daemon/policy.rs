//! Its policy: a document, decisions, comparisons and lessons.

use super::*;

const DOCUMENT: &str = r#"{"policy_id":"p-7","version":7,"issued_at":"2026-01-01T00:00:00Z",
"expires_at":"2026-01-12T00:00:00Z","audience":{"root_id":"r"},"network":"none",
"limits":{"timeout_seconds":600,"memory_bytes":536870912,"pids":64,"cpu_percent":150,"output_bytes":1048576},
"exec":[{"id":"uptime","effect":"allow","path":"/usr/bin/uptime","children":"none","env":["LANG","TZ"]},
{"id":"svc","effect":"allow","path":"/usr/bin/systemctl","args":["status",{"match":"[a-z]+"}],"run_as":"root"}],
"script":[{"id":"any","effect":"deny","interpreter":"/bin/sh","args":"any"}],
"file":[{"id":"logs","effect":"allow","access":["read"],"path":"/var/log/**"}]}"#;

/// With a name that would turn a terminal's line round.
const LEARNED: &str = "{
  \"exec\": [
    {
      \"id\": \"uptime-1f2e3d4c\",
      \"effect\": \"allow\",
      \"path\": \"/usr/bin/uptime\",
      \"sha256\": \"00\"
    }
  ],
  \"file\": [
    {
      \"id\": \"uptime-1f2e3d4c-file-1\",
      \"effect\": \"allow\",
      \"access\": [
        \"read\"
      ],
      \"path\": \"/srv/\u{202e}x/**\"
    }
  ]
}";

impl Fake {
    async fn decide(self, path: String, run_as: String, allowed: bool) -> Answer<pb::Decision> {
        let why = "its path is another".into();
        self.one(pb::Decision {
            allowed,
            reason: if allowed { "ALLOWED" } else { "NO_RULE" }.into(),
            message: if allowed { "" } else { "no rule allows it" }.into(),
            rule: if allowed { "uptime" } else { "" }.into(),
            canonical_path: path,
            sha256: String::new(),
            considered: vec![pb::Considered { rule: "svc".into(), why }],
            monitored: false,
            enforcement: "full".into(),
            policy_version: 7,
            run_as,
        })
        .await
    }
}

/// One of each kind.
fn changes() -> Vec<pb::PolicyChange> {
    let no = |reason: &str| pb::Decision {
        reason: reason.into(),
        message: "no rule for it has these arguments".into(),
        policy_version: 8,
        ..pb::Decision::default()
    };
    let yes = |rule: &str, run_as: &str| pb::Decision {
        allowed: true,
        reason: "ALLOWED".into(),
        rule: rule.into(),
        run_as: run_as.into(),
        enforcement: if run_as == "root" { "partial[root]" } else { "full" }.into(),
        policy_version: 8,
        ..pb::Decision::default()
    };
    let monitored = pb::Decision { monitored: true, reason: "NO_RULE".into(), ..yes("", "") };
    let change = |command: &str, before, after| pb::PolicyChange {
        command: command.into(),
        r#type: "exec".into(),
        jobs: 12,
        last_at: at(-7200),
        last_job: "job-1".into(),
        before: Some(before),
        after: Some(after),
        ..pb::PolicyChange::default()
    };
    let (run_as, env) = ("root".into(), vec!["SITE".into(), "ZONE".into()]);
    vec![
        change("/usr/bin/uptime -p", yes("uptime", ""), no("ARGUMENTS")),
        change("/usr/bin/id '\u{202e}'", no("NO_RULE"), yes("id", "")),
        pb::PolicyChange { run_as, env, ..change("/usr/bin/ls", yes("a", ""), yes("b", "root")) },
        change("/usr/bin/who", yes("who", ""), monitored),
    ]
}

#[tonic::async_trait]
impl pb::policy_service_server::PolicyService for Fake {
    async fn get_policy(&self, _: Request<pb::GetPolicyRequest>) -> Answer<pb::GetPolicyResponse> {
        self.one(pb::GetPolicyResponse {
            version: 7,
            policy_id: "p-7".into(),
            issued_at: at(-DAY),
            expires_at: at(10 * DAY),
            expired: false,
            mode: "enforce".into(),
            require_enforcement: "full".into(),
            enforcement: "full".into(),
            document: DOCUMENT.into(),
            baseline: vec!["/usr is readable and executable".into()],
            signed_by: vec!["aa".repeat(32)],
        })
        .await
    }

    async fn refresh_policy(
        &self,
        _: Request<pb::RefreshPolicyRequest>,
    ) -> Answer<pb::RefreshPolicyResponse> {
        self.one(pb::RefreshPolicyResponse { version: 8, changed: true }).await
    }

    async fn check_exec(
        &self,
        request: Request<pb::CheckExecRequest>,
    ) -> Answer<pb::CheckExecResponse> {
        let r = request.into_inner();
        // The command line arrives word by word.
        assert!(r.path != "/usr/bin/rm" || r.args == ["-rf", "/", "--output", "json"]);
        let allowed = r.path == "/usr/bin/uptime";
        let decision = self.decide(r.path, r.run_as, allowed).await?.into_inner();
        Ok(Response::new(pb::CheckExecResponse { decision: Some(decision) }))
    }

    async fn check_script(
        &self,
        request: Request<pb::CheckScriptRequest>,
    ) -> Answer<pb::CheckScriptResponse> {
        let r = request.into_inner();
        let decision = self.decide(r.interpreter, r.run_as, true).await?.into_inner();
        let decision = Some(pb::Decision { sha256: r.sha256, ..decision });
        Ok(Response::new(pb::CheckScriptResponse { decision }))
    }

    async fn check_file(
        &self,
        request: Request<pb::CheckFileRequest>,
    ) -> Answer<pb::CheckFileResponse> {
        let r = request.into_inner();
        let allowed = r.access() == pb::FileAccess::Write;
        let decision = self.decide(r.path, r.run_as, allowed).await?.into_inner();
        Ok(Response::new(pb::CheckFileResponse { decision: Some(decision) }))
    }

    async fn diff_policy(
        &self,
        request: Request<pb::DiffPolicyRequest>,
    ) -> Answer<pb::DiffPolicyResponse> {
        let document = request.into_inner().document;
        let mut diff = pb::DiffPolicyResponse {
            present_version: 7,
            document_version: 8,
            since: at(-30 * DAY),
            unchanged_requests: 41,
            unchanged_jobs: 1000,
            ..pb::DiffPolicyResponse::default()
        };
        if document.contains("\"other\"") {
            (diff.changes, diff.more_changes) = (changes(), 2);
            (diff.not_comparable_requests, diff.not_comparable_jobs) = (1, 2);
        }
        if document.contains("\"late\"") {
            (diff.unasked_requests, diff.unasked_jobs) = (3, 4);
        }
        self.one(diff).await
    }

    async fn learn_policy(
        &self,
        request: Request<pb::LearnPolicyRequest>,
    ) -> Answer<pb::LearnPolicyResponse> {
        let job = request.into_inner().job_id;
        if job == "held" {
            let why = "job held was not monitored; run it again under \"mode\": \"monitor\"";
            let details = ErrorDetails::with_error_info("NOT_MONITORED", "jtnt", []);
            return Err(Status::with_error_details(Code::FailedPrecondition, why, details));
        }
        let complete = job == "job-1";
        self.one(pb::LearnPolicyResponse {
            document: LEARNED.into(),
            notes: vec!["/srv/\u{202e}x: a folder that is listed".into()],
            complete,
        })
        .await
    }
}
