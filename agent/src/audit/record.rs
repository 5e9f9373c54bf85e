//! What is the same in every record of an event, so that no place that writes one can forget it.

use jtnt_proto::audit::{Event, Status};

/// What a record begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Always {
    pub(super) status: Option<Status>,
    pub(super) origin: Option<&'static str>,
    pub(super) object: Option<&'static str>,
}

/// Nothing here means that whoever writes the record has to say it.
pub(super) const fn always(event: Event) -> Always {
    let done = Some(Status::Success);
    let (status, origin, object) = match event {
        // The agent writes these of itself, once they are so.
        Event::Startup => (done, Some("agent"), Some("agent")),
        Event::Shutdown => (None, Some("agent"), Some("agent")),
        Event::Genesis | Event::DayOpen | Event::DayClose | Event::Prune => {
            (done, Some("agent"), Some("audit log"))
        }
        Event::Recovered => (done, Some("agent"), None),
        Event::KeyRotated => (done, None, Some("audit log")),
        Event::Degraded => (None, Some("agent"), None),
        Event::OutputDropped => (Some(Status::Error), Some("agent"), None),
        Event::JobStarted | Event::RootChanged => (done, Some("hub"), None),
        Event::JobExecuted | Event::JobRejected | Event::PolicyViolation => {
            (None, Some("hub"), None)
        }
        Event::LogRead => (done, Some("local"), None),
        Event::Refused => (Some(Status::Denied), Some("local"), Some("admin API")),
        Event::AdminCall | Event::Enrollment => (None, Some("local"), None),
        Event::ConfigChanged | Event::PolicyChanged | Event::CertRotated | Event::UpdateApplied => {
            (None, None, None)
        }
    };
    Always { status, origin, object }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_so_is_what_the_event_may_tell() {
        for name in Event::NAMES {
            let event: Event = serde_json::from_value(name.into()).unwrap();
            let (told, always) = (event.told(), always(event));
            let status = always.status.map(|s| serde_json::to_value(s).unwrap());
            if let Some(status) = status {
                assert!(told.statuses.contains(&status.as_str().unwrap()), "{name}");
            }
            assert!(always.origin.is_none_or(|o| told.origins == [o]), "{name}");
        }
    }
}
