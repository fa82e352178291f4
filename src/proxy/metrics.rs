//! What the proxy tells Prometheus, and what its status page shows. The README lists the metrics.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::events::{Event, How, Observer, What};
use crate::error::Kind;

type Label = [(&'static str, String); 1];
type Served = [(&'static str, String); 3];

/// The figures. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    served: Family<Served, Counter>,
    received: Family<Label, Counter>,
    asked: Family<Label, Histogram, fn() -> Histogram>,
    requests: Family<[(&'static str, String); 2], Counter>,
    fills: Gauge,
    fills_failed: Counter,
    evicted: Counter,
    evicted_bytes: Counter,
    blobs: Gauge,
    bytes: Gauge,
    bound: Gauge,
    up: Family<Label, Gauge>,
    pulls_left: Family<Label, Gauge>,
    seen: Arc<Mutex<Seen>>,
}

/// What the page shows and Prometheus doesn't keep.
#[derive(Debug, Default)]
struct Seen {
    hits: u64,
    requests: u64,
    pulled: HashMap<String, u64>,
    errors: VecDeque<Trouble>,
}

/// An error, for people.
#[derive(Clone, Debug, Serialize)]
struct Trouble {
    when: Timestamp,
    what: String,
}

/// What the status page shows.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Of all requests that were answered, the part that needed no upstream: 0 to 1.
    hit_ratio: f64,
    requests: u64,
    blobs: u64,
    bytes: u64,
    bound: u64,
    upstreams: Vec<Upstream>,
    filling: Vec<Filling>,
    most_pulled: Vec<Pulled>,
    errors: Vec<Trouble>,
}

#[derive(Debug, Serialize)]
struct Upstream {
    registry: String,
    well: bool,
}

#[derive(Debug, Serialize)]
struct Filling {
    digest: String,
    got: u64,
    size: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Pulled {
    image: String,
    times: u64,
}

impl Metrics {
    /// All at nought, and shown by `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let made = Self {
            served: Family::default(),
            received: Family::default(),
            asked: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            requests: Family::default(),
            fills: Gauge::default(),
            fills_failed: Counter::default(),
            evicted: Counter::default(),
            evicted_bytes: Counter::default(),
            blobs: Gauge::default(),
            bytes: Gauge::default(),
            bound: Gauge::default(),
            up: Family::default(),
            pulls_left: Family::default(),
            seen: Arc::default(),
        };
        let Self { served, received, asked, requests, fills, fills_failed, evicted, evicted_bytes, .. } = made.clone();
        let Self { blobs, bytes, bound, up, pulls_left, .. } = made.clone();
        let proxy = registry.sub_registry_with_prefix("transload_proxy");
        proxy.register("requests", "Requests of clients: hit, miss, coalesced, stale, passed, absent, failed", served);
        proxy.register("upstream_bytes", "Bytes of blobs that came from a registry", received);
        proxy.register("upstream_seconds", "Time up to the head of a registry's answer", asked);
        proxy.register("upstream_requests", "Requests to a registry: ok, or the kind of their error", requests);
        proxy.register("fills", "Blobs that are being fetched", fills);
        proxy.register("fills_failed", "Blobs whose fetch failed", fills_failed);
        proxy.register("evictions", "Blobs that had to go from the disk", evicted);
        proxy.register("evicted_bytes", "Their bytes", evicted_bytes);
        proxy.register("cache_blobs", "Blobs on the disk", blobs);
        proxy.register("cache_bytes", "Their bytes", bytes);
        proxy.register("cache_bound_bytes", "Bytes they may take", bound);
        proxy.register("upstream_up", "1 if a registry answers, 0 if it is left alone for a while", up);
        proxy.register("pulls_left", "Pulls left in the window, where a registry tells", pulls_left);
        made
    }

    /// What the cache holds now, of `bound` bytes at most.
    pub fn cache(&self, blobs: u64, bytes: u64, bound: u64) {
        self.blobs.set(signed(blobs));
        self.bytes.set(signed(bytes));
        self.bound.set(signed(bound));
    }

    /// Which registries answer.
    pub fn health<'a>(&self, registries: impl Iterator<Item = (&'a str, bool)>) {
        for (registry, well) in registries {
            self.up.get_or_create(&label("registry", registry)).set(i64::from(well));
        }
    }

    /// Pulls that a registry says are left.
    pub fn pulls_left(&self, registry: &str, left: u64) {
        self.pulls_left.get_or_create(&label("registry", registry)).set(signed(left));
    }

    /// What the page shows: with the registries' health, and with digest, bytes and size of what is
    /// being fetched.
    pub fn status(
        &self,
        upstreams: impl IntoIterator<Item = (String, bool)>,
        filling: impl IntoIterator<Item = (String, u64, Option<u64>)>,
    ) -> Status {
        let seen = self.lock();
        let mut most_pulled: Vec<Pulled> =
            seen.pulled.iter().map(|(image, times)| Pulled { image: image.clone(), times: *times }).collect();
        most_pulled.sort_by(|a, b| (b.times, &a.image).cmp(&(a.times, &b.image)));
        most_pulled.truncate(SHOWN);
        Status {
            hit_ratio: if seen.requests == 0 { 0.0 } else { seen.hits as f64 / seen.requests as f64 },
            requests: seen.requests,
            blobs: self.blobs.get().unsigned_abs(),
            bytes: self.bytes.get().unsigned_abs(),
            bound: self.bound.get().unsigned_abs(),
            upstreams: upstreams.into_iter().map(|(registry, well)| Upstream { registry, well }).collect(),
            filling: filling.into_iter().map(|(digest, got, size)| Filling { digest, got, size }).collect(),
            most_pulled,
            errors: seen.errors.iter().rev().cloned().collect(),
        }
    }

    fn served(&self, upstream: &str, repository: &str, what: What, how: How) {
        let words =
            [("upstream", upstream.to_owned()), ("what", what_name(what).into()), ("how", how_name(how).into())];
        self.served.get_or_create(&words).inc();
        let mut seen = self.lock();
        if matches!(how, How::Absent | How::Failed) {
            return;
        }
        seen.requests += 1;
        seen.hits += u64::from(matches!(how, How::Hit | How::Stale));
        if what == What::Manifest {
            let image = format!("{upstream}/{repository}");
            if seen.pulled.len() < KEPT || seen.pulled.contains_key(&image) {
                *seen.pulled.entry(image).or_default() += 1;
            }
        }
    }

    fn trouble(&self, what: String) {
        let mut seen = self.lock();
        if seen.errors.len() == SHOWN {
            seen.errors.pop_front();
        }
        seen.errors.push_back(Trouble { when: Timestamp::now(), what });
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Metrics {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Served { upstream, repository, what, how } => self.served(upstream, repository, *what, *how),
            Event::Asked { registry, took, failed } => {
                self.asked.get_or_create(&label("registry", registry)).observe(took.as_secs_f64());
                let result = failed.map_or_else(|| "ok".to_owned(), |kind| format!("{kind:?}").to_ascii_lowercase());
                // That something isn't there is an answer.
                if failed.is_some_and(|kind| kind != Kind::NotFound) {
                    self.trouble(format!("{registry}: {result}"));
                }
                self.requests.get_or_create(&[("registry", (*registry).to_owned()), ("result", result)]).inc();
            }
            Event::Moved { registry, bytes } => {
                self.received.get_or_create(&label("registry", registry)).inc_by(*bytes);
            }
            Event::FillBegan { .. } => {
                self.fills.inc();
            }
            Event::FillEnded { digest, failed } => {
                self.fills.dec();
                if let Some(error) = failed {
                    self.fills_failed.inc();
                    self.trouble(format!("{}: {error}", digest.short()));
                }
            }
            Event::Evicted { bytes, .. } => {
                self.evicted.inc();
                self.evicted_bytes.inc_by(*bytes);
            }
            Event::OnlyOriginal { .. } => {}
        }
    }
}

fn label(name: &'static str, value: &str) -> Label {
    [(name, value.to_owned())]
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn what_name(what: What) -> &'static str {
    match what {
        What::Manifest => "manifest",
        What::Blob => "blob",
    }
}

fn how_name(how: How) -> &'static str {
    match how {
        How::Hit => "hit",
        How::Miss => "miss",
        How::Coalesced => "coalesced",
        How::Stale => "stale",
        How::Passed => "passed",
        How::Absent => "absent",
        How::Failed => "failed",
    }
}

/// The page: static, with nothing from elsewhere.
pub const PAGE: &str = include_str!("status/page.html");

/// From a registry beside us to one that thinks for a while.
const SECONDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];
/// Repositories that are counted, which clients make up: those of the first so many.
const KEPT: usize = 10_000;
/// Lines of a list on the page.
const SHOWN: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::Digest;
    use crate::error::Error;

    #[test]
    fn what_happened_is_counted_and_shown() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let served = |repository, what, how| {
            metrics.event(&Event::Served { upstream: "docker.io", repository, what, how });
        };
        served("library/nginx", What::Manifest, How::Miss);
        served("library/nginx", What::Manifest, How::Hit);
        served("library/redis", What::Manifest, How::Stale);
        served("library/nginx", What::Blob, How::Coalesced);
        served("library/none", What::Manifest, How::Absent);
        let digest = Digest::of(b"x");
        metrics.event(&Event::FillBegan { digest: &digest, size: 9 });
        let error = Error::new(Kind::Mismatch, "its bytes are wrong");
        metrics.event(&Event::FillEnded { digest: &digest, failed: Some(&error) });
        metrics.cache(3, 500, 1000);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            r#"transload_proxy_requests_total{upstream="docker.io",what="manifest",how="hit"} 1"#,
            "transload_proxy_fills 0",
            "transload_proxy_fills_failed_total 1",
            "transload_proxy_cache_bytes 500",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        let status = metrics.status([("r.io".to_owned(), false)], [("sha256:1".to_owned(), 5, Some(9))]);
        let status = serde_json::to_value(&status).expect("JSON");
        assert_eq!(status["hit_ratio"], 0.5, "two of the four that were answered");
        assert_eq!(status["most_pulled"][0]["image"], "docker.io/library/nginx");
        assert_eq!(status["most_pulled"][0]["times"], 2);
        assert!(status["errors"][0]["what"].as_str().is_some_and(|what| what.contains("its bytes are wrong")));
        assert_eq!(status["upstreams"][0]["well"], false);
    }

    #[test]
    fn the_page_stands_alone() {
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains("innerHTML"));
        assert!(PAGE.len() < 8 << 10);
    }
}
