//! The minimal rate of a body that is received or sent.

use std::time::Duration;

use crate::error::{Error, Kind, Result};

/// A connection below this rate is closed, and its work is retried.
///
/// The rate is the average over a window of waiting time. A reader that is slow itself, because its client or its
/// destination is slow, finds bytes in the buffers and does not wait. For a body that is sent, waiting is the time in
/// which the destination has bytes to take and takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes per second. 0 means no limit.
    pub bytes: u64,
    /// The waiting time that the average covers.
    pub window: Duration,
}

impl Default for MinRate {
    /// 1 KiB/s over a minute.
    fn default() -> Self {
        Self { bytes: 1 << 10, window: Duration::from_secs(60) }
    }
}

/// The bytes of one body in the current window.
#[derive(Debug)]
pub(super) struct RateWatch {
    least: MinRate,
    bytes: u64,
    waited: Duration,
}

impl RateWatch {
    pub(super) fn new(least: MinRate) -> Self {
        Self { least, bytes: 0, waited: Duration::ZERO }
    }

    /// The waiting time until the window is full; `None` without a limit.
    pub(super) fn time_left(&self) -> Option<Duration> {
        (self.least.bytes > 0).then(|| self.least.window.saturating_sub(self.waited))
    }

    /// Records bytes and the waiting time for them. `what` is the text between the number of bytes and the registry in
    /// the error, as in "came from".
    ///
    /// # Errors
    /// [`Kind::Timeout`] if the window is full, and the rate in it was too low.
    pub(super) fn record(&mut self, bytes: u64, waited: Duration, what: &str, registry: &str) -> Result<()> {
        self.bytes += bytes;
        self.waited += waited;
        if self.time_left().is_none_or(|left| !left.is_zero()) {
            return Ok(());
        }
        let Self { least, bytes, waited } = std::mem::replace(self, Self::new(self.least));
        if bytes as f64 >= least.bytes as f64 * waited.as_secs_f64() {
            return Ok(());
        }
        let seconds = waited.as_secs_f64();
        let least = least.bytes;
        let text = format!("{bytes} bytes {what} {registry} in {seconds:.0} s, less than {least} a second");
        Err(Error::new(Kind::Timeout, text))
    }
}
