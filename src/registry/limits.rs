//! How many requests a registry is asked at once, and what it says of its limits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Requests at once to one registry: halved when it pushes back, grown by success
/// (additive increase, multiplicative decrease, as in RFC 5681).
#[derive(Debug)]
pub(super) struct Limiter {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    limit: f64,
    most: f64,
    running: u32,
    /// Nobody asks before this: the registry said `Retry-After`.
    paused: Option<Instant>,
    /// One burst of 429s halves once.
    halved: Option<Instant>,
}

/// A place among the running requests; given back on drop.
#[derive(Debug)]
pub(super) struct Permit(Arc<Limiter>);

impl Limiter {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let most = most.max(1) as f64;
        let state = State { limit: most, most, running: 0, paused: None, halved: None };
        Arc::new(Self { state: Mutex::new(state), freed: Notify::new() })
    }

    /// Waits for a place, and for the end of a pause.
    pub(super) async fn acquire(self: &Arc<Self>) -> Permit {
        loop {
            let freed = self.freed.notified();
            let pause = {
                let mut state = self.lock();
                match state.paused.filter(|until| *until > Instant::now()) {
                    Some(until) => Some(until),
                    None if f64::from(state.running) < state.limit.floor() => {
                        state.running += 1;
                        return Permit(self.clone());
                    }
                    None => None,
                }
            };
            match pause {
                Some(until) => tokio::time::sleep_until(until).await,
                None => freed.await,
            }
        }
    }

    /// The registry answered well.
    pub(super) fn went_well(&self) {
        let mut state = self.lock();
        if state.limit < state.most {
            state.limit = (state.limit + 1.0 / state.limit).min(state.most);
            drop(state);
            self.freed.notify_one();
        }
    }

    /// The registry pushed back (429 or 503), and wants to be left alone for `wait`.
    pub(super) fn pushed_back(&self, wait: Option<Duration>) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.halved.is_none_or(|at| now.duration_since(at) > Duration::from_secs(1)) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.halved = Some(now);
            tracing::info!("the registry pushes back: at most {:.0} requests at once", state.limit.floor());
        }
        // A longer wait is a spent quota, which is its request's own affair to wait out or report.
        if let Some(wait) = wait.filter(|wait| *wait <= LONGEST_PAUSE) {
            state.paused = state.paused.max(Some(now + wait));
        }
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

/// Docker Hub's pull quota, from its headers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PullQuota {
    /// Pulls allowed in a window.
    pub limit: u64,
    /// Pulls left in it.
    pub remaining: u64,
    /// The window, in seconds.
    pub window: u64,
    /// What is counted: an address or a user's id.
    pub source: Option<String>,
}

impl PullQuota {
    /// Reads `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 20;w=21600` and
    /// `docker-ratelimit-source` (Docker documentation, "Pull usage and limits"). Absent means unlimited.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let number = |text: &str| text.split(';').next()?.trim().parse().ok();
        let limit = text("ratelimit-limit")?;
        let window = limit.split(';').find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
        Some(Self {
            limit: number(limit)?,
            remaining: text("ratelimit-remaining").and_then(number)?,
            window: window.unwrap_or(6 * 3600),
            source: text("docker-ratelimit-source").map(str::to_owned),
        })
    }

    /// Whether an answer that says this was made before one that said `known`: of up to `at_once`
    /// answers, which overtake each other, the one with the least pulls left is the newest. One that
    /// says a lot more tells of a new window.
    pub(super) fn is_older_than(&self, known: &Self, at_once: usize) -> bool {
        let same = (self.limit, &self.source) == (known.limit, &known.source);
        let more = self.remaining.saturating_sub(known.remaining);
        same && more > 0 && more <= at_once as u64
    }
}

/// `Retry-After`: seconds or a date (RFC 9110 §10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(then.duration_since(jiff::Timestamp::now())).unwrap_or_default())
}

const LONGEST_PAUSE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn halves_once_a_burst_then_grows() {
        let limiter = Limiter::new(8);
        limiter.pushed_back(None);
        limiter.pushed_back(None);
        let held = [limiter.acquire().await, limiter.acquire().await, limiter.acquire().await, limiter.acquire().await];
        let fifth = limiter.acquire();
        assert!(futures_util::FutureExt::now_or_never(fifth).is_none(), "only half may run");
        for _ in 0..5 {
            limiter.went_well();
        }
        let fifth = futures_util::FutureExt::now_or_never(limiter.acquire());
        assert!(fifth.is_some(), "success gives one place back");
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn everyone_waits_out_a_pause() {
        let limiter = Limiter::new(2);
        let begun = Instant::now();
        limiter.pushed_back(Some(Duration::from_secs(30)));
        let _permit = limiter.acquire().await;
        assert!(begun.elapsed() >= Duration::from_secs(30));
    }

    #[test]
    fn answers_that_overtake_each_other_count_down() {
        let quota = |remaining| PullQuota { limit: 100, remaining, window: 21600, source: None };
        assert!(quota(12).is_older_than(&quota(10), 32));
        assert!(!quota(10).is_older_than(&quota(10), 32));
        assert!(!quota(9).is_older_than(&quota(10), 32));
        assert!(!quota(100).is_older_than(&quota(10), 32), "a new window");
    }

    #[test]
    fn quotas_and_waits_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", http::HeaderValue::from_static("100;w=21600"));
        assert_eq!(PullQuota::from_headers(&headers), None);
        headers.insert("ratelimit-remaining", http::HeaderValue::from_static("20;w=21600"));
        assert_eq!(PullQuota::from_headers(&headers).map(|q| (q.limit, q.remaining, q.window)), Some((100, 20, 21600)));
        headers.insert("retry-after", http::HeaderValue::from_static("7"));
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(7)));
        headers.insert("retry-after", http::HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(retry_after(&headers), Some(Duration::ZERO));
    }
}
