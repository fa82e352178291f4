//! The retry budget of one piece of work. No HTTP.
//!
//! A blob has one budget for all of its steps: opening it, resuming its download, resuming its upload, starting again in a
//! new session. So the retries of one layer of the code do not multiply those of another.

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::waits::{self, Wait};

/// The number of retries and the waiting time that are left. Clones share one state.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Faults that may still be retried.
    left: u32,
    max: u32,
    attempts: u32,
    /// Bytes that arrived since [`Budget::progress`] last gave a fault back.
    moved: u64,
    /// The waiting time that is left, for `Retry-After` and backoff together.
    patience: Duration,
    started: Instant,
    /// The end of the wait after the last fault that was counted.
    waiting_until: Option<Instant>,
}

impl Budget {
    /// A budget of `faults` retries and `patience` of waiting in all.
    pub fn new(faults: u32, patience: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            left: faults,
            max: faults,
            attempts: 1,
            moved: 0,
            patience,
            started: Instant::now(),
            waiting_until: None,
        })))
    }

    /// Waits before a retry after `error`, as long as the server or the backoff says. Then returns.
    ///
    /// A wait that the server asked for (`Retry-After`) costs waiting time but no fault, unless it is zero. Several
    /// requests for one piece of work may fail at the same time. They count as one fault, and wait together.
    ///
    /// # Errors
    /// `error` itself, with the number of attempts and the time spent, if it is permanent or the budget is spent.
    pub async fn retry(&self, error: Error) -> Result<()> {
        // Several pieces of work may meet the same fault. One of them warns.
        self.wait(error, |error| WARNED.is_news(error, Instant::now())).await
    }

    /// As [`retry`](Self::retry), but logs a retry as information and not as a warning. For a caller that reports the
    /// final error itself.
    ///
    /// # Errors
    /// Those of [`retry`](Self::retry).
    pub async fn retry_quietly(&self, error: Error) -> Result<()> {
        self.wait(error, |_| false).await
    }

    /// Logs the retry, as a warning if `warns`, and waits.
    async fn wait(&self, error: Error, warns: impl FnOnce(&Error) -> bool) -> Result<()> {
        let Some(wait) = self.decide(&error) else { return Err(self.give_up(error)) };
        let text = format!("{}; retrying in {:.1} s", shorten_digests(&error.to_string()), wait.as_secs_f64());
        if warns(&error) {
            tracing::warn!("{text}");
        } else {
            tracing::info!("{text}");
        }
        let until = Instant::now() + wait;
        let _waiting = waits::begin(|| Wait::before_retry(&error, until));
        tokio::time::sleep_until(until).await;
        Ok(())
    }

    /// Counts bytes that arrived and will be kept. Each 32 MiB give one fault back, so that a large blob on a bad line may
    /// have more faults than a small one.
    pub fn progress(&self, bytes: u64) {
        let mut state = self.lock();
        state.moved += bytes;
        if state.moved >= BYTES_PER_REGAINED_FAULT {
            state.moved = 0;
            state.left = (state.left + 1).min(state.max);
        }
    }

    /// The number of attempts so far.
    pub fn attempts(&self) -> u32 {
        self.lock().attempts
    }

    /// `error`, with the number of attempts and the time spent.
    pub fn give_up(&self, error: Error) -> Error {
        let state = self.lock();
        error.after(state.attempts, state.started.elapsed())
    }

    fn decide(&self, error: &Error) -> Option<Duration> {
        if !error.is_transient() {
            return None;
        }
        let mut state = self.lock();
        let wait = match error.retry_after() {
            // The server's delay is exact. A little jitter keeps clients apart.
            Some(asked) => asked + jitter(Duration::from_millis(250)),
            None => {
                let fault = state.max.saturating_sub(state.left).min(6);
                let backoff = MAX_BACKOFF.min(FIRST_BACKOFF * 2_u32.pow(fault));
                // At least half of it, so that six retries always outlast an outage of some seconds.
                backoff / 2 + jitter(backoff / 2)
            }
        };
        // Several connections break at once when the other end goes away.
        if error.retry_after().is_none()
            && let Some(left) = state.waiting_until.and_then(|until| until.checked_duration_since(Instant::now()))
            && !left.is_zero()
        {
            state.attempts += 1;
            return Some(left);
        }
        // `Retry-After: 0` must not cause endless retries.
        let fault = error.retry_after().is_none_or(|asked| asked.is_zero());
        if wait > state.patience || (fault && state.left == 0) {
            return None;
        }
        if fault {
            state.left -= 1;
            state.waiting_until = Some(Instant::now() + wait);
        }
        state.patience -= wait;
        state.attempts += 1;
        Some(wait)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Warnings of late. While the same trouble lasts it is warned of once in [`WARNING_INTERVAL`].
struct Warnings(Mutex<Vec<(String, Instant)>>);

impl Warnings {
    /// Whether a warning of this error tells something new. The same trouble is: of the same kind, at the same registry,
    /// with the same status.
    fn is_news(&self, error: &Error, now: Instant) -> bool {
        let registry = error.registry().map(str::to_owned).unwrap_or_else(|| error.to_string());
        let trouble = format!("{registry} {:?} {:?} {:?}", error.side(), error.kind(), error.status());
        let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        warned.retain(|(_, at)| now.saturating_duration_since(*at) < WARNING_INTERVAL);
        if warned.iter().any(|(known, _)| *known == trouble) {
            return false;
        }
        if warned.len() < MAX_WARNINGS {
            warned.push((trouble, now));
        }
        true
    }
}

static WARNED: Warnings = Warnings(Mutex::new(Vec::new()));
const WARNING_INTERVAL: Duration = Duration::from_secs(30);
/// Different troubles that are remembered.
const MAX_WARNINGS: usize = 64;

/// The text with the first twelve characters of each hash, as other lines for people have them.
fn shorten_digests(text: &str) -> String {
    let (mut short, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((at, algorithm)) =
        ["sha256:", "sha512:"].iter().filter_map(|name| Some((rest.find(name)?, name))).min()
    {
        let (before, hash) = rest.split_at(at + algorithm.len());
        let length = hash.bytes().take_while(u8::is_ascii_hexdigit).count();
        short.push_str(before);
        short.push_str(&hash[..length.min(12)]);
        if length > 12 {
            short.push('…');
        }
        rest = &hash[length..];
    }
    short + rest
}

impl Default for Budget {
    /// Six retries, fifteen minutes of waiting.
    fn default() -> Self {
        Self::new(6, Duration::from_secs(15 * 60))
    }
}

/// Full jitter: a random duration up to `max` (AWS Architecture Blog, "Exponential Backoff And Jitter").
pub(crate) fn jitter(max: Duration) -> Duration {
    // The keys of RandomState differ in each instance, which is random enough to spread retries.
    let random = std::hash::RandomState::new().build_hasher().finish();
    max.mul_f64(random as f64 / u64::MAX as f64)
}

const FIRST_BACKOFF: Duration = Duration::from_millis(300);
const MAX_BACKOFF: Duration = Duration::from_secs(15);
const BYTES_PER_REGAINED_FAULT: u64 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn fault() -> Error {
        Error::new(Kind::Network, "reset")
    }

    #[tokio::test(start_paused = true)]
    async fn faults_are_counted_and_reported() {
        let budget = Budget::new(2, Duration::from_secs(60));
        budget.retry(fault()).await.expect("first");
        budget.retry(fault()).await.expect("second");
        let error = budget.retry(fault()).await.expect_err("spent");
        assert!(error.to_string().contains("after 3 attempts"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_servers_delay_is_used_and_bounded() {
        let budget = Budget::new(1, Duration::from_secs(100));
        let begun = Instant::now();
        let limited = || Error::new(Kind::Limited, "429").transient(Some(Duration::from_secs(60)));
        budget.retry(limited()).await.expect("within patience");
        assert!(begun.elapsed() >= Duration::from_secs(60) && begun.elapsed() < Duration::from_secs(61));
        budget.retry(limited()).await.expect_err("past patience");
        budget.retry(fault()).await.expect("a fault may still be retried");
        let at_once = Error::new(Kind::Limited, "429").transient(Some(Duration::ZERO));
        budget.retry(at_once).await.expect_err("no more faults");
    }

    #[tokio::test(start_paused = true)]
    async fn progress_gives_faults_back() {
        let budget = Budget::new(1, Duration::from_secs(1000));
        for _ in 0..10 {
            budget.retry(fault()).await.expect("a retry");
            budget.progress(BYTES_PER_REGAINED_FAULT);
        }
        budget.retry(fault()).await.expect("a retry");
        budget.retry(fault()).await.expect_err("no progress since");
    }

    /// Four connections to one registry break together when it restarts: that is one fault, not four.
    #[tokio::test(start_paused = true)]
    async fn faults_at_the_same_time_are_one_fault() {
        let budget = Budget::new(1, Duration::from_secs(60));
        let all = futures_util::future::join_all((0..4).map(|_| budget.retry(fault()))).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        budget.retry(fault()).await.expect_err("a later fault is another one");
    }

    /// However the jitter falls, the six faults of a blob take longer than a registry's restart.
    #[tokio::test(start_paused = true)]
    async fn the_faults_of_a_blob_outlast_a_restart() {
        let (budget, begun) = (Budget::default(), Instant::now());
        while budget.retry(fault()).await.is_ok() {}
        assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    }

    #[test]
    fn digests_are_short_in_warnings() {
        let hash = "0123456789abcdef".repeat(4);
        let text =
            format!("source: cannot read blob sha256:{hash} of a/b@sha256:{hash}: sha256:12 sha512:{hash}{hash}");
        let short =
            "source: cannot read blob sha256:0123456789ab… of a/b@sha256:0123456789ab…: sha256:12 sha512:0123456789ab…";
        assert_eq!(shorten_digests(&text), short);
        assert_eq!(shorten_digests("é: no digest"), "é: no digest");
    }

    #[test]
    fn the_same_trouble_is_warned_of_once() {
        let (warned, start) = (Warnings(Mutex::default()), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let busy =
            |blob: &str, registry: &str| Error::new(Kind::Registry, blob).answered(503, None).at_registry(registry);
        assert!(warned.is_news(&busy("one", "r.io"), start));
        assert!(!warned.is_news(&busy("two", "r.io"), at(1)), "another blob, the same trouble");
        assert!(warned.is_news(&busy("two", "s.io"), at(1)), "another registry");
        assert!(warned.is_news(&fault().at_registry("r.io"), at(1)), "another trouble");
        assert!(!warned.is_news(&busy("one", "r.io"), at(29)));
        assert!(warned.is_news(&busy("one", "r.io"), at(30)), "it lasts");
    }

    #[tokio::test]
    async fn permanent_errors_are_not_retried() {
        let budget = Budget::default();
        budget.retry(Error::new(Kind::NotFound, "no")).await.expect_err("final");
        assert_eq!(budget.attempts(), 1);
    }
}
