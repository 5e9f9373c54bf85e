//! From the root in force to the newest: one version at a time, each signed by the one before.

use std::{io, path::Path};

use super::Source;
use crate::{runtime::durable, trust::Keyring};

/// More versions than this in one go are left for the next.
const MAX_STEPS: usize = 100;

/// A root that was reached.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) keyring: Keyring,
    /// The envelope as it came.
    pub(super) bytes: Vec<u8>,
}

/// Follows the chain as far as it goes. A step that fails ends it, and what was reached before
/// stands.
pub(super) async fn follow(
    source: &Source,
    from: &Keyring,
) -> (Option<Reached>, Result<(), String>) {
    let mut reached: Option<Reached> = None;
    for _step in 0..MAX_STEPS {
        let at = reached.as_ref().map_or(from, |r| &r.keyring);
        let Some(version) = at.root().version.checked_add(1) else { break };
        match (source.root)(version).await {
            Ok(None) => break,
            Ok(Some(bytes)) => match at.advance(&bytes) {
                Ok(keyring) => reached = Some(Reached { keyring, bytes }),
                Err(e) => return (reached, Err(format!("root {version} refused: {e}"))),
            },
            Err(e) => return (reached, Err(format!("root {version}: {e}"))),
        }
    }
    (reached, Ok(()))
}

/// Makes a root the one of the next start.
pub(super) fn keep(data_dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = data_dir.join("trust");
    durable::create_dir(&folder, 0o755)?;
    durable::replace(&folder.join("root.json"), bytes, durable::PUBLIC)
}
