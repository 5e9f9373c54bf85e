//! One at a time at a device, and nobody waits for it for ever: a device that never answers holds
//! one thread, not one for each who asks.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long others may keep a device.
const WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Place {
    taken: Mutex<bool>,
    free: Condvar,
}

impl Place {
    fn taken(&self) -> MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Held while the device is used.
#[derive(Debug)]
pub(super) struct Turn(Arc<Place>);

impl Turn {
    /// Waits for the device at this path.
    pub(super) fn take(device: &Path) -> Result<Self, String> {
        Self::within(device, WAIT)
    }

    fn within(device: &Path, wait: Duration) -> Result<Self, String> {
        static PLACES: Mutex<BTreeMap<PathBuf, Arc<Place>>> = Mutex::new(BTreeMap::new());
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Arc::clone(places.entry(device.to_owned()).or_default());
        drop(places);
        let waited = place.free.wait_timeout_while(place.taken(), wait, |taken| *taken);
        let (mut taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *taken {
            return Err(format!("{} has not answered an earlier request yet", device.display()));
        }
        *taken = true;
        drop(taken);
        Ok(Self(place))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.taken() = false;
        self.0.free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_gets_the_device_once_it_is_free_and_nobody_waits_for_ever() {
        let (one, other) = (Path::new("/one"), Path::new("/other"));
        let held = Turn::take(one).unwrap();
        let refused = Turn::within(one, Duration::ZERO).unwrap_err();
        assert!(refused.contains("/one has not answered"), "{refused}");
        let _elsewhere = Turn::within(other, Duration::ZERO).unwrap();
        let waiting = std::thread::spawn(|| Turn::take(Path::new("/one")).map(drop));
        drop(held);
        waiting.join().unwrap().unwrap();
        Turn::within(one, Duration::ZERO).unwrap();
    }
}
