//! What can go wrong outside a request, and how it is said.

use std::{io, path::Path};

/// Why the hub, an operator's command or the library could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A folder that no hub has made.
    #[error(
        "{dir} is no hub's folder: it has no {missing}; `jtnt-hub-mock serve --dir {dir}` makes \
         one, or name the folder that it made with --dir or JTNT_HUB_DIR"
    )]
    NotAHub {
        /// Which.
        dir: String,
        /// What every hub's folder has.
        missing: &'static str,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {addr}: {source}; choose another address with --listen or --control")]
    Listen {
        /// Which.
        addr: std::net::SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// State, key or document on disk is not what the hub wrote.
    #[error("{what} is damaged: {why}; restore it, or start with an empty folder")]
    Damaged {
        /// Which.
        what: String,
        /// How.
        why: String,
    },
    /// The certificate authority could not do its work.
    #[error("certificate authority: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS could not be set up.
    #[error("TLS: {0}")]
    Tls(String),
    /// The journal could not be written; what was asked is not known to have happened.
    #[error("the journal cannot be written any more; free disk space and restart the hub")]
    Journal,
    /// The hub, or the caller, said no.
    #[error("{reason}: {detail}")]
    Refused {
        /// Stable reason.
        reason: String,
        /// For people.
        detail: String,
    },
    /// Standard output takes no more.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// The control port does not answer.
    #[error("no hub answers on its control port ({0}); is `jtnt-hub-mock serve` running?")]
    Unreachable(String),
    /// The operating system gave no randomness.
    #[error("no randomness: {0}")]
    Entropy(String),
}

impl HubError {
    /// Names the file of an I/O error.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::File { path: path.display().to_string(), source }
    }

    /// A refusal with a stable reason.
    pub(crate) fn refused(reason: &str, detail: impl Into<String>) -> Self {
        Self::Refused { reason: reason.to_owned(), detail: detail.into() }
    }

    /// A stable word for programs.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Refused { reason, .. } => reason,
            Self::Unreachable(_) => "UNREACHABLE",
            Self::Damaged { .. } => "DAMAGED",
            Self::NotAHub { .. } => "NOT_A_HUB",
            Self::Certificate(_) | Self::Tls(_) => "TLS",
            Self::File { .. }
            | Self::Listen { .. }
            | Self::Journal
            | Self::Output(_)
            | Self::Entropy(_) => "IO",
        }
    }

    /// Damaged state.
    pub(crate) fn damaged(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Damaged { what: what.into(), why: why.to_string() }
    }
}

/// `N` random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], HubError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| HubError::Entropy(e.to_string()))?;
    Ok(bytes)
}
