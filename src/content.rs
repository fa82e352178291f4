//! Where images come from and go to: the traits between the engine and everything that holds
//! content (a registry, a layout directory, a proxy's cache), and the [`Feed`] that carries one
//! blob from the one to the other.

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

/// Something that images are read from: one repository of a registry, or a directory.
///
/// A clone is a handle to the same thing. Dropping a future stops what it did.
pub trait Source: Clone + Send + Sync + 'static {
    /// What `target` is, without reading it: `HEAD`, which Docker Hub doesn't count as a pull.
    /// `None` if it isn't there.
    fn resolve(&self, target: &Target) -> impl Future<Output = Result<Option<Descriptor>>> + Send;

    /// The manifest, verified against the digest where `target` is one.
    fn manifest(&self, target: &Target) -> impl Future<Output = Result<Manifest>> + Send;

    /// The bytes of `blob` from offset `from` on (in bytes, at most the blob's size).
    ///
    /// Not tried again here: whoever reads has a [`Budget`]. A holder that falls silent is the
    /// source's own affair: the body ends in an error then.
    fn blob(&self, blob: &Descriptor, from: u64) -> impl Future<Output = Result<Body>> + Send;

    /// The bytes of `part` of `blob`, in a request of its own. Several at once are faster than one where each
    /// connection is slow.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if the holder can't give a part that isn't at the blob's beginning.
    fn blob_range(&self, blob: &Descriptor, part: Range<u64>) -> impl Future<Output = Result<Body>> + Send {
        async move { Ok(take_bytes(self.blob(blob, part.start).await?, part.end - part.start)) }
    }

    /// Which repository this is, where blobs can be mounted from it: for a destination in the same registry.
    fn origin(&self) -> Option<&Repository> {
        None
    }

    /// The manifests that name `subject` as their subject. Empty if there are none, or if the
    /// holder knows neither the API nor the tag schema.
    fn referrers(&self, subject: &Digest) -> impl Future<Output = Result<Vec<Descriptor>>> + Send;

    /// All tags in the holder's order, page by page. The stream ends in an error unless the list is complete, so
    /// whoever reads it to its end has every tag; the number of pages is bounded by the holder.
    fn tags(&self) -> TagPages;
}

/// Something that images are written to: one repository of a registry, or a directory.
pub trait Destination: Clone + Send + Sync + 'static {
    /// An upload that was begun.
    type Session: Send;

    /// Which repository this is. Blobs can be mounted between repositories of one registry.
    fn repository(&self) -> &Repository;

    /// Whether no image is here yet, so that nothing small needs to be looked for. Blobs may be: those
    /// of a run that was interrupted.
    fn is_new(&self) -> impl Future<Output = bool> + Send;

    /// Whether [`Self::is_new`] has said so already: asks nobody.
    fn is_known_new(&self) -> bool {
        false
    }

    /// What `target` is here; `None` if it isn't there.
    fn resolve_existing(&self, target: &Target) -> impl Future<Output = Result<Option<Descriptor>>> + Send;

    /// A manifest that is here.
    fn existing_manifest(&self, digest: &Digest) -> impl Future<Output = Result<Manifest>> + Send;

    /// Whether the blob is here.
    fn has_blob(&self, blob: &Descriptor) -> impl Future<Output = Result<bool>> + Send;

    /// Begins an upload, asking for a mount from the repository `from` of the same registry where
    /// one is given. One request answers both.
    fn start_upload(
        &self,
        blob: &Descriptor,
        from: Option<&Repository>,
    ) -> impl Future<Output = Result<UploadStart<Self::Session>>> + Send;

    /// Sends the blob, resuming by the destination's own word of what it has. `body` is the
    /// feed opened at 0. On return the blob is stored, or its session was given up.
    fn upload<S: Source>(
        &self,
        session: Self::Session,
        feed: &Feed<S>,
        body: Verified,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Stores the manifest's bytes under its digest, and under the tag where `at` is one.
    fn put_manifest(&self, manifest: &Manifest, at: &Target) -> impl Future<Output = Result<PushReceipt>> + Send;

    /// The manifests that are listed here as naming `subject`, and the tag that lists them where
    /// the destination hasn't the referrers API.
    fn listed_referrers(&self, subject: &Digest) -> impl Future<Output = Result<Vec<Descriptor>>> + Send;
}

/// A repository's tags as they arrive.
pub type TagPages = BoxStream<'static, Result<TagPage>>;

/// Some of a repository's tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagPage {
    /// The tags.
    pub tags: Vec<Tag>,
    /// Names in a layout directory that are no tags, such as `registry/repository:tag`.
    pub names: Vec<LayoutName>,
    /// What the holder lists as tags and is none. Whoever reads the page reports it; nothing else can be done
    /// with it.
    pub malformed: Vec<Malformed>,
}

impl TagPage {
    /// A page of what a holder lists as its tags.
    pub fn new<T: AsRef<str>>(listed: impl IntoIterator<Item = T>) -> Self {
        let (tags, malformed) = parse_tags(listed);
        Self { tags, names: Vec::new(), malformed }
    }
}

/// How an upload began.
pub enum UploadStart<S> {
    /// It's over: the registry mounted the blob.
    Mounted,
    /// The session to send the bytes to.
    Session(S),
}

/// What a destination said of a manifest it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushReceipt {
    /// It keeps the list of referrers itself (`OCI-Subject` in the answer). If not, the client
    /// must maintain the tag schema's index (distribution spec, "Pushing Manifests with Subject").
    pub lists_referrer: bool,
}

/// One blob on its way: opens the source where it's needed, goes on after faults, counts bytes.
#[derive(Clone)]
pub struct Feed<S> {
    /// At least one; each is given up for the next one.
    holders: Vec<BlobHolder<S>>,
    blob: Descriptor,
    checkpoints: HashCheckpoints,
    /// How often the whole came damaged.
    damaged: Arc<AtomicU32>,
    /// A reader has given the first holder up.
    used_fallback: Arc<AtomicBool>,
}

/// Who has the blob.
#[derive(Clone)]
struct BlobHolder<S> {
    source: S,
    budget: Budget,
    moved: Arc<dyn Fn(u64) + Send + Sync>,
}

impl<S: Source> Feed<S> {
    /// The feed of `blob` from `source`, which spends of `budget` and tells `moved` how many
    /// bytes came.
    pub fn new(source: S, blob: Descriptor, budget: Budget, moved: Arc<dyn Fn(u64) + Send + Sync>) -> Self {
        let holders = vec![BlobHolder { source, budget, moved }];
        let checkpoints = HashCheckpoints::default();
        Self { holders, blob, checkpoints, damaged: Arc::default(), used_fallback: Arc::default() }
    }

    /// Where the budgets before it are spent, `source` is gone on from, at the same byte: what a blob is is its
    /// digest's word, not its holder's.
    #[must_use]
    pub fn with_fallback(mut self, source: S, budget: Budget, moved: Arc<dyn Fn(u64) + Send + Sync>) -> Self {
        self.holders.push(BlobHolder { source, budget, moved });
        self
    }

    /// Whether there is someone to go on from when the first one is given up.
    pub fn has_fallback(&self) -> bool {
        self.holders.len() > 1
    }

    /// Whether a fallback was read from. Bytes of several holders are mixed then.
    pub(crate) fn used_fallback(&self) -> bool {
        self.used_fallback.load(Ordering::Relaxed)
    }

    /// Which blob it is.
    pub fn blob(&self) -> &Descriptor {
        &self.blob
    }

    /// What may still be spent on the first one who has it.
    pub fn budget(&self) -> &Budget {
        &self.holders[0].budget
    }

    /// Who is told of bytes that came from there.
    pub fn progress(&self) -> Arc<dyn Fn(u64) + Send + Sync> {
        self.holders[0].moved.clone()
    }

    /// The verified bytes from `at` on. Reads again from the last known state of the hash at or
    /// before it, so that the digest of the whole is still checked.
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

    /// The verified bytes from `begin` on, where `first` is what the source was opened with already, at its beginning:
    /// what is before `begin` is read and hashed too.
    pub fn verify_first(&self, first: Body, begin: u64) -> Result<Verified> {
        let body = self.reader(0, Some(first)).into_body();
        Verified::resumed(body, &self.blob, 0, self.blob.digest.hasher(), begin, self.checkpoints.clone())
    }

    /// Verifies the whole of a `body` that somebody else put together from the source, so that
    /// [`open`](Self::open) can go on from what is hashed.
    pub fn verified(&self, body: Body) -> Result<Verified> {
        Verified::resumed(body, &self.blob, 0, self.blob.digest.hasher(), 0, self.checkpoints.clone())
    }

    /// The verified bytes of the whole once more, after `error` if that is a mismatch: what came was damaged, and
    /// nothing of it is gone on from.
    ///
    /// # Errors
    /// `error` itself, if it is another one, the budget is spent, or the blob came damaged [`MAX_DAMAGED`] times.
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

/// How often a blob is read whole before its holder is taken to have it damaged: what is damaged in transit comes right
/// the next time, and what is damaged where it is stored never does.
pub const MAX_DAMAGED: u32 = 3;

/// Counts an error that says that the blob is not what it should be. Whether that happened too often.
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
        // A usize suffices: it's at most the frame's length.
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let rest = left - bytes.len() as u64;
        Ok(Some((bytes, (body, rest))))
    })
    .boxed()
}

/// Reads a blob to its end, opening it again where it broke off.
struct BlobReader<S> {
    holders: Vec<BlobHolder<S>>,
    /// Who is read from.
    now: usize,
    blob: Descriptor,
    at: u64,
    body: Option<Body>,
    /// The feed's.
    damaged: Arc<AtomicU32>,
    /// The feed's.
    used_fallback: Arc<AtomicBool>,
}

impl<S: Source> BlobReader<S> {
    /// Opens the source, trying again within the budget.
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
            // Through the registry again, never by the old address: a CDN's signed URL expires.
            self.body = None;
            self.retry(broke).await?;
        }
    }

    /// Waits until it may be tried again, by this one who has it or by the next.
    async fn retry(&mut self, error: Error) -> Result<()> {
        let (budget, told) = (&self.holders[self.now].budget, self.with_hint(error));
        let spent = if is_damaged_for_good(&told, &self.damaged) {
            budget.give_up(told)
        } else {
            match budget.retry(told).await {
                Ok(()) => return Ok(()),
                Err(error) => error.on(Side::Source),
            }
        };
        if self.now + 1 == self.holders.len() {
            return Err(spent);
        }
        tracing::warn!("{spent}; going on from byte {} of it elsewhere", self.at);
        self.now += 1;
        self.used_fallback.store(true, Ordering::Relaxed);
        self.damaged.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn with_hint(&self, error: Error) -> Error {
        error.doing(format!("read blob {}", self.blob.digest)).on(Side::Source)
    }
}
