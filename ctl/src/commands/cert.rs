//! `cert`.

use jtnt_proto::admin::v1 as pb;

use super::show;
use crate::{
    Exit,
    cli::Cert,
    output::cert as view,
    run::{Outcome, Session},
};

pub(super) async fn run(session: &mut Session<'_>, command: Cert) -> Outcome {
    let mut client = pb::cert_service_client::CertServiceClient::new(session.channel()?);
    let now = (session.io.now)();
    match command {
        Cert::Check => {
            let request = session.ask(pb::GetCertificateRequest {});
            let answer =
                session.call("check the certificate", client.get_certificate(request)).await?;
            let json = view::Certificate::from(&answer);
            show(session, &json, |color| view::certificate(&answer, now, color))?;
            Ok(Exit::of(answer.status != "fail"))
        }
        Cert::Plan => {
            let request = session.ask(pb::PlanRenewalRequest {});
            let answer = session.call("plan the renewal", client.plan_renewal(request)).await?;
            show(session, &view::Plan::from(&answer), |color| view::plan(&answer, now, color))?;
            Ok(Exit::Done)
        }
    }
}
