//! `GET /api/v1/trust/root/{n}`: the roots of roles, one after the other. Open to anyone, since
//! nobody believes a root that no earlier root vouches for.

use axum::{
    Json,
    extract::{Path, State},
};
use jtnt_proto::envelope::Envelope;

use super::problem::Refusal;
use crate::{
    faults::{Fault, Kind},
    hub::Shared,
};

pub(super) async fn root(
    State(core): State<Shared>,
    Path(n): Path<String>,
    fault: Option<Fault>,
) -> Result<Json<Envelope>, Refusal> {
    let n: u64 = n
        .parse()
        .map_err(|e| Refusal::unprocessable("VERSION", format!("{n:?} is no version: {e}")))?;
    let inner = core.lock();
    let roots = &inner.state.roots;
    let found = match fault {
        Some(Fault { kind: Kind::Expired, document: Some(document), .. }) => Some(document),
        Some(Fault { kind: Kind::Replay, .. }) => roots.values().next().cloned(),
        _ => roots.get(&n).cloned(),
    };
    let newest = inner.state.root_version();
    found
        .map(Json)
        .ok_or_else(|| Refusal::not_found("ROOT_UNKNOWN", format!("the newest root is {newest}")))
}
