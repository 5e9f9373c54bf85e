//! `CacheService`.

use jtnt_proto::admin::v1::{self as pb, cache_service_server::CacheService};
use tonic::{Request, Response};

use super::{Answer, Deps};
use crate::admin::{convert, error};

pub(super) struct Cache(pub(super) Deps);

#[tonic::async_trait]
impl CacheService for Cache {
    async fn get_cache(&self, _: Request<pb::GetCacheRequest>) -> Answer<pb::GetCacheResponse> {
        let status = self.0.jobs.cache_status().await.map_err(error::store)?;
        Ok(Response::new(pb::GetCacheResponse {
            pending_results: status.pending_results,
            pending_bytes: status.pending_bytes,
            oldest_pending_at: status.oldest_pending_at.map(convert::time),
            max_bytes: status.max_bytes,
            delivered_jobs: status.delivered_jobs,
            delivered_bytes: status.delivered_bytes,
        }))
    }

    async fn clean_cache(
        &self,
        _: Request<pb::CleanCacheRequest>,
    ) -> Answer<pb::CleanCacheResponse> {
        let cleaned = self.0.jobs.cache_clean().await.map_err(error::store)?;
        Ok(Response::new(pb::CleanCacheResponse {
            removed_jobs: cleaned.jobs,
            removed_bytes: cleaned.bytes,
            kept_pending: cleaned.kept_pending,
        }))
    }
}
