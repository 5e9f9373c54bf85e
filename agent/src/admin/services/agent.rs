//! `AgentService`.

use std::time::Duration;

use futures_util::stream;
use jtnt_proto::{
    admin::v1::{self as pb, agent_service_server::AgentService},
    audit::{Event, Status as Outcome},
};
use tokio::{
    sync::{broadcast, watch},
    time::sleep,
};
use tonic::{Code, Request, Response};

use super::{Answer, Deps, Many, blocking, while_running};
use crate::{
    admin::{convert, error, guard::caller_of, methods},
    audit::{Head, Record},
    domain::job::Entry,
    gate::PolicyWatch,
    heartbeat::HeartbeatStatus,
    overview::{IdentityWatch, Overview, VERSION},
    policy::Labels,
    telemetry::log::Level,
};

/// A status that changes all the time is told at most this often.
const CALM: Duration = Duration::from_millis(250);
/// What changes without an event, such as the disk, is looked at this often.
const LOOK: Duration = Duration::from_secs(5);

pub(super) struct Agent(pub(super) Deps);

impl Agent {
    fn overview(&self) -> &Overview {
        &self.0.overview
    }
}

#[tonic::async_trait]
impl AgentService for Agent {
    type WatchStatusStream = Many<pb::WatchStatusResponse>;

    async fn get_status(&self, _: Request<pb::GetStatusRequest>) -> Answer<pb::GetStatusResponse> {
        let status = Some(convert::status(self.overview()));
        Ok(Response::new(pb::GetStatusResponse { status }))
    }

    async fn watch_status(
        &self,
        _: Request<pb::WatchStatusRequest>,
    ) -> Answer<Self::WatchStatusStream> {
        let watch = Watch::of(self.overview().clone());
        let all = stream::unfold(watch, |mut watch| async move {
            let status = Some(watch.next().await?);
            Some((Ok(pb::WatchStatusResponse { status }), watch))
        });
        Ok(Response::new(while_running(&self.0, all)))
    }

    async fn get_health(&self, _: Request<pb::GetHealthRequest>) -> Answer<pb::GetHealthResponse> {
        Ok(Response::new(convert::health(self.overview().health())))
    }

    async fn get_version(
        &self,
        _: Request<pb::GetVersionRequest>,
    ) -> Answer<pb::GetVersionResponse> {
        let (api_version, version) = ("jtnt.admin.v1".to_owned(), VERSION.to_owned());
        Ok(Response::new(pb::GetVersionResponse { api_version, version }))
    }

    async fn test_connection(
        &self,
        _: Request<pb::TestConnectionRequest>,
    ) -> Answer<pb::TestConnectionResponse> {
        let link = self.overview().sources().link.borrow().clone();
        let hub = link.ok_or_else(|| {
            let why = "this agent is not enrolled, so it has no hub; run: jtnt-agent enroll";
            error::status(Code::FailedPrecondition, "NOT_ENROLLED", why)
        })?;
        let steps = hub.probe().await;
        let ok = steps.iter().all(|step| step.ok);
        if ok {
            hub.try_now();
        }
        let steps = steps.into_iter().map(convert::probe_step).collect();
        Ok(Response::new(pb::TestConnectionResponse { steps, ok }))
    }

    async fn get_log_level(
        &self,
        _: Request<pb::GetLogLevelRequest>,
    ) -> Answer<pb::GetLogLevelResponse> {
        let level = self.0.log.get().name().to_owned();
        Ok(Response::new(pb::GetLogLevelResponse { level }))
    }

    async fn set_log_level(
        &self,
        request: Request<pb::SetLogLevelRequest>,
    ) -> Answer<pb::SetLogLevelResponse> {
        let caller = caller_of(&request);
        let wanted = request.into_inner().level;
        let level = Level::parse(&wanted).ok_or_else(|| {
            error::invalid(format!(
                "{wanted:?} is no log level; use error, warn, info, debug or trace"
            ))
        })?;
        let mut record = Record::of(Event::ConfigChanged)
            .detail("old", self.0.log.get().name())
            .detail("new", level.name());
        (record.caller, record.origin) = (caller, Some("local"));
        (record.object, record.status) = (Some("log_level".to_owned()), Some(Outcome::Success));
        let audit = &self.overview().sources().audit;
        audit.append(record).await.map_err(|e| error::audit(&e))?;
        let previous = self.0.log.set(level).name().to_owned();
        Ok(Response::new(pb::SetLogLevelResponse { previous }))
    }

    async fn reload(&self, request: Request<pb::ReloadRequest>) -> Answer<pb::ReloadResponse> {
        let reloaded = (self.0.reload)(caller_of(&request)).await.map_err(|why| {
            let why = format!("{why}\nthe configuration before it stays in force");
            error::status(Code::FailedPrecondition, "CONFIG_INVALID", why)
        })?;
        Ok(Response::new(pb::ReloadResponse {
            changed: reloaded.changed,
            needs_restart: reloaded.needs_restart,
        }))
    }

    async fn explain_authz(
        &self,
        request: Request<pb::ExplainAuthzRequest>,
    ) -> Answer<pb::ExplainAuthzResponse> {
        let pb::ExplainAuthzRequest { user, method } = request.into_inner();
        let found = methods::meant(&method).map_err(|several| {
            let why = if several.is_empty() {
                format!("this agent has no method {method}; such as JobService/CancelJob")
            } else {
                format!("{method} may be {}", several.join(" or "))
            };
            error::not_found("UNKNOWN_METHOD", why)
        })?;
        let (authz, name) = (self.0.authz.borrow().clone(), user.clone());
        let standing = blocking(move || authz.standing_of(&name)).await?;
        let standing = standing.ok_or_else(|| {
            let why = format!(
                "{user:?} is no user of this machine, or its groups are not known; a number does"
            );
            error::not_found("UNKNOWN_USER", why)
        })?;
        Ok(Response::new(pb::ExplainAuthzResponse {
            allowed: standing.may(found),
            user_role: standing.role.word().to_owned(),
            needed_role: found.role.word().to_owned(),
            why: standing.why,
            method: found.path.to_owned(),
        }))
    }
}

/// Everything whose change may change the status.
struct Watch {
    overview: Overview,
    identity: IdentityWatch,
    heartbeat: watch::Receiver<HeartbeatStatus>,
    policy: PolicyWatch,
    labels: watch::Receiver<Labels>,
    audit: watch::Receiver<Head>,
    jobs: broadcast::Receiver<Entry>,
    told: Option<pb::Status>,
}

impl Watch {
    fn of(overview: Overview) -> Self {
        let s = overview.sources();
        Self {
            identity: s.identity.clone(),
            heartbeat: s.heartbeat.clone(),
            policy: s.policy.clone(),
            labels: s.labels.clone(),
            audit: s.audit.watch(),
            jobs: s.journal.changes(),
            told: None,
            overview,
        }
    }

    /// The present status at first, then each that differs in more than its time.
    async fn next(&mut self) -> Option<pb::Status> {
        loop {
            if self.told.is_some() {
                self.change().await?;
                sleep(CALM).await;
            }
            let status = convert::status(&self.overview);
            let timeless = pb::Status { now: None, ..status.clone() };
            if self.told.as_ref() != Some(&timeless) {
                self.told = Some(timeless);
                return Some(status);
            }
        }
    }

    /// `None` when the agent is gone.
    async fn change(&mut self) -> Option<()> {
        let alive = tokio::select! {
            changed = self.identity.changed() => changed.is_ok(),
            changed = self.heartbeat.changed() => changed.is_ok(),
            changed = self.policy.changed() => changed.is_ok(),
            changed = self.labels.changed() => changed.is_ok(),
            changed = self.audit.changed() => changed.is_ok(),
            changed = self.jobs.recv() => !matches!(changed, Err(broadcast::error::RecvError::Closed)),
            () = sleep(LOOK) => true,
        };
        alive.then_some(())
    }
}
