//! The one layer before every method: who calls, whether that is enough, and the line in the audit
//! log that comes before the effect.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use jtnt_proto::audit::{self, Caller, Event};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::{
    authz::Authz,
    error,
    methods::{self, Method, Trail},
    outcome::Outcome,
    refusals::{Refusals, Why, caller},
};
use crate::{
    audit::{Audit, Record},
    platform::{peer::Peer, users},
    runtime::tasks::Tasks,
};

/// What every guard shares.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) authz: watch::Receiver<Authz>,
    pub(super) audit: Audit,
    pub(super) refusals: Arc<Refusals>,
    pub(super) tasks: Tasks,
}

/// The methods behind their guard, for one connection.
#[derive(Debug, Clone)]
pub(super) struct Guard<S> {
    inner: S,
    rules: Rules,
    peer: Arc<Peer>,
    /// Cancelled when this connection was refused something: it gets no second try.
    refused: CancellationToken,
}

impl<S> Guard<S> {
    pub(super) fn new(inner: S, rules: Rules, peer: Peer, refused: CancellationToken) -> Self {
        Self { inner, rules, peer: Arc::new(peer), refused }
    }

    fn admit(&self, path: &str) -> Result<&'static Method, Status> {
        let standing = self.rules.authz.borrow().standing(&self.peer);
        let method = methods::find(path);
        if let Some(method) = method.filter(|method| standing.may(method)) {
            return Ok(method);
        }
        // Of a method that does not exist a stranger hears what it hears of those that read.
        let unknown = (standing.role == methods::Role::None).then_some(&methods::ANY);
        let Some(method) = method.or(unknown) else {
            let why = format!("this agent has no method {path}");
            return Err(error::status(Code::Unimplemented, "UNKNOWN_METHOD", why));
        };
        let Peer { uid, pid, .. } = *self.peer;
        self.rules.refusals.count(Why::Role, Some(uid), pid, Some(path));
        self.refused.cancel();
        if uid == users::UNMAPPED_UID {
            return Err(error::status(
                Code::PermissionDenied,
                "USER_NOT_MAPPED",
                format!(
                    "you come as uid {uid}, which is what the kernel calls every user that it \
                     cannot name here, so no role can be given to it"
                ),
            ));
        }
        Err(error::status(
            Code::PermissionDenied,
            "ROLE_MISSING",
            format!(
                "uid {uid} has the role {}: {}; {path} needs the role {} (see {} in the agent's \
                 configuration)",
                standing.role,
                standing.why,
                method.role,
                method.role.setting()
            ),
        ))
    }
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = match self.admit(request.uri().path()) {
            Ok(method) => method,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let caller = caller(self.peer.uid, self.peer.pid);
        request.extensions_mut().insert(caller.clone());
        let (mut inner, rules) = (self.inner.clone(), self.rules.clone());
        Box::pin(async move {
            let begun = match trail(method, caller) {
                Some(record) => match rules.audit.append(record.clone()).await {
                    Ok(seq) => Some((record, seq)),
                    Err(error) => return Ok(error::audit(&error).into_http()),
                },
                None => None,
            };
            let outcome = begun
                .filter(|_| method.trail == Trail::Change)
                .map(|(record, seq)| Outcome::of(record, seq, rules.audit, rules.tasks));
            let answer =
                timeout(method.within, inner.call(request)).await.unwrap_or_else(|_late| {
                    let why = format!("no answer within {} s", method.within.as_secs());
                    Ok(error::status(Code::DeadlineExceeded, "TOO_SLOW", why).into_http())
                });
            match (answer, outcome) {
                (Ok(response), Some(outcome)) => Ok(outcome.of_answer(response).await),
                (answer, _) => answer,
            }
        })
    }
}

/// What is recorded before the call has an effect.
fn trail(method: &Method, caller: Caller) -> Option<Record> {
    let event = match method.trail {
        Trail::Nothing => return None,
        Trail::Read => Event::LogRead,
        Trail::Change => Event::AdminCall,
    };
    let mut record = Record::of(event);
    if event == Event::AdminCall {
        record = record.detail("phase", "begun");
        record.status = Some(audit::Status::Success);
    }
    record.command = Some(method.path.to_owned());
    record.object = Some(method.object().to_owned());
    record.caller = Some(caller);
    Some(record)
}

/// Who asks, as the guard found out.
pub(super) fn caller_of<T>(request: &tonic::Request<T>) -> Option<Caller> {
    request.extensions().get::<Caller>().cloned()
}
