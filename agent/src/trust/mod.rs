//! From bytes to [`Verified`]: the only way, and the only place where signatures count.

mod keyring;
mod verified;

pub use keyring::{Keyring, TrustError};
pub use verified::Verified;

#[cfg(test)]
pub(crate) mod fixture;
