//! Tells the audit log what does not hold for now: that the log itself could not be written, that
//! the hub does not cosign it, that the system cannot hold jobs to the policy. It also tries to
//! write again by itself, so that an agent without work sees that its disk has room.

use std::time::Duration;

use jtnt_proto::audit::{Event, Status};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Record,
    domain::{
        degraded::{Degraded, News, What},
        enforcement::Enforcement,
    },
    overview::Overview,
};

/// How soon something that was not told is tried again: at first, and at last.
const AGAIN: Duration = Duration::from_secs(5);
const MAX_AGAIN: Duration = Duration::from_mins(1);

/// Looks whenever log or heartbeat change, until `stop`.
pub(super) async fn run(overview: Overview, stop: CancellationToken) {
    let s = overview.sources();
    let (mut head, mut heartbeat) = (s.audit.watch(), s.heartbeat.clone());
    let (mut degraded, mut wait) = (Degraded::default(), AGAIN);
    loop {
        look(&overview, &mut degraded);
        for news in degraded.due(s.clock.uptime()) {
            match s.audit.append(record(&news)).await {
                Ok(_) => degraded.told(&news, s.clock.uptime()),
                Err(error) => tracing::debug!(%error, "what does not hold is not told yet"),
            }
        }
        // What was written just now is no news; what failed just now is.
        head.mark_unchanged();
        look(&overview, &mut degraded);
        let again = degraded.is_open();
        wait = if again { wait } else { AGAIN };
        let alive = tokio::select! {
            changed = head.changed() => changed.is_ok(),
            changed = heartbeat.changed() => changed.is_ok(),
            () = sleep(wait), if again => {
                wait = (wait * 2).min(MAX_AGAIN);
                true
            }
            () = stop.cancelled() => false,
        };
        if !alive {
            return;
        }
    }
}

fn look(overview: &Overview, degraded: &mut Degraded) {
    let s = overview.sources();
    let now = s.clock.now();
    for what in What::ALL {
        let why = match what {
            What::AuditLog => s.audit.head().error,
            What::Journal => s.journal.last_error().map(|error| error.to_string()),
            What::Sandbox => Some(s.gate.enforcement())
                .filter(|level| *level != Enforcement::Full)
                .map(|level| format!("jobs are held to the policy only in part: {level}")),
            What::Witness if !s.audit.head().provable => Some("it gets no checkpoints".to_owned()),
            What::Witness => {
                s.heartbeat.borrow().audit_refusal.map(|refusal| refusal.words().to_owned())
            }
        };
        degraded.see(what, why, now);
    }
}

fn record(news: &News) -> Record {
    let mut record = Record::of(Event::Degraded)
        .detail("what", news.what.name())
        .detail("message", news.why.as_str())
        .detail("since", news.since.to_string())
        .detail("changes", news.changes);
    record.status = Some(if news.holds { Status::Success } else { Status::Error });
    record.object = Some(news.what.object().to_owned());
    record
}
