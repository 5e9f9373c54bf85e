//! For tests: what is logged on their thread.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::{level_filters::LevelFilter, subscriber::DefaultGuard};
use tracing_subscriber::fmt;

/// What was logged so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overheard(Arc<Mutex<Vec<u8>>>);

/// Listens from that level on, until the guard is dropped.
pub(crate) fn overhear(from: LevelFilter) -> (DefaultGuard, Overheard) {
    let said = Overheard::default();
    let writer = said.clone();
    let log = fmt().with_ansi(false).with_max_level(from).with_writer(move || writer.clone());
    (tracing::subscriber::set_default(log.finish()), said)
}

impl Overheard {
    pub(crate) fn text(&self) -> String {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl io::Write for Overheard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
