//! `audit`.

use jiff::Timestamp;
use jtnt_proto::admin::v1 as pb;
use tonic::transport::Channel;

use super::{evidence, show, verify};
use crate::{
    Exit, Failure,
    cli::Audit,
    output::{audit as view, escape, time},
    run::{Outcome, Session, wait},
};

type Client = pb::audit_service_client::AuditServiceClient<Channel>;

pub(super) async fn run(session: &mut Session<'_>, command: Audit) -> Outcome {
    match command {
        Audit::List { since, event, job, grep, limit } => {
            let since = since.map(|since| start(&since, (session.io.now)())).transpose()?;
            let request = pb::ListLinesRequest {
                since,
                event: event.unwrap_or_default(),
                job_id: job.unwrap_or_default(),
                text: grep.unwrap_or_default(),
                limit: limit.unwrap_or_default(),
            };
            list(session, request).await
        }
        Audit::Tail { lines } => tail(session, lines).await,
        Audit::Verify { files, proof, key, anchor, witness } => {
            let by = verify::By { key, anchor, witness, from_export: Vec::new() };
            match proof {
                Some(proof) => evidence::check(session, &proof, &by),
                None => verify::run(session, files, by).await,
            }
        }
        Audit::Prove { seq } => evidence::prove(session, seq).await,
        Audit::Export { out } => evidence::export(session, &out).await,
        Audit::RotateKey => {
            let mut client = Client::new(session.channel()?);
            let request = session.ask(pb::RotateKeyRequest {});
            let answer = session.call("replace the audit key", client.rotate_key(request)).await?;
            show(session, &view::Rotated::from(&answer), |_| view::rotated(&answer))?;
            Ok(Exit::Done)
        }
        Audit::Clean => {
            let mut client = Client::new(session.channel()?);
            let request = session.ask(pb::CleanLogRequest {});
            let answer = session.call("clean the audit log", client.clean_log(request)).await?;
            show(session, &view::Cleaned::from(&answer), |_| view::cleaned(&answer))?;
            Ok(Exit::Done)
        }
    }
}

fn start(text: &str, now: Timestamp) -> Result<prost_types::Timestamp, Failure> {
    let at = time::since(text, now).ok_or_else(|| {
        Failure::new(Exit::Usage, "list the audit log", format!("{text:?} is no time"))
            .advise("such as 2026-01-02T03:04:05Z, 2026-01-02, 90s, 15m, 2h or 7d")
    })?;
    Ok(prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() })
}

async fn list(session: &mut Session<'_>, request: pb::ListLinesRequest) -> Outcome {
    const WHAT: &str = "list the audit log";
    let mut client = Client::new(session.channel()?);
    let mut stream = session.call(WHAT, client.list_lines(request)).await?;
    let mut empty = true;
    while let Some(answer) = session.next(WHAT, &mut stream).await? {
        if empty && !session.json {
            session.io.print(view::headings().as_bytes())?;
        }
        empty = false;
        print(session, &answer.line)?;
    }
    if empty && !session.json {
        session.io.print(b"no lines\n")?;
    }
    Ok(Exit::Done)
}

async fn tail(session: &mut Session<'_>, lines: u32) -> Outcome {
    const WHAT: &str = "follow the audit log";
    let mut client = Client::new(session.channel()?);
    let mut stream = session.call(WHAT, client.tail_lines(pb::TailLinesRequest { lines })).await?;
    while let Some(answer) = wait(WHAT, &mut stream).await? {
        print(session, &answer.line)?;
    }
    Ok(Exit::Done)
}

/// As JSON a line stays what was signed, byte for byte; only a terminal gets it made harmless.
fn print(session: &mut Session<'_>, line: &[u8]) -> Outcome<()> {
    let bytes = if !session.json {
        view::line(line, session.io.color).into_bytes()
    } else if session.io.out_is_terminal {
        format!("{}\n", escape::clean(&String::from_utf8_lossy(line))).into_bytes()
    } else {
        [line, b"\n"].concat()
    };
    Ok(session.io.print(&bytes)?)
}
