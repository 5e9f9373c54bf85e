//! `ca`: from one certificate authority to the next, a step at a time. What agents believe is signed
//! by the root of roles; the hub only issues.

use super::{Desk, Verdict, args::CaCommand, output::table};
use crate::{
    authorities::{AuthorityView, Step},
    control::{Turn, Version},
    error::HubError,
    view::AgentView,
};

const PATH: &str = "/control/v1/authorities";

pub(super) async fn run(desk: &Desk<'_>, command: CaCommand) -> Result<Verdict, HubError> {
    match command {
        CaCommand::Show => show(desk, &desk.client.get::<Vec<_>>(PATH).await?),
        CaCommand::Next => {
            let all: Vec<AuthorityView> = turn(desk, Step::Next).await?;
            name(desk, &all).await?;
            let version = desk.operator()?.root().version;
            desk.output
                .note(&format!("go on with `ca switch` once all agents have root {version}"));
            show(desk, &all)
        }
        CaCommand::Switch { force } => {
            let version = desk.operator()?.root().version;
            let without = |agent: &AgentView| {
                agent.heartbeat.as_ref().is_none_or(|said| said.root_version < version)
            };
            let late = agents(desk, without).await?;
            if !force && !late.is_empty() {
                let why = format!(
                    "{} have not told that they have root {version}, and would take the hub for \
                     another: wait for their next heartbeat, or --force",
                    late.join(", ")
                );
                return Err(HubError::refused("AGENTS_BEHIND", why));
            }
            let all = turn(desk, Step::Switch).await?;
            desk.output.note("go on with `ca retire`; it waits for agents that have not renewed");
            show(desk, &all)
        }
        CaCommand::Retire { force } => retire(desk, force).await,
    }
}

async fn retire(desk: &Desk<'_>, force: bool) -> Result<Verdict, HubError> {
    let all: Vec<AuthorityView> = desk.client.get(PATH).await?;
    let left: Vec<_> = all.iter().filter(|ca| ca.issues).cloned().collect();
    if left.len() == all.len() {
        return Err(HubError::refused("AUTHORITIES", "no other authority counts any more"));
    }
    let issuer = left.first().map_or(1, |ca| ca.number);
    if let Some(newer) = all.iter().map(|ca| ca.number).filter(|n| *n > issuer).max() {
        let why = format!(
            "authority {newer} counts and does not issue yet, so it would be lost: go on with \
             `ca switch`"
        );
        return Err(HubError::refused("AUTHORITIES", why));
    }
    // First the root: whoever hears of it renews with what still counts here.
    let named = desk.operator()?.root().hub_ca.len();
    if named != left.len() {
        name(desk, &left).await?;
    }
    let without = |agent: &AgentView| agent.authority() != Some(issuer);
    let late = agents(desk, without).await?;
    if !force && !late.is_empty() {
        let why = format!(
            "{} have no certificate of authority {issuer} yet; the root that they get with their \
             next heartbeat has them renew. Type the same again then, or --force",
            late.join(", ")
        );
        return Err(HubError::refused("AGENTS_BEHIND", why));
    }
    show(desk, &turn(desk, Step::Retire).await?)
}

/// Ids of the agents of which this holds.
async fn agents(
    desk: &Desk<'_>,
    wanted: impl Fn(&AgentView) -> bool,
) -> Result<Vec<String>, HubError> {
    let all: Vec<AgentView> = desk.client.get("/control/v1/agents").await?;
    Ok(all.into_iter().filter(wanted).map(|agent| agent.agent_id).collect())
}

async fn turn(desk: &Desk<'_>, step: Step) -> Result<Vec<AuthorityView>, HubError> {
    desk.client.post(PATH, &Turn { step }).await
}

/// Signs and publishes a root that names these and no others.
async fn name(desk: &Desk<'_>, all: &[AuthorityView]) -> Result<(), HubError> {
    let mut operator = desk.operator()?;
    let next = operator.root_naming(all.iter().map(|ca| ca.certificate.clone()).collect())?;
    let _: Version = desk.client.post("/control/v1/roots", &next.envelope).await?;
    next.commit(&desk.dir, &mut operator)
}

fn show(desk: &Desk<'_>, all: &[AuthorityView]) -> Result<Verdict, HubError> {
    desk.output.show(&all, || {
        let row = |ca: &AuthorityView| {
            let does = if ca.issues { "issues" } else { "counts" };
            vec![ca.number.to_string(), does.to_owned(), ca.sha256.to_string()]
        };
        table(&["CA", "STANDING", "SHA-256"], &all.iter().map(row).collect::<Vec<_>>())
    })
}
