//! What the hub knows, as tables: tokens, agents, requests.

use std::time::Duration;

use jtnt_proto::identity::is_id;

use super::{Desk, Verdict, output::table};
use crate::{
    control::{NewToken, TokenWish},
    error::HubError,
    hub::unknown_agent,
    record::Recorded,
    routes,
    view::AgentView,
    witness::SeenLog,
};

pub(super) async fn token(desk: &Desk<'_>, life: Option<Duration>) -> Result<Verdict, HubError> {
    let wish = TokenWish { life_seconds: life.map(|l| l.as_secs()) };
    let made: NewToken = desk.client.post("/control/v1/tokens", &wish).await?;
    // Alone on its line, so that `$(jtnt-hub-mock token)` is the token.
    desk.output.show(&made, || format!("{}\n", made.token))
}

pub(super) async fn agents(desk: &Desk<'_>) -> Result<Verdict, HubError> {
    let agents: Vec<AgentView> = desk.client.get("/control/v1/agents").await?;
    desk.output.show(&agents, || {
        let row = |a: &AgentView| {
            let seen = a.last_seen.map_or_else(|| "never".to_owned(), |at| format!("{at:.0}"));
            let said = a.heartbeat.as_ref();
            let told =
                |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let newest = a.logs.values().max_by_key(|log| log.at);
            let trouble = a.logs.values().find_map(|log| log.trouble.as_ref());
            let log = match (newest, trouble) {
                (Some(log), Some(trouble)) => format!("{} {}", log.size, trouble.kind.name()),
                (Some(log), None) => log.size.to_string(),
                (None, _) => "-".to_owned(),
            };
            let ca = a.authority().map(u64::from);
            vec![
                a.agent_id.clone(),
                a.host.hostname.clone(),
                a.host.agent_version.clone(),
                told(said.map(|h| h.policy_version)),
                told(said.map(|h| h.root_version)),
                told(ca),
                a.open_jobs.to_string(),
                log,
                seen,
            ]
        };
        let rows: Vec<_> = agents.iter().map(row).collect();
        let heads =
            ["AGENT", "HOST", "VERSION", "POLICY", "ROOT", "CA", "JOBS", "AUDIT", "LAST SEEN"];
        table(&heads, &rows)
    })
}

pub(super) async fn logs(desk: &Desk<'_>, agent: &str, anchor: bool) -> Result<Verdict, HubError> {
    let agents: Vec<AgentView> = desk.client.get("/control/v1/agents").await?;
    let found = agents.into_iter().find(|a| a.agent_id == agent);
    let logs = found.ok_or_else(|| unknown_agent(agent))?.logs;
    if anchor {
        let newest = logs.values().max_by_key(|log| log.at);
        let why = "the hub has seen no checkpoint of this agent yet";
        let newest = newest.ok_or_else(|| HubError::refused("NOTHING_SEEN", why))?;
        return desk.output.show(&newest.note, || newest.note.clone());
    }
    desk.output.show(&logs, || {
        let row = |(id, log): (&String, &SeenLog)| {
            let trouble = log
                .trouble
                .as_ref()
                .map_or_else(String::new, |t| format!("{} at {:.0}", t.kind.name(), t.at));
            vec![id.clone(), log.size.to_string(), format!("{:.0}", log.at), trouble]
        };
        let rows: Vec<_> = logs.iter().map(row).collect();
        table(&["LOG", "LINES", "COSIGNED", "TROUBLE"], &rows)
    })
}

/// The lines of a log, as they were signed; a line that is being stored is none yet.
pub(super) async fn held(
    desk: &Desk<'_>,
    agent: &str,
    log: Option<String>,
) -> Result<Verdict, HubError> {
    let agents: Vec<AgentView> = desk.client.get("/control/v1/agents").await?;
    let found = agents.into_iter().find(|a| a.agent_id == agent);
    let logs = found.ok_or_else(|| unknown_agent(agent))?.logs;
    let newest = logs.iter().max_by_key(|(_, log)| log.at).map(|(id, _)| id.clone());
    let none = || HubError::refused("NOTHING_HELD", "the hub holds no lines of this log");
    let log = log.or(newest).filter(|log| is_id(log)).ok_or_else(none)?;
    let path = routes::lines::file(&desk.dir, agent, &log);
    if !path.exists() {
        return Err(none());
    }
    let text = std::fs::read_to_string(&path).map_err(HubError::file(&path))?;
    let whole = text.rfind('\n').map_or("", |at| text.get(..=at).unwrap_or_default()).to_owned();
    desk.output.show(&whole, || whole.clone())
}

pub(super) async fn witness(desk: &Desk<'_>) -> Result<Verdict, HubError> {
    let key: String = desk.client.get("/control/v1/witness").await?;
    desk.output.show(&key, || format!("{key}\n"))
}

pub(super) async fn requests(desk: &Desk<'_>, agent: Option<String>) -> Result<Verdict, HubError> {
    let query = agent.map_or_else(String::new, |a| format!("?agent={a}"));
    let requests: Vec<Recorded> = desk.client.get(&format!("/control/v1/requests{query}")).await?;
    desk.output.show(&requests, || {
        let row = |r: &Recorded| {
            vec![
                r.at.to_string(),
                r.status.to_string(),
                r.method.clone(),
                r.path.clone(),
                r.body_bytes.to_string(),
                r.agent_id.clone().unwrap_or_default(),
            ]
        };
        let rows: Vec<_> = requests.iter().map(row).collect();
        table(&["TIME", "STATUS", "METHOD", "PATH", "BYTES", "AGENT"], &rows)
    })
}
