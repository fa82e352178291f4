//! A pull-through cache: a `Backend` that answers from its cache, or else from an upstream,
//! and stores content while it streams it.
//!
//! ```text
//!            server::run ── Server<Proxy> ── backend: Backend for Proxy
//!                                               │  Upstreams: ?ns= or path ─▶ upstream and repository, or 404
//!                    ┌──────────────────────────┴───────────────┐
//!                manifests ──── membership: does it belong to the repository? ──── fill ◀── ranged requests, uncached blobs
//!      fresh? stale? not found?                     one writer per blob │ any number of readers (fill::reader)
//!          │            │                                  │           │
//!   cache::manifest_store  SingleFlight                   cache::blobs    tasks: they outlive the client
//!                       └───────────┬──────────────────────┘
//!                        Tiers: tier by tier, a breaker for each registry
//!                                   │
//!                          Origins ─▶ Source  (cli::proxy: registry::Repo)
//! ```
//!
//! # Where things are
//! - [`cache`]: files, limits, eviction, garbage collection; the directory is drawn there
//! - `fill`: fetches of blobs: `find` finds or starts a fill, `task` and `writer` write the file, `reader` reads along,
//!   `parallel` fetches by several requests
//! - `membership`: which content belongs to which repository: the access rule
//! - `manifests`: manifests and tags: TTL, revalidation, stale and negative answers
//! - `lists`: lists of tags and of referrers, from the upstream or stale
//! - `tiers`, `breaker`, `refusals`, `timeouts`: requests to registries, by the interface `Origins`
//! - `upstreams`, `rules`: the configured upstreams, and which one a request is for
//! - `events`: events for metrics, the status page and write-back
//! - `cache_admin`: commands of operators: list, remove, collect, verify
//! - `scrub`: reads the cache in the background, and removes corrupt content
//! - `metrics`: metrics for Prometheus; `writeback`: the queue of copies into the first tier
//! - `cached_source`: the proxy as a source of those copies
//! - `cached_blob`: a cached blob as a stream, which continues from the upstream if its file fails
//! - `tasks`: tasks of the proxy; `file_stream`: files as streams; `backend`: the interface to the server
//!
//! # Guarantees
//! - The proxy never connects to a host that a client names, and ignores the `Authorization` header of clients.
//! - A client that requests a whole blob, or a range with its last byte, gets the last byte only after the digest is
//!   verified. On a mismatch the connections are cut, and nothing is committed. The bytes before the last one are passed on
//!   as they arrive: they cannot be verified before the whole is there, and a client without the last byte has no blob.
//!   A range that does not contain the last byte is therefore unverified if the blob is still being fetched or cannot be
//!   cached. The client has the blob's digest.
//! - Knowing a digest gives a client no access. Cached content is served under a repository that it belongs to
//!   (`membership`), if the current upstreams and rules allow that repository.
//! - After a failed write nothing more is written to that file or published. No complete answer contains bytes of a file that
//!   could not be written or read ([`cache`], `cached_blob`).

mod backend;
mod breaker;
pub mod cache;
pub(crate) mod cache_admin;
mod cached_blob;
mod cached_source;
pub(crate) mod events;
mod file_stream;
mod fill;
mod lists;
mod manifests;
mod membership;
pub(crate) mod metrics;
mod refusals;
pub(crate) mod rules;
pub(crate) mod scrub;
pub(crate) mod status;
mod tasks;
mod tiers;
mod timeouts;
pub(crate) mod upstreams;
pub(crate) mod writeback;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use tiers::{Health, Origins};

use self::cache::Cache;
use self::events::{CacheOutcome, Event, Observer, RequestKind};
use self::upstreams::{UpstreamConfig, UpstreamRepository, Upstreams};
use crate::error::{Error, Kind, Result};
use crate::server::{Reply, Served};

/// The settings of the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The upstreams.
    pub(crate) upstreams: Vec<UpstreamConfig>,
    pub(crate) cache: cache::Settings,
    /// How long a cached tag stays fresh.
    pub(crate) tag_ttl: Duration,
    /// How long an answer "not found" is remembered.
    pub(crate) negative_ttl: Duration,
    /// How long a client's request may wait for an upstream before it is answered with an error. The default is less than
    /// the 30 s that containerd waits for the head of a response.
    pub(crate) upstream_timeout: Duration,
    /// The largest number of concurrent requests for one large blob.
    pub(crate) parallel: usize,
    /// The size in bytes from which on a blob is large.
    pub(crate) parallel_from: u64,
    /// The largest number of blobs that are fetched at once from each registry.
    pub(crate) fills: usize,
    /// Bytes of the cache that the scrubber reads per second; `None` for no scrubber.
    pub(crate) scrub: Option<u64>,
}

impl Settings {
    /// The defaults, with these upstreams and this cache.
    pub(crate) fn new(upstreams: Vec<UpstreamConfig>, cache: cache::Settings) -> Self {
        Self {
            upstreams,
            cache,
            tag_ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(10),
            upstream_timeout: timeouts::DEFAULT_REQUEST,
            parallel: 4,
            parallel_from: 64 << 20,
            fills: 64,
            scrub: None,
        }
    }
}

/// The proxy. Dropping the last clone ends all fetches. Committed content stays in the cache.
pub(crate) struct Proxy<O: Origins>(Arc<Inner<O>>, Arc<ProxyGuard<O>>);

/// Ends the tasks with the last clone of the proxy.
struct ProxyGuard<O: Origins>(Arc<Inner<O>>);

struct Inner<O: Origins> {
    settings: Settings,
    timeouts: timeouts::Timeouts,
    cache: Cache,
    tiers: tiers::Tiers<O>,
    manifests: manifests::State,
    membership: membership::State,
    lists: lists::State,
    fills: fill::Fills<O::Source>,
    tasks: tasks::Tasks,
    readers: file_stream::FileReaders,
    observer: Arc<dyn Observer>,
}

impl<O: Origins> Proxy<O> {
    /// Opens the cache. Sends no request to an upstream, so the proxy starts while its upstreams are down.
    ///
    /// # Errors
    /// See [`Upstreams::new`] and [`Cache::open`].
    pub(crate) async fn open(settings: Settings, origins: O, observer: Arc<dyn Observer>) -> Result<Self> {
        let upstreams = Upstreams::new(settings.upstreams.clone())?;
        let evicted = {
            let observer = observer.clone();
            move |digest: &crate::descriptor::Digest, bytes| observer.event(&Event::Evicted { digest, bytes })
        };
        let cache = Cache::open(settings.cache.clone(), evicted).await?;
        let timeouts = timeouts::Timeouts::new(settings.upstream_timeout);
        let inner = Arc::new(Inner {
            cache,
            timeouts,
            tiers: tiers::Tiers::new(origins, upstreams, observer.clone(), timeouts),
            manifests: manifests::State::new(),
            membership: membership::State::new(),
            lists: lists::State::new(),
            fills: fill::Fills::new(settings.fills),
            tasks: tasks::Tasks::new(),
            readers: file_stream::FileReaders::default(),
            observer,
            settings,
        });
        if inner.cache.lacks_records() {
            inner.make_records(inner.tiers.upstreams()).await;
        }
        if let Some(rate) = inner.settings.scrub {
            let (stores, observer) = (inner.cache.online().stores(), inner.observer.clone());
            inner.tasks.spawn(scrub::run(stores, rate, observer));
        }
        Ok(Self(inner.clone(), Arc::new(ProxyGuard(inner))))
    }

    /// The settings.
    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The cache, for reading its state.
    pub(crate) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// The commands of operators on the cache.
    pub(crate) fn admin(&self) -> cache_admin::CacheAdmin {
        cache_admin::CacheAdmin::new(&self.0.cache, self.0.observer.clone())
    }

    /// Replaces the upstreams for new requests. Running fetches continue with the old ones.
    ///
    /// # Errors
    /// See [`Upstreams::new`]. Nothing changes then.
    pub(crate) fn set_upstreams(&self, specs: Vec<UpstreamConfig>) -> Result<()> {
        self.0.tiers.set_upstreams(Upstreams::new(specs)?);
        Ok(())
    }

    /// The source of repositories.
    pub(crate) fn origins(&self) -> &O {
        &self.0.tiers.origins
    }

    /// The health of each registry.
    pub(crate) fn health(&self) -> Vec<Health> {
        self.0.tiers.health()
    }

    /// The blobs that are being fetched: digest, fetched bytes, and size if it is known.
    pub(crate) fn filling(&self) -> Vec<(crate::descriptor::Digest, u64, Option<u64>)> {
        self.0.fills.list()
    }
}

impl<O: Origins> Inner<O> {
    /// Reports the outcome of a request to the observer, and adds it to the reply.
    fn report_served<T>(
        &self,
        repo: &UpstreamRepository,
        what: RequestKind,
        found: Result<Option<T>>,
        how: CacheOutcome,
    ) -> Reply<Option<T>> {
        let how = match &found {
            Ok(Some(_)) => how,
            Ok(None) => CacheOutcome::Absent,
            Err(_) => CacheOutcome::Failed,
        };
        let (upstream, repository) = (&*repo.upstream.name, &*repo.repository);
        self.observer.event(&Event::Served { upstream, repository, what, how });
        let served = Served { how: metrics::name(how), stale: how == CacheOutcome::Stale };
        Reply { found, served: Some(served) }
    }

    /// Runs `work` with a time limit.
    ///
    /// # Errors
    /// [`Kind::Timeout`] after `patience`.
    async fn with_patience<T>(&self, patience: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        with_patience_since(Instant::now(), patience, work).await
    }
}

/// Runs `work` for a client that has been waiting since `begun`.
///
/// # Errors
/// [`Kind::Timeout`] when the client has waited for `patience`.
async fn with_patience_since<T>(
    begun: Instant,
    patience: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let late = || Error::new(Kind::Timeout, format!("the upstream did not answer in {} s", patience.as_secs()));
    tokio::time::timeout_at(begun + patience, work).await.unwrap_or_else(|_| Err(late()))
}

impl<O: Origins> Drop for ProxyGuard<O> {
    fn drop(&mut self) {
        // Tasks hold references to the proxy, and would continue.
        self.0.tasks.abort();
    }
}

impl<O: Origins> Clone for Proxy<O> {
    /// Another handle of the same proxy.
    fn clone(&self) -> Self {
        Self(self.0.clone(), self.1.clone())
    }
}

impl<O: Origins> fmt::Debug for Proxy<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("settings", &self.0.settings)
            .field("cache", &self.0.cache)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
