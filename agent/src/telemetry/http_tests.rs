//! The endpoints over real sockets.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        setting: "metrics_listen",
        address: address.parse().unwrap(),
        pages: Arc::new(|path| {
            (path == "/here").then(|| Page {
                status: StatusCode::OK,
                content_type: "text/plain",
                body: "it is here".into(),
            })
        }),
        holder: |_| Some("prometheus (pid 7)".into()),
    }
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut out)).await;
    assert!(read.is_ok(), "the server closes");
    String::from_utf8_lossy(&out).into_owned()
}

async fn get(address: SocketAddr, path: &str, host: &str) -> String {
    let close = "Connection: close";
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n\r\n")).await
}

#[tokio::test]
async fn pages_are_served_to_this_machine_only() {
    let (tasks, _essential) = Tasks::new();
    let at = start(&tasks, endpoint("127.0.0.1:0")).await.unwrap();
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:9090", "[::1]", "[::1]:9090"] {
        assert!(get(at, "/here", host).await.ends_with("it is here"), "{host}");
    }
    for host in ["evil.example", "127.0.0.1.evil.example", "localhost:x", "::1", ""] {
        let answer = get(at, "/here", host).await;
        assert!(answer.starts_with("HTTP/1.1 421 "), "{host}: {answer}");
        assert!(!answer.contains("it is here"), "{host}");
    }
    for (target, served) in
        [("http://localhost:9091/here", true), ("http://evil.example/here", false)]
    {
        let answer = get(at, target, "localhost").await;
        assert_eq!(answer.ends_with("it is here"), served, "{target}: {answer}");
    }
    assert!(get(at, "/nowhere", "localhost").await.starts_with("HTTP/1.1 404 "));
    let post = "POST /here HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(ask(at, post).await.starts_with("HTTP/1.1 405 "));
    assert!(tasks.drain(Duration::from_secs(5)).await.is_empty());
}

#[tokio::test]
async fn http_1_1_says_one_host_and_1_0_may_go_without() {
    let (tasks, _essential) = Tasks::new();
    let at = start(&tasks, endpoint("127.0.0.1:0")).await.unwrap();
    let close = "Connection: close\r\n\r\n";
    for hosts in ["", "Host: localhost\r\nHost: localhost\r\n"] {
        let answer = ask(at, &format!("GET /here HTTP/1.1\r\n{hosts}{close}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("exactly one Host"), "{answer}");
    }
    let old = ask(at, "GET /here HTTP/1.0\r\n\r\n").await;
    assert!(old.ends_with("it is here"), "{old}");
}

#[tokio::test]
async fn idle_connections_keep_no_probe_out() {
    let (tasks, _essential) = Tasks::new();
    let at = start(&tasks, endpoint("127.0.0.1:0")).await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET /here HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut first = [0; 15];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        idle.push(stream);
    }
    // Under the time that a connection may stay idle, which is what it took before.
    assert!(get(at, "/here", "localhost").await.ends_with("it is here"));
    let mut closed = Vec::new();
    idle[0].read_to_end(&mut closed).await.unwrap();
    assert!(closed.ends_with(b"it is here"), "the longest silent made room");
}

#[tokio::test]
async fn headers_are_bounded_and_garbage_is_closed() {
    let (tasks, _essential) = Tasks::new();
    let at = start(&tasks, endpoint("127.0.0.1:0")).await.unwrap();
    let many = "X: y\r\n".repeat(100);
    let answer = ask(at, &format!("GET /here HTTP/1.1\r\nHost: localhost\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(ask(at, "\0\0\0\0\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_holder_and_tried_again() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    let endpoint = endpoint(&address.to_string());
    let error = TcpListener::bind(address).await.unwrap_err();
    let port = address.port();
    assert_eq!(
        taken(&endpoint, &error),
        format!(
            "cannot listen at {address}: port {port} is held by prometheus (pid 7); trying again \
             every 5 s. Free the port, or set metrics_listen in the configuration"
        )
    );
    tokio::time::pause();
    let (tasks, _essential) = Tasks::new();
    assert_eq!(start(&tasks, endpoint).await, None);
    drop(holder);
    sleep(RETRY * 2).await;
    TcpStream::connect(address).await.unwrap();
    assert!(tasks.drain(Duration::from_secs(5)).await.is_empty());
}
