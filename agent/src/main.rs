//! `jtnt-agent`.

use std::process::ExitCode;

fn main() -> ExitCode {
    jtnt_agent::app::main()
}
