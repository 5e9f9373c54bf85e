//! Clients at the admin socket that do not behave. Each is told or hung up on, and everybody else
//! is served meanwhile.

use std::time::Duration;

use jtnt_proto::admin::v1::{
    CheckExecRequest, GetStatusRequest, agent_service_client::AgentServiceClient,
    policy_service_client::PolicyServiceClient,
};
use jtntctl::Target;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};
use tonic::Code;

use crate::support::Home;

/// A client that stalls is not waited for longer than this.
const HUNG_UP: Duration = Duration::from_secs(60);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Everything that comes until the agent hangs up.
async fn rest(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = timeout(HUNG_UP, stream.read_to_end(&mut bytes)).await;
    // A reset is a way to hang up as well.
    drop(read.expect("the agent hangs up"));
    bytes
}

#[tokio::test]
async fn whoever_speaks_another_protocol_is_told_what_to_speak() {
    let home = Home::new().unwrap();
    let agent = home.start().await.unwrap();
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for said in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], tls, b"hello\n"] {
        let mut stream = UnixStream::connect(home.socket()).await.unwrap();
        stream.write_all(said).await.unwrap();
        let answer = String::from_utf8(rest(stream).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 505 "), "{answer:?}");
        assert!(answer.contains("this socket speaks gRPC"), "{answer:?}");
    }
    let page = agent.get("metrics_listen", "/metrics").await.unwrap();
    let counted = "jtnt_agent_admin_refused_total{reason=\"protocol\"} 3";
    assert!(page.body.lines().any(|line| line == counted), "{}", page.body);
    home.asked(&["status"]).await.unwrap();
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_message_of_100_mib_is_refused_and_costs_the_agent_nothing() {
    let home = Home::new().unwrap();
    let agent = home.start().await.unwrap();
    let channel = Target::Socket(home.socket()).connect(HUNG_UP).await.unwrap();
    let mut client = PolicyServiceClient::new(channel.clone());
    let path = "x".repeat(100 << 20);
    let huge = CheckExecRequest { path, ..CheckExecRequest::default() };
    let refused = client.check_exec(huge).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    assert!(refused.message().contains("too large"), "{refused:?}");
    if let Some(memory) = resident(agent.pid()) {
        assert!(memory < 64 << 20, "{memory} bytes");
    }
    let again = Target::Socket(home.socket()).connect(HUNG_UP).await.unwrap();
    AgentServiceClient::new(again).get_status(GetStatusRequest {}).await.unwrap();
    agent.stop().await.unwrap();
}

/// Memory of a process in bytes; `None` where the system does not tell.
fn resident(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[tokio::test]
async fn clients_that_stall_keep_nobody_from_being_served_and_are_hung_up_on() {
    let home = Home::new().unwrap();
    let agent = home.start().await.unwrap();
    let mut stalled = Vec::new();
    // Nothing, a little more each time, and at last all that HTTP/2 begins with.
    for length in 0..=PREFACE.len() {
        let mut stream = UnixStream::connect(home.socket()).await.unwrap();
        stream.write_all(&PREFACE[..length]).await.unwrap();
        stalled.push(stream);
    }
    home.asked(&["status"]).await.unwrap();
    // The one whose preface was whole is pinged, and has longer.
    stalled.pop();
    for stream in stalled {
        assert_eq!(rest(stream).await, b"");
    }
    home.asked(&["status"]).await.unwrap();
    agent.stop().await.unwrap();
}
