//! After the end of an agent: what becomes of a job that was under way, by what is found of it.

/// A job that ends the agent each time must not do so for ever.
const MAX_ATTEMPTS: u32 = 3;

/// What is found of a job that the journal has as starting or running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It belongs to another boot of the machine.
    OtherBoot,
    /// A process keeps it.
    Kept,
    /// It ended, and that was written down.
    Ended,
    /// It began, and nobody knows how it went on.
    Begun,
    /// It never began.
    Nothing,
    /// It needed the agent to go on, and was cut short without a trace.
    Cut,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its end is awaited.
    Attach,
    /// Its result is made from what was written down.
    Conclude,
    /// It waits again, as the same run.
    Start,
    /// It waits again, as another run, which it allows, or of which nothing was done yet.
    Repeat,
    /// It ended with the machine.
    Interrupted,
    /// Nobody can tell; it does not run again.
    Indeterminate,
}

/// The decision. `idempotent` is the job's own word that it may run more than once.
#[must_use]
pub const fn step(found: Found, idempotent: bool, attempt: u32) -> Step {
    match found {
        Found::OtherBoot => Step::Interrupted,
        Found::Kept => Step::Attach,
        Found::Ended => Step::Conclude,
        Found::Nothing => Step::Start,
        Found::Begun if idempotent && attempt < MAX_ATTEMPTS => Step::Repeat,
        Found::Cut if attempt < MAX_ATTEMPTS => Step::Repeat,
        Found::Cut => Step::Conclude,
        Found::Begun => Step::Indeterminate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_began_or_may_begin_twice_begins() {
        let cases = [
            (Found::OtherBoot, Step::Interrupted, Step::Interrupted),
            (Found::Kept, Step::Attach, Step::Attach),
            (Found::Ended, Step::Conclude, Step::Conclude),
            (Found::Nothing, Step::Start, Step::Start),
            (Found::Begun, Step::Indeterminate, Step::Repeat),
        ];
        for (found, once, often) in cases {
            assert_eq!(step(found, false, 1), once, "{found:?}");
            assert_eq!(step(found, true, MAX_ATTEMPTS - 1), often, "{found:?}");
            assert_eq!(step(found, true, MAX_ATTEMPTS), once, "{found:?}");
        }
    }

    #[test]
    fn what_was_cut_short_is_tried_a_few_times() {
        for idempotent in [false, true] {
            assert_eq!(step(Found::Cut, idempotent, MAX_ATTEMPTS - 1), Step::Repeat);
            assert_eq!(step(Found::Cut, idempotent, MAX_ATTEMPTS), Step::Conclude);
        }
    }
}
