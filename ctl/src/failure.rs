//! What to say when a command cannot be answered: what failed, why, what to do next.

use std::io;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{Exit, output::escape::clean};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was attempted, such as `cancel job j-1`.
    pub what: String,
    /// Why it did not work.
    pub why: String,
    /// A stable UPPER_SNAKE word, where there is one.
    pub reason: Option<String>,
    /// What to do next.
    pub advice: Option<String>,
    /// How the process ends.
    pub exit: Exit,
}

impl Failure {
    /// A failure without reason and advice.
    #[must_use]
    pub fn new(exit: Exit, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), reason: None, advice: None, exit }
    }

    /// The same with advice.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// A file that could not be read or written.
    pub(crate) fn file(verb: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let exit = if denied { Exit::Denied } else { Exit::Io };
        Self::new(exit, format!("{verb} {}", path.display()), error.to_string())
    }

    /// What the daemon, or the way to it, answered instead.
    pub(crate) fn rpc(what: impl Into<String>, status: &Status) -> Self {
        let info = status.get_details_error_info().filter(|info| info.domain == "jtnt");
        let (exit, advice) = meaning(status.code());
        let why = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        Self {
            what: what.into(),
            why,
            advice: advice.map(str::to_owned),
            reason: info.map(|info| info.reason),
            exit,
        }
    }

    /// One to three lines for stderr.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("error: cannot {}: {}", clean(&self.what), clean(&self.why));
        if let Some(reason) = &self.reason {
            text.push_str(&format!(" [{}]", clean(reason)));
        }
        text.push('\n');
        if let Some(advice) = &self.advice {
            text.push_str(&format!(" next: {}\n", clean(advice)));
        }
        text
    }
}

fn meaning(code: Code) -> (Exit, Option<&'static str>) {
    match code {
        Code::PermissionDenied | Code::Unauthenticated => (
            Exit::Denied,
            Some(
                "use sudo, or have an administrator put you into reader_groups, operator_groups \
                 or admin_groups; `jtntctl authz explain USER METHOD` tells what is needed",
            ),
        ),
        Code::Unavailable => (Exit::Unreachable, Some("jtnt-agent service status")),
        Code::DeadlineExceeded | Code::Cancelled => {
            (Exit::Unreachable, Some("try again with a longer --timeout"))
        }
        Code::InvalidArgument | Code::OutOfRange => (Exit::Usage, None),
        Code::Ok
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted => (Exit::No, None),
        Code::ResourceExhausted => (Exit::Io, Some("the agent is busy; try again in a moment")),
        Code::Unimplemented => {
            (Exit::Io, Some("the daemon is of another version; compare with `jtntctl version`"))
        }
        Code::Unknown | Code::Internal | Code::DataLoss => {
            (Exit::Io, Some("look at the agent's log: journalctl -u jtnt-agent"))
        }
    }
}
