//! Who holds a TCP port, where the system tells. Only for a message: it may be out of date at once.

use std::net::SocketAddr;

#[cfg(target_os = "linux")]
use std::{fs, path::Path};

/// Names the process that listens at `address`, such as `prometheus (pid 412)`, or at least its
/// user.
#[must_use]
pub fn of_port(address: SocketAddr) -> Option<String> {
    #[cfg(target_os = "linux")]
    return linux(Path::new("/proc"), address.port());
    #[cfg(not(target_os = "linux"))]
    {
        let _unknown = address;
        None
    }
}

#[cfg(target_os = "linux")]
fn linux(proc: &Path, port: u16) -> Option<String> {
    let (uid, inode) = ["net/tcp", "net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(proc.join(table)).ok()?;
        text.lines().skip(1).find_map(|line| listener(line, port))
    })?;
    let wanted = format!("socket:[{inode}]");
    let named = fs::read_dir(proc).ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(entry.path().join("fd")).ok()?.filter_map(Result::ok);
        files.find(|f| fs::read_link(f.path()).is_ok_and(|l| l.as_os_str() == wanted.as_str()))?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(format!("{} (pid {pid})", name.trim()))
    });
    named.or_else(|| {
        let user = super::users::name_of(uid).unwrap_or_else(|| uid.to_string());
        Some(format!("a process of user {user}"))
    })
}

/// User and inode of the line, if it is of a socket that listens on `port`.
#[cfg(target_os = "linux")]
fn listener(line: &str, port: u16) -> Option<(u32, u64)> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == "0A";
    if !listens || u16::from_str_radix(local, 16) != Ok(port) {
        return None;
    }
    Some((fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn our_own_listener_is_named_with_our_pid() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of_port(socket.local_addr().unwrap()).unwrap();
        assert!(holder.ends_with(&format!("(pid {})", std::process::id())), "{holder}");
    }

    #[test]
    fn lines_that_are_no_listener_are_passed_over() {
        let line = "0: 0100007F:2382 00000000:0000 0A 0:0 00:0 0 1000 0 77 1";
        assert_eq!(listener(line, 0x2382), Some((1000, 77)));
        assert_eq!(listener(line, 1), None);
        assert_eq!(listener(&line.replace("0A", "01"), 0x2382), None);
        assert_eq!(listener("", 1), None);
    }
}
