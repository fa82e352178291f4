//! What the proxy tells Prometheus. docs/reference/metrics.md lists it.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::events::{BytesOrigin, CacheOutcome, Event, Observer, RequestKind};
use crate::error::Kind;

type Label = (&'static str, Cow<'static, str>);
type Timed = Family<[Label; 1], Histogram, fn() -> Histogram>;

/// The figures. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<[Label; 3], Counter>,
    answers: Family<[Label; 1], Counter>,
    asked: Family<[Label; 2], Counter>,
    took: Timed,
    refused: Family<[Label; 2], Counter>,
    bytes: Family<[Label; 1], Counter>,
    sent: Family<[Label; 1], Counter>,
    fills: Gauge,
    filled: Family<[Label; 1], Counter>,
    evicted: Counter,
    evicted_bytes: Counter,
    scrubbed: Counter,
    corrupt: Counter,
    read_errors: Counter,
}

impl Metrics {
    /// All at nought, and shown by `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let made = Self {
            requests: Family::default(),
            answers: Family::default(),
            asked: Family::default(),
            took: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            refused: Family::default(),
            bytes: Family::default(),
            sent: Family::default(),
            fills: Gauge::default(),
            filled: Family::default(),
            evicted: Counter::default(),
            evicted_bytes: Counter::default(),
            scrubbed: Counter::default(),
            corrupt: Counter::default(),
            read_errors: Counter::default(),
        };
        let Self {
            requests,
            answers,
            asked,
            took,
            refused,
            bytes,
            sent,
            fills,
            filled,
            evicted,
            evicted_bytes,
            scrubbed,
            corrupt,
            read_errors,
        } = made.clone();
        let proxy = registry.sub_registry_with_prefix(NAME_PREFIX);
        proxy.register("requests", "Requests of clients by upstream, kind and outcome", requests);
        proxy.register("responses", "Responses to clients by status", answers);
        proxy.register("upstream_requests", "Requests to registries by result", asked);
        proxy.register("upstream_request_duration_seconds", "Time until the head of a registry's response", took);
        proxy.register("upstream_refusals", "Requests that registries refused to the proxy, by reason", refused);
        proxy.register("upstream_bytes", "Bytes of blobs received from registries", bytes);
        proxy.register("sent_bytes", "Bytes of blobs sent to clients, by source", sent);
        proxy.register("fills_in_progress", "Blobs that are being fetched into the cache", fills);
        proxy.register("fills_completed", "Fetches of blobs that ended, by result", filled);
        proxy.register("evicted_blobs", "Blobs evicted from the cache", evicted);
        proxy.register("evicted_bytes", "Bytes of the blobs evicted from the cache", evicted_bytes);
        proxy.register("scrubbed_bytes", "Bytes of the cache read to verify them", scrubbed);
        proxy.register(
            "corrupt_removed",
            "Blobs and manifests removed from the cache because they did not match their digests",
            corrupt,
        );
        proxy.register("cache_read_errors", "Cached blobs removed because their file could not be read", read_errors);
        made
    }
}

impl Observer for Metrics {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Served { upstream, what, how, .. } => {
                let upstream = Cow::Owned((*upstream).to_owned());
                let labels = [("upstream", upstream), ("kind", kind(*what).into()), ("outcome", name(*how).into())];
                self.requests.get_or_create(&labels).inc();
            }
            Event::Answered { status } => {
                self.answers.get_or_create(&[("status", status.to_string().into())]).inc();
            }
            Event::Asked { registry, took, failed } => {
                let registry = || ("registry", Cow::Owned((*registry).to_owned()));
                let result = failed.map_or("ok", Kind::name).into();
                self.asked.get_or_create(&[registry(), ("result", result)]).inc();
                self.took.get_or_create(&[registry()]).observe(took.as_secs_f64());
            }
            Event::Refused { registry, reason } => {
                let registry = Cow::Owned((*registry).to_owned());
                self.refused.get_or_create(&[("registry", registry), ("reason", (*reason).into())]).inc();
            }
            Event::Moved { registry, bytes } => {
                let label = [("registry", Cow::Owned((*registry).to_owned()))];
                self.bytes.get_or_create(&label).inc_by(*bytes);
            }
            Event::Sent { from, bytes } => {
                self.sent.get_or_create(&[("source", tier(*from).into())]).inc_by(*bytes);
            }
            Event::FillBegan { .. } => drop(self.fills.inc()),
            Event::FillEnded { failed, .. } => {
                self.fills.dec();
                let result = if failed.is_some() { "failed" } else { "ok" };
                self.filled.get_or_create(&[("result", result.into())]).inc();
            }
            Event::Evicted { bytes, .. } => {
                self.evicted.inc();
                self.evicted_bytes.inc_by(*bytes);
            }
            Event::Scrubbed { bytes } => drop(self.scrubbed.inc_by(*bytes)),
            Event::Corrupt { .. } => drop(self.corrupt.inc()),
            Event::CacheReadFailed { .. } => drop(self.read_errors.inc()),
            Event::OnlyOriginal { .. } => {}
        }
    }
}

/// How a request was served, in one word.
pub fn name(how: CacheOutcome) -> &'static str {
    match how {
        CacheOutcome::Hit => "hit",
        CacheOutcome::Miss => "miss",
        CacheOutcome::Coalesced => "coalesced",
        CacheOutcome::Stale => "stale",
        CacheOutcome::Passed => "uncached",
        CacheOutcome::Absent => "not-found",
        CacheOutcome::Failed => "failed",
    }
}

fn kind(what: RequestKind) -> &'static str {
    match what {
        RequestKind::Manifest => "manifest",
        RequestKind::Blob => "blob",
        RequestKind::Head => "head",
        RequestKind::Tags => "tags",
        RequestKind::Referrers => "referrers",
    }
}

fn tier(from: BytesOrigin) -> &'static str {
    match from {
        BytesOrigin::Disk => "disk",
        BytesOrigin::Fill => "fill",
        BytesOrigin::Passed => "uncached",
    }
}

/// Figures that are looked up whenever someone asks for the page.
pub struct LiveMetrics<F>(F);

/// A family of [`LiveMetrics`]: name, help, and its values by registry, or one without. A name that ends with
/// `_total` is a counter without registries; others are gauges.
pub type MetricFamily = (&'static str, &'static str, Vec<(Option<String>, u64)>);

impl<F: Fn() -> Vec<MetricFamily> + Send + Sync + 'static> LiveMetrics<F> {
    /// Has `registry` show what `look` finds, with names that begin with `prefix`.
    pub fn register(registry: &mut Registry, prefix: &str, look: F) {
        registry.sub_registry_with_prefix(prefix).register_collector(Box::new(Self(look)));
    }
}

impl<F: Fn() -> Vec<MetricFamily> + Send + Sync + 'static> Collector for LiveMetrics<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, values) in (self.0)() {
            // A family that says nothing yet is left out.
            if values.is_empty() {
                continue;
            }
            if let Some(name) = name.strip_suffix("_total") {
                let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                for (_, value) in values {
                    metric.encode_counter::<[Label; 0], u64, u64>(&value, None)?;
                }
                continue;
            }
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (registry, value) in values {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                match registry {
                    Some(registry) => metric.encode_family(&[("registry", registry)])?.encode_gauge(&value)?,
                    None => metric.encode_gauge(&value)?,
                }
            }
        }
        Ok(())
    }
}

impl<F> fmt::Debug for LiveMetrics<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveMetrics").finish_non_exhaustive()
    }
}

/// What all names of the proxy's figures begin with.
pub const NAME_PREFIX: &str = "transload_proxy";
const LATENCY_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 12.0];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::descriptor::Digest;
    use crate::error::Kind;

    #[test]
    fn events_are_counted() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        LiveMetrics::register(&mut registry, NAME_PREFIX, || {
            vec![
                ("cache_bytes", "Bytes", vec![(None, 77)]),
                ("pulls_left", "Pulls", vec![(Some("a".into()), 1), (Some("b".into()), 2)]),
                ("nothing", "None", vec![]),
                ("cache_blobs", "Blobs", vec![(None, 5)]),
            ]
        });
        let digest = &Digest::of(b"x");
        let served = |how| Event::Served { upstream: "docker.io", repository: "a", what: RequestKind::Blob, how };
        let asked = |failed| Event::Asked { registry: "r.io", took: Duration::from_millis(20), failed };
        for event in [
            served(CacheOutcome::Hit),
            served(CacheOutcome::Hit),
            served(CacheOutcome::Coalesced),
            Event::Answered { status: 401 },
            asked(None),
            asked(Some(Kind::Limited)),
            Event::Refused { registry: "r.io", reason: "denied" },
            Event::Moved { registry: "r.io", bytes: 4096 },
            Event::Sent { from: BytesOrigin::Disk, bytes: 1000 },
            Event::Sent { from: BytesOrigin::Disk, bytes: 24 },
            Event::Sent { from: BytesOrigin::Passed, bytes: 7 },
            Event::FillBegan { digest, size: 5000 },
            Event::FillBegan { digest, size: 5000 },
            Event::FillEnded { digest, failed: None },
            Event::Evicted { digest, bytes: 11 },
            Event::Scrubbed { bytes: 500 },
            Event::Corrupt { digest },
        ] {
            metrics.event(&event);
        }
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("memory");
        for line in [
            r#"transload_proxy_requests_total{upstream="docker.io",kind="blob",outcome="hit"} 2"#,
            r#"transload_proxy_requests_total{upstream="docker.io",kind="blob",outcome="coalesced"} 1"#,
            r#"transload_proxy_responses_total{status="401"} 1"#,
            r#"transload_proxy_upstream_requests_total{registry="r.io",result="ok"} 1"#,
            r#"transload_proxy_upstream_requests_total{registry="r.io",result="limited"} 1"#,
            r#"transload_proxy_upstream_request_duration_seconds_bucket{le="0.025",registry="r.io"} 2"#,
            r#"transload_proxy_upstream_refusals_total{registry="r.io",reason="denied"} 1"#,
            r#"transload_proxy_upstream_bytes_total{registry="r.io"} 4096"#,
            r#"transload_proxy_sent_bytes_total{source="disk"} 1024"#,
            r#"transload_proxy_sent_bytes_total{source="uncached"} 7"#,
            "transload_proxy_fills_in_progress 1",
            r#"transload_proxy_fills_completed_total{result="ok"} 1"#,
            "transload_proxy_evicted_blobs_total 1",
            "transload_proxy_evicted_bytes_total 11",
            "transload_proxy_scrubbed_bytes_total 500",
            "transload_proxy_corrupt_removed_total 1",
            "transload_proxy_cache_bytes 77",
            "transload_proxy_cache_blobs 5",
            r#"transload_proxy_pulls_left{registry="b"} 2"#,
        ] {
            assert!(page.lines().any(|shown| shown == line), "no {line} in\n{page}");
        }
        assert!(!page.contains("nothing"), "{page}");
    }
}
