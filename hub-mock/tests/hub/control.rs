//! The control port answers its owner and nobody else.

use std::io;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use jtnt_hub_mock::Hub;
use tokio::net::TcpStream;

async fn ask(hub: &jtnt_hub_mock::Handle, host: &str, token: &str) -> io::Result<StatusCode> {
    let tcp = TcpStream::connect(hub.control_addr()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(io::Error::other)?;
    let request = Request::get("/control/v1/agents")
        .header("host", host)
        .header("authorization", format!("Bearer {token}"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let exchange = async move {
        let reply = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = reply.status();
        reply.into_body().collect().await.map_err(io::Error::other)?;
        Ok(status)
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        status = &mut exchange => status,
        ended = &mut connection => { ended.map_err(io::Error::other)?; exchange.await }
    }
}

#[tokio::test]
async fn the_control_port_wants_its_token_and_a_loopback_host() {
    let hub = Hub::builder().start().await.unwrap();
    let token = std::fs::read_to_string(hub.dir().join("control.token")).unwrap();
    let host = std::fs::read_to_string(hub.dir().join("control.addr")).unwrap();
    assert_eq!(ask(&hub, &host, &token).await.unwrap(), StatusCode::OK);
    assert_eq!(ask(&hub, "localhost", &token).await.unwrap(), StatusCode::OK);
    assert_eq!(ask(&hub, &host, "guess").await.unwrap(), StatusCode::UNAUTHORIZED);
    let misdirected = StatusCode::MISDIRECTED_REQUEST;
    assert_eq!(ask(&hub, "evil.example:80", &token).await.unwrap(), misdirected);
    assert_eq!(ask(&hub, "127.0.0.1.evil.example", &token).await.unwrap(), misdirected);
}

#[tokio::test]
async fn the_control_port_is_never_opened_to_the_network() {
    let any = "0.0.0.0:0".parse().unwrap();
    let said = Hub::builder().control(any).start().await.unwrap_err().to_string();
    assert!(said.contains("no loopback address"), "{said}");
}
