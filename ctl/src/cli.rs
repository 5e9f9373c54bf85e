//! What can be typed.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};
use jtnt_proto::audit::Event;

use crate::connect::{DEFAULT_SOCKET, Target};

/// Asks and steers the JTNT agent on this machine
#[derive(Debug, Parser)]
#[command(name = "jtntctl", version, propagate_version = false, max_term_width = 100)]
#[command(after_help = EXIT_CODES)]
pub struct Cli {
    /// For every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The table of exit codes, for help texts.
pub const EXIT_CODES: &str = "Exit codes: 0 yes or done, 1 the answer is no, 2 usage, \
    3 no agent answers, 4 permission denied, 5 incomplete, 6 input or output failed";

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The agent's admin socket: a path, or http://HOST:PORT of a forwarded one
    #[arg(long, global = true, env = "JTNT_SOCKET", hide_env_values = true)]
    #[arg(value_name = "PATH|URL", default_value = DEFAULT_SOCKET, value_parser = Target::parse)]
    pub socket: Target,
    /// Text for people, or JSON for programs
    #[arg(long, short, global = true, value_name = "FORMAT", default_value = "human")]
    pub output: Output,
    /// Seconds to wait for an answer
    #[arg(long, global = true, value_name = "S", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// When to colour; auto is on a terminal unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

impl Global {
    /// How long to wait for an answer.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// For whom output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables and sentences.
    Human,
    /// One object, or one a line where items stream.
    Json,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// How the agent is, on one screen
    Status {
        /// Show it again whenever it changes
        #[arg(long, short)]
        watch: bool,
    },
    /// The health checks; exit 1 when unhealthy
    Health(Health),
    /// Try the way to the hub step by step
    TestConnection,
    /// Versions of this program and of the daemon
    Version,
    /// The daemon's log
    #[command(subcommand)]
    Log(Log),
    /// Who may do what
    #[command(subcommand)]
    Authz(Authz),
    /// The client certificate
    #[command(subcommand)]
    Cert(Cert),
    /// The policy in force, and what it says to a request
    #[command(subcommand)]
    Policy(Policy),
    /// The audit log
    #[command(subcommand)]
    Audit(Audit),
    /// Jobs in the agent's journal
    #[command(subcommand)]
    Jobs(Jobs),
    /// Results that wait for the hub
    #[command(subcommand)]
    Cache(Cache),
    /// Read the configuration and the identity again
    Reload,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// Where; it must exist
        dir: PathBuf,
    },
}

/// `health`.
#[derive(Debug, Clone, Copy, Args)]
pub struct Health {
    /// Only ask whether the daemon answers at all
    #[arg(long, conflicts_with = "ready")]
    pub live: bool,
    /// Only ask whether the daemon is ready to work
    #[arg(long)]
    pub ready: bool,
}

/// `log`.
#[derive(Debug, Clone, Subcommand)]
pub enum Log {
    /// Show the log level, or set it until the next restart
    Level {
        /// The new level
        level: Option<Level>,
    },
}

/// A log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `authz`.
#[derive(Debug, Clone, Subcommand)]
pub enum Authz {
    /// Tell whether a user may call a method, and why; exit 1 when not
    Explain {
        /// User name or numeric id
        user: String,
        /// As /jtnt.admin.v1.JobService/CancelJob; JobService/CancelJob or Cancel does, where one
        /// method is meant
        method: String,
    },
}

/// `cert`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Cert {
    /// Dates, chain and key of the certificate; exit 1 when something is wrong
    Check {
        /// Also show it to the hub, over a new connection
        #[arg(long)]
        prove: bool,
    },
    /// When and why it will be renewed
    Plan,
    /// Renew it now; exit 1 when it was not
    ///
    /// The agent makes a new key, asks the hub for a certificate, shows that to the hub over a
    /// connection of its own, and only then puts it in place. The one before is kept for 7 days.
    Renew {
        /// Also where the last renewal was less than a third of a lifetime ago
        #[arg(long)]
        force: bool,
    },
    /// Put the certificate before back in place; exit 1 when it was not
    ///
    /// The hub is asked first whether it takes it. What is in place becomes the one before, so a
    /// second time leads back again.
    Rollback {
        /// Without asking the hub
        #[arg(long)]
        no_probe: bool,
    },
}

/// `policy`.
#[derive(Debug, Clone, Subcommand)]
pub enum Policy {
    /// Show the policy in force
    Show,
    /// Ask the hub for a newer one now
    Refresh,
    /// Would a program be allowed? Exit 1 when not
    CheckExec {
        /// The program and its arguments, to the end of the line
        #[arg(
            value_name = "PATH [ARG]...",
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        command: Vec<String>,
        /// What else the job would ask for
        #[command(flatten)]
        with: With,
    },
    /// Would a script be allowed? Exit 1 when not
    CheckScript {
        /// The script, of which only the hash is sent, and its arguments, to the end of the line
        #[arg(
            value_name = "FILE [ARG]...",
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        command: Vec<String>,
        /// The interpreter; taken from the script's #! line when absent
        #[arg(long, value_name = "PATH")]
        interpreter: Option<String>,
        /// Id of a script-role key that endorsed it
        #[arg(long = "signer", value_name = "KEYID")]
        signers: Vec<String>,
        /// What else the job would ask for
        #[command(flatten)]
        with: With,
    },
    /// Would a transfer be allowed? Exit 1 when not
    CheckFile {
        /// An upload reads, a download writes
        access: Access,
        /// The file
        path: String,
        /// Whom it would run as
        #[arg(long, value_name = "USER")]
        run_as: Option<String>,
    },
    /// Check a policy document before it is signed; needs no agent
    Lint {
        /// The document, JSON
        file: PathBuf,
    },
    /// What would change for the jobs of the last 30 days? Exit 1 when something would
    ///
    /// The agent asks what those jobs asked once more, of the policy in force and of this document,
    /// on the files of now. Nothing comes into force, and nobody need have signed it. What is
    /// compared is whether a job may start, by which rule, as whom and how far it is held; not
    /// limits, nor which network and files it sees once it runs.
    ///
    /// Exit 5 when there was no time to ask everything and what was asked would not change.
    Diff {
        /// The document, JSON, as for lint; - is standard input
        file: PathBuf,
    },
    /// Print the least rules under which a monitored job does the same again
    ///
    /// The job has to have run while the policy was in mode monitor (or the rule for it was), and it
    /// is this one run that is learned from: what it did not do this time, it may not do later. The
    /// rules are printed as parts of a policy document, to be read, put into one, and checked with
    /// `policy lint`; notes on standard error say what cannot be learned, and where a rule is wider
    /// than what was seen. Exit 5 when something is missing from the rules.
    Learn {
        /// The job
        #[arg(value_name = "JOB")]
        job: String,
    },
}

/// What a job would ask for besides its command.
#[derive(Debug, Clone, Args)]
pub struct With {
    /// A variable the job would set
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Whom it would run as
    #[arg(long, value_name = "USER")]
    pub run_as: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Access {
    Read,
    Write,
}

/// `audit`.
#[derive(Debug, Clone, Subcommand)]
pub enum Audit {
    /// Show lines, oldest first
    List {
        /// Only lines since then: a time, a day, or 90s, 15m, 2h, 7d ago
        #[arg(long, value_name = "T")]
        since: Option<String>,
        /// Only this event
        #[arg(long, value_name = "E", value_parser = PossibleValuesParser::new(Event::NAMES))]
        event: Option<String>,
        /// Only this job
        #[arg(long, value_name = "ID")]
        job: Option<String>,
        /// Only lines that contain this text
        #[arg(long, value_name = "TEXT")]
        grep: Option<String>,
        /// At most this many, the newest; all when absent
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show the last lines, then each new one
    Tail {
        /// How many old lines come first
        #[arg(long, short = 'n', value_name = "N", default_value_t = 10)]
        lines: u32,
    },
    /// Check signatures, chain and sequence; exit 1 when tampered with, 5 when incomplete
    ///
    /// No file means all of the agent's, which it checks itself, with its own key. A bare name such
    /// as audit-2025-12-16.log is a file in its audit directory (audit/ in data_dir), and the agent
    /// is asked, too.
    ///
    /// With --key, or where a file is a path (./audit-2025-12-16.log), the files are checked here,
    /// and no agent is needed. The key is audit/audit.pub of the agent, best from a copy taken at
    /// enrolment: whoever can change the log can change the file beside it. Without --key it is
    /// taken from the first line of the log, and the answer says so.
    ///
    /// Exit 1 is TAMPERED: a line was changed, removed, put in or put elsewhere. Exit 5 is
    /// INCOMPLETE: nothing is known to be wrong, and something that is needed is not there, such as
    /// the key, or the end of a line that a crash cut off. Whether the newest lines were cut off
    /// as a whole, no file can tell; that is said and is no fault. A checkpoint can: the agent compares
    /// with the newest that its hub has cosigned, and --anchor with one of yours.
    ///
    /// The folder of an export is checked as a whole, by what it holds where nothing else is given.
    #[command(group(ArgGroup::new("given").args(["files", "proof"])))]
    Verify {
        /// Log files, or the folder of an export
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The proof of one line, as `audit prove` writes it
        #[arg(long, value_name = "FILE", conflicts_with = "anchor")]
        proof: Option<PathBuf>,
        /// The agent's audit.pub, to check files without an agent
        #[arg(long, value_name = "FILE", requires = "given")]
        key: Option<PathBuf>,
        /// A checkpoint that somebody else has kept, best from the hub: lines that were cut off or
        /// written anew show by it
        #[arg(long, value_name = "FILE", requires = "files")]
        anchor: Option<PathBuf>,
        /// The key of a witness that must have cosigned it, as NAME+HASH+KEY, or a file of such lines
        #[arg(long, value_name = "KEY", requires = "given")]
        witness: Vec<String>,
    },
    /// Prove that one line is in the log, by a file that needs neither log nor agent
    ///
    /// Printed is a proof (C2SP tlog-proof): the line, the hashes from it up to the root, and the
    /// newest checkpoint that the hub has cosigned, if it covers the line. Whoever has it checks it by
    /// `audit verify --proof FILE --key audit.pub --witness KEY`.
    Prove {
        /// The line's seq, as `audit list` shows it
        #[arg(value_name = "SEQ")]
        seq: u64,
    },
    /// Write the whole log into a folder, with all that is needed to check it without an agent
    ///
    /// The lines as they were signed, the checkpoints that the hub has cosigned, the keys, and a
    /// manifest of all files. Whoever has it checks it by `audit verify DIR`, best with --key from a
    /// copy taken at enrolment and --witness from the hub.
    Export {
        /// The folder, which must not exist yet
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Have a new key sign the log from the next line on
    ///
    /// The old key signs the line that names the new one, and the new one accepts all lines before it;
    /// so the log still verifies, with the new audit.pub or an older copy that it leads on from. The
    /// hub learns of it with the next heartbeat. The agent stays who it is.
    RotateKey,
    /// Remove files older than the retention
    Clean,
}

/// `jobs`.
#[derive(Debug, Clone, Subcommand)]
pub enum Jobs {
    /// List jobs, newest first
    List {
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 100)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
        recent: u32,
        /// Only this state
        #[arg(long, value_name = "S")]
        state: Option<State>,
    },
    /// Show one job
    Show {
        /// The job
        id: String,
    },
    /// Print what a job wrote, its streams to ours
    ///
    /// The agent keeps as much of each stream as the policy's or the job's limits.output_bytes says
    /// (1 MiB without one), of more its beginning and its end; what was cut, and output that was
    /// cleaned, is told on standard error. The hub gets at most 256 KiB of each stream: the first
    /// 192 and the last 64.
    Logs {
        /// The job
        id: String,
        /// Go on until the job ends
        #[arg(long, short)]
        follow: bool,
    },
    /// Call a job off
    Cancel {
        /// The job
        id: String,
    },
}

/// State of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum State {
    Queued,
    Running,
    Ok,
    Failed,
    Timeout,
    Cancelled,
    Interrupted,
    Indeterminate,
    Rejected,
}

/// `cache`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Cache {
    /// What waits for the hub, and what could go
    Status,
    /// Remove what was delivered; never a result that waits
    Clean,
}
