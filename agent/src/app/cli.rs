//! What can be typed: the agent's own commands, and every command of `jtntctl`.

use std::path::PathBuf;

use clap::{
    Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, parser::ValueSource,
};
use jtnt_proto::bytes::Hash;
use jtntctl::Global;

use crate::domain::key_store::KeyStore;

/// The name of this program.
pub(super) const PROGRAM: &str = "jtnt-agent";

/// The JTNT endpoint agent
#[derive(Debug, Clone, Parser)]
#[command(name = PROGRAM, version, propagate_version = false, max_term_width = 100)]
#[command(after_help = jtntctl::EXIT_CODES)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    /// The configuration; JTNT_CONFIG names another one too
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub(super) config: Option<PathBuf>,
    /// Whether `--socket` or its variable named one.
    #[arg(skip)]
    pub(super) socket_was_given: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Cli {
    /// Reads the process's arguments; ends the process where they make no sense, as clap does.
    pub(super) fn of_process() -> Self {
        let matches = Self::command().get_matches();
        let given = matches.value_source("socket") != Some(ValueSource::DefaultValue);
        match Self::from_arg_matches(&matches) {
            Ok(cli) => Self { socket_was_given: given, ..cli },
            Err(error) => error.exit(),
        }
    }
}

#[derive(Debug, Clone, Subcommand)]
pub(super) enum Command {
    /// Run the agent in the foreground, as the service manager does
    Run,
    /// Join a hub: a token and its root of roles become an identity, all or nothing
    Enroll(Box<Enroll>),
    /// Leave the hub: remove certificate, root and policy; the agent must be stopped
    ///
    /// The audit log and its key stay. A running agent has the files to itself: end it first with
    /// jtnt-agent service stop, or where it runs in the foreground.
    Unenroll,
    /// Check or show the configuration
    #[command(subcommand)]
    Config(Config),
    /// The service of the service manager
    #[command(subcommand)]
    Service(Service),
    /// The time by which expiry is judged
    #[command(subcommand)]
    Clock(Clock),
    #[command(flatten)]
    Ctl(jtntctl::Command),
}

#[derive(Debug, Clone, Args)]
pub(super) struct Enroll {
    /// The hub, https://HOST[:PORT]; hub_url of the configuration if not given
    #[arg(long, value_name = "URL")]
    pub(super) hub: Option<String>,
    /// One-time token; others can see it in the list of processes, so prefer --token-file
    #[arg(long, value_name = "T", conflicts_with = "token_file")]
    pub(super) token: Option<String>,
    /// File with the one-time token; JTNT_ENROLL_TOKEN holds one too
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) root: Root,
    /// Authorities, PEM, that vouch for the hub's TLS instead of those that the root names
    #[arg(long, value_name = "FILE", conflicts_with = "hub_ca_sha256")]
    pub(super) hub_ca: Option<PathBuf>,
    /// SHA-256 of such an authority's DER, which the hub must show
    #[arg(long, value_name = "HEX", value_parser = hash)]
    pub(super) hub_ca_sha256: Option<Hash>,
    /// A label for the configuration
    #[arg(long = "label", value_name = "K=V", value_parser = pair)]
    pub(super) labels: Vec<(String, String)>,
    /// Where the key is made: file, tpm2[:/DEVICE] or a pkcs11: URI; for the configuration
    #[arg(long, value_name = "STORE")]
    pub(super) key_store: Option<KeyStore>,
    /// Replace an identity that is there
    #[arg(long)]
    pub(super) force: bool,
}

/// Where the root of roles comes from: never from the hub's word alone, but for trials. An agent that
/// enrolls again keeps the one that it has, if not told otherwise.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub(super) struct Root {
    /// The root of roles, from the hub's operator
    #[arg(long, value_name = "FILE")]
    pub(super) root: Option<PathBuf>,
    /// SHA-256 of that file; the file itself is fetched from the hub
    #[arg(long, value_name = "HEX", value_parser = hash)]
    pub(super) root_sha256: Option<Hash>,
    /// Believe whatever root the hub shows: for trials, and shown for ever after
    #[arg(long)]
    pub(super) trust_hub_root: bool,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum Config {
    /// Say what is wrong with the configuration, if anything; exit 1 when something is
    Check,
    /// Print every setting as it is in force
    Show,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum Service {
    /// Install and enable the service
    Install,
    /// Stop, disable and remove the service; configuration and data stay
    Uninstall,
    /// Start it
    Start,
    /// Stop it
    Stop,
    /// Show it; exit 3 when it does not run
    Status,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum Clock {
    /// Put the stored mark of time back to the clock, after a wild clock; the agent must be stopped
    Reset,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected K=V")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn hash(text: &str) -> Result<Hash, String> {
    // Tools print hashes in either case, some with colons.
    let plain: String = text.chars().filter(|c| *c != ':').collect();
    Hash::parse(&plain.to_ascii_lowercase()).ok_or_else(|| "expected 64 hex digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn hashes_are_read_as_tools_print_them() {
        let lower = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(hash(&lower), hash(&colons));
        assert!(hash("ab").is_err());
    }

    #[test]
    fn a_root_comes_from_one_place() {
        let enroll = ["jtnt-agent", "enroll", "--hub", "https://h", "--token", "t"];
        let with = |more: &[&'static str]| Cli::try_parse_from(enroll.iter().chain(more));
        assert!(with(&["--root", "f"]).is_ok());
        assert!(with(&["--root", "f", "--trust-hub-root"]).is_err());
    }
}
