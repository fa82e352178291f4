//! Fills: fetches of blobs from an upstream into the cache. Each fill has one writer and any number of readers.
//!
//! ```text
//!   client A ─┐ find: cached, and a member of the repository? ─▶ file     Tiers
//!   client B ─┤   filling, and a member? ─▶ FillReader ◀── progress ──┐     │ first body, tier by tier
//!   client C ─┘   neither: start ──────▶ task: ── Feed ── ContentCheck ── file ── fsync, rename ─▶ cached
//! ```
//!
//! The writer is a task of the proxy. It publishes its progress on a watch channel: all bytes up to there are hashed and
//! in the file. The last batch of bytes is not published before digest and size are verified, so no reader gets the last
//! byte of a damaged blob. When a fill fails, the connections of its readers are cut. When the proxy's own disk fails, each
//! reader continues from the upstream on its own. When a tier fails in the middle of a blob, the next tier continues at the
//! same byte. When all tiers fail, the bytes are dropped: each of them has then failed seven times within 32 MiB.

mod batch;
mod damage;
mod find;
mod parallel;
mod reader;
mod slots;
mod task;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use self::damage::Damage;
use self::slots::RegistrySlots;
use super::cache::{Pin, StoredContent};
use super::tiers::blame_upstream;
use super::upstreams::UpstreamRepository;
use super::{Inner, Origins, cached_blob, with_patience_since};
use crate::body::Body;
use crate::content::{Feed, Source, take_bytes};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::file_access::OpenFile;
use crate::reference::Repository;
use crate::retry::Budget;
use crate::server::FilePipe;

/// All running fills, and what limits them.
pub(super) struct Fills<S> {
    running: Mutex<HashMap<Digest, Arc<Fill<S>>>>,
    slots: RegistrySlots,
    sides: Arc<Semaphore>,
    /// Limits the answers that are streamed uncached: each has its own connection to the upstream.
    passes: RegistrySlots,
    damage: Damage,
    /// The log has a line about a cache that cannot be written.
    warned: std::sync::atomic::AtomicBool,
}

/// The fetch of one blob.
pub(super) struct Fill<S> {
    digest: Digest,
    /// The repository that is read from.
    repo: UpstreamRepository,
    progress: watch::Sender<Progress>,
    begun: OnceLock<FillStart<S>>,
    error: OnceLock<Error>,
    /// Set when the blob is committed. It keeps the file as long as a reader is there.
    pin: OnceLock<Pin>,
    /// The verified body of the whole blob, if none of it could be written: for one reader.
    unwritten: Mutex<Option<Body>>,
}

/// What the upstream's answer has shown.
struct FillStart<S> {
    blob: Descriptor,
    /// The file, and the feed that continues after a fault. `None` if the blob cannot be cached: each reader then requests it on
    /// its own.
    to: Option<(OpenFile, Feed<S>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    stage: FillStage,
    /// All bytes before this offset are hashed and in the file.
    at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FillStage {
    Opening,
    Running,
    /// All bytes are in the file and verified.
    Whole,
    Failed,
}

/// A blob that can be read, in one of three ways.
pub(super) enum ReadableBlob<S> {
    /// The blob is cached.
    Hot(StoredContent),
    /// The blob is being fetched.
    Filling(Arc<Fill<S>>),
    /// The blob is streamed uncached, to a client that has been waiting since then.
    Passed(Box<Descriptor>, Instant),
}

impl<S> Fills<S> {
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            running: Mutex::default(),
            slots: RegistrySlots::new(at_once),
            sides: Arc::new(Semaphore::new(SIDE_READS)),
            passes: RegistrySlots::new(at_once),
            damage: Damage::default(),
            warned: std::sync::atomic::AtomicBool::new(false),
        }
    }

    pub(super) fn list(&self) -> Vec<(Digest, u64, Option<u64>)> {
        let size = |fill: &Fill<S>| fill.begun.get().map(|begun| begun.blob.size);
        self.lock().values().map(|fill| (fill.digest, fill.progress.borrow().at, size(fill))).collect()
    }

    /// Whether the blob is being fetched.
    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Fill<S>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Fill<S> {
    fn new(digest: Digest, repo: UpstreamRepository) -> Self {
        let progress = watch::Sender::new(Progress { stage: FillStage::Opening, at: 0 });
        Self {
            digest,
            repo,
            progress,
            begun: OnceLock::new(),
            error: OnceLock::new(),
            pin: OnceLock::new(),
            unwritten: Mutex::default(),
        }
    }

    /// Waits for the upstream's answer.
    ///
    /// # Errors
    /// Why the blob could not be opened.
    async fn opened(&self) -> Result<&FillStart<S>> {
        let mut progress = self.progress.subscribe();
        // Cannot fail: `self` holds the sender.
        let _ = progress.wait_for(|progress| progress.stage != FillStage::Opening).await;
        // A fill that has failed since then was open. Its readers get the error from the body.
        self.begun.get().ok_or_else(|| self.failure())
    }

    fn failure(&self) -> Error {
        self.error.get().map_or_else(|| Error::new(Kind::Interrupted, "the proxy is ending"), Error::duplicate)
    }
}

impl<S> ReadableBlob<S> {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Hot(stored) => stored.pin.size(),
            Self::Filling(fill) => fill.begun.get().map_or(0, |begun| begun.blob.size),
            Self::Passed(blob, _) => blob.size,
        }
    }
}

impl<O: Origins> Inner<O> {
    /// The bytes in `range` of what was found, to be sent on `pipe`'s connection if there is one.
    pub(super) async fn bytes(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        found: ReadableBlob<O::Source>,
        range: Range<u64>,
        pipe: Option<FilePipe>,
    ) -> Result<Body> {
        match found {
            ReadableBlob::Hot(stored) => Ok(cached_blob::stream(self.clone(), repo.clone(), stored, range, pipe)),
            ReadableBlob::Filling(fill) => Ok(reader::read_along(self.clone(), fill, range, pipe)),
            ReadableBlob::Passed(blob, begun) => {
                // The time that the search took counts: the client waits for one response head.
                let passed =
                    with_patience_since(begun, self.timeouts.request, self.stream_uncached(repo, &blob, range));
                passed.await.map_err(blame_upstream)
            }
        }
    }

    /// The upstream's bytes, uncached. A range that contains the blob's last byte is verified: the bytes before the range
    /// are read for that too. A range that does not contain it is requested as such, and not verified.
    async fn stream_uncached(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Body> {
        let mut permit = self.uncached_permit(repo, 0, self.timeouts.uncached_permit).await?;
        let length = range.end - range.start;
        let has_end = range.end == blob.size;
        let part = if has_end { 0..blob.size } else { range.clone() };
        let Some((source, tier, first)) = self.open_part(repo, blob, part).await? else {
            return Err(Error::new(Kind::NotFound, "no tier has the blob any more"));
        };
        if tier > 0 {
            // The permit of the first tier is released before: otherwise two answers could wait for each other.
            drop(permit);
            permit = self.uncached_permit(repo, tier, self.timeouts.uncached_permit).await?;
        }
        let body = if has_end {
            let (inner, repo, feed) = (self.clone(), repo.clone(), self.feed(repo, tier, source, blob));
            let whole = feed.verify_first(first, range.start)?;
            let whole = whole.inspect_err(move |error| {
                inner.learn_fetched(&repo, tier, &feed, &Err::<(), _>(error.duplicate()));
            });
            take_bytes(whole.boxed(), length)
        } else {
            self.count_bytes(repo, tier, first)
        };
        Ok(with_permit(body, permit))
    }

    /// Waits for a permit to stream a blob uncached from the registry of a tier. Such a blob is fetched again for each
    /// client, and too many at once would share the bandwidth of the upstream.
    ///
    /// # Errors
    /// [`Kind::Limited`] if no permit is free within `patience`.
    async fn uncached_permit(
        &self,
        repo: &UpstreamRepository,
        tier: usize,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit> {
        let permit = self.fills.passes.acquire(&repo.upstream.tiers[tier].registry, patience).await;
        let busy = || {
            Error::new(Kind::Limited, "too many blobs are streamed uncached at once")
                .transient(Some(Duration::from_secs(5)))
        };
        permit.ok_or_else(busy)
    }

    /// Reports the bytes of a body that is not read by a [`Feed`].
    fn count_bytes(&self, repo: &UpstreamRepository, tier: usize, body: Body) -> Body {
        let moved = self.moved(repo, tier);
        body.inspect_ok(move |bytes| moved(bytes.len() as u64)).boxed()
    }

    /// Opens a part of a blob at the first tier that has it.
    async fn open_part(
        &self,
        repo: &UpstreamRepository,
        blob: &Descriptor,
        part: Range<u64>,
    ) -> Result<Option<(O::Source, usize, Body)>> {
        let believed = self.stated_size(repo, &blob.digest) == Some(blob.size);
        let question = |source: O::Source| {
            let part = part.clone();
            async move {
                // The whole blob needs no `Range` header.
                let body = if part == (0..blob.size) {
                    source.blob(blob, 0).await
                } else {
                    source.blob_range(blob, part).await
                };
                body.map(Some).map_err(|error| match error.kind() {
                    // The manifest probably states a wrong size. The caller asks the registry for the size.
                    Kind::Mismatch if believed => error.permanent(),
                    _ => error,
                })
            }
        };
        let ttl = self.negative_ttl(repo);
        let may_ask = |repository: &Repository| self.fills.damage.check(repository, &blob.digest, ttl);
        let found = self.tiers.ask_where(repo, self.timeouts.request, may_ask, question).await?;
        Ok(found.map(|found| (found.source, found.tier, found.value)))
    }

    /// Records how fetching a whole blob from a tier ended. If another tier has sent a part of the blob, nobody knows
    /// whose bytes are damaged, and nothing is recorded.
    fn learn_fetched<T>(&self, repo: &UpstreamRepository, tier: usize, feed: &Feed<O::Source>, fetched: &Result<T>) {
        if feed.used_fallback() {
            return;
        }
        if let Ok(repository) = repo.upstream.tiers[tier].repository(&repo.repository) {
            self.fills.damage.learn(&repository, &feed.blob().digest, fetched);
        }
    }

    fn feed(&self, repo: &UpstreamRepository, tier: usize, source: O::Source, blob: &Descriptor) -> Feed<O::Source> {
        let feed = Feed::new(source, blob.clone(), Budget::default(), self.moved(repo, tier));
        // When this tier fails in the middle of the blob, the next tiers continue.
        let behind = repo.upstream.tiers.iter().enumerate().skip(tier + 1);
        behind.fold(feed, |feed, (tier, base)| {
            let repository = base.repository(&repo.repository);
            match repository.and_then(|repository| self.tiers.origins.source(&repo.upstream.name, &repository)) {
                Ok(source) => feed.with_fallback(source, Budget::default(), self.moved(repo, tier)),
                Err(_) => feed,
            }
        })
    }

    /// Reports bytes that came from this tier.
    fn moved(&self, repo: &UpstreamRepository, tier: usize) -> Arc<dyn Fn(u64) + Send + Sync> {
        let (observer, registry) = (self.observer.clone(), repo.upstream.tiers[tier].registry.clone());
        Arc::new(move |bytes| observer.event(&super::events::Event::Moved { registry: &registry, bytes }))
    }
}

/// `body`, which holds the permit until it is dropped.
fn with_permit(body: Body, permit: OwnedSemaphorePermit) -> Body {
    body.inspect(move |_| {
        let _ = &permit;
    })
    .boxed()
}

/// Ranged requests at once for readers that are far ahead of a fill.
const SIDE_READS: usize = 32;
/// How long a reader of a failed fill waits for a permit. It has sent the head and some bytes already, so the limit is the
/// time for which a client may be silent.
const ALONE_PATIENCE: Duration = Duration::from_secs(120);
