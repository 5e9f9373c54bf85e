//! What the demo prints: numbered steps in columns, and what commands say, indented. Colours only
//! on a terminal.

use std::{
    env,
    io::{IsTerminal as _, Write as _, stderr, stdout},
};

const STEP_WIDTH: usize = 46;
const GREEN: &str = "\u{1b}[32m";
const BOLD: &str = "\u{1b}[1m";
const PLAIN: &str = "\u{1b}[0m";

/// Where everything is printed.
#[derive(Debug)]
pub(crate) struct Screen {
    color: bool,
    steps: u32,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let color = stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        Self { color, steps: 0 }
    }

    /// A step that went well, and what is worth knowing of it.
    pub(crate) fn done(&mut self, what: &str, detail: &str) {
        self.steps += 1;
        let ok = self.dyed("ok", GREEN);
        let first = format!("{:>2}  {what:<STEP_WIDTH$}  {ok}  ", self.steps);
        let indent = STEP_WIDTH + 10;
        let detail = detail.trim_end().replace('\n', &format!("\n{:indent$}", ""));
        self.text(&format!("{first}{detail}\n"));
    }

    /// A title.
    pub(crate) fn title(&mut self, text: &str) {
        let text = self.dyed(text, BOLD);
        self.text(&format!("\n{text}\n\n"));
    }

    /// A command and what it printed.
    pub(crate) fn command(&mut self, line: &str, output: &str) {
        self.title(&format!("$ {line}"));
        for line in output.lines() {
            self.text(&format!("{}\n", format!("    {line}").trim_end()));
        }
    }

    fn dyed(&self, text: &str, dye: &str) -> String {
        if self.color { format!("{dye}{text}{PLAIN}") } else { text.to_owned() }
    }

    /// Whoever closed the stream has seen enough, which is no reason to stop half-way.
    #[expect(clippy::needless_pass_by_ref_mut, reason = "one writer at a time")]
    pub(crate) fn text(&mut self, text: &str) {
        drop(stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush()));
    }

    #[expect(clippy::needless_pass_by_ref_mut, reason = "one writer at a time")]
    pub(crate) fn failure(&mut self, text: &str) {
        drop(stderr().write_all(text.as_bytes()));
    }
}
