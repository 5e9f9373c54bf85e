//! Times and sizes for people: how long ago, and exactly when.

use jiff::Timestamp;

/// `3 min ago (2026-01-02 03:04:05Z)`.
pub(crate) fn when(at: Timestamp, now: Timestamp) -> String {
    format!("{} ({})", relative(at, now), absolute(at))
}

/// The same, or a dash.
pub(crate) fn when_or_dash(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(|| "-".to_owned(), |at| when(at, now))
}

/// `2026-01-02 03:04:05Z`.
pub(crate) fn absolute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// `3 min ago`, `in 12 d`, `now`.
pub(crate) fn relative(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.as_second() - now.as_second();
    match seconds {
        0 => "now".to_owned(),
        1.. => format!("in {}", until(seconds.unsigned_abs())),
        _ => format!("{} ago", span(seconds.unsigned_abs())),
    }
}

/// As [`span`], but whole days to the nearest: what was made for a year has 365 days to go, not 364.
fn until(seconds: u64) -> String {
    match seconds {
        172_800.. => format!("{} d", (seconds + 43_200) / 86_400),
        less => span(less),
    }
}

/// `45 s`, `3 min`, `5 h`, `12 d`: rounded down to the unit that says most.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `234 ms`, `1.5 s`, then as [`span`].
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a float that is too large becomes the largest number, none is negative"
            )]
            let whole = s as u64;
            span(whole)
        }
    }
}

/// `1 result`, `2 results`.
pub(crate) fn count(n: u64, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

/// `1.5 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut size = n as f64;
    let mut unit = "B";
    for next in UNITS {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{size:.1} {unit}") }
}

/// Reads `--since`: a time, a day, or how long ago (`90s`, `15m`, `2h`, `7d`).
pub(crate) fn since(text: &str, now: Timestamp) -> Option<Timestamp> {
    let text = text.trim().trim_end_matches(" ago");
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        let midnight = day.to_datetime(jiff::civil::Time::midnight());
        return jiff::tz::TimeZone::system().to_timestamp(midnight).ok();
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.strip_prefix(digits)?.trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let seconds = i64::from(digits.parse::<u32>().ok()?).checked_mul(unit)?;
    Timestamp::from_second(now.as_second().checked_sub(seconds)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn times_say_how_long_ago_and_when() {
        let now = at("2026-01-02T00:00:00Z");
        assert_eq!(when(at("2026-01-01T23:55:00Z"), now), "5 min ago (2026-01-01 23:55:00Z)");
        assert_eq!(relative(at("2026-01-14T00:00:00Z"), now), "in 12 d");
        assert_eq!(relative(at("2027-01-01T23:59:49Z"), now), "in 365 d");
        assert_eq!(relative(at("2026-01-12T11:59:59Z"), now), "in 10 d");
        assert_eq!(relative(at("2025-12-30T00:00:01Z"), now), "2 d ago");
        assert_eq!(relative(now, now), "now");
        assert_eq!(when_or_dash(None, now), "-");
    }

    #[test]
    fn sizes_and_durations_keep_their_unit() {
        assert_eq!(
            (bytes(0), bytes(1023), bytes(1536)),
            ("0 B".into(), "1023 B".into(), "1.5 KiB".into())
        );
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!((count(1, "job"), count(0, "job")), ("1 job".into(), "0 jobs".into()));
        assert_eq!(
            (duration(0.2344), duration(1.5), duration(7200.0)),
            ("234 ms".into(), "1.5 s".into(), "2 h".into())
        );
    }

    #[test]
    fn since_takes_times_days_and_spans() {
        let now = at("2026-01-02T00:00:00Z");
        assert_eq!(since("2025-12-31T00:00:00Z", now), Some(at("2025-12-31T00:00:00Z")));
        assert_eq!(since("2h", now), Some(at("2026-01-01T22:00:00Z")));
        assert_eq!(since("7d ago", now), Some(at("2025-12-26T00:00:00Z")));
        assert!(since("2026-01-01", now).is_some());
        for bad in ["", "h", "2", "2w", "-2h", "99999999999999999d", "é"] {
            assert_eq!(since(bad, now), None, "{bad}");
        }
    }
}
