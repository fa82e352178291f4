//! The wall clock. Tests can shift it while a debug build runs; a release build always reads the system's.
//!
//! Durations inside one process are measured by [`std::time::Instant`], which never jumps. The wall clock is for
//! times that leave the process: times of files, `Retry-After` dates, times in tokens and reports.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) fn now() -> SystemTime {
    shift(SystemTime::now())
}

/// The same in seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The same as a timestamp with a calendar.
pub(crate) fn timestamp() -> jiff::Timestamp {
    jiff::Timestamp::try_from(now()).unwrap_or_else(|_| jiff::Timestamp::now())
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

/// From now on, each time that is read is shifted by the seconds in this file. They may be negative and may change.
#[cfg(debug_assertions)]
pub(crate) fn shift_by_file(file: std::path::PathBuf) {
    // A second call changes nothing.
    let _ = OFFSET_FILE.set(file);
}

#[cfg(debug_assertions)]
static OFFSET_FILE: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
