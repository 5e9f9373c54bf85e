//! `cache`.

use jtnt_proto::admin::v1 as pb;

use super::show;
use crate::{
    Exit,
    cli::Cache,
    output::cache as view,
    run::{Outcome, Session},
};

pub(super) async fn run(session: &mut Session<'_>, command: Cache) -> Outcome {
    let mut client = pb::cache_service_client::CacheServiceClient::new(session.channel()?);
    match command {
        Cache::Status => {
            let now = (session.io.now)();
            let request = session.ask(pb::GetCacheRequest {});
            let answer = session.call("show the cache", client.get_cache(request)).await?;
            show(session, &view::Cache::from(&answer), |color| view::cache(&answer, now, color))?;
        }
        Cache::Clean => {
            let request = session.ask(pb::CleanCacheRequest {});
            let answer = session.call("clean the cache", client.clean_cache(request)).await?;
            show(session, &view::Cleaned::from(&answer), |_| view::cleaned(&answer))?;
        }
    }
    Ok(Exit::Done)
}
