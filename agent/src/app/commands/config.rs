//! `config check|show`.

use std::path::Path;

use jtntctl::{Exit, Failure, Io};

use super::print;
use crate::{
    app::cli::Config,
    config::{ConfigError, load, load_or_default},
    platform::{host, users},
};

pub(in crate::app) fn run(command: Config, path: &Path, io: &mut Io) -> Result<Exit, Failure> {
    match command {
        Config::Check => check(path, io),
        Config::Show => show(path, io),
    }
}

/// A configuration that cannot be used.
pub(in crate::app) fn failure(error: &ConfigError) -> Failure {
    let (exit, advice) = match error {
        ConfigError::Faults { .. } => (Exit::Usage, "mend the file; jtnt-agent config check"),
        ConfigError::Read { source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            (Exit::Denied, "use sudo")
        }
        ConfigError::NoHome(_) => {
            let failure = Failure::new(Exit::Io, "find this user's files", error.to_string());
            return failure.advise(
                "run this as a user that `getent passwd` knows, or add this one to the database",
            );
        }
        ConfigError::Read { .. } => (Exit::Io, "name the right file with --config PATH"),
    };
    Failure::new(exit, "use the configuration", error.to_string()).advise(advice)
}

fn check(path: &Path, io: &mut Io) -> Result<Exit, Failure> {
    match load(path) {
        Ok(_) => {}
        Err(error @ ConfigError::Faults { .. }) => {
            let told = io.complain(format!("{error}\n").as_bytes());
            return told
                .map(|()| Exit::No)
                .map_err(|e| Failure::new(Exit::Io, "write the output", e.to_string()));
        }
        Err(error @ (ConfigError::Read { .. } | ConfigError::NoHome(_))) => {
            return Err(failure(&error));
        }
    }
    if let Err(error) = host::owned(path, users::own_uid()) {
        return Err(Failure::new(Exit::No, "trust the configuration", error.to_string()));
    }
    print(io, &format!("{}: ok\n", path.display()))
}

fn show(path: &Path, io: &mut Io) -> Result<Exit, Failure> {
    let config = load_or_default(path).map_err(|e| failure(&e))?;
    let text = serde_json::to_string_pretty(&config)
        .map_err(|e| Failure::new(Exit::Io, "show the configuration", e.to_string()))?;
    print(io, &format!("{text}\n"))
}
