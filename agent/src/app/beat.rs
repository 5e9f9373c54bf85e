//! What the heartbeat says of the agent, and what its answers set going.

use std::sync::Arc;

use jtnt_proto::hub::{HeartbeatRequest, HeartbeatResponse, JobCounts};
use tokio::sync::watch;

use super::{core::Core, witness::Witness};
use crate::{
    domain::{backoff::Saved, health::Mark},
    heartbeat::Saying,
    identity::{CertInfo, Identity},
    jobs::Jobs,
    overview::{Overview, VERSION},
    platform::sweep,
    policy::PolicyKeeper,
    renewal::Renewal,
    store::{Journal, StoreError},
};

/// The backoff of the heartbeat, while there is one.
const CURSOR: &str = "heartbeat-backoff";

/// Says how the agent is, while it has an identity.
pub(super) fn facts(
    overview: Overview,
    witness: Witness,
) -> impl FnMut() -> Saying + Send + 'static {
    let boot_id: Arc<str> = sweep::boot_id().unwrap_or_default().into();
    move || {
        let (overview, witness, boot_id) =
            (overview.clone(), witness.clone(), Arc::clone(&boot_id));
        Box::pin(async move {
            let identity = overview.sources().identity.borrow().clone().ok()?;
            let head = witness.head().await;
            Some(HeartbeatRequest { audit: Some(head), ..request(&overview, &identity, &boot_id) })
        })
    }
}

/// What is said to prove a certificate: nothing but who this is.
pub(super) fn proof(overview: &Overview, cert: &CertInfo) -> Option<HeartbeatRequest> {
    let identity = overview.sources().identity.borrow().clone().ok()?;
    let boot_id = sweep::boot_id().unwrap_or_default();
    let said = request(overview, &identity, &boot_id);
    Some(HeartbeatRequest {
        certificate_serial: cert.serial.clone(),
        certificate_expires_at: cert.not_after,
        ..said
    })
}

fn request(overview: &Overview, identity: &Arc<Identity>, boot_id: &str) -> HeartbeatRequest {
    let s = overview.sources();
    let (head, counts) = (s.audit.head(), s.journal.counts());
    let policy_version = s.policy.borrow().as_ref().map_or(0, |p| p.verified.get().version);
    let report = overview.health();
    let state = if head.error.is_some() || s.journal.last_error().is_some() {
        "degraded"
    } else if report.checks.certificates.status == Mark::Fail {
        "needs_reenroll"
    } else if report.checks.policy.status == Mark::Fail {
        "policy_expired"
    } else {
        "ok"
    };
    HeartbeatRequest {
        agent_id: identity.agent_id.clone(),
        version: VERSION.to_owned(),
        state: state.to_owned(),
        boot_id: boot_id.to_owned(),
        uptime_seconds: overview.uptime().as_secs(),
        root_version: identity.keyring.root().version,
        root_source: identity.root_source.word().to_owned(),
        policy_version,
        certificate_serial: identity.cert.serial.clone(),
        certificate_expires_at: identity.cert.not_after,
        enforcement: s.gate.enforcement().to_string(),
        jobs: JobCounts {
            queued: counts.queued,
            running: counts.running,
            pending: counts.undelivered,
        },
        audit: None,
        labels: s.labels.borrow().clone(),
    }
}

/// Hints make the agent ask sooner; they decide nothing.
pub(super) fn answered(
    overview: Overview,
    keeper: PolicyKeeper,
    jobs: Jobs,
    renewal: Renewal,
    witness: Witness,
) -> impl FnMut(HeartbeatResponse) + Send + 'static {
    move |answer| {
        let s = overview.sources();
        if let Ok(identity) = &*s.identity.borrow() {
            witness.answered(identity.keyring.root(), &answer);
        }
        let hints = answer.hints;
        let version = s.policy.borrow().as_ref().map_or(0, |p| p.verified.get().version);
        if let Some(root) = hints.root_version {
            keeper.poke_root(root);
        }
        if hints.policy_version.is_some_and(|newest| newest > version) {
            keeper.poke();
        }
        if hints.renew {
            renewal.hint();
        }
        if hints.jobs || hints.cancels {
            jobs.poke();
        }
    }
}

/// What an earlier process left of its backoff.
pub(super) fn saved(journal: &Journal) -> Option<Saved> {
    let stored = journal.cursor(CURSOR).ok().flatten()?;
    serde_json::from_slice(&stored).ok()
}

/// Keeps the backoff, newest first; older ones that were not written yet do not matter.
pub(super) async fn keep(journal: Journal, mut backoff: watch::Receiver<Option<Saved>>) {
    while backoff.changed().await.is_ok() {
        let saved = *backoff.borrow_and_update();
        if let Err(error) = write(&journal, saved).await {
            tracing::warn!(%error, "the backoff is not kept across a restart");
        }
    }
}

/// A clean stop leaves no backoff, as the operations guide promises.
pub(super) async fn clear(core: &Core) -> Result<(), StoreError> {
    write(&core.state.journal, None).await
}

async fn write(journal: &Journal, saved: Option<Saved>) -> Result<(), StoreError> {
    let value = saved.and_then(|saved| serde_json::to_vec(&saved).ok()).unwrap_or_default();
    journal.set_cursor(CURSOR, value).await
}
