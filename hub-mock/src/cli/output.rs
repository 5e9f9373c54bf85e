//! The only place that prints. Data goes to stdout, everything else to stderr; control characters
//! in what others said are made visible, so that no output can steer a terminal.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use jtnt_proto::hub::{OutputChunk, OutputStream};
use serde::Serialize;

use super::{Verdict, args::Format};
use crate::error::HubError;

/// How this run prints.
#[derive(Debug)]
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) const fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether programs read this.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One object for programs, or `human` for people.
    pub(super) fn show<T: Serialize>(
        &self,
        object: &T,
        human: impl FnOnce() -> String,
    ) -> Result<Verdict, HubError> {
        if self.is_json() {
            self.json(object)?;
        } else {
            print(&human())?;
        }
        Ok(Verdict::Yes)
    }

    /// One object on a line.
    pub(super) fn json<T: Serialize>(&self, object: &T) -> Result<(), HubError> {
        let text = serde_json::to_string(object).map_err(|e| HubError::damaged("output", e))?;
        raw(format!("{}\n", harmless_json(&text)).as_bytes())
    }

    /// What a job wrote: as it is for files and programs, harmless on a terminal.
    pub(super) fn content(&self, bytes: &[u8]) -> Result<(), HubError> {
        write(OutputStream::Stdout, bytes)
    }

    /// Something that was done, with nothing to show.
    pub(super) fn done(&self, what: &str) -> Result<Verdict, HubError> {
        self.show(&serde_json::json!({ "done": true }), || format!("{what}\n"))
    }

    /// Text that is for stderr in any case.
    pub(super) fn note(&self, text: &str) {
        // Where stderr is gone there is nobody left to tell.
        let _told = writeln!(io::stderr(), "{}", printable(text));
    }

    /// Why the command could not do what it was told; for programs in the shape of `jtntctl`'s.
    pub(super) fn failure(&self, error: &HubError) {
        if self.is_json() {
            let (reason, message) = (error.reason(), error.to_string());
            let said = serde_json::json!({ "error": { "reason": reason, "message": message } });
            self.note(&harmless_json(&said.to_string()));
        } else {
            self.fault(&error.to_string());
        }
    }

    /// Why it ended with no.
    pub(super) fn fault(&self, why: &str) {
        self.note(&format!("jtnt-hub-mock: {why}"));
    }
}

/// Output of a job as it comes, in pieces that need not end where a character ends.
#[derive(Debug, Default)]
pub(super) struct Live {
    rest: BTreeMap<OutputStream, Vec<u8>>,
}

impl Live {
    pub(super) fn show(&mut self, output: &Output, piece: OutputChunk) -> Result<(), HubError> {
        if output.is_json() {
            return output.json(&piece);
        }
        let mut bytes = self.rest.remove(&piece.stream).unwrap_or_default();
        bytes.extend(piece.data.0);
        // The beginning of a character waits for its end.
        let cut = bytes.utf8_chunks().last().map_or(0, |last| last.invalid().len());
        let half = (1..4).contains(&cut)
            && std::str::from_utf8(&bytes).is_err_and(|e| e.error_len().is_none());
        let keep = if half { cut } else { 0 };
        let rest = bytes.split_off(bytes.len() - keep);
        self.rest.insert(piece.stream, rest);
        write(piece.stream, &bytes)
    }

    /// What waited for its end in vain.
    pub(super) fn end(self, output: &Output) -> Result<(), HubError> {
        if output.is_json() {
            return Ok(());
        }
        self.rest.into_iter().try_for_each(|(stream, bytes)| write(stream, &bytes))
    }
}

fn write(stream: OutputStream, bytes: &[u8]) -> Result<(), HubError> {
    let safe = || printable(&String::from_utf8_lossy(bytes)).into_bytes();
    match stream {
        OutputStream::Stdout if io::stdout().is_terminal() => raw(&safe()),
        OutputStream::Stdout => raw(bytes),
        OutputStream::Stderr => {
            let bytes = if io::stderr().is_terminal() { safe() } else { bytes.to_vec() };
            // Where stderr is gone there is nobody left to tell.
            let _told = io::stderr().write_all(&bytes);
            Ok(())
        }
    }
}

fn raw(bytes: &[u8]) -> Result<(), HubError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(HubError::Output)
}

fn print(text: &str) -> Result<(), HubError> {
    raw(printable(text).as_bytes())
}

/// Columns, aligned.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a string cannot fail.
            if write!(line, "{cell:<width$}  ").is_err() {
                break;
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Whether it could steer a terminal.
fn is_active(c: char) -> bool {
    let bidi =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    bidi || (c.is_control() && !matches!(c, '\n' | '\t'))
}

/// Control and bidirectional characters as escapes; line feeds and tabs stay.
fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_active(c) {
            safe.extend(c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The same for JSON, which has escapes of its own and leaves some characters alone.
fn harmless_json(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        if is_active(c) {
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
        safe
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_printed() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\n");
        assert_eq!(printable("\u{202e}evil"), "\\u{202e}evil");
    }

    #[test]
    fn json_stays_json() {
        let said = "\u{7f}\u{202e}\u{1}\\x";
        let text = harmless_json(&serde_json::to_string(said).unwrap());
        assert!(text.is_ascii(), "{text}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), said);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = vec![vec!["job-1".to_owned(), "ok".to_owned()]];
        assert_eq!(table(&["ID", "STATE"], &rows), "ID     STATE\njob-1  ok\n");
    }
}
