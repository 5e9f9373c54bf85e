//! `status`, `health`, `test-connection`, `version`, `log`, `authz`, `reload`.

use clap::ValueEnum as _;
use jiff::Timestamp;
use jtnt_proto::admin::v1 as pb;
use tonic::transport::Channel;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::show;
use crate::{
    Exit, Failure,
    cli::{Authz, Health, Log},
    failure,
    output::{agent as view, json, status, time},
    run::{Outcome, Session, wait},
};

type Client = pb::agent_service_client::AgentServiceClient<Channel>;

fn client(session: &Session<'_>) -> Result<Client, Failure> {
    session.channel().map(Client::new)
}

/// The daemon's idea of now: relative times are right even where the clocks differ.
fn now(session: &Session<'_>, told: Option<&prost_types::Timestamp>) -> Timestamp {
    json::time(told).unwrap_or_else(session.io.now)
}

fn nothing(what: &str) -> Failure {
    Failure::new(Exit::Io, what, "the daemon sent an empty answer")
}

/// The status, what it advises to type under the name that was typed.
fn status_of(
    session: &Session<'_>,
    status: Option<pb::Status>,
    what: &str,
) -> Result<pb::Status, Failure> {
    let mut status = status.ok_or_else(|| nothing(what))?;
    for advice in &mut status.advice {
        advice.command = failure::in_name_of(session.program, &advice.command);
    }
    Ok(status)
}

pub(super) async fn status(session: &mut Session<'_>) -> Outcome {
    const WHAT: &str = "show the status";
    let mut client = client(session)?;
    let request = session.ask(pb::GetStatusRequest {});
    let answer = session.call(WHAT, client.get_status(request)).await?;
    let answer = status_of(session, answer.status, WHAT)?;
    let now = now(session, answer.now.as_ref());
    show(session, &status::Status::from(&answer), |color| status::screen(&answer, now, color))?;
    Ok(Exit::Done)
}

pub(super) async fn watch(session: &mut Session<'_>) -> Outcome {
    const WHAT: &str = "watch the status";
    let mut client = client(session)?;
    let mut stream = session.call(WHAT, client.watch_status(pb::WatchStatusRequest {})).await?;
    let mut last = String::new();
    while let Some(answer) = wait(WHAT, &mut stream).await? {
        let answer = status_of(session, answer.status, WHAT)?;
        if session.json {
            json::item(session, &status::Status::from(&answer))?;
            continue;
        }
        let now = now(session, answer.now.as_ref());
        // A terminal is wiped for the next screen; elsewhere a line tells what has changed.
        if session.io.out_is_terminal {
            let screen = status::screen(&answer, now, session.io.color);
            session.io.print(format!("\x1b[H\x1b[2J{screen}").as_bytes())?;
            continue;
        }
        let line = status::line(&answer);
        if line != last {
            session.io.print(format!("{}  {line}\n", time::absolute(now)).as_bytes())?;
            last = line;
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn health(session: &mut Session<'_>, how: Health) -> Outcome {
    const WHAT: &str = "check the health";
    if how.live || how.ready {
        return probe(session, how).await;
    }
    let mut client = client(session)?;
    let request = session.ask(pb::GetHealthRequest {});
    let answer = session.call(WHAT, client.get_health(request)).await?;
    show(session, &view::Health::from(&answer), |color| view::health(&answer, color))?;
    Ok(Exit::of(answer.status == "healthy"))
}

/// Live is any answer at all; ready is what the daemon says of itself as a whole.
async fn probe(session: &mut Session<'_>, how: Health) -> Outcome {
    let mut client = HealthClient::new(session.channel()?);
    let request = session.ask(HealthCheckRequest::default());
    let answer = session.call("probe the agent", client.check(request)).await?;
    let ok = how.live || answer.status() == ServingStatus::Serving;
    show(session, &view::Probe { ok }, |_| {
        (match (ok, how.live) {
            (true, true) => "live\n",
            (true, false) => "ready\n",
            (false, _) => "not ready\n",
        })
        .to_owned()
    })?;
    Ok(Exit::of(ok))
}

pub(super) async fn test_connection(session: &mut Session<'_>) -> Outcome {
    let mut client = client(session)?;
    let request = session.ask(pb::TestConnectionRequest {});
    let answer = session.call("test the connection", client.test_connection(request)).await?;
    let json = view::Connection::from(&answer);
    show(session, &json, |color| view::connection(&answer, color))?;
    Ok(Exit::of(answer.ok))
}

/// Prints the client's version even where no daemon answers.
pub(super) async fn version(session: &mut Session<'_>) -> Outcome {
    let asked = match client(session) {
        Ok(mut client) => {
            let request = session.ask(pb::GetVersionRequest {});
            session.call("ask for the version", client.get_version(request)).await
        }
        Err(failure) => Err(failure),
    };
    let mine = view::Client { version: env!("CARGO_PKG_VERSION"), api_version: "jtnt.admin.v1" };
    let daemon = asked
        .as_ref()
        .ok()
        .map(|d| view::Daemon { version: &d.version, api_version: &d.api_version });
    let versions = view::Versions { client: mine, daemon };
    show(session, &versions, |color| view::versions(&versions, color))?;
    asked?;
    Ok(Exit::Done)
}

pub(super) async fn log(session: &mut Session<'_>, log: Log) -> Outcome {
    let mut client = client(session)?;
    let Log::Level { level } = log;
    let Some(level) = level else {
        let request = session.ask(pb::GetLogLevelRequest {});
        let answer = session.call("ask for the log level", client.get_log_level(request)).await?;
        let json = view::LogLevel { level: &answer.level, previous: None };
        show(session, &json, |_| format!("{}\n", crate::output::escape::clean(&answer.level)))?;
        return Ok(Exit::Done);
    };
    let name = level.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
    let request = session.ask(pb::SetLogLevelRequest { level: name.clone() });
    let answer = session.call("set the log level", client.set_log_level(request)).await?;
    let json = view::LogLevel { level: &name, previous: json::text(&answer.previous) };
    show(session, &json, |_| {
        let previous = crate::output::escape::clean(&answer.previous);
        format!("{name} until the next restart (was {previous})\n")
    })?;
    Ok(Exit::Done)
}

pub(super) async fn authz(session: &mut Session<'_>, authz: Authz) -> Outcome {
    let mut client = client(session)?;
    let Authz::Explain { user, method } = authz;
    let request = session.ask(pb::ExplainAuthzRequest { user, method });
    let answer = session.call("explain who may do that", client.explain_authz(request)).await?;
    show(session, &view::Authz::from(&answer), |color| view::authz(&answer, color))?;
    Ok(Exit::of(answer.allowed))
}

pub(super) async fn reload(session: &mut Session<'_>) -> Outcome {
    let mut client = client(session)?;
    let request = session.ask(pb::ReloadRequest {});
    let answer = session.call("reload the configuration", client.reload(request)).await?;
    show(session, &view::Reload::from(&answer), |color| view::reload(&answer, color))?;
    Ok(Exit::Done)
}
