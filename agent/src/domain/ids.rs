//! Names that came from outside and were checked.

use std::fmt;

use jtnt_proto::identity::is_id;
use serde::{Deserialize, Serialize};

/// A job's id: `[A-Za-z0-9_-]{1,64}`, so it is safe in a path, a URL and a terminal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

/// Why a text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to 64 of the characters A-Z a-z 0-9 _ -")]
pub struct NotAnId;

impl JobId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        if is_id(&text) { Ok(Self(text)) } else { Err(NotAnId) }
    }
}

impl TryFrom<&str> for JobId {
    type Error = NotAnId;

    fn try_from(text: &str) -> Result<Self, NotAnId> {
        Self::try_from(text.to_owned())
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
