//! `CertService`: how the certificate is, when it is due, and its replacement as it goes.

use futures_util::stream;
use jtnt_proto::admin::v1::{
    self as pb, RenewalRule, ReplacementStep, cert_service_server::CertService,
};
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status};

use super::{Answer, Deps, Many, blocking};
use crate::{
    admin::{convert, error, guard::caller_of},
    domain::{
        cert_rule::{Asked, Rule, plan},
        health,
    },
    identity::{self, IdentityError, Paths},
    renewal::{RenewError, Replaced, Report, Step, backup, facts},
};

pub(super) struct Cert(pub(super) Deps);

fn no_identity(fault: &IdentityError) -> Status {
    error::status(Code::FailedPrecondition, "NO_IDENTITY", fault.to_string())
}

#[tonic::async_trait]
impl CertService for Cert {
    type RenewCertificateStream = Many<pb::RenewCertificateResponse>;
    type ForceRenewalStream = Many<pb::ForceRenewalResponse>;
    type RollBackCertificateStream = Many<pb::RollBackCertificateResponse>;

    async fn get_certificate(
        &self,
        _: Request<pb::GetCertificateRequest>,
    ) -> Answer<pb::GetCertificateResponse> {
        let s = self.0.overview.sources();
        let paths = Paths { data_dir: s.data_dir.clone() };
        let path = paths.client_crt().display().to_string();
        let look = move || (identity::inspect(&paths), backup(&paths));
        let (seen, backup) = blocking(look).await?;
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
            key_store: seen.key_store.map(|store| store.to_string()).unwrap_or_default(),
            backup: backup.map(|before| pb::CertBackup {
                serial: before.cert.serial,
                not_after: Some(convert::time(before.cert.not_after)),
                kept_until: Some(convert::time(before.kept_until)),
            }),
        }))
    }

    async fn plan_renewal(
        &self,
        _: Request<pb::PlanRenewalRequest>,
    ) -> Answer<pb::PlanRenewalResponse> {
        let s = self.0.overview.sources();
        let identity = s.identity.borrow().clone();
        let identity = identity.map_err(|fault| no_identity(&fault))?;
        let (paths, cert) = (Paths { data_dir: s.data_dir.clone() }, identity.cert.clone());
        let not_after = cert.not_after;
        let certificate = blocking(move || facts(&paths, &cert)).await?;
        let plan = plan(&certificate, Asked::Nobody, s.time.now());
        let status = self.0.renewal.status();
        let failure = status.last_failure;
        let rule = match plan.rule {
            Rule::Forced => RenewalRule::Forced,
            Rule::AuthorityDropped => RenewalRule::AuthorityDropped,
            Rule::HubWindow => RenewalRule::HubWindow,
            Rule::ShortLived => RenewalRule::ShortLived,
            Rule::ThirtyDays => RenewalRule::ThirtyDays,
        };
        Ok(Response::new(pb::PlanRenewalResponse {
            renew_at: Some(convert::time(plan.renew_at)),
            rule: rule.into(),
            why: plan.why,
            not_after: Some(convert::time(not_after)),
            last_failure_at: failure.as_ref().map(|(at, _)| convert::time(*at)),
            last_failure_reason: failure
                .as_ref()
                .map(|(_, e)| e.reason.to_string())
                .unwrap_or_default(),
            last_failure_message: failure.map(|(_, e)| e.message).unwrap_or_default(),
            hub_asked_at: status.held_back.map(|(asked, _)| convert::time(asked)),
            held_back_until: status.held_back.map(|(_, until)| convert::time(until)),
        }))
    }

    async fn prove_certificate(
        &self,
        _: Request<pb::ProveCertificateRequest>,
    ) -> Answer<pb::ProveCertificateResponse> {
        let proven = (self.0.proof)().await.map_err(|e| refused(&e))?;
        Ok(Response::new(pb::ProveCertificateResponse {
            serial: proven.serial,
            seen_serial: proven.seen.unwrap_or_default(),
            key_exchange: proven.key_exchange.unwrap_or_default(),
        }))
    }

    async fn renew_certificate(
        &self,
        request: Request<pb::RenewCertificateRequest>,
    ) -> Answer<Self::RenewCertificateStream> {
        let news = self.0.renewal.renew(false, caller_of(&request)).map_err(busy)?;
        let answer = |news| pb::RenewCertificateResponse { news: Some(news) };
        Ok(Response::new(told(news, answer)))
    }

    async fn force_renewal(
        &self,
        request: Request<pb::ForceRenewalRequest>,
    ) -> Answer<Self::ForceRenewalStream> {
        let news = self.0.renewal.renew(true, caller_of(&request)).map_err(busy)?;
        let answer = |news| pb::ForceRenewalResponse { news: Some(news) };
        Ok(Response::new(told(news, answer)))
    }

    async fn roll_back_certificate(
        &self,
        request: Request<pb::RollBackCertificateRequest>,
    ) -> Answer<Self::RollBackCertificateStream> {
        let caller = caller_of(&request);
        let prove = !request.into_inner().no_probe;
        let news = self.0.renewal.roll_back(prove, caller).map_err(busy)?;
        let answer = |news| pb::RollBackCertificateResponse { news: Some(news) };
        Ok(Response::new(told(news, answer)))
    }
}

/// What is told, to the end.
fn told<T: Send + 'static>(
    news: mpsc::Receiver<Report>,
    answer: impl Fn(pb::Replacement) -> T + Send + Copy + 'static,
) -> Many<T> {
    Box::pin(stream::unfold(Some(news), move |news| async move {
        let mut news = news?;
        match news.recv().await {
            Some(Report::Step(step)) => Some((Ok(answer(replacement(step))), Some(news))),
            Some(Report::End(Ok(replaced))) => Some((Ok(answer(done(replaced))), None)),
            Some(Report::End(Err(error))) => Some((Err(refused(&error)), None)),
            None => {
                let why = "the agent stops; ask again once it runs";
                Some((Err(error::status(Code::Unavailable, "STOPPING", why)), None))
            }
        }
    }))
}

fn replacement(step: Step) -> pb::Replacement {
    let number = match step {
        Step::Asking => ReplacementStep::Asking,
        Step::Checking => ReplacementStep::Checking,
        Step::Trying => ReplacementStep::Trying,
        Step::Installing => ReplacementStep::Installing,
    };
    let (step, message) = (number.into(), step.words().to_owned());
    pb::Replacement { step, message, ..pb::Replacement::default() }
}

fn done(Replaced { before, cert, key_store }: Replaced) -> pb::Replacement {
    pb::Replacement {
        step: ReplacementStep::Done.into(),
        message: format!("the cert {} counts now, its key kept in {key_store}", cert.serial),
        before,
        serial: cert.serial,
        not_after: Some(convert::time(cert.not_after)),
    }
}

fn refused(refused: &RenewError) -> Status {
    let message = format!("{refused}; {}", refused.advice);
    error::status(Code::FailedPrecondition, &refused.reason, message)
}

fn busy(why: String) -> Status {
    error::status(Code::ResourceExhausted, "BUSY", why)
}
