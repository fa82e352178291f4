//! Limits requests per minute: ACR's limits for one identity, and the user's for other registries.
//!
//! The requests of the last minute are counted by second. So no minute, wherever it begins, has more requests than
//! allowed, and a list that is done within a minute is not slowed down. The figures are ACR's (its documents, "Service
//! tiers", March 2026); a 429 shows that others use a share of them.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use crate::error::{Error, Kind};
use crate::registry::Options;
use crate::registry::azure::is_acr;
use crate::waits::{self, Wait};

/// A tier of Azure Container Registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sku {
    /// The smallest tier. It has the limits of [`Sku::Standard`].
    Basic,
    /// The middle tier.
    Standard,
    /// The largest tier.
    Premium,
}

impl Sku {
    /// All tiers, by the names that [`FromStr`] parses.
    pub const NAMES: [&'static str; 3] = ["basic", "standard", "premium"];

    /// Requests per minute of one identity: reads, writes, deletes, lists of referrers. Tokens are counted by registry.
    fn allows(self, class: Class) -> u32 {
        match (self, class) {
            (Self::Premium, Class::Read) => 10_000,
            (Self::Premium, Class::Write | Class::Delete) => 2_000,
            (Self::Premium, Class::Referrers) => 1_000,
            (Self::Premium, Class::Token) => 20_000,
            (_, Class::Read) => 5_000,
            (_, Class::Write) => 1_000,
            (_, Class::Delete) => 500,
            (_, Class::Referrers) => 250,
            (_, Class::Token) => 10_000,
        }
    }
}

impl FromStr for Sku {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_lowercase().as_str() {
            "basic" => Ok(Self::Basic),
            "standard" => Ok(Self::Standard),
            "premium" => Ok(Self::Premium),
            _ => Err(Error::new(Kind::Usage, format!("{text:?} is none of basic, standard, premium"))),
        }
    }
}

impl fmt::Display for Sku {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic => "basic",
            Self::Standard => "standard",
            Self::Premium => "premium",
        })
    }
}

/// The class that a request counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::registry) enum Class {
    Read,
    Write,
    Delete,
    /// Counts as a read too.
    Referrers,
    Token,
}

impl Class {
    pub(in crate::registry) fn of(method: &Method, path: &str) -> Self {
        match *method {
            Method::GET | Method::HEAD if path.contains("/referrers/sha") => Self::Referrers,
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Read,
            Method::DELETE => Self::Delete,
            _ => Self::Write,
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Read => "reads",
            Self::Write => "writes",
            Self::Delete => "deletes",
            Self::Referrers => "lists of referrers",
            Self::Token => "token requests",
        }
    }

    /// The buckets that a request counts in.
    fn draws(self, bucket: Option<Self>) -> bool {
        bucket.is_none_or(|bucket| bucket == self || (self == Self::Referrers && bucket == Self::Read))
    }
}

/// The limits of one registry. Without limits, no request waits.
#[derive(Debug)]
pub(in crate::registry) struct RateLimit {
    registry: String,
    origin: Instant,
    buckets: Mutex<Vec<Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    /// `None` for requests of any class.
    class: Option<Class>,
    window: Window,
    /// The current and the largest number of requests per minute: a 429 decreases it, and it grows without one.
    allowed: f64,
    most: f64,
    grown: Instant,
    /// The end of a `Retry-After`.
    closed: Option<Instant>,
    reported: Option<Instant>,
}

/// The requests of the last minute, by second.
#[derive(Debug)]
struct Window {
    slots: [u32; WINDOW_SLOTS],
    /// The second of the newest slot.
    newest: u64,
    sum: u32,
}

impl RateLimit {
    pub(in crate::registry) fn new(registry: &str, options: &Options) -> Self {
        let share = f64::from(options.share.max(1));
        let now = Instant::now();
        let mut buckets = Vec::new();
        let mut limit = |class, most: f64| {
            let most = (most / share).max(1.0).floor();
            buckets.push(Bucket {
                class,
                window: Window { slots: [0; WINDOW_SLOTS], newest: 0, sum: 0 },
                allowed: most,
                most,
                grown: now,
                closed: None,
                reported: None,
            });
        };
        if is_acr(registry) {
            let sku = options.acr_sku.unwrap_or(Sku::Standard);
            for class in [Class::Read, Class::Write, Class::Delete, Class::Referrers, Class::Token] {
                limit(Some(class), f64::from(sku.allows(class)) * USED_SHARE);
            }
        }
        if let Some(rate) = options.rates.get(registry) {
            limit(None, f64::from(*rate));
        }
        Self { registry: registry.to_owned(), origin: now, buckets: Mutex::new(buckets) }
    }

    /// Waits until a request of the class is allowed. Takes nothing: another task may be faster.
    pub(in crate::registry) async fn wait(&self, class: Class) {
        while let Some(until) = self.next(class, false) {
            let reason = || {
                let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
                buckets.iter().filter(|bucket| class.draws(bucket.class)).map(Bucket::reason).max().unwrap_or_default()
            };
            let _waiting = waits::begin(|| Wait::pause(&self.registry, &reason(), until));
            tokio::time::sleep_until(until).await;
        }
    }

    /// Counts a request of the class, if it is allowed now.
    pub(in crate::registry) fn take(&self, class: Class) -> bool {
        self.next(class, true).is_none()
    }

    /// The time of the next check; `None` means now.
    fn next(&self, class: Class, take: bool) -> Option<Instant> {
        let now = Instant::now();
        let second = now.duration_since(self.origin).as_secs();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut until = None;
        for bucket in buckets.iter_mut().filter(|bucket| class.draws(bucket.class)) {
            let Some(next) = bucket.next(now, second, self.origin) else { continue };
            until = until.max(Some(next));
            if bucket.reported.is_none_or(|reported| now.duration_since(reported) >= LOG_INTERVAL) {
                bucket.reported = Some(now);
                let noun = bucket.class.map_or("requests", Class::noun);
                let wait = next.duration_since(now).as_secs_f64().ceil();
                tracing::info!("{}: at most {} {noun} a minute: waiting {wait} s", self.registry, bucket.limit());
            }
        }
        if until.is_none() && take {
            for bucket in buckets.iter_mut().filter(|bucket| class.draws(bucket.class)) {
                bucket.window.add();
            }
        }
        until
    }

    /// Records a 429 with `Retry-After` for a request of this class. Returns whether this limit handles it.
    pub(in crate::registry) fn on_rate_limited(&self, class: Class, wait: Option<Duration>) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bucket) = buckets.iter_mut().find(|bucket| bucket.class == Some(class)) else { return false };
        // All requests in flight get a 429: together they decrease the limit once. The next one decreases it again
        // after the wait.
        if bucket.closed.is_none_or(|closed| closed <= now) {
            bucket.allowed = (bucket.allowed / 2.0).max(bucket.most / GROW_STEPS).max(1.0);
            bucket.grown = now;
            tracing::info!(
                "{}: too many {}: at most {} a minute from here on",
                self.registry,
                class.noun(),
                bucket.limit()
            );
        }
        let wait = wait.unwrap_or(DEFAULT_RETRY_AFTER).min(MAX_RETRY_AFTER);
        bucket.closed = bucket.closed.max(Some(now + wait));
        true
    }
}

impl Bucket {
    fn next(&mut self, now: Instant, second: u64, origin: Instant) -> Option<Instant> {
        if let Some(closed) = self.closed.filter(|closed| *closed > now) {
            return Some(closed);
        }
        let steps = now.duration_since(self.grown).as_secs() / GROW_INTERVAL.as_secs();
        if steps > 0 {
            self.grown = now;
            self.allowed = (self.allowed + self.most / GROW_STEPS * steps as f64).min(self.most);
        }
        self.window.turn(second);
        if self.window.sum < self.limit() {
            return None;
        }
        Some(origin + Duration::from_secs(self.window.frees()))
    }

    /// Why it lets nothing out now; empty if it does.
    fn reason(&self) -> String {
        if self.closed.is_some_and(|closed| closed > Instant::now()) {
            return "429".to_owned();
        }
        let noun = self.class.map_or("requests", Class::noun);
        if self.window.sum < self.limit() { String::new() } else { format!("{} {noun} a minute", self.limit()) }
    }

    fn limit(&self) -> u32 {
        self.allowed as u32
    }
}

impl Window {
    /// Removes requests that are older than a minute.
    fn turn(&mut self, second: u64) {
        for passed in 0..(second - self.newest).min(WINDOW_SLOTS as u64) {
            let slot = &mut self.slots[index(self.newest + 1 + passed)];
            self.sum -= std::mem::take(slot);
        }
        self.newest = second;
    }

    fn add(&mut self) {
        self.slots[index(self.newest)] += 1;
        self.sum += 1;
    }

    /// The second when the oldest request leaves the window.
    fn frees(&self) -> u64 {
        let length = WINDOW_SLOTS as u64;
        let oldest = (0..length).find(|age| self.slots[index(self.newest + 1 + age)] > 0).unwrap_or(length - 1);
        self.newest + 1 + oldest
    }
}

fn index(second: u64) -> usize {
    usize::try_from(second % WINDOW_SLOTS as u64).unwrap_or(0)
}

/// A minute spans this many seconds, the first and the last one in part.
const WINDOW_SLOTS: usize = 61;
/// The used share of ACR's limits: the identity may be used elsewhere too.
const USED_SHARE: f64 = 0.9;
/// The fraction by which a limit grows at a time.
const GROW_STEPS: f64 = 20.0;
const GROW_INTERVAL: Duration = Duration::from_secs(15);
/// ACR's `Retry-After` counts down from a minute at most.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// The wait after a 429 without `Retry-After`.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn throttle(adapt: impl FnOnce(&mut Options)) -> RateLimit {
        let mut options = Options::default();
        adapt(&mut options);
        RateLimit::new("myregistry.azurecr.io", &options)
    }

    /// Asks for as much as it may in so many seconds; when each request went out.
    async fn ask(rate_limit: &RateLimit, class: Class, seconds: u64) -> Vec<u64> {
        let begun = Instant::now();
        let mut sent = Vec::new();
        loop {
            rate_limit.wait(class).await;
            if begun.elapsed() >= Duration::from_secs(seconds) {
                return sent;
            }
            assert!(rate_limit.take(class));
            sent.push(u64::try_from(begun.elapsed().as_millis()).expect("short"));
        }
    }

    /// As many as may go out at once.
    fn burst(rate_limit: &RateLimit, class: Class) -> usize {
        (0..).take_while(|_| rate_limit.take(class)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn no_minute_has_more_than_is_allowed() {
        let rate_limit = throttle(|_| {});
        for pause in [0, 700, 30_300, 59_900] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let sent = ask(&rate_limit, Class::Write, 190).await;
            for (at, first) in sent.iter().enumerate().step_by(50) {
                let within = sent[at..].iter().take_while(|later| **later - first <= 60_000).count();
                assert!(within <= 900, "{within} from {first} ms on");
            }
            assert!(sent.len() >= 2 * 900, "{}", sent.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn figures_by_sku_class_and_share() {
        let sku = |sku| move |options: &mut Options| options.acr_sku = Some(sku);
        assert_eq!(burst(&throttle(|_| {}), Class::Read), 4500);
        assert_eq!(burst(&throttle(sku(Sku::Basic)), Class::Write), 900);
        assert_eq!(burst(&throttle(sku(Sku::Standard)), Class::Delete), 450);
        let premium = throttle(sku(Sku::Premium));
        assert_eq!(burst(&premium, Class::Write), 1800);
        assert_eq!(burst(&premium, Class::Referrers), 900);
        assert_eq!(burst(&premium, Class::Read), 9000 - 900, "a list of referrers is a read too");
        assert_eq!(burst(&throttle(|options| options.share = 4), Class::Write), 225);
        let options = Options { rates: Arc::new([("r.io:5000".to_owned(), 30)].into()), ..Options::default() };
        let own = RateLimit::new("r.io:5000", &options);
        assert_eq!(burst(&own, Class::Read), 30);
        assert!(!own.take(Class::Write), "of any kind");
        assert!(!own.on_rate_limited(Class::Read, None), "its 429s are the whole registry's");
        let other = RateLimit::new("r.io", &options);
        assert!((0..50_000).all(|_| other.take(Class::Write)), "no limit");
    }

    #[tokio::test(start_paused = true)]
    async fn classes_do_not_wait_for_each_other() {
        let rate_limit = throttle(|_| {});
        assert!(rate_limit.on_rate_limited(Class::Write, Some(Duration::from_secs(40))));
        assert!(rate_limit.take(Class::Read) && rate_limit.take(Class::Token));
        assert!(!rate_limit.take(Class::Write));
        let begun = Instant::now();
        rate_limit.wait(Class::Write).await;
        assert_eq!(begun.elapsed().as_secs(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn a_429_halves_once_and_grows_back() {
        let rate_limit = throttle(|_| {});
        // It counts down: the answers to what was under way all name the same end.
        for left in [30, 29, 28] {
            rate_limit.on_rate_limited(Class::Write, Some(Duration::from_secs(left)));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        rate_limit.wait(Class::Write).await;
        assert_eq!(burst(&rate_limit, Class::Write), 450 + 2 * 45, "half, and what 30 s gave back");
        rate_limit.on_rate_limited(Class::Write, None);
        tokio::time::sleep(Duration::from_secs(5 * 60)).await;
        assert_eq!(burst(&rate_limit, Class::Write), 900);
    }

    #[test]
    fn names_of_tiers() {
        for name in Sku::NAMES {
            assert_eq!(name.parse::<Sku>().map(|sku| sku.to_string()).ok().as_deref(), Some(name));
        }
        assert!("gold".parse::<Sku>().is_err());
    }
}
