//! The wall clock. Tests can shift it in a debug build; a release build always uses the system clock.
//!
//! Durations inside one process are measured by [`std::time::Instant`], which never jumps. The wall clock is for times that
//! leave the process: file times, `Retry-After` dates, times in tokens and reports.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) fn now() -> SystemTime {
    shift(SystemTime::now())
}

/// The current time in seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The current time as a calendar timestamp.
pub(crate) fn timestamp() -> jiff::Timestamp {
    jiff::Timestamp::try_from(now()).unwrap_or_else(|_| jiff::Timestamp::now())
}

/// The time of day in so long from now, on this machine's clock, as in "14:05 CET"; with the date if it is another day.
pub(crate) fn local_time_in(wait: Duration) -> String {
    let zone = jiff::tz::TimeZone::try_system().unwrap_or(jiff::tz::TimeZone::UTC);
    describe_time(timestamp(), wait, &zone)
}

fn describe_time(now: jiff::Timestamp, wait: Duration, zone: &jiff::tz::TimeZone) -> String {
    let then = now.checked_add(wait).unwrap_or(jiff::Timestamp::MAX);
    let (now, then) = (now.to_zoned(zone.clone()), then.to_zoned(zone.clone()));
    let format = if now.date() == then.date() { "%H:%M %Z" } else { "%F %H:%M %Z" };
    then.strftime(format).to_string()
}

/// How long ago `then` was. `None` if it lies in the future.
pub(crate) fn age(then: SystemTime) -> Option<Duration> {
    now().duration_since(then).ok()
}

#[cfg(not(debug_assertions))]
fn shift(now: SystemTime) -> SystemTime {
    now
}

#[cfg(debug_assertions)]
fn shift(now: SystemTime) -> SystemTime {
    let text = OFFSET_FILE.get().and_then(|file| std::fs::read_to_string(file).ok());
    let offset: i64 = text.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let by = Duration::from_secs(offset.unsigned_abs());
    if offset < 0 { now.checked_sub(by) } else { now.checked_add(by) }.unwrap_or(now)
}

/// Shifts the clock by the number of seconds in this file, which is read each time. It may be negative and may change.
#[cfg(debug_assertions)]
pub(crate) fn shift_by_file(file: std::path::PathBuf) {
    // A second call changes nothing.
    let _ = OFFSET_FILE.set(file);
}

#[cfg(debug_assertions)]
static OFFSET_FILE: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_local_and_have_a_date_if_it_is_another_day() {
        let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(2));
        let now = "2026-03-04T20:30:00Z".parse().expect("a time");
        let told = |hours: u64| describe_time(now, Duration::from_secs(hours * 3600), &zone);
        assert_eq!([told(1), told(2)], ["23:30 +02", "2026-03-05 00:30 +02"]);
        assert_eq!(describe_time(now, Duration::ZERO, &jiff::tz::TimeZone::UTC), "20:30 UTC");
    }
}
