//! Tells systemd how the service is: one datagram each, no library.

use std::{
    io,
    os::unix::net::{SocketAddr, UnixDatagram},
};

#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;

/// Where the service manager listens; silent when there is none.
#[derive(Debug, Default)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notify {
    /// Of `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// When the text is no address or the system gives no socket.
    pub fn new(socket: Option<&str>) -> io::Result<Self> {
        let Some(name) = socket else { return Ok(Self::default()) };
        Ok(Self { to: Some((UnixDatagram::unbound()?, address(name)?)) })
    }

    /// Everything is up.
    pub fn ready(&self) {
        self.send("READY=1\nSTATUS=running");
    }

    /// The configuration is read again; [`Self::ready`] follows.
    pub fn reloading(&self) {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = t.tv_sec.saturating_mul(1_000_000).saturating_add(t.tv_nsec / 1000);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Still alive.
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        let Some((socket, to)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), to) {
            tracing::warn!(%error, "the service manager does not listen");
        }
    }
}

fn address(name: &str) -> io::Result<SocketAddr> {
    match name.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(hidden) => SocketAddr::from_abstract_name(hidden.as_bytes()),
        _ => SocketAddr::from_pathname(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_each_word() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::new(path.to_str()).unwrap();
        notify.ready();
        notify.reloading();
        notify.stopping();
        let mut buf = [0; 256];
        let mut heard = || {
            let n = manager.recv(&mut buf).unwrap();
            String::from_utf8(buf[..n].to_vec()).unwrap()
        };
        assert_eq!(heard(), "READY=1\nSTATUS=running");
        assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(heard(), "STOPPING=1");
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        Notify::new(None).unwrap().ready();
    }
}
