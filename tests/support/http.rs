//! A GET as small as can be, for endpoints on loopback.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    fault::{Fault, Res},
    wait::PATIENCE,
};

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Reply {
    /// The body, which is JSON.
    pub(crate) fn json(&self) -> Res<Value> {
        serde_json::from_str(&self.body).map_err(|e| Fault::new(format!("{e} in {}", self.body)))
    }
}

/// Asks `at` for `path`.
pub(crate) async fn get(at: SocketAddr, path: &str) -> Res<Reply> {
    let asking = async {
        let mut stream = TcpStream::connect(at).await?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let Ok(answer) = timeout(PATIENCE, asking).await else {
        return Err(Fault::new(format!("no answer from http://{at}{path}")));
    };
    let answer = answer.map_err(|e| Fault::new(format!("http://{at}{path}: {e}")))?;
    let parts = answer.split_once("\r\n\r\n");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let (Some((_, body)), Some(status)) = (parts, status) else {
        return Err(Fault::new(format!("http://{at}{path} answered no HTTP: {answer:?}")));
    };
    Ok(Reply { status, body: body.to_owned() })
}
