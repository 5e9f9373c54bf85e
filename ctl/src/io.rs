//! Where output goes. Commands write here and nowhere else, so that tests can read along.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
};

use jiff::Timestamp;

use crate::cli::Color;

/// The outside world of a command.
pub struct Io {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    /// Whether standard output is a terminal; only then text is coloured and bytes are escaped.
    pub out_is_terminal: bool,
    /// Whether standard error is a terminal; only then progress is shown.
    pub err_is_terminal: bool,
    /// Whether to colour.
    pub color: bool,
    /// The clock, for "3 min ago".
    pub now: fn() -> Timestamp,
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").field("color", &self.color).finish_non_exhaustive()
    }
}

impl Io {
    /// The process's own standard streams.
    #[must_use]
    pub fn of_process(color: Color) -> Self {
        let terminal = io::stdout().is_terminal();
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            out_is_terminal: terminal,
            err_is_terminal: io::stderr().is_terminal(),
            color,
            now: Timestamp::now,
        }
    }

    /// Streams of the caller's choice: no terminal, no colour.
    #[must_use]
    pub fn new(out: Box<dyn Write>, err: Box<dyn Write>, now: fn() -> Timestamp) -> Self {
        Self { out, err, out_is_terminal: false, err_is_terminal: false, color: false, now }
    }

    /// Writes to standard output and hands it on at once.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    /// Writes to standard error.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn complain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.err.write_all(bytes)?;
        self.err.flush()
    }
}
