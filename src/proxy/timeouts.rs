//! How long a client's request may wait for the upstreams, and how that time is divided.
//!
//! ```text
//! request  ├──────────────────────── 25 s ───────────────────────┤ then 504
//! registry ├────────── 12 s ────────┤├────────── 12 s ───────────┤ two silent registries fit in
//! limit    ├─────── 10 s ───────┤ a longer Retry-After: the next registry first
//! pause    ├─────── 10 s ───────┤ of an open circuit: each client that waits sees a probe or two
//! ```
//!
//! The whole is a setting (`--upstream-timeout`). The parts keep their proportions where it is shorter than the default,
//! and never grow beyond what is right for the default.

use std::time::Duration;

/// The time of one request, and its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// From the request to the head of its answer, with all retries.
    pub(super) request: Duration,
    /// The same where an older answer is at hand.
    pub(super) stale: Duration,
    /// How long one registry may take for the head of its answer.
    pub(super) registry: Duration,
    /// The longest limit (429) that is waited out before the next tier is asked: it leaves time for the answer.
    pub(super) limit: Duration,
    /// What isn't spent on waiting for a limit's end: the answer takes some time too.
    pub(super) reserve: Duration,
    /// Between two rounds of questions to all tiers, at first.
    pub(super) first_backoff: Duration,
    /// And at most.
    pub(super) longest_backoff: Duration,
    /// For how long a circuit breaker withholds a registry, at most.
    pub(super) longest_pause: Duration,
    /// How long a fill waits for a place: after it, its clients wait for one among what is passed on.
    pub(super) fill_place: Duration,
    /// How long a client waits for a place among what is passed on.
    pub(super) pass_place: Duration,
}

/// How long a request waits for the upstreams by default. containerd 2.3 waits 30 s for the head of an answer.
pub(super) const DEFAULT_REQUEST: Duration = Duration::from_secs(25);

impl Timeouts {
    /// The parts of this whole.
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
            fill_place: part(10),
            pass_place: part(12),
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
            assert!(times.fill_place + times.pass_place < times.request, "{times:?}");
            assert!(times.first_backoff < times.longest_backoff && !times.first_backoff.is_zero(), "{times:?}");
            assert!(times.stale <= Duration::from_secs(3) && times.registry <= Duration::from_secs(12), "{times:?}");
        }
    }
}
