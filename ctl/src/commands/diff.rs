//! `policy diff`: what another policy would change, told by the agent before anybody signs it.

use std::{io, path::Path};

use jtnt_proto::{admin::v1 as pb, envelope::MAX_PAYLOAD_BYTES};

use super::{
    policy::{all_of, read},
    show,
};
use crate::{
    Exit, Failure,
    output::diff as view,
    run::{Outcome, Session},
};

pub(super) async fn run(session: &mut Session<'_>, file: &Path) -> Outcome {
    let name = if file == Path::new("-") { Path::new("standard input") } else { file };
    let what = format!("compare the policy in force with {}", name.display());
    let mut client = pb::policy_service_client::PolicyServiceClient::new(session.channel()?);
    let max = u64::try_from(MAX_PAYLOAD_BYTES).unwrap_or(u64::MAX);
    let bytes = if file == name { read(file, max) } else { all_of(io::stdin(), name, max) }?;
    let document = String::from_utf8(bytes)
        .map_err(|error| Failure::new(Exit::Usage, what.as_str(), format!("no JSON: {error}")))?;
    let request = session.ask(pb::DiffPolicyRequest { document });
    let diff = session.call(&what, client.diff_policy(request)).await?;
    let now = (session.io.now)();
    show(session, &view::Diff::from(&diff), |color| view::diff(&diff, now, color))?;
    Ok(match (diff.changes.is_empty() && diff.more_changes == 0, diff.unasked_requests) {
        (false, _) => Exit::No,
        (true, 0) => Exit::Done,
        (true, _) => Exit::Incomplete,
    })
}
