//! Limits concurrent requests, and pauses after a 429 or 503.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::retry::jitter;
use crate::waits::{self, Wait};

/// Concurrent requests to one registry: halved by a push-back, increased by success (additive increase, multiplicative
/// decrease, as in RFC 5681).
#[derive(Debug)]
pub(in crate::registry) struct ParallelismLimit {
    registry: String,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    limit: f64,
    most: f64,
    running: u32,
    /// The end of a pause, by `Retry-After` or by the backoff.
    paused: Option<Instant>,
    /// The status by which it did.
    status: u16,
    /// One burst of 429s halves once.
    halved: Option<Instant>,
    /// Bursts since the last success. Each causes a longer pause.
    bursts: u32,
    /// The longest pause.
    longest: Duration,
}

/// A permit to run a request. Returned on drop.
#[derive(Debug)]
pub(in crate::registry) struct Permit(Arc<ParallelismLimit>);

/// A task that waits for a permit. If it was notified and leaves without a permit, it notifies the next one.
struct Waiter<'a> {
    limiter: &'a ParallelismLimit,
    heard: bool,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.heard {
            self.limiter.freed.notify_one();
        }
    }
}

impl ParallelismLimit {
    pub(in crate::registry) fn new(registry: &str, most: usize, longest: Duration) -> Arc<Self> {
        let most = most.max(1) as f64;
        let state =
            State { limit: most, most, running: 0, paused: None, status: 429, halved: None, bursts: 0, longest };
        Arc::new(Self { registry: registry.to_owned(), state: Mutex::new(state), freed: Notify::new() })
    }

    /// Waits for a permit, and for the end of a pause.
    pub(in crate::registry) async fn acquire(self: &Arc<Self>) -> Permit {
        let mut waiting = Waiter { limiter: self, heard: false };
        loop {
            let freed = self.freed.notified();
            let pause = {
                let mut state = self.lock();
                match state.paused.filter(|until| *until > Instant::now()) {
                    Some(until) => Some(until),
                    None if f64::from(state.running) < state.limit.floor() => {
                        state.running += 1;
                        waiting.heard = false;
                        return Permit(self.clone());
                    }
                    None => None,
                }
            };
            match pause {
                Some(until) => self.sleep_until(until).await,
                None => freed.await,
            }
            waiting.heard = true;
        }
    }

    /// Waits for the end of a pause, without a permit.
    pub(in crate::registry) async fn wait_for_pause(&self) {
        loop {
            let Some(until) = self.lock().paused.filter(|until| *until > Instant::now()) else { return };
            self.sleep_until(until).await;
        }
    }

    async fn sleep_until(&self, until: Instant) {
        let status = self.lock().status;
        let _waiting = waits::begin(|| Wait::pause(&self.registry, &status.to_string(), until));
        tokio::time::sleep_until(until).await;
    }

    /// The registry answered well.
    pub(in crate::registry) fn on_success(&self) {
        let mut state = self.lock();
        // A request from before the pause says nothing about the registry's state now.
        if state.paused.is_none_or(|until| until <= Instant::now()) {
            state.bursts = 0;
        }
        if state.limit < state.most {
            state.limit = (state.limit + 1.0 / state.limit).min(state.most);
            drop(state);
            self.freed.notify_one();
        }
    }

    /// Records a push-back (429 or 503) that asks for a pause of `wait`. Without a time the pause doubles with each
    /// burst. Returns the end of the pause.
    pub(in crate::registry) fn on_push_back(&self, status: u16, wait: Option<Duration>) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        state.status = status;
        if state.halved.is_none_or(|at| now.duration_since(at) > Duration::from_secs(1)) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.halved = Some(now);
            tracing::info!("the registry limits requests: at most {:.0} at once", state.limit.floor());
        }
        let wait = match (wait, state.paused) {
            (Some(wait), _) => wait,
            // The response is to a request from before the pause.
            (None, Some(until)) if until > now => return state.paused,
            (None, _) => {
                let half = state.longest.min(FIRST_PAUSE * 2_u32.pow(state.bursts)) / 2;
                state.bursts = (state.bursts + 1).min(16);
                half + jitter(half)
            }
        };
        // A longer wait means a used up quota: the request itself waits, or fails.
        if wait <= DEFAULT_MAX_PAUSE {
            state.paused = state.paused.max(Some(now + wait));
        }
        state.paused
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.freed.notify_one();
    }
}

/// `Retry-After`: seconds or a date (RFC 9110 §10.2.3), at most a day.
pub(in crate::registry) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(Duration::MAX, Duration::from_secs)
    } else {
        let then = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
        Duration::try_from(then.duration_since(crate::clock::timestamp())).unwrap_or_default()
    };
    Some(wait.min(MAX_WAIT))
}

/// The longest wait, so that sums do not overflow.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_MAX_PAUSE: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn halves_once_a_burst_then_grows() {
        let limiter = ParallelismLimit::new("r.io", 8, LONGEST_BACKOFF);
        limiter.on_push_back(429, None);
        limiter.on_push_back(429, None);
        let held = [limiter.acquire().await, limiter.acquire().await, limiter.acquire().await, limiter.acquire().await];
        let fifth = limiter.acquire();
        assert!(futures_util::FutureExt::now_or_never(fifth).is_none(), "only half may run");
        for _ in 0..5 {
            limiter.on_success();
        }
        let fifth = futures_util::FutureExt::now_or_never(limiter.acquire());
        assert!(fifth.is_some(), "success gives one place back");
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn everyone_waits_out_a_pause() {
        let limiter = ParallelismLimit::new("r.io", 2, LONGEST_BACKOFF);
        let begun = Instant::now();
        limiter.on_push_back(429, Some(Duration::from_secs(30)));
        let _permit = limiter.acquire().await;
        assert!(begun.elapsed() >= Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_in_a_pause_passes_his_place_on() {
        let limiter = ParallelismLimit::new("r.io", 1, LONGEST_BACKOFF);
        let held = limiter.acquire().await;
        let mut first = Box::pin(limiter.acquire());
        let mut second = Box::pin(limiter.acquire());
        assert!(futures_util::poll!(&mut first).is_pending() && futures_util::poll!(&mut second).is_pending());
        limiter.on_push_back(429, Some(Duration::from_secs(30)));
        drop(held);
        assert!(futures_util::poll!(&mut first).is_pending(), "it heard of the place, and waits out the pause");
        drop(first);
        let second = tokio::time::timeout(Duration::from_secs(60), second).await;
        assert!(second.is_ok(), "nobody told it of the place");
    }

    #[tokio::test(start_paused = true)]
    async fn most_places_are_taken_and_never_more() {
        let (limiter, running, most) =
            (ParallelismLimit::new("r.io", 8, LONGEST_BACKOFF), Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let ask = |nth: u64| {
            let (limiter, running, most) = (limiter.clone(), running.clone(), most.clone());
            async move {
                let permit = limiter.acquire().await;
                {
                    let mut running = running.lock().expect("no panic");
                    *running += 1;
                    let mut most = most.lock().expect("no panic");
                    *most = running.max(*most);
                }
                tokio::time::sleep(Duration::from_millis(10 + nth % 7)).await;
                *running.lock().expect("no panic") -= 1;
                drop(permit);
            }
        };
        futures_util::future::join_all((0..200).map(ask)).await;
        assert_eq!(*most.lock().expect("no panic"), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn each_burst_is_followed_by_a_longer_silence() {
        let limiter = ParallelismLimit::new("r.io", 8, LONGEST_BACKOFF);
        for burst in 0..12 {
            let begun = Instant::now();
            limiter.on_push_back(429, None);
            limiter.on_push_back(429, None);
            limiter.wait_for_pause().await;
            let most = LONGEST_BACKOFF.min(FIRST_PAUSE * 2_u32.pow(burst));
            let (least, most) = (most / 2, most + Duration::from_millis(2));
            assert!((least..=most).contains(&begun.elapsed()), "{:?} after {burst}", begun.elapsed());
        }
        limiter.on_success();
        let begun = Instant::now();
        limiter.on_push_back(429, None);
        let _permit = limiter.acquire().await;
        assert!(begun.elapsed() <= FIRST_PAUSE + Duration::from_millis(2), "success forgets");
    }

    #[test]
    fn waits_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", http::HeaderValue::from_static("7"));
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert("retry-after", http::HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(retry_after(&headers), Some(Duration::ZERO));
        for long in ["18446744073709551615", "99999999999999999999999999", "Thu, 30 Dec 9999 20:00:00 GMT"] {
            headers.insert("retry-after", http::HeaderValue::from_static(long));
            assert_eq!(retry_after(&headers), Some(MAX_WAIT), "{long}");
        }
        for wrong in ["", "-1", "1.5", "soon"] {
            headers.insert("retry-after", http::HeaderValue::from_static(wrong));
            assert_eq!(retry_after(&headers), None, "{wrong}");
        }
    }
}
