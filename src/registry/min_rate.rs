//! The least rate at which a body must come, or be taken.

use std::time::Duration;

use crate::error::{Error, Kind, Result};

/// A connection that brings less, or takes less, is given up, and its work tried again.
///
/// It is the average over a window of waiting: time in which a reader waits for bytes. A reader that is slow itself,
/// since its client or its destination is, finds them in the connection's buffers, and does not wait.
/// For a body that is sent it is the time in which the destination has bytes to take and takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes a second. 0 is no limit.
    pub bytes: u64,
    /// How much waiting the average is of.
    pub window: Duration,
}

impl Default for MinRate {
    /// 1 KiB/s over a minute.
    fn default() -> Self {
        Self { bytes: 1 << 10, window: Duration::from_secs(60) }
    }
}

/// What moved of one body in the current window.
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

    /// How much more waiting fills the window; `None` where there is no limit.
    pub(super) fn time_left(&self) -> Option<Duration> {
        (self.least.bytes > 0).then(|| self.least.window.saturating_sub(self.waited))
    }

    /// Notes what moved, and how long it was waited for. `what` is the start of the error's sentence after the
    /// number of bytes, as in "came from" `registry`.
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
