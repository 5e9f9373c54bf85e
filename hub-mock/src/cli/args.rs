//! Every command and option.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    faults::{Kind, Route},
    operator::Role,
    state::OldCertificates,
};

/// A mock hub for JTNT agents, and its operator.
#[derive(Debug, Parser)]
#[command(name = "jtnt-hub-mock", version, max_term_width = 100)]
pub(super) struct Arguments {
    /// The hub's folder
    #[arg(long, global = true, env = "JTNT_HUB_DIR", value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value = "human")]
    pub(super) output: Format,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the hub
    Serve(Serve),
    /// Make a one-time enrolment token
    Token {
        /// How long it lives, e.g. 1h (the hub's default when absent)
        #[arg(long, value_parser = span)]
        life: Option<Duration>,
    },
    /// List the enrolled agents
    Agents,
    /// What the hub, as a witness, has seen of an agent's audit logs
    Audit {
        /// Whose
        agent: String,
        /// Print the newest cosigned checkpoint, for `audit verify --anchor`
        #[arg(long)]
        anchor: bool,
        /// Print the lines that the hub holds, of the newest log or of this one
        #[arg(long, value_name = "LOG", num_args = 0..=1, conflicts_with = "anchor")]
        lines: Option<Option<String>>,
    },
    /// The keys by which others check what the hub cosigned, as signed notes take them
    Witness,
    /// Sign jobs and see what became of them
    #[command(subcommand)]
    Job(JobCommand),
    /// Sign and publish policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// The root of roles
    #[command(subcommand)]
    Root(RootCommand),
    /// Certificate authorities
    #[command(subcommand)]
    Ca(CaCommand),
    /// Agents' certificates
    #[command(subcommand)]
    Cert(CertCommand),
    /// Make things go wrong
    #[command(subcommand)]
    Fault(FaultCommand),
    /// Sign any file with any role, and print the envelope
    Sign(Sign),
    /// The last requests of agents
    Requests {
        /// Only of this agent
        #[arg(long)]
        agent: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Where agents connect
    #[arg(long, default_value = "127.0.0.1:8443")]
    pub(super) listen: SocketAddr,
    /// Where the operator's commands connect (loopback)
    #[arg(long, default_value = "127.0.0.1:8444")]
    pub(super) control: SocketAddr,
    /// A further name or address in the server's certificate
    #[arg(long = "name", value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// How long agents' certificates live, e.g. 90d, 10m
    #[arg(long, value_parser = span, default_value = "365d", value_name = "SPAN")]
    pub(super) cert_lifetime: Duration,
    /// How long an agent may take to acknowledge a job
    #[arg(long, value_parser = span, default_value = "30s", value_name = "SPAN")]
    pub(super) lease: Duration,
}

#[derive(Debug, Args)]
pub(super) struct JobOptions {
    /// The agent; may be left out where one is enrolled
    #[arg(long)]
    pub(super) agent: Option<String>,
    /// The longest it may run, in seconds
    #[arg(long, value_name = "S")]
    pub(super) timeout: Option<u64>,
    /// The user it runs as
    #[arg(long, value_name = "USER")]
    pub(super) run_as: Option<String>,
    /// Where it begins, instead of `/`; programs and scripts
    #[arg(long, value_name = "PATH")]
    pub(super) cwd: Option<String>,
    /// What it asks for at most, e.g. memory_bytes=100000000; as in `limits` of a policy
    #[arg(long = "limit", value_name = "NAME=NUMBER", value_parser = pair)]
    pub(super) limits: Vec<(String, String)>,
    /// A secret, read from a file: the job finds it in the open descriptor that
    /// JTNT_SECRET_NAME_FD names
    #[arg(long = "secret", value_name = "NAME=FILE", value_parser = pair)]
    pub(super) secrets: Vec<(String, String)>,
    /// The same, in a file of the job's own that JTNT_SECRET_NAME_FILE names
    #[arg(long = "secret-file", value_name = "NAME=FILE", value_parser = pair)]
    pub(super) secret_files: Vec<(String, String)>,
    /// Wait for the end and print the output; exit 0 only when it succeeded
    #[arg(long)]
    pub(super) wait: bool,
    /// Print the output as it comes, and then as --wait
    #[arg(long, conflicts_with = "wait")]
    pub(super) stream: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Run a program
    Exec {
        #[command(flatten)]
        options: JobOptions,
        /// An environment variable
        #[arg(long = "env", value_name = "K=V", value_parser = pair)]
        env: Vec<(String, String)>,
        /// Absolute path, then arguments
        #[arg(last = true, required = true, value_name = "PATH [ARG]...")]
        command: Vec<String>,
    },
    /// Run a script
    Script {
        #[command(flatten)]
        options: JobOptions,
        /// Absolute path of the interpreter
        #[arg(long, value_name = "PATH")]
        interpreter: String,
        /// An environment variable
        #[arg(long = "env", value_name = "K=V", value_parser = pair)]
        env: Vec<(String, String)>,
        /// Endorse it with the script key, for rules that admit by signer
        #[arg(long)]
        endorse: bool,
        /// The script
        file: PathBuf,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Write a file on the agent's machine
    ///
    /// The file is the job's user's where --run-as or the rule names one; otherwise it is written
    /// by a user of the job's own and then given to the agent's user, with the agent's group. An
    /// agent that is not root writes every file as itself.
    Download {
        #[command(flatten)]
        options: JobOptions,
        /// The local file
        #[arg(long, value_name = "LOCAL")]
        file: PathBuf,
        /// Absolute path on the agent's machine
        #[arg(long, value_name = "REMOTE")]
        dest: String,
        /// Permission bits in octal, e.g. 0644; 0600 when absent, whatever the umask and the file
        /// before it
        #[arg(long, value_parser = octal)]
        mode: Option<u32>,
    },
    /// Read a file of the agent's machine
    Upload {
        #[command(flatten)]
        options: JobOptions,
        /// Absolute path on the agent's machine
        #[arg(long, value_name = "REMOTE")]
        path: String,
        /// Where to put it here (with --wait)
        #[arg(long, value_name = "LOCAL", requires = "wait")]
        save: Option<PathBuf>,
    },
    /// Show a job
    Show {
        /// Its id
        id: String,
    },
    /// List jobs, newest first
    List {
        /// Only of this agent
        #[arg(long)]
        agent: Option<String>,
    },
    /// Cancel a job
    Cancel {
        /// Its id
        id: String,
        /// For people
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Sign and publish
    Push {
        /// The document
        file: PathBuf,
    },
    /// Say what is wrong with a document
    Lint {
        /// The document
        file: PathBuf,
    },
    /// Print a document to start from
    Template,
}

#[derive(Debug, Subcommand)]
pub(super) enum RootCommand {
    /// Show the root in force
    Show,
    /// Sign and publish the next root, with new keys
    Rotate {
        /// Whose keys are replaced
        #[arg(long = "role", value_enum, default_value = "root")]
        roles: Vec<Role>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Show the authorities that count
    Show,
    /// Make another, and have the root name it beside those that count
    Next,
    /// Issue by the newest from now on, and ask agents to renew
    Switch {
        /// Also where an agent has not told that it has the root that names it
        #[arg(long)]
        force: bool,
    },
    /// Have the root name only the one that issues; take no others once all agents have renewed
    Retire {
        /// Take no others now. Agents that have not renewed have to enrol again
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CertCommand {
    /// Treat an agent's certificates as expired
    Expire {
        /// The agent
        #[arg(long)]
        agent: Option<String>,
    },
    /// Revoke an agent's certificates
    Revoke {
        /// The agent
        #[arg(long)]
        agent: Option<String>,
    },
    /// What a renewal does to the certificate before
    Policy {
        /// The rule
        rule: OldCertificates,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum FaultCommand {
    /// Let something go wrong
    Set(SetFault),
    /// Let all be well
    Clear,
}

#[derive(Debug, Args)]
pub(super) struct SetFault {
    /// Where
    pub(super) route: Route,
    /// What
    pub(super) kind: Kind,
    /// How often; until cleared when absent
    #[arg(long)]
    pub(super) times: Option<u32>,
    /// For `expired`: the agent that the expired job is for
    #[arg(long)]
    pub(super) agent: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Sign {
    /// Whose key
    #[arg(long, value_enum)]
    pub(super) role: Role,
    /// Payload type: root, policy, job, cancel, script, update-manifest, timestamp
    #[arg(long = "type", value_name = "TYPE", value_parser = super::root::payload_type)]
    pub(super) kind: jtnt_proto::envelope::PayloadType,
    /// The payload
    pub(super) file: PathBuf,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|e| format!("expected octal digits: {e}"))?;
    if mode > 0o777 {
        Err("at most 0777; setid bits are not for downloads".into())
    } else {
        Ok(mode)
    }
}

/// `90d`, `1h`, `10m`, `30s`.
fn span(text: &str) -> Result<Duration, String> {
    let usage = || "expected a number with s, m, h or d, e.g. 90d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(usage)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(usage()),
    };
    let number: u64 = number.parse().map_err(|e| format!("{}: {e}", usage()))?;
    number.checked_mul(unit).filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn spans_and_modes_are_read() {
        assert_eq!(span("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(span("10m"), Ok(Duration::from_secs(600)));
        for bad in ["", "d", "10", "0s", "-1s", "1w", "99999999999999999999d"] {
            assert!(span(bad).is_err(), "{bad}");
        }
        assert_eq!(octal("0644"), Ok(0o644));
        assert!(octal("4755").is_err());
    }
}
