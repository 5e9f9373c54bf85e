//! `PolicyService`.

use jtnt_proto::{
    admin::v1::{self as pb, FileAccess, policy_service_server::PolicyService},
    bytes::Hash,
    hub::Outcome,
    job::{Artifact, Exec, Script},
    key::KeyId,
    policy::Access,
};
use tonic::{Code, Request, Response, Status};

use super::{Answer, Deps, blocking, job::Job};
use crate::{
    admin::{
        convert::{self, mode_word, require_word},
        error,
    },
    domain::{
        job::State,
        policy::{
            NETWORK, SYSTEM,
            learn::{Baseline, learn},
        },
    },
    gate::{Gate, Ruling},
    jobs::SeenError,
    jobs::fault_of_user,
    platform::paths::resolve,
    policy::{candidate, document},
};

pub(super) struct Policy(pub(super) Deps);

impl Policy {
    /// Asks the gate on a thread that may wait: it opens files, and may read them whole.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Gate, jiff::Timestamp) -> Ruling<T> + Send + 'static,
    ) -> Result<Option<pb::Decision>, Status> {
        let s = self.0.overview.sources();
        let (gate, now) = (s.gate.clone(), s.time.now());
        let ruled = move || {
            let mut ruling = question(&gate, now);
            let user = ruling.run_as.as_deref().filter(|_| ruling.allowed);
            if let Some(fault) = user.and_then(fault_of_user) {
                // The policy's word stays what it is.
                ruling.message = format!("{}; but the job would fail: {fault}", ruling.message);
            }
            ruling
        };
        Ok(Some(convert::decision(blocking(ruled).await?)))
    }
}

/// What is open to every program, in words.
fn baseline() -> Vec<String> {
    let paths = |places: &[(&str, &[Access])], access: &[Access]| {
        let these = places.iter().filter(|(_, open)| *open == access);
        these.map(|(path, _)| *path).collect::<Vec<_>>().join(" ")
    };
    let run = [Access::Read, Access::Execute];
    vec![
        format!("read and execute {}", paths(SYSTEM, &run)),
        format!("read {}", paths(SYSTEM, &[Access::Read])),
        format!("read, where it has a network, {}", paths(NETWORK, &[Access::Read])),
        "of its own: /tmp /var/tmp /dev /run /proc".to_owned(),
    ]
}

fn optional(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

#[tonic::async_trait]
impl PolicyService for Policy {
    async fn get_policy(&self, _: Request<pb::GetPolicyRequest>) -> Answer<pb::GetPolicyResponse> {
        let s = self.0.overview.sources();
        let mut answer = pb::GetPolicyResponse {
            require_enforcement: require_word(s.gate.require_enforcement()).to_owned(),
            enforcement: s.gate.enforcement().to_string(),
            baseline: baseline(),
            ..pb::GetPolicyResponse::default()
        };
        let Some(in_force) = s.policy.borrow().clone() else { return Ok(Response::new(answer)) };
        let policy = in_force.verified.get();
        answer.version = policy.version;
        answer.policy_id.clone_from(&policy.policy_id);
        answer.issued_at = Some(convert::time(policy.issued_at));
        answer.expires_at = Some(convert::time(policy.expires_at));
        answer.expired = policy.expires_at <= s.time.now();
        mode_word(policy.mode).clone_into(&mut answer.mode);
        answer.signed_by = in_force.verified.signers().iter().map(ToString::to_string).collect();
        let (dir, hash) = (s.data_dir.clone(), in_force.verified.payload_sha256());
        let document = blocking(move || document(&dir, hash)).await?;
        answer.document = document.map_err(error::internal)?;
        Ok(Response::new(answer))
    }

    async fn refresh_policy(
        &self,
        _: Request<pb::RefreshPolicyRequest>,
    ) -> Answer<pb::RefreshPolicyResponse> {
        let sources = self.0.overview.sources();
        if let Some(hub) = &*sources.link.borrow() {
            hub.try_now();
        }
        let refreshed = sources.keeper.refresh().await;
        let (version, changed) = refreshed
            .map_err(|no| error::status(Code::FailedPrecondition, no.reason, no.message))?;
        Ok(Response::new(pb::RefreshPolicyResponse { version, changed }))
    }

    async fn check_exec(
        &self,
        request: Request<pb::CheckExecRequest>,
    ) -> Answer<pb::CheckExecResponse> {
        let pb::CheckExecRequest { path, args, env, run_as } = request.into_inner();
        let env = env.into_iter().collect();
        let exec = Exec { path, args, env, cwd: None, run_as: optional(run_as) };
        let decision = self.ask(move |gate, now| gate.exec(&exec, now)).await?;
        Ok(Response::new(pb::CheckExecResponse { decision }))
    }

    async fn check_script(
        &self,
        request: Request<pb::CheckScriptRequest>,
    ) -> Answer<pb::CheckScriptResponse> {
        let request = request.into_inner();
        let pb::CheckScriptRequest { interpreter, sha256, args, env, run_as, signers } = request;
        let sha256: Hash = Hash::parse(&sha256)
            .ok_or_else(|| error::invalid("sha256: expected 64 lower hex digits"))?;
        let signers: Option<Vec<_>> = signers.iter().map(|key| KeyId::parse(key)).collect();
        let signers = signers.ok_or_else(|| {
            error::invalid("signers: expected ids of keys, 64 lower hex digits each")
        })?;
        let script = Script {
            interpreter,
            content: Artifact { sha256, size: 0 },
            args,
            env: env.into_iter().collect(),
            cwd: None,
            run_as: optional(run_as),
            endorsement: None,
        };
        let decision = self.ask(move |gate, now| gate.script(&script, &signers, now)).await?;
        Ok(Response::new(pb::CheckScriptResponse { decision }))
    }

    async fn check_file(
        &self,
        request: Request<pb::CheckFileRequest>,
    ) -> Answer<pb::CheckFileResponse> {
        let request = request.into_inner();
        let access = match request.access() {
            FileAccess::Read => Access::Read,
            FileAccess::Write => Access::Write,
            FileAccess::Unspecified => return Err(error::invalid("access: say read or write")),
        };
        let (path, run_as) = (request.path, optional(request.run_as));
        let question =
            move |gate: &Gate, now| gate.check_file(access, &path, run_as.as_deref(), now);
        Ok(Response::new(pb::CheckFileResponse { decision: self.ask(question).await? }))
    }

    async fn diff_policy(
        &self,
        request: Request<pb::DiffPolicyRequest>,
    ) -> Answer<pb::DiffPolicyResponse> {
        let (document, now) = (request.into_inner().document, self.0.overview.sources().time.now());
        let rules = blocking(move || candidate(&document, now)).await?;
        let rules = rules
            .map_err(|no| error::status(Code::InvalidArgument, no.reason(), no.to_string()))?;
        let compared = self.0.jobs.rehearse(rules).await.map_err(error::store)?;
        Ok(Response::new(convert::comparison(compared)))
    }

    async fn learn_policy(
        &self,
        request: Request<pb::LearnPolicyRequest>,
    ) -> Answer<pb::LearnPolicyResponse> {
        let (_, entry) = Job(self.0.clone()).find(&request.into_inner().job_id)?;
        let seen = self.0.jobs.seen(&entry).await.map_err(|not| {
            let (code, reason) = match &not {
                SeenError::NotEnded(_) => (Code::FailedPrecondition, "NOT_ENDED"),
                SeenError::NotMonitored(_) => (Code::FailedPrecondition, "NOT_MONITORED"),
                SeenError::NotKept(_) => (Code::FailedPrecondition, "NOT_KEPT"),
                SeenError::Store(_) => (Code::Internal, "JOURNAL"),
            };
            error::status(code, reason, not.to_string())
        })?;
        // Where rules lead is looked up, which touches the disk.
        let learn = move || learn(&seen, &Baseline::of(&mut |path| resolve(path)));
        let mut learned = blocking(learn).await?;
        if entry.state != State::Finished(Outcome::Ok) {
            let state = entry.state.word();
            learned.notes.push(format!(
                "the job ended as {state}, so it may not have come to the end of what it does"
            ));
        }
        Ok(Response::new(convert::learned(learned).map_err(error::internal)?))
    }
}
