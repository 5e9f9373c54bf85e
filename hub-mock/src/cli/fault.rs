//! `fault`: what goes wrong next. The expired documents that some faults serve are signed here.

use jtnt_proto::{
    envelope::{Envelope, PayloadType},
    job::{Exec, Work},
    json,
    policy::Policy,
};

use super::{Desk, Verdict, args::SetFault};
use crate::{
    clock,
    control::CurrentPolicy,
    error::HubError,
    faults::{Fault, Kind, Route},
    operator::Role,
};

const HOUR: i64 = 3600;

pub(super) async fn set(desk: &Desk<'_>, wish: &SetFault) -> Result<Verdict, HubError> {
    let document = if wish.kind == Kind::Expired { expired(desk, wish).await? } else { None };
    let fault = Fault { route: wish.route, kind: wish.kind, times: wish.times, document };
    desk.client.post_nothing("/control/v1/faults", &fault).await?;
    desk.output.done("fault set")
}

pub(super) async fn clear(desk: &Desk<'_>) -> Result<Verdict, HubError> {
    desk.client.delete("/control/v1/faults").await?;
    desk.output.done("no faults any more")
}

/// A document whose time is over, for the routes that serve signed ones.
async fn expired(desk: &Desk<'_>, wish: &SetFault) -> Result<Option<Envelope>, HubError> {
    let operator = desk.operator()?;
    let ago = |hours: i64| clock::shift(clock::now(), -hours * HOUR);
    match wish.route {
        Route::Policy => {
            let current: CurrentPolicy = desk.client.get("/control/v1/policy").await?;
            let Some(envelope) = current.envelope else {
                return Err(HubError::refused("NO_POLICY", "push a policy first"));
            };
            let mut policy: Policy = json::from_slice(&envelope.payload.0)
                .map_err(|e| HubError::damaged("the published policy", e))?;
            policy.version += 1;
            (policy.issued_at, policy.expires_at) = (ago(48), ago(1));
            Ok(Some(operator.sign_policy(&policy)))
        }
        Route::Jobs => {
            let agent_id = desk.client.agent(wish.agent.clone()).await?;
            let exec = Exec {
                path: "/bin/true".to_owned(),
                args: Vec::new(),
                env: std::collections::BTreeMap::new(),
                cwd: None,
                run_as: None,
            };
            let mut job = operator.job(&agent_id, Work::Exec(exec))?;
            (job.issued_at, job.not_before, job.expires_at) = (ago(48), ago(48), ago(1));
            Ok(Some(operator.sign_job(&job)))
        }
        Route::Root => {
            let mut root = operator.root().clone();
            root.version += 1;
            (root.issued_at, root.expires_at) = (ago(48), ago(1));
            Ok(Some(operator.sign(Role::Root, PayloadType::Root, &root)))
        }
        Route::Enroll
        | Route::Heartbeat
        | Route::Status
        | Route::Result
        | Route::Output
        | Route::Renew
        | Route::Artifact
        | Route::Audit
        | Route::Any => Ok(None),
    }
}
