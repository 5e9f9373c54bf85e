//! The agent under a service manager: when it is ready, that it lives, and that it stops.

use std::time::Duration;

use tokio::{net::UnixDatagram, time::timeout};

use crate::support::Home;

const PATIENCE: Duration = Duration::from_secs(30);

/// What the manager hears next.
async fn heard(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let received = timeout(PATIENCE, manager.recv(&mut buffer)).await;
    let length = received.expect("the manager hears something").unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// Waits for a message that has this line, and gives the messages before it.
async fn heard_until(manager: &UnixDatagram, line: &str) -> Vec<String> {
    let mut before = Vec::new();
    loop {
        let message = heard(manager).await;
        if message.lines().any(|l| l == line) {
            return before;
        }
        before.push(message);
    }
}

#[tokio::test]
async fn the_service_manager_is_told_ready_alive_reloading_and_stopping() {
    let home = Home::new().unwrap();
    let path = home.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = home.agent_command(&["run"]).unwrap();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000").env_remove("WATCHDOG_PID");
    let agent = home.spawn(&mut command).unwrap();
    let before = heard_until(&manager, "READY=1").await;
    assert!(before.is_empty(), "ready comes first: {before:?}");
    // Ready means that everything answers.
    home.asked(&["status"]).await.unwrap();
    assert_eq!(agent.get("health_listen", "/livez").await.unwrap().status, 200);
    for _ in 0..3 {
        assert!(heard_until(&manager, "WATCHDOG=1").await.is_empty());
    }
    agent.signal(rustix::process::Signal::HUP).unwrap();
    let mut words = heard(&manager).await;
    while words == "WATCHDOG=1" {
        words = heard(&manager).await;
    }
    assert!(words.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{words:?}");
    heard_until(&manager, "READY=1").await;
    agent.stop().await.unwrap();
    let before = heard_until(&manager, "STOPPING=1").await;
    assert!(before.iter().all(|message| message == "WATCHDOG=1"), "{before:?}");
}
