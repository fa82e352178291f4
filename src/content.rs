//! The traits [`Source`] and [`Destination`] between the engine and everything that holds content (a registry, a layout
//! directory, the proxy's cache), and the [`Feed`] that carries one blob from a source to a destination.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::body::Body;
use crate::descriptor::{Descriptor, Digest, Hasher};
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::Manifest;
use crate::reference::{LayoutName, Malformed, Repository, Tag, Target, parse_tags};
use crate::retry::Budget;
use crate::verify::{HashCheckpoints, Verified};

/// A repository of a registry, or a directory, from which images are read.
///
/// A clone is a handle to the same source. Dropping a future cancels its request.
pub trait Source: Clone + Send + Sync + 'static {
    /// The descriptor of `target`, by `HEAD`, which Docker Hub does not count as a pull. `None` if it does not exist.
    fn resolve(&self, target: &Target) -> impl Future<Output = Result<Option<Descriptor>>> + Send;

    /// The manifest. If `target` is a digest, the manifest is verified against it.
    fn manifest(&self, target: &Target) -> impl Future<Output = Result<Manifest>> + Send;

    /// The bytes of `blob` from the offset `from` on (in bytes, at most the blob's size).
    ///
    /// This does not retry: the caller has a `Budget`. The source detects a silent connection; the body ends in an error
    /// then.
    fn blob(&self, blob: &Descriptor, from: u64) -> impl Future<Output = Result<Body>> + Send;

    /// The bytes of `part` of `blob`, by a request of its own. Several requests at once are faster if each connection is
    /// slow.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the source cannot serve a part that does not start at the blob's beginning.
    fn blob_range(&self, blob: &Descriptor, part: Range<u64>) -> impl Future<Output = Result<Body>> + Send {
        async move { Ok(take_bytes(self.blob(blob, part.start).await?, part.end - part.start)) }
    }

    /// The repository from which a destination in the same registry can mount blobs.
    fn origin(&self) -> Option<&Repository> {
        None
    }

    /// The manifests that name `subject` as their subject. Empty if there are none, or if the source has neither the
    /// referrers API nor the tag schema.
    fn referrers(&self, subject: &Digest) -> impl Future<Output = Result<Vec<Descriptor>>> + Send;

    /// Whether [`Self::referrers`] is known to read the tag schema's list, so that a subject without that tag has no
    /// referrers. Sends no request: it is known from the first list on.
    fn uses_referrers_tags(&self) -> bool {
        false
    }

    /// All tags in the source's order, page by page. The stream ends in an error unless the list is complete, so a caller
    /// that reads it to its end has every tag. The source bounds the number of pages.
    fn tags(&self) -> TagPages;
}

/// A repository of a registry, or a directory, to which images are written.
pub trait Destination: Clone + Send + Sync + 'static {
    /// An upload session.
    type Session: Send;

    /// The repository. Blobs can be mounted between repositories of one registry.
    fn repository(&self) -> &Repository;

    /// A handle for the push of one image. If the destination's name leads to several replicas, all requests of the
    /// handle go to one of them.
    fn for_one_image(&self) -> Self {
        self.clone()
    }

    /// Whether the repository has no image yet, so that small blobs need not be looked for. It may have blobs of an
    /// interrupted run.
    fn is_new(&self) -> impl Future<Output = bool> + Send;

    /// Whether [`Self::is_new`] was already found to be true. Sends no request.
    fn is_known_new(&self) -> bool {
        false
    }

    /// The descriptor of `target` at the destination; `None` if it does not exist.
    fn resolve_existing(&self, target: &Target) -> impl Future<Output = Result<Option<Descriptor>>> + Send;

    /// Reads a manifest of the destination.
    fn existing_manifest(&self, digest: &Digest) -> impl Future<Output = Result<Manifest>> + Send;

    /// Whether the destination has the blob.
    fn has_blob(&self, blob: &Descriptor) -> impl Future<Output = Result<bool>> + Send;

    /// Starts an upload. With `from`, the same request asks for a mount from that repository of the same registry.
    fn start_upload(
        &self,
        blob: &Descriptor,
        from: Option<&Repository>,
    ) -> impl Future<Output = Result<UploadStart<Self::Session>>> + Send;

    /// Sends the blob. After a fault it resumes at the offset that the destination reports. `body` is the feed, opened at
    /// offset 0. On return the blob is stored, or its session was abandoned.
    fn upload<S: Source>(
        &self,
        session: Self::Session,
        feed: &Feed<S>,
        body: Verified,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Stores the bytes of the manifest under its digest, and under the tag if `at` is one.
    fn put_manifest(&self, manifest: &Manifest, at: &Target) -> impl Future<Output = Result<PushReceipt>> + Send;

    /// The referrers of `subject` that the destination lists: by the referrers API, or by the tag schema.
    fn listed_referrers(&self, subject: &Digest) -> impl Future<Output = Result<Vec<Descriptor>>> + Send;
}

/// The tags of a repository, page by page.
pub type TagPages = BoxStream<'static, Result<TagPage>>;

/// One page of the tags of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagPage {
    /// The tags.
    pub tags: Vec<Tag>,
    /// Names in a layout directory that are not tags, such as `registry/repository:tag`.
    pub names: Vec<LayoutName>,
    /// Texts that the source lists as tags but that are not valid tags. They are only reported.
    pub malformed: Vec<Malformed>,
    /// Whether this is known to be the last page. If not, the end of the stream shows it.
    pub is_last: bool,
}

impl TagPage {
    /// A page with the tags that a source lists.
    pub fn new<T: AsRef<str>>(listed: impl IntoIterator<Item = T>) -> Self {
        let (tags, malformed) = parse_tags(listed);
        Self { tags, names: Vec::new(), malformed, is_last: false }
    }
}

/// The result of starting an upload.
pub enum UploadStart<S> {
    /// The registry mounted the blob, so there is nothing to send.
    Mounted,
    /// The session that takes the bytes.
    Session(S),
}

/// The answer of a destination that stored a manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushReceipt {
    /// Whether the destination maintains the list of referrers itself (header `OCI-Subject`). If not, the client must
    /// maintain the list of the tag schema (distribution spec, "Pushing Manifests with Subject").
    pub lists_referrer: bool,
}

/// One blob in transfer. Opens the source at any offset, resumes after faults, and counts bytes.
#[derive(Clone)]
pub struct Feed<S> {
    /// The sources in order, at least one. When one fails for good, the next one is used.
    holders: Vec<BlobHolder<S>>,
    blob: Descriptor,
    checkpoints: HashCheckpoints,
    /// How often the blob arrived damaged.
    damaged: Arc<AtomicU32>,
    /// Whether a reader changed to a further source.
    used_fallback: Arc<AtomicBool>,
}

/// A source of the blob.
#[derive(Clone)]
struct BlobHolder<S> {
    source: S,
    budget: Budget,
    moved: Arc<dyn Fn(u64) + Send + Sync>,
}

impl<S: Source> Feed<S> {
    /// The feed of `blob` from `source`. Retries spend `budget`. `moved` is called with the number of bytes that arrived.
    pub fn new(source: S, blob: Descriptor, budget: Budget, moved: Arc<dyn Fn(u64) + Send + Sync>) -> Self {
        let holders = vec![BlobHolder { source, budget, moved }];
        let checkpoints = HashCheckpoints::default();
        Self { holders, blob, checkpoints, damaged: Arc::default(), used_fallback: Arc::default() }
    }

    /// Adds a further source. When the budgets of the sources before it are spent, the feed continues with `source` at the
    /// same byte. That is safe, since the digest identifies the blob, not the source.
    #[must_use]
    pub fn with_fallback(mut self, source: S, budget: Budget, moved: Arc<dyn Fn(u64) + Send + Sync>) -> Self {
        self.holders.push(BlobHolder { source, budget, moved });
        self
    }

    /// Whether there is a further source if the first one fails for good.
    pub fn has_fallback(&self) -> bool {
        self.holders.len() > 1
    }

    /// Whether a reader used a further source. Then the bytes of several sources are mixed.
    pub(crate) fn used_fallback(&self) -> bool {
        self.used_fallback.load(Ordering::Relaxed)
    }

    /// The blob's descriptor.
    pub fn blob(&self) -> &Descriptor {
        &self.blob
    }

    /// The budget of the first source.
    pub fn budget(&self) -> &Budget {
        &self.holders[0].budget
    }

    /// The progress callback of the first source.
    pub fn progress(&self) -> Arc<dyn Fn(u64) + Send + Sync> {
        self.holders[0].moved.clone()
    }

    /// The verified bytes from offset `at` on. Reads from the last checkpoint of the hash at or before `at`, so that the
    /// digest of the whole blob is still checked.
    pub async fn open(&self, at: u64) -> Result<Verified> {
        let mark = self.checkpoints.before(at);
        let (from, hasher) = mark.unwrap_or_else(|| (0, self.blob.digest.hasher()));
        let body = self.reader(from, None).opened().await?.into_body();
        Verified::resumed(body, &self.blob, from, hasher, at, self.checkpoints.clone())
    }

    /// The state of the hash after the blob's first `at` bytes, which the destination has from before: [`Self::open`]
    /// goes on from there.
    pub(crate) fn resume_at(&self, at: u64, hasher: Hasher) {
        self.checkpoints.resume_at(at, hasher);
    }

    /// The bytes from `at` on, not verified: for whoever verifies the whole that they are a part of.
    pub(crate) async fn unverified(&self, at: u64) -> Result<Body> {
        Ok(self.reader(at, None).opened().await?.into_body())
    }

    /// The verified bytes from offset `begin` on. `first` is the source's body, already opened at offset 0. The bytes before
    /// `begin` are read and hashed too.
    pub fn verify_first(&self, first: Body, begin: u64) -> Result<Verified> {
        let body = self.reader(0, Some(first)).into_body();
        Verified::resumed(body, &self.blob, 0, self.blob.digest.hasher(), begin, self.checkpoints.clone())
    }

    /// Verifies `body`, which the caller assembled from parts of the blob. Afterwards [`open`](Self::open) can continue from
    /// the checkpoints of its hash.
    pub fn verified(&self, body: Body) -> Result<Verified> {
        Verified::resumed(body, &self.blob, 0, self.blob.digest.hasher(), 0, self.checkpoints.clone())
    }

    /// Reads the whole blob again after a mismatch. The damaged bytes are not used again.
    ///
    /// # Errors
    /// `error` itself if it is no mismatch, if the budget is spent, or if the blob arrived damaged [`MAX_DAMAGED`] times.
    pub async fn reopen_after(&self, error: Error) -> Result<Verified> {
        if is_damaged_for_good(&error, &self.damaged) {
            return Err(self.budget().give_up(error));
        }
        self.budget().retry(error.transient_if_damaged()).await?;
        self.checkpoints.clear();
        self.open(0).await
    }

    fn reader(&self, at: u64, body: Option<Body>) -> BlobReader<S> {
        let (holders, blob) = (self.holders.clone(), self.blob.clone());
        let (damaged, used_fallback) = (self.damaged.clone(), self.used_fallback.clone());
        BlobReader { holders, now: 0, blob, at, body, damaged, used_fallback }
    }
}

/// How often a blob is read whole before its source is believed to store it damaged. Damage in transit does not repeat;
/// damage in storage does.
pub const MAX_DAMAGED: u32 = 3;

/// Counts a mismatch. Returns whether it happened too often.
fn is_damaged_for_good(error: &Error, damaged: &AtomicU32) -> bool {
    error.kind() == Kind::Mismatch && damaged.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_DAMAGED
}

/// The first `left` bytes of `body`.
pub(crate) fn take_bytes(body: Body, left: u64) -> Body {
    stream::try_unfold((body, left), |(mut body, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut bytes) = body.try_next().await? else { return Ok(None) };
        // If `left` does not fit into a usize, the frame is shorter anyway.
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let rest = left - bytes.len() as u64;
        Ok(Some((bytes, (body, rest))))
    })
    .boxed()
}

/// Reads a blob to its end. Opens it again after a fault.
struct BlobReader<S> {
    holders: Vec<BlobHolder<S>>,
    /// The index of the current source.
    now: usize,
    blob: Descriptor,
    at: u64,
    body: Option<Body>,
    /// Shared with the feed.
    damaged: Arc<AtomicU32>,
    /// Shared with the feed.
    used_fallback: Arc<AtomicBool>,
}

impl<S: Source> BlobReader<S> {
    /// Opens the source. Retries within the budget.
    async fn opened(mut self) -> Result<Self> {
        while self.body.is_none() && self.at < self.blob.size {
            match self.holders[self.now].source.blob(&self.blob, self.at).await {
                Ok(body) => self.body = Some(body),
                Err(error) => self.retry(error).await?,
            }
        }
        Ok(self)
    }

    fn into_body(self) -> Body {
        stream::try_unfold(self, Self::next).boxed()
    }

    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            if self.at >= self.blob.size {
                return Ok(None);
            }
            self = self.opened().await?;
            let Some(body) = &mut self.body else { return Ok(None) };
            let broke = match body.try_next().await {
                Ok(Some(bytes)) if bytes.is_empty() => continue,
                Ok(Some(bytes)) => {
                    self.at += bytes.len() as u64;
                    let BlobHolder { budget, moved, .. } = &self.holders[self.now];
                    budget.progress(bytes.len() as u64);
                    moved(bytes.len() as u64);
                    return Ok(Some((bytes, self)));
                }
                Ok(None) => {
                    Error::new(Kind::Network, format!("the body ended at byte {} of {}", self.at, self.blob.size))
                }
                Err(error) => error,
            };
            // By a new request to the registry, since the signed URL of a CDN expires.
            self.body = None;
            self.retry(broke).await?;
        }
    }

    /// Waits before a retry. If the budget is spent, changes to the next source.
    async fn retry(&mut self, error: Error) -> Result<()> {
        let (budget, error) = (&self.holders[self.now].budget, self.with_context(error));
        let spent = if is_damaged_for_good(&error, &self.damaged) {
            budget.give_up(error)
        } else {
            match budget.retry(error).await {
                Ok(()) => return Ok(()),
                Err(error) => error.on(Side::Source),
            }
        };
        if self.now + 1 == self.holders.len() {
            return Err(spent);
        }
        tracing::warn!("{spent}; continuing at byte {} with another source", self.at);
        self.now += 1;
        self.used_fallback.store(true, Ordering::Relaxed);
        self.damaged.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn with_context(&self, error: Error) -> Error {
        error.doing(format!("read blob {}", self.blob.digest)).on(Side::Source)
    }
}
