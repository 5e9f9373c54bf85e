//! Certificates that no hub should give, for faults that ask for one.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose};

use crate::{
    clock,
    error::HubError,
    faults::{Fault, Kind},
    hub::Core,
    pki::{Authority, BACKDATE_SECONDS, Issued},
};

/// Of a chain that is too long.
const CERTIFICATES: usize = 1000;
const NOBODY: &str = "00000000-0000-8000-8000-000000000000";

/// What is sent in place of an honest certificate (PEM); nothing where no fault asks for that.
pub(super) fn instead(
    core: &Core,
    fault: Option<&Fault>,
    (request, agent_id): (&CertificateSigningRequestParams, &str),
    honest: &Issued,
) -> Result<Option<String>, HubError> {
    let Some(kind) = fault.map(|fault| fault.kind) else { return Ok(None) };
    let window = (clock::now(), core.settings.certificate_life);
    let clients = ExtendedKeyUsagePurpose::ClientAuth;
    let issue = |to: &str, window: (Timestamp, Duration), purpose| {
        core.authorities.issue(request, (to, purpose), window).map(|issued| issued.pem)
    };
    let odd = match kind {
        Kind::OtherAgent => issue(NOBODY, window, clients)?,
        Kind::NotForClients => issue(agent_id, window, ExtendedKeyUsagePurpose::ServerAuth)?,
        Kind::NotYetValid => {
            issue(agent_id, (clock::shift(window.0, 3600 + BACKDATE_SECONDS), window.1), clients)?
        }
        Kind::Stranger => Authority::stranger()?.issue(request, (agent_id, clients), window)?.pem,
        Kind::Disordered => core.authorities.bundle() + &honest.pem,
        Kind::LongChain => {
            let ca = core.authorities.bundle();
            std::iter::once(honest.pem.as_str())
                .chain(std::iter::repeat_n(ca.as_str(), CERTIFICATES - 1))
                .collect()
        }
        Kind::Refuse
        | Kind::InternalError
        | Kind::TooMany
        | Kind::Slow
        | Kind::Hang
        | Kind::Cut
        | Kind::Garbage
        | Kind::Oversized
        | Kind::Redirect
        | Kind::WrongShape
        | Kind::WrongSignature
        | Kind::Expired
        | Kind::Replay
        | Kind::ClockSkew => return Ok(None),
    };
    Ok(Some(odd))
}
