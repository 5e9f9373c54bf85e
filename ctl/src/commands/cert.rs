//! `cert`.

use jtnt_proto::admin::v1 as pb;
use tonic::Streaming;

use super::show;
use crate::{
    Exit, Failure,
    cli::Cert,
    output::{cert as view, json},
    run::{Outcome, Session},
};

const RENEW: &str = "renew the certificate";
const ROLL_BACK: &str = "roll the certificate back";

pub(super) async fn run(session: &mut Session<'_>, command: Cert) -> Outcome {
    let mut client = pb::cert_service_client::CertServiceClient::new(session.channel()?);
    let now = (session.io.now)();
    match command {
        Cert::Check { prove } => {
            let request = session.ask(pb::GetCertificateRequest {});
            let mut answer =
                session.call("check the certificate", client.get_certificate(request)).await?;
            let request = session.ask(pb::ProveCertificateRequest {});
            let proof = match prove {
                true => {
                    let what = "show the certificate to the hub";
                    Some(session.call(what, client.prove_certificate(request)).await)
                }
                false => None,
            };
            let (proof, failure) = match proof {
                Some(Err(failure)) => (None, Some(failure)),
                Some(Ok(proof)) => (Some(proof), None),
                None => (None, None),
            };
            if let Some(failure) = &failure {
                "fail".clone_into(&mut answer.status);
                answer.problems.push(failure.why.clone());
            }
            let json = view::Certificate::of(&answer, proof.as_ref());
            let good = answer.status != "fail" && proof.as_ref().is_none_or(view::is_same);
            show(session, &json, |color| view::certificate(&answer, proof.as_ref(), now, color))?;
            // What is here is worth the more where the hub does not take it.
            failure.map_or_else(|| Ok(Exit::of(good)), |failure| Err(failure.into()))
        }
        Cert::Plan => {
            let request = session.ask(pb::PlanRenewalRequest {});
            let answer = session.call("plan the renewal", client.plan_renewal(request)).await?;
            show(session, &view::Plan::from(&answer), |color| view::plan(&answer, now, color))?;
            Ok(Exit::Done)
        }
        Cert::Renew { force: false } => {
            let call = client.renew_certificate(pb::RenewCertificateRequest {});
            let stream = session.call(RENEW, call).await?;
            follow(session, RENEW, stream, |answer| answer.news).await
        }
        Cert::Renew { force: true } => {
            let call = client.force_renewal(pb::ForceRenewalRequest {});
            let stream = session.call(RENEW, call).await?;
            follow(session, RENEW, stream, |answer| answer.news).await
        }
        Cert::Rollback { no_probe } => {
            let call = client.roll_back_certificate(pb::RollBackCertificateRequest { no_probe });
            let stream = session.call(ROLL_BACK, call).await?;
            follow(session, ROLL_BACK, stream, |answer| answer.news).await
        }
    }
}

/// Shows each step, to the end.
async fn follow<T>(
    session: &mut Session<'_>,
    what: &str,
    mut stream: Streaming<T>,
    news: impl Fn(T) -> Option<pb::Replacement>,
) -> Outcome {
    let mut done = false;
    while let Some(answer) = session.next(what, &mut stream).await? {
        let Some(news) = news(answer) else { continue };
        done |= news.step() == pb::ReplacementStep::Done;
        if session.json {
            json::item(session, &view::Replacement::from(&news))?;
        } else {
            session.io.print(view::replacement(&news).as_bytes())?;
        }
    }
    if done {
        return Ok(Exit::Done);
    }
    Err(Failure::new(Exit::Unreachable, what, "the agent ended before it had an answer").into())
}
