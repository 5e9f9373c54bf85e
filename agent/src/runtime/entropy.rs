//! The one source of chance.

use std::{fmt, io, sync::Arc};

/// Random bytes, from the system or from a test.
pub trait Entropy: fmt::Debug + Send + Sync {
    /// Fills `buf`.
    ///
    /// # Errors
    /// When the system has none to give; a key must not be made then.
    fn fill(&self, buf: &mut [u8]) -> io::Result<()>;
}

/// Entropy to hand around.
pub type SharedEntropy = Arc<dyn Entropy>;

/// The kernel's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, buf: &mut [u8]) -> io::Result<()> {
        getrandom::fill(buf).map_err(io::Error::other)
    }
}

/// 32 secret bytes, for a key.
///
/// # Errors
/// As [`Entropy::fill`].
pub fn seed(entropy: &dyn Entropy) -> io::Result<zeroize::Zeroizing<[u8; 32]>> {
    let mut out = zeroize::Zeroizing::new([0; 32]);
    entropy.fill(out.as_mut())?;
    Ok(out)
}

/// A number in `0.0..1.0` for jitter; 0.5 if the system has no entropy, since a late heartbeat is
/// better than none.
#[must_use]
pub fn fraction(entropy: &dyn Entropy) -> f64 {
    let mut raw = [0; 4];
    match entropy.fill(&mut raw) {
        Ok(()) => f64::from(u32::from_le_bytes(raw)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

/// A sequence that a test repeats.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct SeededEntropy(std::sync::Mutex<u64>);

#[cfg(test)]
impl SeededEntropy {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(std::sync::Mutex::new(seed)))
    }
}

#[cfg(test)]
impl Entropy for SeededEntropy {
    fn fill(&self, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for byte in buf {
            // SplitMix64, one output byte at a time.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = (z >> 56) as u8;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_its_bounds_and_repeats_with_its_seed() {
        let (a, b) = (SeededEntropy::new(1), SeededEntropy::new(1));
        for _ in 0..1000 {
            let drawn = fraction(a.as_ref());
            assert!((0.0..1.0).contains(&drawn));
            assert_eq!(drawn.to_bits(), fraction(b.as_ref()).to_bits());
        }
    }
}
