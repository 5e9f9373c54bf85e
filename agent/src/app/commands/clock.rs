//! `clock reset`: for root, after a wild clock has driven the trusted time into the future. It
//! opens no more than it must, since the mark may be what keeps the rest from opening.

use std::{path::PathBuf, sync::Arc};

use jiff::tz::TimeZone;
use jtnt_proto::audit::{Event, Status};
use jtntctl::{Exit, Failure, Io};

use super::{config::failure, ourselves, print};
use crate::{
    app::{
        cli::Clock,
        core::{Held, open_audit},
    },
    audit::Record,
    config::load_or_default,
    runtime::{
        clock::{SharedClock, SystemClock},
        entropy::{SharedEntropy, SystemEntropy},
    },
    store::{Journal, time::TrustedTime},
};

pub(in crate::app) async fn run(
    command: Clock,
    path: PathBuf,
    io: &mut Io,
) -> Result<Exit, Failure> {
    let Clock::Reset = command;
    let config = load_or_default(&path).map_err(|e| failure(&e))?;
    let _held = Held::take(&config, "clock reset").await?;
    let clock: SharedClock = Arc::new(SystemClock);
    let entropy: SharedEntropy = Arc::new(SystemEntropy);
    let (_, _, audit) = open_audit(&config, &TimeZone::system(), &clock, &entropy)?;
    let store = |e: crate::store::StoreError| Failure::new(Exit::Io, "reset the clock", e.0);
    let journal = Journal::open(&config.paths().journal(), Arc::clone(&clock))
        .map_err(|e| store(e.into()))?;
    let mut record = Record::of(Event::ConfigChanged);
    (record.status, record.origin) = (Some(Status::Success), Some("local"));
    record.caller = Some(ourselves());
    record.object = Some("clock".to_owned());
    let recorded = audit.append(record).await;
    recorded.map_err(|e| Failure::new(Exit::Io, "record the reset", e.to_string()))?;
    TrustedTime::reset(&journal, clock.as_ref()).await.map_err(store)?;
    let now = clock.now();
    print(io, &format!("Expiry is judged by this machine's clock again: {now:.0}\n"))
}
