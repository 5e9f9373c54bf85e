//! `CertService`, with what is true already: how the certificate is, and when it is due.

use jtnt_proto::admin::v1::{self as pb, RenewalRule, cert_service_server::CertService};
use tonic::{Code, Request, Response, Status};

use super::{Answer, Deps, blocking};
use crate::{
    admin::{convert, error},
    domain::{
        cert_rule::{Asked, Certificate, Rule, plan},
        health,
    },
    identity::{self, IdentityError, Paths},
};

pub(super) struct Cert(pub(super) Deps);

fn no_identity(fault: &IdentityError) -> Status {
    error::status(Code::FailedPrecondition, "NO_IDENTITY", fault.to_string())
}

#[tonic::async_trait]
impl CertService for Cert {
    async fn get_certificate(
        &self,
        _: Request<pb::GetCertificateRequest>,
    ) -> Answer<pb::GetCertificateResponse> {
        let s = self.0.overview.sources();
        let paths = Paths { data_dir: s.data_dir.clone() };
        let path = paths.client_crt().display().to_string();
        let seen = blocking(move || identity::inspect(&paths)).await?;
        // Without an enrolment there is nothing whose chain or key could be wrong.
        let unenrolled = || matches!(&*s.identity.borrow(), Err(IdentityError::NotEnrolled));
        if seen.info.is_none() && unenrolled() {
            return Err(no_identity(&IdentityError::NotEnrolled));
        }
        let mut facts = self.0.overview.facts();
        facts.certificate = seen.info.as_ref().map(|info| (info.not_before, info.not_after));
        let check = health::certificate(&facts);
        let whole = seen.problems.is_empty();
        let status = if whole { check.status } else { health::Mark::Fail };
        let mut problems = seen.problems;
        if whole && check.status != health::Mark::Pass {
            problems.push(check.message);
        }
        let info = seen.info;
        let text = |of: fn(&identity::CertInfo) -> &String| {
            info.as_ref().map(of).cloned().unwrap_or_default()
        };
        Ok(Response::new(pb::GetCertificateResponse {
            serial: text(|info| &info.serial),
            subject: text(|info| &info.subject),
            issuer: text(|info| &info.issuer),
            not_before: info.as_ref().map(|info| convert::time(info.not_before)),
            not_after: info.as_ref().map(|info| convert::time(info.not_after)),
            expires_in_days: check.expires_in_days.unwrap_or_default(),
            status: status.word().to_owned(),
            chain_ok: seen.chain_ok,
            key_matches: seen.key_matches,
            problems,
            path,
        }))
    }

    async fn plan_renewal(
        &self,
        _: Request<pb::PlanRenewalRequest>,
    ) -> Answer<pb::PlanRenewalResponse> {
        let s = self.0.overview.sources();
        let identity = s.identity.borrow().clone();
        let identity = identity.map_err(|fault| no_identity(&fault))?;
        let (not_before, not_after) = (identity.cert.not_before, identity.cert.not_after);
        let certificate = Certificate {
            not_before,
            not_after,
            received_at: None,
            picked_in_window: None,
            last_renewal: None,
        };
        let plan = plan(&certificate, Asked::Nobody, s.time.now());
        let rule = match plan.rule {
            Rule::Forced => RenewalRule::Forced,
            Rule::HubWindow => RenewalRule::HubWindow,
            Rule::ShortLived => RenewalRule::ShortLived,
            Rule::ThirtyDays => RenewalRule::ThirtyDays,
        };
        Ok(Response::new(pb::PlanRenewalResponse {
            renew_at: Some(convert::time(plan.renew_at)),
            rule: rule.into(),
            why: plan.why,
            not_after: Some(convert::time(not_after)),
        }))
    }
}
