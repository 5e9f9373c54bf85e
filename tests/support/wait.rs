//! The only place where the harness looks again and again.

use std::time::Duration;

use tokio::time::{interval, timeout};

use super::fault::{Fault, Res};

/// Nothing takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(25);

/// Looks until `look` has an answer. Until then it says what it saw instead, for the message.
pub(crate) async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Res<T> {
    let mut seen = String::new();
    let mut again = interval(LOOK);
    let looking = async {
        loop {
            again.tick().await;
            match look().await {
                Ok(found) => return found,
                Err(instead) => seen = instead,
            }
        }
    };
    match timeout(PATIENCE, looking).await {
        Ok(found) => Ok(found),
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            Err(Fault::new(format!("{what}: not within {seconds} s; seen instead: {seen}")))
        }
    }
}
