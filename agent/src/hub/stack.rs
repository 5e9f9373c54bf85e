//! The client as a stack of layers, each a line in [`stack`]. Repeating a request is not among
//! them: whoever has work to deliver knows better when to come back, and all of them share the
//! breaker.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::Semaphore, time::timeout};
use tower::{Layer, Service, ServiceBuilder};

use super::{
    error::HubError,
    exchange::{Answer, Call, Exchange, Payload},
};
use crate::{
    domain::breaker::{Breaker, Permit, Verdict},
    runtime::clock::SharedClock,
    telemetry::metrics::Metrics,
};

pub(super) type Sending = Pin<Box<dyn Future<Output = Result<Answer, HubError>> + Send>>;
pub(super) type Stack =
    Wrapped<Measure, Wrapped<Guard, Wrapped<Deadline, Wrapped<Places, Bottom>>>>;

/// All layers, the first one outermost.
pub(super) fn stack(
    exchange: Exchange,
    metrics: Metrics,
    (clock, breaker): (SharedClock, SharedBreaker),
    places: usize,
) -> Stack {
    ServiceBuilder::new()
        // Sees what callers see, refusals of the breaker included.
        .layer(Wrap(Measure { metrics: metrics.clone(), clock: Arc::clone(&clock) }))
        // Above the deadline, for a hub that is silent has failed.
        .layer(Wrap(Guard { breaker, clock, metrics }))
        // Above the places, since waiting for one is waiting too.
        .layer(Wrap(Deadline))
        .layer(Wrap(Places(Arc::new(Semaphore::new(places)))))
        .service(Bottom(exchange))
}

/// A layer: something done around the rest of the stack.
pub(super) trait Around: Clone + Send + 'static {
    fn around(self, call: Call, rest: Rest) -> Sending;
}

type Rest = Box<dyn FnOnce(Call) -> Sending + Send>;

#[derive(Debug, Clone)]
struct Wrap<A>(A);

#[derive(Debug, Clone)]
pub(super) struct Wrapped<A, S> {
    around: A,
    inner: S,
}

impl<A: Around, S> Layer<S> for Wrap<A> {
    type Service = Wrapped<A, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Wrapped { around: self.0.clone(), inner }
    }
}

impl<A, S> Service<Call> for Wrapped<A, S>
where
    A: Around,
    S: Service<Call, Response = Answer, Error = HubError, Future = Sending>
        + Clone
        + Send
        + 'static,
{
    type Response = Answer;
    type Error = HubError;
    type Future = Sending;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), HubError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Sending {
        // The one that was polled ready goes along; its copy stays.
        let mut inner = {
            let copy = self.inner.clone();
            std::mem::replace(&mut self.inner, copy)
        };
        self.around.clone().around(call, Box::new(move |call| inner.call(call)))
    }
}

/// Where requests become bytes.
#[derive(Debug, Clone)]
pub(super) struct Bottom(Exchange);

impl Service<Call> for Bottom {
    type Response = Answer;
    type Error = HubError;
    type Future = Sending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HubError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Sending {
        Box::pin(self.0.clone().run(call))
    }
}

/// Times each request and shows whether the hub answers.
#[derive(Debug, Clone)]
pub(super) struct Measure {
    metrics: Metrics,
    clock: SharedClock,
}

impl Around for Measure {
    fn around(self, call: Call, rest: Rest) -> Sending {
        Box::pin(async move {
            let (endpoint, began) = (call.endpoint, self.clock.uptime());
            let answer = rest(call).await;
            let took = self.clock.uptime().saturating_sub(began).as_secs_f64();
            self.metrics.request_duration.with_label_values(&[endpoint]).observe(took);
            let connected = match &answer {
                Ok(_) => true,
                Err(e) => e.hub_is_there(),
            };
            self.metrics.show_connected(connected);
            answer
        })
    }
}

/// The breaker of all routes.
pub(super) type SharedBreaker = Arc<Mutex<Breaker>>;

/// Lets nothing through while the breaker is open.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    breaker: SharedBreaker,
    clock: SharedClock,
    metrics: Metrics,
}

impl Guard {
    fn with<T>(&self, act: impl FnOnce(&mut Breaker, Duration) -> T) -> T {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let before = breaker.state();
        let out = act(&mut breaker, self.clock.uptime());
        let after = breaker.state();
        drop(breaker);
        if before != after {
            tracing::info!(from = before.word(), to = after.word(), "circuit breaker");
            self.metrics.show_breaker(after.word());
        }
        out
    }
}

impl Around for Guard {
    fn around(self, call: Call, rest: Rest) -> Sending {
        Box::pin(async move {
            let permit = self.with(Breaker::admit).map_err(HubError::BreakerOpen)?;
            let mut pending = Pending { guard: self, permit, verdict: Verdict::Abandoned };
            let answer = rest(call).await;
            pending.verdict = match &answer {
                Ok(_) => Verdict::Answered,
                Err(e) if e.hub_is_there() => Verdict::Answered,
                Err(_) => Verdict::Failed,
            };
            answer
        })
    }
}

/// Tells the breaker how a request went, or that its caller left.
struct Pending {
    guard: Guard,
    permit: Permit,
    verdict: Verdict,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.guard.with(|breaker, now| breaker.record(self.permit, self.verdict, now));
    }
}

/// Ends what takes too long. An upload may take as long as it moves.
#[derive(Debug, Clone)]
pub(super) struct Deadline;

impl Around for Deadline {
    fn around(self, call: Call, rest: Rest) -> Sending {
        Box::pin(async move {
            let within = call.within;
            let moved = match &call.payload {
                Payload::Bytes(_) | Payload::Lines(_) => None,
                Payload::Read(_, sent) => Some(Arc::clone(sent)),
            };
            let mut answer = rest(call);
            let mut before = 0;
            loop {
                if let Ok(answer) = timeout(within, &mut answer).await {
                    return answer;
                }
                let now = moved.as_ref().map_or(0, |sent| sent.load(Ordering::Relaxed));
                if now == before {
                    return Err(HubError::Deadline(within));
                }
                before = now;
            }
        })
    }
}

/// So many requests at once.
#[derive(Debug, Clone)]
pub(super) struct Places(Arc<Semaphore>);

impl Around for Places {
    fn around(self, call: Call, rest: Rest) -> Sending {
        Box::pin(async move {
            let _place = self.0.acquire().await;
            rest(call).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use bytes::Bytes;
    use http::Method;

    use super::*;
    use crate::{domain::breaker::State, runtime::clock::FixedClock};

    fn call(payload: Payload) -> Call {
        Call { payload, ..Call::new(Method::GET, "/api/v1/jobs", "/api/v1/jobs") }
    }

    fn nothing() -> Call {
        call(Payload::Bytes(Bytes::new()))
    }

    fn guard(clock: &Arc<FixedClock>) -> Guard {
        let clock = Arc::clone(clock);
        let breaker = Arc::new(Mutex::new(Breaker::new(5)));
        Guard { breaker, clock, metrics: Metrics::new("test").unwrap() }
    }

    async fn fail(guard: &Guard) -> HubError {
        let rest = |_| Box::pin(async { Err(HubError::Deadline(Duration::ZERO)) }) as Sending;
        guard.clone().around(nothing(), Box::new(rest)).await.unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_hub_is_given_up_and_a_moving_upload_is_not() {
        let silent = Deadline.around(nothing(), Box::new(|_| Box::pin(pending())));
        assert_eq!(silent.await.unwrap_err(), HubError::Deadline(super::super::ANSWER));
        let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let upload = call(Payload::Read(None, Arc::clone(&sent)));
        let moves = move |_: Call| {
            Box::pin(async move {
                for _ in 0..10 {
                    tokio::time::sleep(Duration::from_secs(29)).await;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                Err(HubError::BadAnswer("the end".to_owned()))
            }) as Sending
        };
        let end = Deadline.around(upload, Box::new(moves)).await.unwrap_err();
        assert_eq!(end, HubError::BadAnswer("the end".to_owned()));
    }

    #[tokio::test]
    async fn silence_opens_the_breaker_and_one_probe_closes_it_a_minute_later() {
        let clock = FixedClock::at("2026-01-01T00:00:00Z");
        let guard = guard(&clock);
        for _ in 0..5 {
            assert_eq!(fail(&guard).await, HubError::Deadline(Duration::ZERO));
        }
        assert_eq!(fail(&guard).await, HubError::BreakerOpen(Duration::from_mins(1)));
        clock.advance(Duration::from_mins(1));
        let refused = |_| {
            let no = HubError::Refused {
                status: 404,
                reason: String::new(),
                detail: String::new(),
                retry_after: None,
            };
            Box::pin(async { Err(no) }) as Sending
        };
        guard.clone().around(nothing(), Box::new(refused)).await.unwrap_err();
        assert_eq!(guard.breaker.lock().unwrap().state(), State::Closed, "it answered");
    }

    #[tokio::test]
    async fn a_probe_whose_caller_left_does_not_block_the_breaker() {
        let clock = FixedClock::at("2026-01-01T00:00:00Z");
        let guard = guard(&clock);
        for _ in 0..5 {
            fail(&guard).await;
        }
        clock.advance(Duration::from_mins(1));
        let left = guard.clone().around(nothing(), Box::new(|_| Box::pin(pending())));
        assert!(futures_util::FutureExt::now_or_never(left).is_none());
        assert_eq!(fail(&guard).await, HubError::Deadline(Duration::ZERO), "a new probe");
    }

    #[tokio::test]
    async fn only_so_many_requests_are_on_their_way() {
        let places = Places(Arc::new(Semaphore::new(1)));
        let mut first = places.clone().around(nothing(), Box::new(|_| Box::pin(pending())));
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = places.clone().around(nothing(), Box::new(|_| panic!("no place")));
        assert!(futures_util::FutureExt::now_or_never(second).is_none());
        drop(first);
        let third = |_| Box::pin(async { Err(HubError::BadAnswer(String::new())) }) as Sending;
        places.around(nothing(), Box::new(third)).await.unwrap_err();
    }
}
