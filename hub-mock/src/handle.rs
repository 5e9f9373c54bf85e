//! The library's face: a handle to script a running hub and to watch it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jtnt_proto::{bytes::Hash, envelope::Envelope, hub::OutputChunk, job::Artifact};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::{
    authorities::{AuthorityView, Step},
    builder::Builder,
    durable::{self, Access},
    error::HubError,
    faults::{Fault, Kind, Route},
    hub::{Core, Shared, unknown_agent},
    operator::Operator,
    record::{Filter, Recorded},
    routes,
    state::{Event, OldCertificates, Standing, State},
    view::{AgentView, JobView},
};

/// How long a stop waits for connections to end.
const DRAIN: Duration = Duration::from_secs(5);

/// A running hub. It stops when this is dropped, or better with [`Handle::shutdown`].
#[derive(Debug)]
pub struct Handle {
    pub(crate) core: Shared,
    pub(crate) tasks: TaskTracker,
    pub(crate) again: Builder,
    pub(crate) temporary: Option<TempDir>,
}

impl Handle {
    /// `https://localhost:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.again.listen.port())
    }

    /// `https://ADDRESS:PORT`.
    #[must_use]
    pub fn url_by_address(&self) -> String {
        format!("https://{}", self.again.listen)
    }

    /// Where agents connect.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.again.listen
    }

    /// Where the operator connects.
    #[must_use]
    pub const fn control_addr(&self) -> SocketAddr {
        self.again.control
    }

    /// The hub's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.core.settings.dir
    }

    /// `ca.crt`, for `--hub-ca`.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir().join("ca.crt")
    }

    /// `root.json`, for `--root`.
    #[must_use]
    pub fn root_file(&self) -> PathBuf {
        self.dir().join("root.json")
    }

    /// The operator of this hub's folder: a client, which happens to live in the same process.
    ///
    /// # Errors
    /// When the keys cannot be read.
    pub fn operator(&self) -> Result<Operator, HubError> {
        Operator::open(self.dir())
    }

    /// A new one-time enrolment token.
    ///
    /// # Errors
    /// When there is no randomness or the journal is broken.
    pub async fn token(&self) -> Result<String, HubError> {
        self.token_for(None).await
    }

    /// A new one-time enrolment token that lives for `life`.
    ///
    /// # Errors
    /// When there is no randomness or the journal is broken.
    pub async fn token_for(&self, life: Option<Duration>) -> Result<String, HubError> {
        let (token, seq) = self.core.make_token(life)?;
        self.core.durable(seq).await?;
        Ok(token)
    }

    /// Sets a fault for the next `times` requests, or until cleared.
    ///
    /// # Errors
    /// When the kind cannot strike `route`, or too many faults wait.
    pub fn set_fault(&self, route: Route, kind: Kind, times: Option<u32>) -> Result<(), HubError> {
        self.core.faults.set(Fault { route, kind, times, document: None })
    }

    /// Sets a fault that serves `document`, for [`Kind::Expired`].
    ///
    /// # Errors
    /// When it cannot strike `route`, or too many faults wait.
    pub fn set_document_fault(
        &self,
        route: Route,
        document: Envelope,
        times: Option<u32>,
    ) -> Result<(), HubError> {
        self.core.faults.set(Fault { route, kind: Kind::Expired, times, document: Some(document) })
    }

    /// Forgets all faults and lets hanging requests go.
    pub fn clear_faults(&self) {
        self.core.faults.clear();
    }

    /// The remembered requests, oldest first.
    #[must_use]
    pub fn requests(&self, filter: &Filter) -> Vec<Recorded> {
        self.core.recorder.list(filter)
    }

    /// The first request, remembered or to come, that `wanted` is true of.
    pub async fn await_request(&self, wanted: impl Fn(&Recorded) -> bool) -> Recorded {
        self.core.recorder.await_one(wanted).await
    }

    /// Takes a signed job for delivery to `agent_id`; returns its id. The payload is not judged.
    ///
    /// # Errors
    /// When the agent is unknown, or the id improper or taken.
    pub async fn enqueue(&self, agent_id: &str, job: Envelope) -> Result<String, HubError> {
        self.core.enqueue(agent_id, job).await
    }

    /// Takes a signed cancellation for delivery.
    ///
    /// # Errors
    /// When the job is unknown or has ended.
    pub async fn cancel(&self, job_id: &str, cancel: Envelope) -> Result<(), HubError> {
        self.core.cancel(job_id, cancel).await
    }

    /// A job and what became of it.
    #[must_use]
    pub fn job(&self, job_id: &str) -> Option<JobView> {
        self.core.job(job_id)
    }

    /// Waits until a job has ended.
    pub async fn wait_job(&self, job_id: &str) -> JobView {
        let ended =
            |state: &State| state.jobs.get(job_id).filter(|j| j.has_ended()).map(JobView::of);
        self.core.await_end(ended).await
    }

    /// Waits until `reached` is true of a job.
    pub async fn await_job(&self, job_id: &str, reached: impl Fn(&JobView) -> bool) -> JobView {
        let look = |state: &State| state.jobs.get(job_id).map(JobView::of).filter(|j| reached(j));
        self.core.await_state(look).await
    }

    /// Publishes a signed policy; returns its version. The payload is not judged.
    ///
    /// # Errors
    /// When the payload names no version.
    pub async fn publish_policy(&self, policy: Envelope) -> Result<u64, HubError> {
        self.core.publish_policy(policy).await
    }

    /// Publishes a signed root; returns its version. The payload is not judged.
    ///
    /// # Errors
    /// When the payload names no version.
    pub async fn publish_root(&self, root: Envelope) -> Result<u64, HubError> {
        self.core.publish_root(root).await
    }

    /// Stores bytes for agents to fetch.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_artifact(&self, bytes: &[u8]) -> Result<Artifact, HubError> {
        let sha256 = Hash::of(bytes);
        let folder = routes::artifacts::folder(&self.core);
        durable::private_dir(&folder).map_err(HubError::file(&folder))?;
        let path = folder.join(sha256.to_string());
        durable::replace(&path, bytes, Access::Private).map_err(HubError::file(&path))?;
        Ok(Artifact { sha256, size: u64::try_from(bytes.len()).unwrap_or(u64::MAX) })
    }

    /// The bytes of an artifact, as agents uploaded or are to fetch it.
    ///
    /// # Errors
    /// When there is none.
    pub fn artifact(&self, sha256: Hash) -> Result<Vec<u8>, HubError> {
        let path = routes::artifacts::folder(&self.core).join(sha256.to_string());
        std::fs::read(&path).map_err(HubError::file(&path))
    }

    /// What a job has written so far, where its signer asked to hear it; at most 32 pieces.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub async fn live_output(&self, job_id: &str) -> Result<Vec<OutputChunk>, HubError> {
        let path = routes::streams::file(&self.core.settings.dir, job_id);
        self.core.streams.pieces(&path, 0).await.map_err(HubError::file(&path))
    }

    /// All enrolled agents.
    #[must_use]
    pub fn agents(&self) -> Vec<AgentView> {
        self.core.agents()
    }

    /// Where the lines of an audit log are that the hub holds.
    #[must_use]
    pub fn audit_file(&self, agent_id: &str, log_id: &str) -> PathBuf {
        routes::lines::file(&self.core.settings.dir, agent_id, log_id)
    }

    /// Revokes all certificates of an agent, or treats them as expired.
    ///
    /// # Errors
    /// When the agent is unknown.
    pub async fn judge_certificates(&self, id: &str, standing: Standing) -> Result<(), HubError> {
        judge(&self.core, id, standing).await
    }

    /// What a renewal does to the certificate before.
    pub fn set_old_certificates(&self, rule: OldCertificates) {
        self.core.record(&mut self.core.lock(), Event::OldCertificatesSet { rule });
    }

    /// The certificate authorities that count.
    #[must_use]
    pub fn authorities(&self) -> Vec<AuthorityView> {
        self.core.authorities.views()
    }

    /// Goes a step on from one authority to the next. The root that names them is the operator's to
    /// sign: [`Operator::root_naming`].
    ///
    /// # Errors
    /// When there is nothing to go on with, or a file cannot be written.
    pub async fn turn_authorities(&self, step: Step) -> Result<(), HubError> {
        turn(&self.core, step).await
    }

    /// Whether heartbeats ask `agent_id` to renew its certificate.
    pub fn hint_renewal(&self, agent_id: &str, renew: bool) {
        self.core.hint_renewal(agent_id, renew);
    }

    /// Stops: no new connection, open requests get a few seconds, state is on disk afterwards.
    pub async fn shutdown(self) {
        self.stop().await;
    }

    /// Stops and starts again, with the same folder and addresses.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn restart(mut self) -> Result<Self, HubError> {
        self.stop().await;
        let (again, temporary) = (self.again.clone(), self.temporary.take());
        let dir = self.dir().to_owned();
        drop(self); // the journal's writer ends with it
        again.start_in(dir, temporary).await
    }

    async fn stop(&self) {
        self.core.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("{} connections did not end in time", self.tasks.len());
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.stop.cancel();
    }
}

/// Judges all certificates of an agent.
/// Goes a step on with the authorities.
pub(crate) async fn turn(core: &Shared, step: Step) -> Result<(), HubError> {
    let own = Arc::clone(core);
    let turned = tokio::task::spawn_blocking(move || own.authorities.go(step)).await;
    turned.map_err(|e| HubError::damaged("authorities", e))??;
    if step == Step::Switch {
        let agents: Vec<_> = core.lock().state.agents.keys().cloned().collect();
        agents.iter().for_each(|agent| core.hint_renewal(agent, true));
    }
    Ok(())
}

pub(crate) async fn judge(core: &Core, id: &str, standing: Standing) -> Result<(), HubError> {
    let seq = {
        let mut inner = core.lock();
        let agent = inner.state.agents.get(id).ok_or_else(|| unknown_agent(id))?;
        let serials: Vec<_> = agent.certificates.iter().map(|c| c.serial.clone()).collect();
        for serial in serials {
            let agent_id = id.to_owned();
            core.record(&mut inner, Event::CertificateJudged { agent_id, serial, standing });
        }
        core.last_event()
    };
    core.durable(seq).await
}
