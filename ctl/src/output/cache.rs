//! The result cache.

use jiff::Timestamp;
use jtnt_proto::admin::v1 as pb;
use serde::Serialize;

use super::{json::time, table::Table, time as human};

/// The JSON of `cache status`.
#[derive(Debug, Serialize)]
pub(crate) struct Cache {
    pending_results: u64,
    pending_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_pending_at: Option<Timestamp>,
    max_bytes: u64,
    delivered_jobs: u64,
    delivered_bytes: u64,
}

impl From<&pb::GetCacheResponse> for Cache {
    fn from(c: &pb::GetCacheResponse) -> Self {
        Self {
            pending_results: c.pending_results,
            pending_bytes: c.pending_bytes,
            oldest_pending_at: time(c.oldest_pending_at.as_ref()),
            max_bytes: c.max_bytes,
            delivered_jobs: c.delivered_jobs,
            delivered_bytes: c.delivered_bytes,
        }
    }
}

pub(crate) fn cache(c: &pb::GetCacheResponse, now: Timestamp, color: bool) -> String {
    let view = Cache::from(c);
    let mut table = Table::bare();
    let (used, max) = (human::bytes(view.pending_bytes), human::bytes(view.max_bytes));
    let waiting = human::count(view.pending_results, "result");
    table.pair("Waiting", format!("{waiting}, {used} of {max}"));
    if view.oldest_pending_at.is_some() {
        table.pair("Oldest", human::when_or_dash(view.oldest_pending_at, now));
    }
    let kept = human::bytes(view.delivered_bytes);
    let delivered = human::count(view.delivered_jobs, "job");
    table.pair("Delivered", format!("{delivered}, {kept}, can be cleaned"));
    table.render(color)
}

/// The JSON of `cache clean`.
#[derive(Debug, Serialize)]
pub(crate) struct Cleaned {
    removed_jobs: u64,
    removed_bytes: u64,
    kept_pending: u64,
}

impl From<&pb::CleanCacheResponse> for Cleaned {
    fn from(c: &pb::CleanCacheResponse) -> Self {
        Self {
            removed_jobs: c.removed_jobs,
            removed_bytes: c.removed_bytes,
            kept_pending: c.kept_pending,
        }
    }
}

pub(crate) fn cleaned(c: &pb::CleanCacheResponse) -> String {
    let (jobs, size) =
        (human::count(c.removed_jobs, "delivered job"), human::bytes(c.removed_bytes));
    let kept = match c.kept_pending {
        1 => "1 result waits for the hub and stays".to_owned(),
        n => format!("{n} results wait for the hub and stay"),
    };
    format!("removed the output of {jobs}, {size}; {kept}\n")
}
