//! The services, one file each: read the request, ask the floor that knows, convert the answer.

mod agent;
mod audit;
mod cache;
mod cert;
mod evidence;
mod job;
mod policy;

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use jtnt_proto::{
    admin::{
        DESCRIPTORS,
        v1::{
            agent_service_server::AgentServiceServer, audit_service_server::AuditServiceServer,
            cache_service_server::CacheServiceServer, cert_service_server::CertServiceServer,
            job_service_server::JobServiceServer, policy_service_server::PolicyServiceServer,
        },
    },
    envelope::MAX_PAYLOAD_BYTES,
};
use tonic::{Code, Response, Status, server::NamedService, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{Deps, error};
use crate::runtime::tasks::Class;

type Answer<T> = Result<Response<T>, Status>;
/// Answers one after the other.
type Many<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The longest request: a command line with its environment.
const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// The longest about policies: a document, and a little more, to say that it is too long.
const MAX_POLICY_REQUEST_BYTES: usize = MAX_PAYLOAD_BYTES + 64 * 1024;

/// Every service, with reflection and `grpc.health.v1`; and what tells of the latter.
pub(super) async fn routes(deps: &Deps) -> Result<(Routes, HealthReporter), String> {
    let agent = AgentServiceServer::new(agent::Agent(deps.clone()));
    let cert = CertServiceServer::new(cert::Cert(deps.clone()));
    let policy = PolicyServiceServer::new(policy::Policy(deps.clone()));
    let job = JobServiceServer::new(job::Job(deps.clone()));
    let audit = AuditServiceServer::new(audit::Audit(deps.clone()));
    let cache = CacheServiceServer::new(cache::Cache(deps.clone()));
    let (reporter, health) = tonic_health::server::health_reporter();
    let names = [
        name_of(&agent),
        name_of(&cert),
        name_of(&policy),
        name_of(&job),
        name_of(&audit),
        name_of(&cache),
    ];
    for name in names {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1().map_err(|e| e.to_string())?;
    let v1alpha = reflection().build_v1alpha().map_err(|e| e.to_string())?;
    let routes = Routes::new(agent.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(cert.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(policy.max_decoding_message_size(MAX_POLICY_REQUEST_BYTES))
        .add_service(job.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(audit.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(cache.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(health.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(v1.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(v1alpha.max_decoding_message_size(MAX_REQUEST_BYTES));
    Ok((routes, reporter))
}

/// `grpc.health.v1` says of the agent as a whole what `/readyz` says.
pub(super) async fn tell_readiness(reporter: HealthReporter, deps: &Deps) {
    let sources = deps.overview.sources();
    let (mut ready, mut audit) = (sources.ready.clone(), sources.audit.watch());
    let (overview, stop) = (deps.overview.clone(), deps.tasks.shutdown());
    reporter.set_service_status("", ServingStatus::NotServing).await;
    deps.tasks.spawn("readiness", Class::OneShot, async move {
        loop {
            let serving = overview.unready().is_empty();
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status("", status).await;
            let alive = tokio::select! {
                changed = ready.changed() => changed.is_ok(),
                changed = audit.changed() => changed.is_ok(),
                () = stop.cancelled() => false,
            };
            if !alive {
                return;
            }
        }
    });
}

const fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

/// Items that come for as long as the agent runs. A stop is told, so that whoever listens can tell
/// it from the end of what there is to say, and from a connection that broke.
fn while_running<T: Send + 'static>(
    deps: &Deps,
    items: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Many<T> {
    let going_on = Some((deps.tasks.shutdown(), Box::pin(items)));
    Box::pin(stream::unfold(going_on, |going_on| async {
        let (stop, mut items) = going_on?;
        let item = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            item = items.next() => Some(item?),
        };
        Some(match item {
            Some(item) => (item, Some((stop, items))),
            None => {
                let why = "the agent is stopping";
                (Err(error::status(Code::Unavailable, "STOPPING", why)), None)
            }
        })
    }))
}

/// Runs what reads files or asks the user database on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(error::internal)
}
