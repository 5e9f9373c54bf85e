//! The hub as a witness of this agent's audit log: what it is shown with each heartbeat, and what
//! becomes of its cosignature.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jtnt_proto::{
    checkpoint::{Note, witness_name},
    hub::{AuditHead, AuditRefusal, HeartbeatResponse, MAX_KEY_ROTATIONS},
    root::Root,
};
use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, AuditError, Head, Offer, rotations};

/// Answers that are not worked on yet; an older one is no loss.
const QUEUE: usize = 1;
/// Between two heartbeats out of turn.
const BREATH: Duration = Duration::from_secs(1);

/// Both sides of one heartbeat after another.
#[derive(Debug, Clone)]
pub(super) struct Witness {
    audit: Audit,
    state: Arc<Mutex<State>>,
    news: mpsc::Sender<News>,
}

/// What the hub's answer means for the log.
#[derive(Debug)]
pub(super) enum News {
    /// A checkpoint is cosigned.
    Cosigned(String),
    /// The hub knows a checkpoint of ours that our lines do not fit.
    RolledBack(String),
}

#[derive(Debug, Default)]
struct State {
    /// What the next answer is about.
    shown: Option<Offer>,
    /// How many lines the hub says that it has seen, where that is not what we know of.
    hub_has: Option<u64>,
    /// What was told of already.
    told: Option<AuditRefusal>,
}

impl Witness {
    /// With what [`keep`] is to store.
    pub(super) fn new(audit: Audit) -> (Self, mpsc::Receiver<News>) {
        let (news, kept) = mpsc::channel(QUEUE);
        (Self { audit, state: Arc::default(), news }, kept)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next heartbeat says of the log: a checkpoint with its proof, where one can be had.
    pub(super) async fn head(&self) -> AuditHead {
        let since = self.state().hub_has;
        let offer = match self.audit.checkpoint(since).await {
            Ok(offer) => Ok(offer),
            // A log that is shorter than what was seen has nothing to prove, and that is to be seen.
            Err(_) => self.audit.checkpoint(Some(0)).await,
        };
        let key_rotations = self.rotations().await;
        match offer {
            Ok(offer) => {
                let head = AuditHead {
                    key_rotations,
                    log_id: offer.log_id.clone(),
                    size: offer.size,
                    head: offer.head,
                    checkpoint: Some(offer.note.clone()),
                    old_size: Some(offer.old_size),
                    proof: offer.proof.clone(),
                };
                self.state().shown = Some(offer);
                head
            }
            Err(error) => self.bare(&error),
        }
    }

    /// What finds the queue full comes again with the next answer.
    fn bring(&self, news: News) {
        if let Err(error) = self.news.try_send(news) {
            tracing::debug!(%error, "an older answer about the audit log is being worked on");
        }
    }

    /// The newest lines by which the key was replaced. What cannot be read comes with the next one.
    async fn rotations(&self) -> Vec<String> {
        let dir = self.audit.dir().to_owned();
        let read = tokio::task::spawn_blocking(move || rotations(&dir)).await;
        let mut all = match read {
            Ok(Ok(all)) => all,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the hub is not told of new audit keys");
                Vec::new()
            }
            Err(_stopped) => Vec::new(),
        };
        all.split_off(all.len().saturating_sub(MAX_KEY_ROTATIONS))
    }

    fn bare(&self, error: &AuditError) -> AuditHead {
        tracing::debug!(%error, "the heartbeat has no checkpoint");
        self.state().shown = None;
        let head = self.audit.head();
        AuditHead {
            log_id: head.log_id,
            size: head.size,
            head: head.head,
            checkpoint: None,
            old_size: None,
            proof: Vec::new(),
            key_rotations: Vec::new(),
        }
    }

    /// Takes the answer. `root`: who may be a witness.
    pub(super) fn answered(&self, root: &Root, answer: &HeartbeatResponse) {
        let mut state = self.state();
        let Some(shown) = state.shown.take() else { return };
        state.hub_has = answer.witnessed_size;
        if let Some(line) = &answer.witness {
            match cosigned(root, &shown.note, line) {
                Some(note) => {
                    self.bring(News::Cosigned(note));
                    state.told = None;
                }
                None => tracing::warn!(
                    "the hub's cosignature of the audit log is none of a witness that the root of \
                     roles names; it does not count"
                ),
            }
        }
        if let Some(note) = answer.rolled_back.clone().filter(|_| answer.audit_refusal.is_some()) {
            self.bring(News::RolledBack(note));
        }
        if answer.audit_refusal != state.told
            && let Some(refusal) = answer.audit_refusal
        {
            state.told = Some(refusal);
            tracing::error!(
                lines = shown.size,
                "the hub does not cosign the audit log: {}",
                refusal.words()
            );
        }
    }
}

/// The note with this line, if as many witnesses as the root wants have cosigned by it.
fn cosigned(root: &Root, note: &str, line: &str) -> Option<String> {
    let both = format!("{note}{line}");
    let parsed = Note::parse(&both).ok()?;
    let (role, name) = (&root.roles.witness, witness_name(&root.root_id));
    let keys = role.keyids.iter().filter_map(|id| root.keys.get(id));
    let count = keys.filter(|key| parsed.cosigned_by(&name, key).is_some()).count();
    (count >= usize::from(role.threshold.max(1))).then_some(both)
}

/// Has the hub see at once what it should, but not more often than it can bear.
pub(super) async fn hurry(audit: Audit, urgent: Arc<Notify>, stop: CancellationToken) {
    let mut head = audit.watch();
    let last = |head: &Head| (head.log_id.clone(), head.urgent);
    let mut shown = last(&head.borrow());
    let hurried = async {
        while head.changed().await.is_ok() {
            let now = last(&head.borrow_and_update());
            if now != shown {
                shown = now;
                urgent.notify_one();
                sleep(BREATH).await;
            }
        }
    };
    tokio::select! {
        () = hurried => {}
        () = stop.cancelled() => {}
    }
}

/// Does what the answers ask for, until nobody brings more.
pub(super) async fn keep(audit: Audit, mut news: mpsc::Receiver<News>) {
    while let Some(news) = news.recv().await {
        match news {
            News::Cosigned(note) => {
                if let Err(error) = audit.witnessed(note).await {
                    tracing::warn!(%error, "the hub's cosignature is not stored");
                }
            }
            News::RolledBack(note) => match audit.rolled_back(note).await {
                Ok(true) => tracing::error!(
                    log_id = audit.head().log_id,
                    "ROLLED_BACK: the audit log was put back to an earlier state; it is kept aside, \
                     and a new one has begun"
                ),
                Ok(false) => tracing::warn!(
                    "the hub says that the audit log was put back, and shows nothing of it"
                ),
                Err(error) => tracing::error!(%error, "no new audit log can be begun"),
            },
        }
    }
}
