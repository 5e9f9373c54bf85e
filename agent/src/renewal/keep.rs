//! What is remembered of the certificate in place, beside it: when it came, when the hub would like
//! it renewed, and what it took the place of. And how long that stays.

use std::{io, path::Path};

use jiff::{SignedDuration, Timestamp};
use jtnt_proto::json;
use serde::{Deserialize, Serialize};

use crate::{
    domain::cert_rule::Certificate,
    identity::{CertInfo, Pair, Paths, x509},
    runtime::durable,
};

const MAX_BYTES: u64 = 64 * 1024;
/// How long the pair before is kept.
const BACKUP_KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// `certs/renewal.json`. Fields are added, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The certificate that all of this is about, lower hex.
    pub serial: String,
    /// When it took its place.
    pub received_at: Timestamp,
    /// Whether that was a renewal, and not a way back.
    #[serde(default)]
    pub renewed: bool,
    /// When it is to be renewed, picked once in the window that the hub suggested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picked_at: Option<Timestamp>,
    /// The one before, lower hex.
    pub before: String,
}

impl Known {
    /// What is known of the certificate of this serial, which is in place.
    #[must_use]
    pub fn of(paths: &Paths, serial: &str) -> Option<Self> {
        Self::read(&paths.renewal(), serial)
    }

    /// The same of one that waits to be tried.
    pub(super) fn of_pending(paths: &Paths, serial: &str) -> Option<Self> {
        Self::read(&paths.renewal_pending(), serial)
    }

    fn read(path: &Path, serial: &str) -> Option<Self> {
        let bytes = durable::read(path, MAX_BYTES).ok()?;
        let known: Self = json::from_slice(&bytes).ok()?;
        (known.serial == serial).then_some(known)
    }
}

/// The certificate, as the rule sees it. Of one that came by an enrolment, the file tells when.
#[must_use]
pub fn facts(paths: &Paths, cert: &CertInfo) -> Certificate {
    let known = Known::of(paths, &cert.serial);
    let known = known.as_ref();
    let written = || {
        let modified = paths.client_crt().metadata().and_then(|meta| meta.modified()).ok()?;
        Timestamp::try_from(modified).ok().filter(|at| *at < cert.not_after)
    };
    Certificate {
        not_before: cert.not_before,
        not_after: cert.not_after,
        received_at: known.map(|known| known.received_at).or_else(written),
        picked_in_window: known.and_then(|known| known.picked_at),
        authority_dropped: cert.authority_dropped,
        last_renewal: known.filter(|known| known.renewed).map(|known| known.received_at),
    }
}

/// The certificate before, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// What it says.
    pub cert: CertInfo,
    /// Until when it is kept at least.
    pub kept_until: Timestamp,
}

/// The backup, where there is one that can be read.
#[must_use]
pub fn backup(paths: &Paths) -> Option<Backup> {
    let pair = Pair::read(&paths.client_crt_backup(), &paths.client_key_backup()).ok()??;
    let chain = x509::certificates(&pair.crt).ok()?;
    let cert = x509::info(chain.first()?).ok()?;
    let since = paths.client_crt_backup().metadata().and_then(|meta| meta.modified()).ok()?;
    let kept_until = Timestamp::try_from(since).ok()?.saturating_add(BACKUP_KEPT).ok()?;
    Some(Backup { cert, kept_until })
}

/// Removes a backup whose time is over; whether there was one.
///
/// # Errors
/// As the system's.
pub fn clean_backup(paths: &Paths, now: Timestamp) -> io::Result<bool> {
    let crt = paths.client_crt_backup();
    let Ok(since) = crt.metadata().and_then(|meta| meta.modified()) else { return Ok(false) };
    let since = Timestamp::try_from(since).unwrap_or(now);
    if since.duration_until(now) <= BACKUP_KEPT {
        return Ok(false);
    }
    durable::remove(&paths.client_key_backup())?;
    durable::remove(&crt)?;
    Ok(true)
}
