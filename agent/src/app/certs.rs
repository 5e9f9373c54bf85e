//! How certificates are replaced and proven: the renewal's parts, put together.

use std::{pin::Pin, sync::Arc};

use tokio::sync::watch;

use super::{
    beat,
    core::{Base, State},
    published::Published,
};
use crate::{
    admin::{Proof, Proven},
    heartbeat::HeartbeatStatus,
    hub::HubError,
    identity::{CertInfo, IdentityError, Paths},
    overview::Overview,
    renewal::{self, Connect, Prove, RenewError, Renewal, Task},
};

/// The task that replaces certificates, and what asks it.
pub(super) fn renewal(
    base: &Base,
    state: &State,
    published: &Arc<Published>,
    overview: &Overview,
) -> Result<(Renewal, Task), IdentityError> {
    let paths = Paths { data_dir: base.config.data_dir.clone() };
    let deps = renewal::Deps {
        paths,
        key_store: published.key_store(),
        signer: Arc::clone(&state.signer),
        clock: Arc::clone(&base.clock),
        entropy: Arc::clone(&base.entropy),
        connect: connect(published),
        prove: prove(overview),
    };
    let watched = (published.identity.subscribe(), published.link.subscribe());
    let own = Arc::clone(published);
    let take_up = Arc::new(move || -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let own = Arc::clone(&own);
        Box::pin(async move { own.refresh_again().await })
    });
    let told = (state.audit.clone(), base.metrics.clone());
    Ok(Task::build(deps, watched, told, take_up))
}

/// A hub that takes the certificate no longer, whatever its dates say, may still renew it.
pub(super) async fn heed(mut heartbeat: watch::Receiver<HeartbeatStatus>, renewal: Renewal) {
    while heartbeat.changed().await.is_ok() {
        let refused = heartbeat.borrow_and_update().refused.clone();
        let over = ["CERTIFICATE_EXPIRED", "CERTIFICATE_REPLACED"];
        if refused.is_some_and(|reason| over.contains(&reason.as_str())) {
            renewal.hint();
        }
    }
}

fn connect(published: &Arc<Published>) -> Connect {
    let own = Arc::clone(published);
    Arc::new(move |identity| own.connect(identity))
}

/// By a heartbeat: every hub takes one, and it changes nothing but when the agent was last seen.
fn prove(overview: &Overview) -> Prove {
    let overview = overview.clone();
    Arc::new(move |client, cert: CertInfo| {
        let said = beat::proof(&overview, &cert);
        Box::pin(async move {
            let nobody = || HubError::BadAnswer("this agent has no identity".to_owned());
            let answer = client.heartbeat(&said.ok_or_else(nobody)?).await?;
            Ok(answer.certificate_serial)
        })
    })
}

/// Shows the certificate in place to the hub over a connection of its own.
pub(super) fn proof(published: &Arc<Published>, overview: &Overview) -> Proof {
    let (connect, prove) = (connect(published), prove(overview));
    let identity = published.identity.subscribe();
    Arc::new(move || {
        let (connect, prove) = (Arc::clone(&connect), Arc::clone(&prove));
        let found = identity.borrow().clone();
        Box::pin(async move {
            let identity = found.map_err(|fault| RenewError::no_identity(&fault))?;
            let client = connect(&identity).ok_or_else(RenewError::no_hub)?;
            let seen = prove(client.clone(), identity.cert.clone()).await;
            let seen = seen.map_err(|error| RenewError::unseen(&error))?;
            let (serial, key_exchange) = (identity.cert.serial.clone(), client.key_exchange());
            Ok(Proven { serial, seen, key_exchange })
        })
    })
}
