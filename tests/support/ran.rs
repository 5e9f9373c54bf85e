//! A command that was run to its end.

use std::process::Stdio;

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use super::{
    fault::{Fault, Res},
    wait::PATIENCE,
};

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    /// As it was typed.
    line: String,
    /// Exit code; nothing when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `command` to its end.
pub(crate) async fn run(command: &mut Command) -> Res<Ran> {
    let std = command.as_std();
    let words = std::iter::once(std.get_program()).chain(std.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let ending = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let Ok(ended) = timeout(PATIENCE, ending).await else {
        return Err(Fault::new(format!("`{line}` does not end")));
    };
    let ended = ended.map_err(|error| Fault::new(format!("`{line}`: {error}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&ended.stdout), text(&ended.stderr));
    Ok(Ran { line, code: ended.status.code(), stdout, stderr })
}

impl Ran {
    /// Itself, if it ended with `code`.
    pub(crate) fn exits(self, code: i32) -> Res<Self> {
        if self.code == Some(code) {
            return Ok(self);
        }
        let Self { line, code: seen, stdout, stderr } = self;
        let seen = seen.map_or_else(|| "a signal".to_owned(), |code| code.to_string());
        Err(Fault::new(format!("`{line}` ended with {seen}, not {code}\n{stdout}{stderr}")))
    }

    /// Standard output, which is JSON.
    pub(crate) fn json(&self) -> Res<Value> {
        serde_json::from_str(&self.stdout)
            .map_err(|e| Fault::new(format!("`{}`: {e} in {}", self.line, self.stdout)))
    }
}
