//! What to say when a command cannot be answered: what failed, why, what to do next.

use std::{error::Error, io};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    Exit,
    connect::spoke_old_http,
    output::escape::{clean, clean_json},
};

/// For whom no group of the configuration is of use.
const NOT_MAPPED: &str =
    "call as another user than nobody, and from outside of containers and user namespaces";

/// A foreground agent has no service to ask.
const DOES_IT_RUN: &str =
    "see whether it runs: jtnt-agent service status, or the terminal of jtnt-agent run";

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

    /// An agent cuts whoever it cannot serve before it reads a byte, and so cannot say why.
    pub(crate) fn cut(what: impl Into<String>, error: &Cause) -> Self {
        let why = format!("the agent cut the connection ({})", cause(error));
        Self::new(Exit::Unreachable, what, why).advise(
            "try again in a moment: it cuts a user who calls too often or has too many \
             connections, and one whose groups it cannot look up; or it has just ended",
        )
    }

    /// What the daemon, or the way to it, answered instead.
    pub(crate) fn rpc(what: impl Into<String>, status: &Status) -> Self {
        // A status that the daemon sent has no source.
        if let Some(lost) = status.source().filter(|e| e.is::<tonic::transport::Error>()) {
            if spoke_old_http() || cause(lost).contains("frame with invalid size") {
                let why = "what answers there is no JTNT agent; it does not speak HTTP/2";
                return Self::new(Exit::Unreachable, what, why)
                    .advise("the path of the agent's admin socket is needed: --socket PATH");
            }
            return Self::cut(what, lost);
        }
        let info = status.get_details_error_info().filter(|info| info.domain == "jtnt");
        let (exit, advice) = meaning(status.code());
        let why = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        let reason = info.map(|info| info.reason);
        let advice = match reason.as_deref() {
            Some("USER_NOT_MAPPED") => Some(NOT_MAPPED),
            _ => advice,
        };
        Self { what: what.into(), why, advice: advice.map(str::to_owned), reason, exit }
    }

    /// For stderr, as the caller reads; `program` is the name under which it was called.
    #[must_use]
    pub fn told(&self, json: bool, program: &str) -> String {
        let failure = Self {
            why: in_name_of(program, &self.why),
            advice: self.advice.as_deref().map(|advice| in_name_of(program, advice)),
            ..self.clone()
        };
        if json { failure.json() } else { failure.text() }
    }

    /// `{"error": {...}}` on a line; without a reason of its own, that of the exit code.
    fn json(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or(match self.exit {
            Exit::Done => "DONE",
            Exit::No => "NO",
            Exit::Usage => "USAGE",
            Exit::Unreachable => "UNREACHABLE",
            Exit::Denied => "DENIED",
            Exit::Incomplete => "INCOMPLETE",
            Exit::Io => "IO",
        });
        let message = format!("cannot {}: {}", self.what, self.why);
        let mut error = serde_json::json!({ "reason": reason, "message": message });
        if let (Some(fields), Some(advice)) = (error.as_object_mut(), &self.advice) {
            fields.insert("advice".to_owned(), advice.as_str().into());
        }
        format!("{}\n", clean_json(serde_json::json!({ "error": error }).to_string()))
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

/// Messages call the program jtntctl; its reader may have typed another name, under which the same
/// command works, and perhaps it alone finds the socket.
pub(crate) fn in_name_of(program: &str, text: &str) -> String {
    text.replace("jtntctl ", &format!("{program} "))
}

/// tonic's own text is "transport error"; what happened stands at the end of the chain.
pub(crate) fn cause(error: &Cause) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

/// Whether the other end hung up.
pub(crate) fn is_cut(error: &Cause) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let cut = |e: &io::Error| matches!(e.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
    chain(error).any(|e| e.downcast_ref().is_some_and(cut))
}

type Cause = dyn Error + 'static;

fn chain(error: &Cause) -> impl Iterator<Item = &Cause> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let this = next?;
        next = this.source();
        Some(this)
    })
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
        Code::Unavailable => (Exit::Unreachable, Some(DOES_IT_RUN)),
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
            (Exit::Io, Some("look at the agent's log: journalctl -u jtnt-agent, or where it runs"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_as_its_reader_reads() {
        let failure = Failure::new(Exit::No, "show job \u{202e}", "no such job")
            .advise("`jtntctl jobs list` shows the jobs this agent knows");
        assert_eq!(
            failure.told(false, "jtnt-agent"),
            "error: cannot show job \\u{202e}: no such job\n next: `jtnt-agent jobs list` shows the \
             jobs this agent knows\n"
        );
        let json: serde_json::Value = serde_json::from_str(&failure.told(true, "x")).unwrap();
        let error = &json["error"];
        assert_eq!(error["reason"], "NO");
        assert_eq!(error["message"], "cannot show job \u{202e}: no such job");
        assert_eq!(error["advice"], "`x jobs list` shows the jobs this agent knows");
    }
}
