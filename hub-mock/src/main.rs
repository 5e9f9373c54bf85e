//! The command `jtnt-hub-mock`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    jtnt_hub_mock::cli::main()
}
