//! Finds what the tests drive: built beside the test itself, or installed elsewhere.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::fault::{Fault, Res};

/// The path of a shipped binary, built first if need be.
///
/// Cargo names binaries in the environment only for tests of the package that has them.
pub(crate) fn binary(name: &str) -> Res<PathBuf> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir = DIR.get_or_init(|| folder().map_err(|fault| fault.to_string()));
    let dir = dir.as_ref().map_err(Fault::new)?;
    let path = dir.join(format!("{name}{}", env::consts::EXE_SUFFIX));
    if path.is_file() {
        return Ok(path);
    }
    Err(Fault::new(format!("there is no {}", path.display())))
}

fn folder() -> Res<PathBuf> {
    if let Some(dir) = env::var_os("JTNT_BIN_DIR") {
        return Ok(dir.into()); // packaging tests point at an installed tree
    }
    // target/<profile>/{deps,examples}/<exe>
    let exe = env::current_exe()?;
    let dir = exe.ancestors().nth(2).unwrap_or(Path::new("."));
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if built.success() { Ok(dir.to_owned()) } else { Err(Fault::new("the binaries do not build")) }
}
