//! The API over a pipe.
