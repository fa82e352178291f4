//! A pull-through cache: a [`Backend`](crate::server::Backend) that answers from disk, else from its
//! upstreams, storing while it streams.
//!
//! ```text
//!            server::run ── Server<Proxy> ── backend: Backend for Proxy
//!                                               │  world: ?ns= or path ─▶ upstream + repository, or 404
//!                    ┌──────────────────────────┴───────────────┐
//!                manifests ───── membership: may the repository have it? ───── fill ◀── side reads, what isn't cached
//!      fresh? known? stale? absent?                one writer per blob │ any number of readers (fill::reader)
//!          │            │                                  │           │
//!   cache::manifest_store  Flights                        cache::blobs    tasks: they outlive the client
//!                       └───────────┬──────────────────────┘
//!                        upstream: tier by tier, breaker each
//!                                   │
//!                          Origins ─▶ Source  (cli::proxy: registry::Repo)
//! ```
//!
//! # Where things are
//! - [`cache`]: files, bounds, eviction, the start (the directory is drawn there), collecting
//! - `fill`: fetching a blob: `find` finds or begins one, `write` sees it through, `follow` reads along,
//!   `parallel` fetches by several requests
//! - `membership`: which repository holds which content: the access rule
//! - `manifests`: manifests and tags: TTL, revalidation, stale and negative answers
//! - `lists`: lists of tags and of referrers, which are the upstream's, or stale
//! - `tiers`, `breaker`, `refusals`, `timeouts`: asking registries; [`Origins`] is all that is known of them
//! - [`upstreams`], [`rules`]: which upstreams there are; what a request means
//! - [`events`]: what happens, for metrics, the status page, and the copying into the first tier
//! - [`cache_admin`]: what those who operate it may ask of the cache: list, remove, collect, verify
//! - [`scrub`]: reads the cache in the background, and drops what is corrupt
//! - [`metrics`]: what is told to Prometheus; [`writeback`]: the copying into the first tier
//! - `cached_source`: the proxy as a source for the copying
//! - `cached_blob`: a cached blob as a stream, which goes on from the upstream where its file fails
//! - `tasks`: work that belongs to the proxy; `file_stream`: files as streams; `backend`: the front
//!
//! # What is never done
//! - Nothing that a client writes is dialled, and no client's `Authorization` is looked at.
//! - No blob's last byte leaves before its digest matched, to anyone who asked for the whole or for a
//!   range with it in. On a mismatch the connections are cut, and nothing is committed. What comes
//!   before the last byte is passed on as it arrives: it can't be verified before the whole is there,
//!   and a client that has no last byte has no blob. A range from the middle of a blob that is still
//!   being fetched is therefore unverified; so is one of a blob that isn't cached for want of room.
//!   Its reader has the blob's digest, as we do.
//! - No cached blob or manifest is served to a client only because the client knows its digest. It is served under a
//!   repository that has it (`membership`), if the upstream and the rules as they are now allow that repository.
//! - After a failed write nothing more of that file is written or announced. No complete answer has bytes of a file that
//!   could not be written or read well ([`cache`], `cached_blob`).

mod backend;
mod breaker;
pub mod cache;
pub mod cache_admin;
mod cached_blob;
mod cached_source;
pub mod events;
mod file_stream;
mod fill;
mod lists;
mod manifests;
mod membership;
pub mod metrics;
mod refusals;
pub mod rules;
pub mod scrub;
pub mod status;
mod tasks;
mod tiers;
mod timeouts;
pub mod upstreams;
pub mod writeback;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use cached_source::CachedSource;
pub use tiers::{Health, Origins};

use self::cache::Cache;
use self::events::{CacheOutcome, Event, Observer, RequestKind};
use self::upstreams::{UpstreamConfig, UpstreamRepository, Upstreams};
use crate::error::{Error, Kind, Result};
use crate::server::{Reply, Served};

/// How the proxy behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where images are read from.
    pub upstreams: Vec<UpstreamConfig>,
    /// The cache.
    pub cache: cache::Settings,
    /// For how long a tag is believed before it's asked for again.
    pub tag_ttl: Duration,
    /// For how long it's believed that something isn't there.
    pub negative_ttl: Duration,
    /// How long a client's request may wait for the upstreams before it is answered with an error: less than the 30 s
    /// that containerd waits for the head of an answer.
    pub upstream_timeout: Duration,
    /// Requests at once for one large blob.
    pub parallel: usize,
    /// From which size on (in bytes) a blob is large.
    pub parallel_from: u64,
    /// Blobs that are fetched at once.
    pub fills: usize,
    /// Bytes of the cache to read and check in a second; `None` for none.
    pub scrub: Option<u64>,
}

impl Settings {
    /// The defaults, for these upstreams and this cache.
    pub fn new(upstreams: Vec<UpstreamConfig>, cache: cache::Settings) -> Self {
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

/// The proxy. Dropped, it ends what it fetches; what was committed stays.
pub struct Proxy<O: Origins>(Arc<Inner<O>>, Arc<ProxyGuard<O>>);

/// What all clones of a proxy share: with the last of them its tasks end.
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
    /// Opens the cache. No upstream is asked before a client asks: so it starts while they are down.
    ///
    /// # Errors
    /// See [`Upstreams::new`] and [`Cache::open`].
    pub async fn open(settings: Settings, origins: O, observer: Arc<dyn Observer>) -> Result<Self> {
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

    /// How it behaves.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The cache, to be looked at.
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// What can be done to the cache from outside.
    pub fn admin(&self) -> cache_admin::CacheAdmin {
        cache_admin::CacheAdmin::new(&self.0.cache, self.0.observer.clone())
    }

    /// What is asked for from now on is looked for in these upstreams; what is being fetched goes on.
    ///
    /// # Errors
    /// See [`Upstreams::new`]; nothing has changed then.
    pub fn set_upstreams(&self, specs: Vec<UpstreamConfig>) -> Result<()> {
        self.0.tiers.set_upstreams(Upstreams::new(specs)?);
        Ok(())
    }

    /// What gives the repositories that are read from.
    pub fn origins(&self) -> &O {
        &self.0.tiers.origins
    }

    /// How the registries do that are read from.
    pub fn health(&self) -> Vec<Health> {
        self.0.tiers.health()
    }

    /// Blobs that are being fetched: which, how far, how large where that is known.
    pub fn filling(&self) -> Vec<(crate::descriptor::Digest, u64, Option<u64>)> {
        self.0.fills.list()
    }
}

impl<O: Origins> Inner<O> {
    /// Says to the observer, and in the reply, how what was asked for was answered.
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

    /// Waits for `work` as long as a client does.
    async fn with_patience<T>(&self, patience: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        with_patience_since(Instant::now(), patience, work).await
    }
}

/// Waits for `work` as long as a client does who has waited since `begun`.
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
        // They hold the rest, and would go on.
        self.0.tasks.abort();
    }
}

impl<O: Origins> Clone for Proxy<O> {
    /// The same one: it ends with the last of them.
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
