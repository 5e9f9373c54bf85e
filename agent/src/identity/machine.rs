//! Which machine this is, so that a cloned disk is not taken for the machine it was copied from.

use std::path::Path;

use jtnt_proto::bytes::Hash;

use crate::runtime::durable;

/// Written by systemd or D-Bus at installation; a clone that was prepared as one has a new one.
const FILES: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
const MAX_BYTES: u64 = 256;

/// The hash of the machine's id; nothing on a machine without one, such as most containers.
#[must_use]
pub fn machine_id_sha256() -> Option<Hash> {
    FILES.iter().find_map(|path| read(Path::new(path)))
}

fn read(path: &Path) -> Option<Hash> {
    let text = durable::read(path, MAX_BYTES).ok()?;
    let id = text.trim_ascii();
    // An image that was not booted yet says "uninitialized" or nothing.
    (id.len() == 32 && id.iter().all(u8::is_ascii_hexdigit)).then(|| Hash::of(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        assert_eq!(read(&path), None);
        for none in ["", "uninitialized\n", "0123"] {
            durable::replace(&path, none.as_bytes(), 0o644).unwrap();
            assert_eq!(read(&path), None);
        }
        let id = "0123456789abcdef0123456789abcdef";
        durable::replace(&path, format!("{id}\n").as_bytes(), 0o644).unwrap();
        assert_eq!(read(&path), Some(Hash::of(id.as_bytes())));
    }
}
