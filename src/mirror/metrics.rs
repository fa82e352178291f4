//! What a mirror that stays tells Prometheus. docs/reference/metrics.md lists it.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::report::RunReport;
use crate::copy::{Observer, RegistryUsage};
use crate::descriptor::Digest;

type Label = [(&'static str, String); 1];
type Seconds = Gauge<f64, AtomicU64>;

/// The figures. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    runs: Counter,
    images: Family<Label, Counter>,
    received: Counter,
    moved: Counter,
    saved: Counter,
    pulls: Family<Label, Counter>,
    requests: Family<Label, Counter>,
    pulls_left: Family<Label, Gauge>,
    pulls_limit: Family<Label, Gauge>,
    pruned: Counter,
    last_images: Family<Label, Gauge>,
    last_started: Seconds,
    last_ended: Seconds,
    last_seconds: Seconds,
    next: Seconds,
    list_valid: Gauge,
}

impl Metrics {
    /// All at nought, and shown by `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let made = Self::default();
        let Self { runs, images, received, moved, saved, pulls, requests, .. } = made.clone();
        let Self { pulls_left, pulls_limit, pruned, last_images, .. } = made.clone();
        let Self { last_started, last_ended, last_seconds, next, list_valid, .. } = made.clone();
        let mirror = registry.sub_registry_with_prefix("transload_mirror");
        mirror.register("runs", "Completed runs", runs);
        mirror.register("images", "Images of all runs by status", images);
        mirror.register("downloaded_bytes", "Bytes of blobs received from sources, with retries", received);
        mirror.register("uploaded_bytes", "Bytes of blobs uploaded, counted at the end of a run", moved);
        mirror.register("skipped_bytes", "Bytes of blobs that the destination had or mounted", saved);
        mirror.register("pruned_tags", "Tags removed from destinations", pruned);
        mirror.register("last_run_images", "Images of the last run by status", last_images);
        mirror.register("last_run_start_timestamp_seconds", "Start of the last run", last_started);
        mirror.register("last_run_end_timestamp_seconds", "End of the last run", last_ended);
        mirror.register("last_run_duration_seconds", "Duration of the last run", last_seconds);
        mirror.register("next_run_timestamp_seconds", "Start of the next run", next);
        mirror.register("list_valid", "1 if the current list is valid, 0 while an older one is used", list_valid);
        let asked = registry.sub_registry_with_prefix("transload_registry");
        asked.register("requests", "Requests, with redirects and token requests", requests);
        asked.register("pulls", "Manifests read, which Docker Hub counts as pulls", pulls);
        asked.register("pulls_left", "Pulls left in the window, as the registry reports them", pulls_left);
        asked.register("pulls_limit", "Pulls allowed in a window, as the registry reports them", pulls_limit);
        made
    }

    /// A run ended.
    pub fn run_finished(&self, run: &RunReport) {
        let summary = run.summary();
        self.runs.inc();
        let numbers = [
            ("copied", summary.copied),
            ("unchanged", summary.unchanged),
            ("planned", summary.planned),
            ("failed", summary.failed),
            ("skipped", summary.skipped.unwrap_or(0)),
        ];
        for (status, number) in numbers {
            let label = [("status", status.to_owned())];
            self.images.get_or_create(&label).inc_by(number as u64);
            self.last_images.get_or_create(&label).set(i64::try_from(number).unwrap_or(i64::MAX));
        }
        self.moved.inc_by(summary.bytes_uploaded);
        self.saved.inc_by(summary.bytes_skipped);
        self.pruned.inc_by(run.pruned() as u64);
        self.last_started.set(seconds(run.started()));
        self.last_ended.set(seconds(run.ended()));
        self.last_seconds.set(summary.duration_seconds);
        run.registries().iter().for_each(|used| self.used(used));
    }

    fn used(&self, used: &RegistryUsage) {
        let label = [("registry", used.name.clone())];
        self.requests.get_or_create(&label).inc_by(used.requests);
        self.pulls.get_or_create(&label).inc_by(used.pulls);
        if let Some(quota) = &used.pull_limit {
            let set = |family: &Family<Label, Gauge>, value: u64| {
                family.get_or_create(&label).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            set(&self.pulls_left, quota.remaining);
            set(&self.pulls_limit, quota.limit);
        }
    }

    /// The next run is due in so long.
    pub fn next_run_in(&self, wait: Duration) {
        self.next.set(seconds(crate::clock::timestamp()) + wait.as_secs_f64());
    }

    /// Whether the list as it is now can be used.
    pub fn list_read(&self, good: bool) {
        self.list_valid.set(i64::from(good));
    }
}

impl Observer for Metrics {
    fn moved(&self, _blob: &Digest, bytes: u64) {
        self.received.inc_by(bytes);
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::{Quota, Report};
    use crate::error::{Error, Kind};
    use crate::mirror::report::ImageId;

    #[test]
    fn runs_add_up_and_the_last_one_stands() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let which = || ImageId { source: "docker.io/a:1".into(), destination: "r.io/a:1".into(), line: 1 };
        let quota = Quota { limit: 100, remaining: 7, window_seconds: 21600, source: None };
        let hub = |requests| {
            let name = "docker.io".into();
            RegistryUsage { name, requests, pulls: requests / 2, pull_limit: Some(quota.clone()) }
        };
        for (before, after, failed) in [(0, 5, false), (5, 8, true)] {
            let mut run = RunReport::start(None, false, &[hub(before)]);
            run.add(which(), Ok(Report { bytes_uploaded: 1000, bytes_skipped: 1, pulls: 2, ..Report::default() }));
            if failed {
                run.add(which(), Err(&Error::new(Kind::Network, "reset")));
            }
            run.finish(Duration::from_millis(1500), vec![hub(after)]);
            metrics.run_finished(&run);
        }
        metrics.moved(&Digest::of(b"x"), 4096);
        metrics.list_read(true);
        metrics.next_run_in(Duration::from_secs(60));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("memory");
        for line in [
            "transload_mirror_runs_total 2",
            "transload_mirror_images_total{status=\"copied\"} 2",
            "transload_mirror_images_total{status=\"failed\"} 1",
            "transload_mirror_last_run_images{status=\"copied\"} 1",
            "transload_mirror_last_run_images{status=\"skipped\"} 0",
            "transload_mirror_downloaded_bytes_total 4096",
            "transload_mirror_uploaded_bytes_total 2000",
            "transload_mirror_skipped_bytes_total 2",
            "transload_mirror_last_run_duration_seconds 1.5",
            "transload_mirror_list_valid 1",
            "transload_registry_requests_total{registry=\"docker.io\"} 8",
            "transload_registry_pulls_total{registry=\"docker.io\"} 4",
            "transload_registry_pulls_left{registry=\"docker.io\"} 7",
            "transload_registry_pulls_limit{registry=\"docker.io\"} 100",
        ] {
            assert!(page.lines().any(|shown| shown == line), "no {line} in\n{page}");
        }
        let next = page.lines().find_map(|line| line.strip_prefix("transload_mirror_next_run_timestamp_seconds "));
        let next: f64 = next.and_then(|value| value.parse().ok()).expect("a time");
        assert!((next - seconds(Timestamp::now()) - 60.0).abs() < 30.0);
    }
}
