//! `health --live|--ready` for whoever the admin socket does not serve: everybody on this machine
//! may read the health endpoint, so the answer is the same.

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, time::Duration};

use jtntctl::{
    Command, Exit, Global, Io,
    cli::{Health, Output},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::host::AgentHost;

/// A page of a word; whoever sends more is no agent.
const MAX_BYTES: u64 = 4096;

/// Asks at the admin socket, and at the health endpoint where that has no answer for the caller.
pub(super) async fn run(
    how: Health,
    address: SocketAddr,
    (global, io): (&Global, &mut Io),
    host: &AgentHost,
) -> Exit {
    let (out, err) = (Kept::default(), Kept::default());
    let mut kept = Io::new(Box::new(out.clone()), Box::new(err.clone()), io.now);
    let exit = jtntctl::run(Command::Health(how), global, &mut kept, host).await;
    if matches!(exit, Exit::Denied | Exit::Unreachable)
        && let Some(ok) = ask(address, how, global.patience()).await
    {
        return tell(io, global, how, ok);
    }
    // Whoever cannot be told has the exit code.
    let _told = io.complain(&err.0.take());
    let _told = io.print(&out.0.take());
    exit
}

/// Output that may still be replaced by a better answer.
#[derive(Debug, Clone, Default)]
struct Kept(Rc<RefCell<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Asks the endpoint; nothing where nobody answers as an agent does.
async fn ask(address: SocketAddr, how: Health, patience: Duration) -> Option<bool> {
    let path = if how.live { "/livez" } else { "/readyz" };
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.take(MAX_BYTES).read_to_string(&mut answer).await.ok()?;
        read(&answer)
    };
    timeout(patience, asked).await.ok().flatten()
}

fn read(answer: &str) -> Option<bool> {
    let status = answer.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    match status {
        "200" => Some(true),
        "503" => Some(false),
        _ => None,
    }
}

/// The words of `jtntctl`.
fn tell(io: &mut Io, global: &Global, how: Health, ok: bool) -> Exit {
    let text = match (global.output, ok, how.live) {
        (Output::Json, ..) => format!("{}\n", serde_json::json!({ "ok": ok })),
        (Output::Human, true, true) => "live\n".to_owned(),
        (Output::Human, true, false) => "ready\n".to_owned(),
        (Output::Human, false, _) => "not ready\n".to_owned(),
    };
    match super::commands::print(io, &text) {
        Ok(_) => Exit::of(ok),
        Err(failure) => super::complain(io, &failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_agents_answers_count() {
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nlive"), Some(true));
        assert_eq!(read("HTTP/1.1 503 Service Unavailable\r\n\r\n"), Some(false));
        for other in
            ["", "HTTP/1.1 404 Not Found\r\n", "HTTP/1.0 200 OK", "SSH-2.0-x", "HTTP/1.1 2"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
