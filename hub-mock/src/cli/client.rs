//! The client of the control port: one connection a request, as commands are short.

use std::{fs, io, path::Path};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jtnt_proto::hub::Problem;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;

use crate::{error::HubError, view::AgentView};

/// The largest answer, but for artifacts.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Where the hub is, and the right to ask it.
#[derive(Debug)]
pub(super) struct Client {
    addr: String,
    token: String,
}

impl Client {
    /// Reads address and token from the hub's folder.
    pub(super) fn open(dir: &Path) -> Result<Self, HubError> {
        let read = |name: &'static str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|e| {
                use io::ErrorKind::{NotADirectory, NotFound};
                if matches!(e.kind(), NotFound | NotADirectory) {
                    return HubError::NotAHub { dir: dir.display().to_string(), missing: name };
                }
                HubError::file(&path)(e)
            })
        };
        let (addr, token) = (read("control.addr")?, read("control.token")?);
        Ok(Self { addr: addr.trim().to_owned(), token: token.trim().to_owned() })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, HubError> {
        parse(&self.send(Method::GET, path, Full::<Bytes>::default()).await?)
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, HubError> {
        parse(&self.send(Method::POST, path, json(body)?).await?)
    }

    pub(super) async fn post_nothing(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), HubError> {
        self.send(Method::POST, path, json(body)?).await.map(drop)
    }

    pub(super) async fn put(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), HubError> {
        self.send(Method::PUT, path, json(body)?).await.map(drop)
    }

    pub(super) async fn delete(&self, path: &str) -> Result<(), HubError> {
        self.send(Method::DELETE, path, Full::<Bytes>::default()).await.map(drop)
    }

    /// The agent that was named, or the only one.
    pub(super) async fn agent(&self, named: Option<String>) -> Result<String, HubError> {
        if let Some(named) = named {
            return Ok(named);
        }
        let agents: Vec<AgentView> = self.get("/control/v1/agents").await?;
        match agents.as_slice() {
            [only] => Ok(only.agent_id.clone()),
            [] => Err(HubError::refused("NO_AGENT", "no agent is enrolled; see `token`")),
            many => {
                let why = format!("{} agents are enrolled; name one with --agent", many.len());
                Err(HubError::refused("WHICH_AGENT", why))
            }
        }
    }

    /// Sends a request and collects a small answer.
    pub(super) async fn send<B>(
        &self,
        method: Method,
        path: &str,
        body: B,
    ) -> Result<Bytes, HubError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let answer = self.open_answer(method, path, body).await?;
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|e| self.unreachable(&e))
    }

    /// Sends a request; the answer's body is still to be read.
    pub(super) async fn open_answer<B>(
        &self,
        method: Method,
        path: &str,
        body: B,
    ) -> Result<Response<Incoming>, HubError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = TcpStream::connect(&self.addr).await.map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.unreachable(&e))?;
        tokio_util::task::TaskTracker::new().spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("control connection: {e}");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.addr)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| HubError::damaged("request", e))?;
        let answer = sender.send_request(request).await.map_err(|e| self.unreachable(&e))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = Limited::new(answer.into_body(), 1 << 20).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let problem: Option<Problem> = serde_json::from_slice(&body).ok();
        let (reason, detail) = problem.map_or((None, None), |p| (p.reason, p.detail));
        let detail = detail.unwrap_or_else(|| format!("the hub answered {status}"));
        Err(HubError::refused(&reason.unwrap_or_else(|| "HTTP".to_owned()), detail))
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> HubError {
        HubError::Unreachable(format!("{}: {why}", self.addr))
    }
}

fn json(body: &impl Serialize) -> Result<Full<Bytes>, HubError> {
    let bytes = serde_json::to_vec(body).map_err(|e| HubError::damaged("request", e))?;
    Ok(Full::from(bytes))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, HubError> {
    serde_json::from_slice(body).map_err(|e| HubError::damaged("the hub's answer", e))
}
