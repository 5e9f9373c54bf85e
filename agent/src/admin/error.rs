//! What a refused or failed call reads: a canonical code, a message that says what to do, and a
//! stable reason for programs.

use std::fmt;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{audit::AuditError, store::StoreError};

/// `google.rpc.ErrorInfo` domain of every reason.
const DOMAIN: &str = "jtnt";

/// A status with a reason.
pub(super) fn status(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, []);
    Status::with_error_details(code, message, details)
}

pub(super) fn invalid(message: impl Into<String>) -> Status {
    status(Code::InvalidArgument, "INVALID_ARGUMENT", message)
}

pub(super) fn not_found(reason: &str, message: impl Into<String>) -> Status {
    status(Code::NotFound, reason, message)
}

/// A fault of the agent or of its machine.
pub(super) fn internal(error: impl fmt::Display) -> Status {
    status(Code::Internal, "INTERNAL", error.to_string())
}

pub(super) fn audit(error: &AuditError) -> Status {
    let message = format!("{error}; nothing was done, since it could not be recorded");
    status(Code::FailedPrecondition, "CANNOT_RECORD", message)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
pub(super) fn store(error: StoreError) -> Status {
    status(Code::Internal, "JOURNAL", error.to_string())
}
