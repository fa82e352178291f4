//! What the status page shows: a static page, fed by one JSON document.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use super::events::{CacheOutcome, Event, Observer, RequestKind};
use super::{Health, Origins, Proxy};
use crate::error::Kind;

/// What happened lately, for people. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RecentActivity(Arc<Mutex<Counters>>);

#[derive(Debug, Default)]
struct Counters {
    hits: u64,
    requests: u64,
    pulled: HashMap<String, u64>,
    errors: VecDeque<RecentError>,
}

/// An error, for people.
#[derive(Clone, Debug, Serialize)]
struct RecentError {
    when: Timestamp,
    what: String,
}

/// What the status page shows.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Of all requests for manifests and blobs that were answered, the part that needed no upstream: 0 to 1.
    hit_ratio: f64,
    requests: u64,
    blobs: u64,
    bytes: u64,
    /// Bytes that the blobs may take.
    bound: u64,
    upstreams: Vec<Upstream>,
    filling: Vec<Filling>,
    most_pulled: Vec<PulledRepository>,
    errors: Vec<RecentError>,
}

#[derive(Debug, Serialize)]
struct Upstream {
    registry: String,
    well: bool,
    /// Why it refuses the proxy, and for how many repositories, where it does.
    refusals: BTreeMap<&'static str, usize>,
}

#[derive(Debug, Serialize)]
struct Filling {
    digest: String,
    got: u64,
    size: Option<u64>,
}

#[derive(Debug, Serialize)]
struct PulledRepository {
    image: String,
    times: u64,
}

impl RecentActivity {
    /// What the page shows of `proxy`.
    pub fn status<O: Origins>(&self, proxy: &Proxy<O>) -> Status {
        let seen = self.lock();
        let mut most_pulled: Vec<PulledRepository> =
            seen.pulled.iter().map(|(image, times)| PulledRepository { image: image.clone(), times: *times }).collect();
        most_pulled.sort_by(|a, b| (b.times, &a.image).cmp(&(a.times, &b.image)));
        most_pulled.truncate(MAX_LINES);
        let (blobs, bytes) = proxy.cache().blobs.count();
        let filling = |(digest, got, size): (crate::descriptor::Digest, u64, Option<u64>)| Filling {
            digest: digest.to_string(),
            got,
            size,
        };
        let upstream = |Health { registry, well, refusals }: Health| Upstream { registry, well, refusals };
        Status {
            hit_ratio: if seen.requests == 0 { 0.0 } else { seen.hits as f64 / seen.requests as f64 },
            requests: seen.requests,
            blobs: blobs as u64,
            bytes,
            bound: proxy.settings().cache.size,
            upstreams: proxy.health().into_iter().map(upstream).collect(),
            filling: proxy.filling().into_iter().map(filling).collect(),
            most_pulled,
            errors: seen.errors.iter().rev().cloned().collect(),
        }
    }

    fn served(&self, upstream: &str, repository: &str, what: RequestKind, how: CacheOutcome) {
        // Lists are always asked for, and a `HEAD` of a blob fetches none: neither says what the cache is worth.
        if matches!(how, CacheOutcome::Absent | CacheOutcome::Failed)
            || !matches!(what, RequestKind::Manifest | RequestKind::Blob)
        {
            return;
        }
        let mut seen = self.lock();
        seen.requests += 1;
        seen.hits += u64::from(matches!(how, CacheOutcome::Hit | CacheOutcome::Stale));
        if what == RequestKind::Manifest {
            let image = format!("{upstream}/{repository}");
            if seen.pulled.len() < MAX_REPOSITORIES || seen.pulled.contains_key(&image) {
                *seen.pulled.entry(image).or_default() += 1;
            }
        }
    }

    fn trouble(&self, what: String) {
        let mut seen = self.lock();
        if seen.errors.len() == MAX_LINES {
            seen.errors.pop_front();
        }
        seen.errors.push_back(RecentError { when: crate::clock::timestamp(), what });
    }

    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for RecentActivity {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Served { upstream, repository, what, how } => self.served(upstream, repository, *what, *how),
            // That something isn't there is an answer.
            Event::Asked { registry, failed: Some(kind), .. } if *kind != Kind::NotFound => {
                self.trouble(format!("{registry}: {}", kind.name()));
            }
            Event::FillEnded { digest, failed: Some(error) } => self.trouble(format!("{}: {error}", digest.short())),
            Event::Corrupt { digest } => self.trouble(format!("{}: corrupt on the disk, dropped", digest.short())),
            _ => {}
        }
    }
}

/// The page, with nothing from elsewhere.
pub const PAGE: &str = include_str!("status/page.html");
/// Repositories that are counted, which clients make up: those of the first so many.
const MAX_REPOSITORIES: usize = 10_000;
/// Lines of a list on the page.
const MAX_LINES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stands_alone() {
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains("innerHTML"));
        assert!(PAGE.len() < 8 << 10);
    }

    #[test]
    fn lists_are_bounded() {
        let recent = RecentActivity::default();
        for nth in 0..MAX_REPOSITORIES + 50 {
            recent.served("docker.io", &format!("app{nth}"), RequestKind::Manifest, CacheOutcome::Miss);
            recent.trouble(nth.to_string());
        }
        let seen = recent.lock();
        assert_eq!((seen.pulled.len(), seen.errors.len()), (MAX_REPOSITORIES, MAX_LINES));
        assert_eq!(seen.errors.back().map(|last| last.what.clone()), Some((MAX_REPOSITORIES + 49).to_string()));
    }
}
