//! Renewal of the client certificate, so that no machine is stranded by it.
//!
//! The order is the point. A new key and its request are durable before the hub is asked; the new
//! certificate is durable before it is tried; it is tried, over a connection of its own, before it
//! takes its place; and what was there before stays beside it. However it is killed, a whole pair is
//! in place, and the next try goes on where this one ended.

mod error;
mod keep;
mod pending;
mod task;

use std::{fmt, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use jiff::SignedDuration;
use jtnt_proto::{
    bytes::Base64,
    hub::{RenewRequest, RenewResponse},
    identity::renew_proof_message,
};
use tokio::time::timeout;

use self::pending::Pending;
pub use self::{
    error::RenewError,
    keep::{Backup, Known, backup, clean_backup, facts},
    task::{Renewal, RenewalStatus, Report, Task},
};
use crate::{
    domain::{
        cert_rule,
        key_store::{KeyStore, TokenUri},
    },
    hub::{HubClient, HubError},
    identity::{
        self, CertInfo, Identity, IdentityError, Pair, Paths, client_key,
        commit::{self, NewFile},
        x509::{CertFault, info},
    },
    runtime::{
        clock::SharedClock,
        durable,
        entropy::{SharedEntropy, fraction},
        lock::Lock,
        signer::AuditSigner,
    },
};

const MAX_CRT_BYTES: u64 = 2 << 20;
/// How long a device may take to make a key.
const DEVICE: Duration = Duration::from_secs(60);
/// And to look for old ones, for which nobody should wait.
const SWEEP: Duration = Duration::from_secs(10);

/// Tells where new keys are made.
pub type Store = Arc<dyn Fn() -> KeyStore + Send + Sync>;
/// Makes a client of an identity that is not in place; nothing where there is no hub.
pub type Connect = Arc<dyn Fn(&Identity) -> Option<HubClient> + Send + Sync>;
type Seen = Pin<Box<dyn Future<Output = Result<Option<String>, HubError>> + Send>>;
/// Shows a certificate to the hub; which serial the hub saw, if it tells.
pub type Prove = Arc<dyn Fn(HubClient, CertInfo) -> Seen + Send + Sync>;

/// What a renewal needs.
#[derive(Clone)]
pub struct Deps {
    /// Where the identity is.
    pub paths: Paths,
    /// Where new keys are made, as the configuration has it now.
    pub key_store: Store,
    /// The audit key: a stolen TLS key alone renews nothing.
    pub signer: Arc<dyn AuditSigner>,
    /// Time.
    pub clock: SharedClock,
    /// Chance.
    pub entropy: SharedEntropy,
    /// See [`Connect`].
    pub connect: Connect,
    /// See [`Prove`].
    pub prove: Prove,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps")
            .field("paths", &self.paths)
            .field("key_store", &(self.key_store)())
            .finish_non_exhaustive()
    }
}

/// Where a renewal or a way back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The hub is asked for a certificate.
    Asking,
    /// Its answer is judged.
    Checking,
    /// The hub is shown the new one.
    Trying,
    /// It takes its place.
    Installing,
}

impl Step {
    /// For people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Asking => "asking the hub for a cert",
            Self::Checking => "checking the cert",
            Self::Trying => "showing it to the hub",
            Self::Installing => "putting it in place",
        }
    }
}

/// A certificate took the place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Serial of the one before, lower hex.
    pub before: String,
    /// The one that counts now.
    pub cert: CertInfo,
    /// Where its key is.
    pub key_store: String,
}

/// What the hub issued, judged.
struct Offer {
    pair: Pair,
    bundle: Option<Vec<u8>>,
    picked_at: Option<jiff::Timestamp>,
    identity: Identity,
}

impl Deps {
    /// Gets a new certificate and puts it in place.
    ///
    /// # Errors
    /// As [`RenewError`]; the pair in place is as it was then.
    pub async fn renew(
        &self,
        hub: &HubClient,
        current: &Arc<Identity>,
        told: &mut (dyn FnMut(Step) + Send),
    ) -> Result<Replaced, RenewError> {
        let tokens = self.tokens();
        let renewed = self.replace(hub, current, told).await;
        self.sweep(tokens, &current.agent_id).await;
        renewed
    }

    async fn replace(
        &self,
        hub: &HubClient,
        current: &Arc<Identity>,
        told: &mut (dyn FnMut(Step) + Send),
    ) -> Result<Replaced, RenewError> {
        let now = Arc::clone(current);
        let look = self.aside(move |own| (own.placed(), own.waiting(&now)));
        let (placed, waiting) = look.await?;
        let waiting = match waiting {
            Some(offer) => self.try_again(offer, current, told).await?,
            None => None,
        };
        let offer = match waiting {
            Some(offer) => offer,
            None => {
                let offer = self.issue(hub, current, told).await?;
                told(Step::Trying);
                self.try_out(&offer.identity).await?;
                offer
            }
        };
        told(Step::Installing);
        let Offer { pair, bundle, picked_at, identity } = offer;
        let known = self.known(&identity, current, picked_at);
        let before = known.before.clone();
        let place = move |own: &Self| {
            own.install(&placed, (pair, bundle), &known, |own, pair| {
                Pending::find(&own.paths).is_some_and(|pending| pending.is_of(&pair.key))
            })
        };
        self.aside(place).await??;
        Ok(Replaced { before, cert: identity.cert, key_store: identity.key_store.to_string() })
    }

    /// Does what keeps a thread busy, files and signatures, beside what the agent does meanwhile.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, RenewError> {
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&own)).await;
        done.map_err(|e| RenewError::lost(&e))
    }

    /// Puts the pair before back in place; the one that is there becomes the backup. `prove`: only
    /// if the hub takes it.
    ///
    /// # Errors
    /// As [`RenewError`]; the pair in place is as it was then.
    pub async fn roll_back(
        &self,
        prove: bool,
        told: &mut (dyn FnMut(Step) + Send),
    ) -> Result<Replaced, RenewError> {
        told(Step::Checking);
        let (placed, backup) = self.aside(|own| (own.placed(), own.backup())).await?;
        let (backup, tried) = backup?;
        if prove {
            told(Step::Trying);
            self.shown(&tried, RenewError::unproven).await?;
        }
        told(Step::Installing);
        let (serial, received_at) = (tried.cert.serial.clone(), self.clock.now());
        let before = self.aside(move |own| {
            let before = placed.as_ref().and_then(serial_of).unwrap_or_default();
            let known = Known { serial, received_at, renewed: false, picked_at: None, before };
            let placed = own.install(&placed, (backup, None), &known, |own, pair| {
                own.backup().is_ok_and(|(backup, _)| backup == *pair)
            });
            placed.map(|()| known.before)
        });
        Ok(Replaced {
            before: before.await??,
            cert: tried.cert,
            key_store: tried.key_store.to_string(),
        })
    }

    /// The backup, if there is a way back to it.
    fn backup(&self) -> Result<(Pair, Identity), RenewError> {
        let (crt, key) = (self.paths.client_crt_backup(), self.paths.client_key_backup());
        let backup = Pair::read(&crt, &key).map_err(|e| RenewError::bad_backup(&e))?;
        let backup = backup.ok_or_else(RenewError::no_backup)?;
        let tried = identity::with_pair(&self.paths, backup.clone(), None)
            .map_err(|e| RenewError::bad_backup(&e))?;
        self.is_current(&tried.cert).map_err(|e| RenewError::bad_backup(&e))?;
        if tried.cert.authority_dropped {
            let why = "the root of roles no longer names the authority that issued it";
            return Err(RenewError::bad_backup(&why));
        }
        Ok((backup, tried))
    }

    /// Whether an earlier try left something to be gone on with. What is no use is forgotten.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        match Pending::find(&self.paths) {
            Some(pending) if !self.is_in_place(&pending) => true,
            Some(_) => {
                self.forget();
                false
            }
            None if self.paths.client_key_pending().exists() => {
                self.forget();
                false
            }
            None => false,
        }
    }

    /// What an earlier try got and did not bring to its place. What cannot be used is forgotten.
    fn waiting(&self, current: &Identity) -> Option<Offer> {
        let pair = Pending::find(&self.paths)?.pair()?;
        let found = identity::with_pair(&self.paths, pair.clone(), None).ok();
        let found = found.filter(|found| {
            found.cert.serial != current.cert.serial && self.is_current(&found.cert).is_ok()
        });
        if found.is_none() {
            self.forget();
        }
        let identity = found?;
        let known = Known::of_pending(&self.paths, &identity.cert.serial);
        let picked_at = known.and_then(|known| known.picked_at);
        Some(Offer { pair, bundle: None, picked_at, identity })
    }

    /// Tries what an earlier try got. Nothing where the hub takes the one in place and not this:
    /// whoever issued it, waiting for it any longer would be waiting for ever.
    async fn try_again(
        &self,
        offer: Offer,
        current: &Identity,
        told: &mut (dyn FnMut(Step) + Send),
    ) -> Result<Option<Offer>, RenewError> {
        told(Step::Trying);
        let Err(error) = self.try_out(&offer.identity).await else { return Ok(Some(offer)) };
        if error.transient && self.shown(current, RenewError::unseen).await.is_err() {
            return Err(error);
        }
        tracing::warn!(%error, "the cert of an earlier try is given up, another is asked for");
        self.aside(Self::forget).await?;
        Ok(None)
    }

    /// Asks the hub, and keeps what it answers once that is judged.
    async fn issue(
        &self,
        hub: &HubClient,
        current: &Arc<Identity>,
        told: &mut (dyn FnMut(Step) + Send),
    ) -> Result<Offer, RenewError> {
        told(Step::Asking);
        let now = Arc::clone(current);
        let asked = self.aside(move |own| {
            let pending = own.pending(&now.agent_id)?;
            let request = own.request(&pending, &now);
            Ok((pending, request))
        });
        let silent = || RenewError::key(&(self.key_store)(), &"it does not answer");
        let (pending, request) = timeout(DEVICE, asked).await.map_err(|_late| silent())???;
        let answer = hub.renew(&request).await.map_err(|e| RenewError::asked(&e))?;
        told(Step::Checking);
        let (now, offset) = (Arc::clone(current), hub.clock_offset());
        self.aside(move |own| own.keep(&pending, &answer, offset, &now)).await?
    }

    /// A key whose request was not answered yet, or a new one.
    fn pending(&self, agent_id: &str) -> Result<Pending, RenewError> {
        match Pending::find(&self.paths) {
            Some(pending) if !self.is_in_place(&pending) => Ok(pending),
            _ => Pending::make(&self.paths, (&(self.key_store)(), agent_id), self.entropy.as_ref()),
        }
    }

    /// Keeps what the hub answered, if that is good.
    fn keep(
        &self,
        pending: &Pending,
        answer: &RenewResponse,
        offset: Option<SignedDuration>,
        current: &Identity,
    ) -> Result<Offer, RenewError> {
        let judged = self.judge(pending, answer, offset, current);
        let (pair, bundle, identity) = judged.inspect_err(|_| self.forget())?;
        let picked_at = answer.window.and_then(|window| {
            let life = (identity.cert.not_before, identity.cert.not_after);
            let drawn = fraction(self.entropy.as_ref());
            cert_rule::pick((window.start, window.end), life, drawn)
        });
        let known = self.known(&identity, current, picked_at);
        Pending::issued(&self.paths, &pair.crt, &known)?;
        Ok(Offer { pair, bundle: Some(bundle), picked_at, identity })
    }

    /// Tokens that may have keys which no file names any more, once something has changed.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenUri> {
        client_key::tokens(&self.paths, &(self.key_store)())
    }

    /// Destroys those keys, and waits no longer than a device may take. What fails is done by the next
    /// sweep: after a renewal, or daily.
    pub async fn sweep(&self, tokens: Vec<TokenUri>, agent_id: &str) {
        if tokens.is_empty() {
            return;
        }
        let agent_id = agent_id.to_owned();
        let swept = self.aside(move |own| {
            client_key::sweep(&tokens, &own.paths, &agent_id, client_key::Which::Unnamed)
        });
        match timeout(SWEEP, swept).await {
            Ok(Ok(failed)) => failed.iter().for_each(|error| tracing::warn!("{error}")),
            Ok(Err(error)) => tracing::error!(%error, "old keys stay for now"),
            Err(_late) => tracing::warn!("a token does not answer, so old keys stay for now"),
        }
    }

    fn known(
        &self,
        new: &Identity,
        current: &Identity,
        picked_at: Option<jiff::Timestamp>,
    ) -> Known {
        Known {
            serial: new.cert.serial.clone(),
            received_at: self.clock.now(),
            renewed: true,
            picked_at,
            before: current.cert.serial.clone(),
        }
    }

    fn request(&self, pending: &Pending, current: &Identity) -> RenewRequest {
        let (at, serial) = (self.clock.now(), current.cert.serial.clone());
        let message =
            renew_proof_message(&current.agent_id, &serial, &pending.csr, &at.to_string());
        let proof = Base64(self.signer.sign(&message).to_vec());
        RenewRequest { csr: pending.csr.clone(), serial, at, proof }
    }

    /// Believes nothing of the answer before it fits the key, the agent, the root and the time.
    fn judge(
        &self,
        pending: &Pending,
        answer: &RenewResponse,
        offset: Option<SignedDuration>,
        current: &Identity,
    ) -> Result<(Pair, Vec<u8>, Identity), RenewError> {
        let unusable = |e: IdentityError| RenewError::unusable(&e);
        let bundle = identity::bundle_with(&self.paths, answer.ca_bundle.as_bytes());
        let bundle = bundle.map_err(unusable)?;
        let pair = pending.pair_with(answer.certificate.clone().into_bytes());
        let pair = identity::trimmed(&self.paths, pair, &bundle).map_err(unusable)?;
        let found = identity::with_pair(&self.paths, pair.clone(), Some(bundle.clone()));
        let found = found.map_err(unusable)?;
        let now = self.clock.now();
        let dated = self.is_current(&found.cert);
        dated.map_err(|e| RenewError::dates(&e, now, offset))?;
        let (ends, before) = (found.cert.not_after, current.cert.not_after);
        if cert_rule::strands(ends, before, now) {
            return Err(RenewError::shorter(ends, before));
        }
        Ok((pair, bundle, found))
    }

    /// Shows it to the hub. What the hub refuses, or sees another in place of, is forgotten.
    async fn try_out(&self, tried: &Identity) -> Result<(), RenewError> {
        let end = self.shown(tried, RenewError::tried).await;
        if end.as_ref().is_err_and(|error| !error.transient) {
            self.aside(Self::forget).await?;
        }
        end
    }

    /// Shows a certificate to the hub over a connection of its own.
    async fn shown(
        &self,
        identity: &Identity,
        otherwise: fn(&HubError) -> RenewError,
    ) -> Result<(), RenewError> {
        let client = (self.connect)(identity).ok_or_else(RenewError::no_hub)?;
        let seen = (self.prove)(client, identity.cert.clone()).await;
        same(&identity.cert, seen.map_err(|e| otherwise(&e))?)
    }

    /// The pair in place, as the files are.
    fn placed(&self) -> Option<Pair> {
        Pair::read(&self.paths.client_crt(), &self.paths.client_key()).ok().flatten()
    }

    /// Both pairs, the authorities and what is known change places at once: see
    /// [`identity::commit`]. Only if `placed` is still in place, `ours` is still so, and the pair is
    /// still good: an enrolment may have come between, at another hub even.
    fn install(
        &self,
        placed: &Option<Pair>,
        (pair, bundle): (Pair, Option<Vec<u8>>),
        known: &Known,
        ours: impl FnOnce(&Self, &Pair) -> bool,
    ) -> Result<(), RenewError> {
        let paths = &self.paths;
        let failed = |e: io::Error| RenewError::storage("the cert was not put in place", &e);
        let _lock = Lock::take(&paths.enrol_lock(), "jtnt-agent, replacing its cert")
            .map_err(|e| RenewError::busy(&e))?;
        if self.placed() != *placed || commit::is_pending(&paths.data_dir) || !ours(self, &pair) {
            return Err(RenewError::overtaken());
        }
        identity::with_pair(paths, pair.clone(), bundle.clone())
            .map_err(|e| RenewError::unusable(&e))?;
        let file = |target, content: Vec<u8>, mode| NewFile {
            target,
            content: content.into(),
            mode,
            folder_mode: 0o700,
        };
        let mut files = vec![
            file(paths.client_key(), pair.key.to_vec(), durable::PRIVATE),
            file(paths.client_crt(), pair.crt, durable::PUBLIC),
        ];
        files.extend(bundle.map(|bundle| file(paths.ca_bundle(), bundle, durable::PUBLIC)));
        if let Some(before) = placed.clone() {
            let (key, crt) = (paths.client_key_backup(), paths.client_crt_backup());
            files.push(file(key, before.key.to_vec(), durable::PRIVATE));
            files.push(file(crt, before.crt, durable::PUBLIC));
        }
        let known = serde_json::to_vec(known).map_err(|e| failed(e.into()))?;
        files.push(file(paths.renewal(), known, durable::PUBLIC));
        commit::commit(&paths.data_dir, &files, &mut |_| Ok(())).map_err(failed)?;
        self.forget();
        Ok(())
    }

    /// A key that has taken its place is no news.
    fn is_in_place(&self, pending: &Pending) -> bool {
        let placed = Pair::read(&self.paths.client_crt(), &self.paths.client_key());
        let own = pending.pair_with(Vec::new()).key;
        placed.is_ok_and(|placed| placed.is_some_and(|placed| placed.key == own))
    }

    fn is_current(&self, cert: &CertInfo) -> Result<(), CertFault> {
        let now = self.clock.now();
        if now < cert.not_before {
            return Err(CertFault::NotYetValid(cert.not_before));
        }
        if now >= cert.not_after {
            return Err(CertFault::Expired(cert.not_after));
        }
        Ok(())
    }

    fn forget(&self) {
        if let Err(error) = Pending::discard(&self.paths) {
            tracing::warn!(%error, "the traces of a cert renewal stay");
        }
    }
}

fn serial_of(pair: &Pair) -> Option<String> {
    let chain = identity::x509::certificates(&pair.crt).ok()?;
    Some(info(chain.first()?).ok()?.serial)
}

/// A hub that tells what it saw must have seen what it was shown.
fn same(shown: &CertInfo, seen: Option<String>) -> Result<(), RenewError> {
    match seen {
        Some(seen) if seen != shown.serial => Err(RenewError::not_seen(&shown.serial, &seen)),
        _ => Ok(()),
    }
}
