//! How long a client's request may wait for the upstream, and how that time is divided.
//!
//! ```text
//! request  ├──────────────────────── 25 s ───────────────────────┤ then 504
//! registry ├────────── 12 s ────────┤├────────── 12 s ───────────┤ two silent registries fit in
//! limit    ├─────── 10 s ───────┤ with a longer Retry-After the next registry is asked first
//! pause    ├─────── 10 s ───────┤ of an open circuit: one or two probes happen while a client waits
//! ```
//!
//! The total is a setting (`--upstream-timeout`). With a total below the default, the parts shrink in proportion. They never
//! grow beyond their defaults.

use std::time::Duration;

/// The time of one request, and its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// From the request to the head of the response, with all retries.
    pub(super) request: Duration,
    /// The same if a stale answer is available.
    pub(super) stale: Duration,
    /// How long one registry may take for the head of its response.
    pub(super) registry: Duration,
    /// The longest rate limit (429) that is waited out before the next tier is asked. It leaves time for the answer.
    pub(super) limit: Duration,
    /// Time that is kept for the answer after waiting for a limit to end.
    pub(super) reserve: Duration,
    /// The first wait between two rounds of requests to all tiers.
    pub(super) first_backoff: Duration,
    /// The longest wait between two rounds.
    pub(super) longest_backoff: Duration,
    /// The longest pause of a circuit breaker.
    pub(super) longest_pause: Duration,
    /// How long a fill waits for a permit. After that its clients wait for a permit to stream the blob uncached.
    pub(super) fill_permit: Duration,
    /// How long a client waits for a permit to stream a blob uncached.
    pub(super) uncached_permit: Duration,
}

/// How long a request waits for the upstreams by default. containerd 2.3 waits 30 s for the head of an answer.
pub(super) const DEFAULT_REQUEST: Duration = Duration::from_secs(25);

impl Timeouts {
    /// Divides the total time of a request.
    pub(super) fn new(request: Duration) -> Self {
        let part = |seconds: u32| Duration::from_secs(seconds.into()).min(request * seconds / DEFAULT_SECONDS);
        Self {
            request,
            stale: part(3),
            registry: part(12),
            limit: part(10),
            reserve: Duration::from_secs(1).min(request / 10),
            first_backoff: part(1),
            longest_backoff: part(4),
            longest_pause: part(10),
            fill_permit: part(10),
            uncached_permit: part(12),
        }
    }
}

const DEFAULT_SECONDS: u32 = DEFAULT_REQUEST.as_secs() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_fit_into_the_whole_whatever_that_is() {
        for seconds in [1, 2, 5, 25, 60, 600] {
            let times = Timeouts::new(Duration::from_secs(seconds));
            assert!(times.registry * 2 < times.request && times.reserve * 10 <= times.request, "{times:?}");
            assert!(times.limit < times.registry && times.longest_pause * 2 < times.request, "{times:?}");
            assert!(times.fill_permit + times.uncached_permit < times.request, "{times:?}");
            assert!(times.first_backoff < times.longest_backoff && !times.first_backoff.is_zero(), "{times:?}");
            assert!(times.stale <= Duration::from_secs(3) && times.registry <= Duration::from_secs(12), "{times:?}");
        }
    }
}
