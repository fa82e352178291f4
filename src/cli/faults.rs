//! What tests may change in the whole program, by environment variables that only a debug build reads.

use std::time::Duration;

use crate::file_access::Files;

/// `TRANSLOAD_TEST_CLOCK=FILE`: the wall clock is shifted by the seconds that the file holds.
pub(super) fn shift_clock() {
    #[cfg(debug_assertions)]
    if let Some(file) = std::env::var_os("TRANSLOAD_TEST_CLOCK") {
        crate::clock::shift_by_file(file.into());
    }
}

/// The files of the proxy's cache. `TRANSLOAD_TEST_DISK_FAULTS=SEED:DIR`: their calls fail at random, as DIR says
/// (`file_access::random_faults`).
pub(super) fn cache_files() -> Files {
    #[cfg(debug_assertions)]
    if let Ok(setting) = std::env::var("TRANSLOAD_TEST_DISK_FAULTS")
        && let Some((seed, dir)) = setting.split_once(':')
        && let Ok(seed) = seed.parse()
    {
        return crate::file_access::random_faults::files(seed, dir.into());
    }
    Files::default()
}

/// How often the status is printed. `TRANSLOAD_TEST_STATUS_INTERVAL=MILLISECONDS`.
pub(super) fn status_interval() -> Option<Duration> {
    #[cfg(debug_assertions)]
    if let Ok(setting) = std::env::var("TRANSLOAD_TEST_STATUS_INTERVAL") {
        return setting.parse().ok().map(Duration::from_millis);
    }
    None
}
