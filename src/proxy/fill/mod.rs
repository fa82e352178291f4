//! Fetching blobs: one detached writer for each, any number of readers along with it.
//!
//! ```text
//!   client A ─┐ find: cached, and its repository holds it? ─▶ file      Upstreams
//!   client B ─┤   being fetched, likewise? ─▶ follow ◀── progress ──┐       │ first body, tier by tier
//!   client C ─┘   neither: begin ──────▶ task: ── Feed ── Check ── file ── fsync, rename ─▶ cached
//! ```
//!
//! The writer is a task of the proxy's. It tells by a watch channel how far it came; what is behind
//! that is hashed and in the file. Of the last batch of bytes nothing is told before digest and size
//! agree, so that no reader gets the last byte of a blob that isn't right. When it fails, readers'
//! connections are cut; when it's our own disk that failed, they go on from the upstream, each on its own. A tier
//! that is given up in the middle of a blob is gone on from by those behind it, at the same byte. What came of a blob that none
//! of them could end is dropped: that took seven faults at each without 32 MiB between them, and is no hiccup.

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

/// What is being fetched.
pub(super) struct Fills<S> {
    running: Mutex<HashMap<Digest, Arc<Fill<S>>>>,
    slots: RegistrySlots,
    sides: Arc<Semaphore>,
    /// Bodies that are passed on uncached: each has a connection to the upstream of its own.
    passes: RegistrySlots,
    damage: Damage,
    /// That nothing can be written was said.
    told: std::sync::atomic::AtomicBool,
}

/// One blob on its way.
pub(super) struct Fill<S> {
    digest: Digest,
    /// Whose repository is read from.
    repo: UpstreamRepository,
    progress: watch::Sender<Progress>,
    begun: OnceLock<FillStart<S>>,
    error: OnceLock<Error>,
    /// Once it's committed: it stays as long as someone follows.
    pin: OnceLock<Pin>,
    /// The verified bytes of the whole, where none of them could be written: for one reader.
    unwritten: Mutex<Option<Body>>,
}

/// What is known once the upstream answered.
struct FillStart<S> {
    blob: Descriptor,
    /// Where it's written to; `None` if it can't be cached, and each reads for himself.
    to: Option<(OpenFile, Feed<S>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    stage: FillStage,
    /// Hashed, and in the file.
    at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FillStage {
    Opening,
    Running,
    /// All of it is there and right.
    Whole,
    Failed,
}

/// A blob that can be read, in one of three ways.
pub(super) enum ReadableBlob<S> {
    /// It's on the disk.
    Hot(StoredContent),
    /// It's being fetched.
    Filling(Arc<Fill<S>>),
    /// It's only passed on, to a client who waits since then.
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
            told: std::sync::atomic::AtomicBool::new(false),
        }
    }

    pub(super) fn list(&self) -> Vec<(Digest, u64, Option<u64>)> {
        let size = |fill: &Fill<S>| fill.begun.get().map(|begun| begun.blob.size);
        self.lock().values().map(|fill| (fill.digest, fill.progress.borrow().at, size(fill))).collect()
    }

    /// Whether it's on its way.
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

    /// Waits until the upstream answered. What it is then, or why not.
    async fn opened(&self) -> Result<&FillStart<S>> {
        let mut progress = self.progress.subscribe();
        // The sender is in here: it's never gone.
        let _ = progress.wait_for(|progress| progress.stage != FillStage::Opening).await;
        // What failed on the way was open: its readers are told by the body.
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
                // What finding it took is of the same patience: a client waits for one head.
                let passed =
                    with_patience_since(begun, self.timeouts.request, self.stream_uncached(repo, &blob, range));
                passed.await.map_err(blame_upstream)
            }
        }
    }

    /// The upstream's bytes, uncached. Verified are the whole, what begins it, and what ends it: for that all before it is
    /// read too. A range from the middle is not verified.
    async fn stream_uncached(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        blob: &Descriptor,
        range: Range<u64>,
    ) -> Result<Body> {
        let mut pass = self.uncached_permit(repo, 0, self.timeouts.pass_place).await?;
        let length = range.end - range.start;
        let is_middle = range.start > 0 && range.end < blob.size;
        let part = if is_middle { range.clone() } else { 0..blob.size };
        let Some((source, tier, first)) = self.open_part(repo, blob, part).await? else {
            return Err(Error::new(Kind::NotFound, "the blob is not there any more"));
        };
        if tier > 0 {
            // Not while it holds the first tier's: else each would wait for the other.
            drop(pass);
            pass = self.uncached_permit(repo, tier, self.timeouts.pass_place).await?;
        }
        let body = if is_middle {
            self.count_bytes(repo, tier, first)
        } else {
            let (inner, repo, digest) = (self.clone(), repo.clone(), blob.digest);
            let whole = self.feed(&repo, tier, source, blob).verify_first(first, range.start)?;
            let whole = whole.inspect_err(move |error| {
                inner.learn_fetched(&repo, tier, &digest, &Err::<(), _>(error.duplicate()));
            });
            take_bytes(whole.boxed(), length)
        };
        Ok(with_permit(body, pass))
    }

    /// A place among what is passed on from a tier's registry, when there is one. What isn't cached is fetched for each client, and
    /// with too many at once all would get too little of the upstream's line.
    ///
    /// # Errors
    /// [`Kind::Limited`] if there is none within `patience`.
    async fn uncached_permit(
        &self,
        repo: &UpstreamRepository,
        tier: usize,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit> {
        let place = self.fills.passes.acquire(&repo.upstream.tiers[tier].registry, patience).await;
        let busy = || {
            Error::new(Kind::Limited, "too much is passed on uncached at once").transient(Some(Duration::from_secs(5)))
        };
        place.ok_or_else(busy)
    }

    /// Bytes that go round the [`Feed`] are told too.
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
        let believed = self.told_size(repo, &blob.digest) == Some(blob.size);
        let question = |source: O::Source| {
            let part = part.clone();
            async move {
                // All of it needs no `Range`.
                let body = if part == (0..blob.size) {
                    source.blob(blob, 0).await
                } else {
                    source.blob_range(blob, part).await
                };
                body.map(Some).map_err(|error| match error.kind() {
                    // Rather the manifest that says another size is wrong: the registry is asked for it.
                    Kind::Mismatch if believed => error.permanent(),
                    _ => error,
                })
            }
        };
        let ttl = repo.upstream.negative_ttl.unwrap_or(self.settings.negative_ttl);
        let may_ask = |repository: &Repository| self.fills.damage.check(repository, &blob.digest, ttl);
        let found = self.upstreams.ask_where(repo, self.timeouts.request, may_ask, question).await?;
        Ok(found.map(|found| (found.source, found.tier, found.value)))
    }

    /// Notes how fetching a whole blob from a tier ended.
    fn learn_fetched<T>(&self, repo: &UpstreamRepository, tier: usize, digest: &Digest, fetched: &Result<T>) {
        if let Ok(repository) = repo.upstream.tiers[tier].repository(&repo.repository) {
            self.fills.damage.learn(&repository, digest, fetched);
        }
    }

    fn feed(&self, repo: &UpstreamRepository, tier: usize, source: O::Source, blob: &Descriptor) -> Feed<O::Source> {
        let feed = Feed::new(source, blob.clone(), Budget::default(), self.moved(repo, tier));
        // A tier that ends in the middle of it is gone on from by those behind it.
        let behind = repo.upstream.tiers.iter().enumerate().skip(tier + 1);
        behind.fold(feed, |feed, (tier, base)| {
            let repository = base.repository(&repo.repository);
            match repository.and_then(|repository| self.upstreams.origins.source(&repo.upstream.name, &repository)) {
                Ok(source) => feed.with_fallback(source, Budget::default(), self.moved(repo, tier)),
                Err(_) => feed,
            }
        })
    }

    /// Who is to hear of bytes from this tier.
    fn moved(&self, repo: &UpstreamRepository, tier: usize) -> Arc<dyn Fn(u64) + Send + Sync> {
        let (observer, registry) = (self.observer.clone(), repo.upstream.tiers[tier].registry.clone());
        Arc::new(move |bytes| observer.event(&super::events::Event::Moved { registry: &registry, bytes }))
    }
}

/// `body`, which keeps its place as long as it's there.
fn with_permit(body: Body, place: OwnedSemaphorePermit) -> Body {
    body.inspect(move |_| {
        let _ = &place;
    })
    .boxed()
}

/// Ranged reads at once beside what is being fetched.
const SIDE_READS: usize = 32;
/// How long one waits who has the head, and some of the bytes: as long as a client may take nothing of them.
const ALONE_PATIENCE: Duration = Duration::from_secs(120);
