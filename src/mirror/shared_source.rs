//! Shares the source's answers between the images of a run: the digest of a tag, for all of its destinations, and
//! manifests of several images. Each is requested once, since Docker Hub counts each manifest as a pull. All
//! destinations get the same image even if its tag moves: the first answer, to HEAD or GET, counts for all.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;

use crate::body::Body;
use crate::content::{Source, TagPages};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Kind, Result};
use crate::manifest::Manifest;
use crate::reference::{Repository, Target};

/// The manifests that images of a run have read by digest. They are kept while one of these images is in progress.
/// Different tags may share manifests.
///
/// Manifests beyond [`MAX_SHARED_BYTES`] are not kept: another destination's job reads them again.
#[derive(Debug, Default)]
pub(super) struct ManifestCache {
    cells: Mutex<HashMap<(Repository, Digest), Weak<ManifestCell>>>,
    /// The size of the kept manifests in bytes.
    kept: Arc<AtomicU64>,
}

type ManifestCell = OnceCell<Manifest>;

/// Answers for one image. They are dropped with the last of its jobs, so none is older than the image's first job.
#[derive(Debug)]
pub(super) struct ImageReads {
    manifests: Arc<ManifestCache>,
    from: Repository,
    cells: Mutex<HashMap<Digest, Arc<ManifestCell>>>,
    /// The part of the cache's bytes that this image's manifests take.
    kept: AtomicU64,
    found: Mutex<HashMap<Target, Arc<TagLookup>>>,
}

/// The digest of a target. A HEAD does not wait for a GET, which may have to wait for pulls.
#[derive(Debug, Default)]
struct TagLookup {
    /// The manifest, or that there is none; `None` while unknown.
    known: Mutex<Option<Option<Descriptor>>>,
    asking: tokio::sync::Mutex<()>,
    reads: tokio::sync::Mutex<()>,
}

impl TagLookup {
    fn known(&self) -> Option<Option<Descriptor>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records an answer, unless an earlier one names a manifest. Returns the answer that counts for all.
    fn settle(&self, answer: Option<Descriptor>) -> Option<Descriptor> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let first = known.take().flatten().or(answer);
        known.insert(first).clone()
    }

    /// Forgets the answer, since the manifest is gone.
    fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A source, for one destination of an image.
#[derive(Clone, Debug)]
pub(super) struct SharedSource<S> {
    source: S,
    reads: Arc<ImageReads>,
    /// How many manifests another job had read.
    given: Arc<AtomicUsize>,
}

impl ImageReads {
    /// For an image of the repository `from`.
    pub(super) fn new(manifests: &Arc<ManifestCache>, from: &Repository) -> Self {
        let (cells, kept, found) = Default::default();
        Self { manifests: manifests.clone(), from: from.clone(), cells, kept, found }
    }

    /// Keeps a manifest for the image's other destinations, if there is room.
    fn keep(&self, manifest: &Manifest) {
        let weight = manifest.weight() + CELL_OVERHEAD;
        let take = |limit: u64| move |kept: u64| (kept + weight <= limit).then_some(kept + weight);
        if self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take(MAX_SHARED_BYTES_PER_IMAGE)).is_err() {
            return self.forget(manifest.digest());
        }
        if self.manifests.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take(MAX_SHARED_BYTES)).is_err() {
            self.kept.fetch_sub(weight, Ordering::Relaxed);
            self.forget(manifest.digest());
        }
    }

    /// Drops a manifest. Jobs that wait for it still get it.
    fn forget(&self, digest: Digest) {
        let cell = self.cells.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
        drop(cell);
        self.manifests.sweep(&self.from, [digest]);
    }

    fn cell(&self, digest: Digest) -> Arc<ManifestCell> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.entry(digest).or_insert_with(|| self.manifests.cell((self.from.clone(), digest))).clone()
    }

    fn found(&self, target: &Target) -> Arc<TagLookup> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).entry(target.clone()).or_default().clone()
    }
}

impl ManifestCache {
    fn cell(&self, key: (Repository, Digest)) -> Arc<ManifestCell> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cells.get(&key).and_then(Weak::upgrade);
        found.unwrap_or_else(|| {
            let cell = Arc::default();
            cells.insert(key, Arc::downgrade(&cell));
            cell
        })
    }

    /// Removes manifests that no job holds.
    fn sweep(&self, from: &Repository, digests: impl IntoIterator<Item = Digest>) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in digests {
            let key = (from.clone(), digest);
            if cells.get(&key).is_some_and(|cell| cell.strong_count() == 0) {
                cells.remove(&key);
            }
        }
    }
}

impl Drop for ImageReads {
    fn drop(&mut self) {
        let cells = std::mem::take(self.cells.get_mut().unwrap_or_else(PoisonError::into_inner));
        let digests: Vec<_> = cells.keys().copied().collect();
        drop(cells);
        self.manifests.kept.fetch_sub(*self.kept.get_mut(), Ordering::Relaxed);
        self.manifests.sweep(&self.from, digests);
    }
}

impl<S: Source> SharedSource<S> {
    pub(super) fn new(source: S, reads: Arc<ImageReads>) -> Self {
        Self { source, reads, given: Arc::default() }
    }

    /// The manifest of the tag's known digest. `None` if that is unknown, or gone because the tag has moved.
    async fn manifest_as_resolved(&self, found: &TagLookup) -> Option<Result<Manifest>> {
        let known = found.known().flatten()?;
        let read = self.by_digest(known.digest).await;
        if read.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
            found.forget();
            return None;
        }
        Some(read)
    }

    async fn by_digest(&self, digest: Digest) -> Result<Manifest> {
        let mut own = false;
        let read = async {
            own = true;
            self.source.manifest(&Target::Digest(digest)).await
        };
        let manifest = self.reads.cell(digest).get_or_try_init(|| read).await?.clone();
        if own {
            self.reads.keep(&manifest);
        } else {
            self.given.fetch_add(1, Ordering::Relaxed);
        }
        Ok(manifest)
    }

    /// How many manifests this destination got without a request.
    pub(super) fn given(&self) -> usize {
        self.given.load(Ordering::Relaxed)
    }
}

impl<S: Source> Source for SharedSource<S> {
    /// A second caller waits for the first one's answer. If that is an error, or was cancelled, it asks itself.
    async fn resolve(&self, target: &Target) -> Result<Option<Descriptor>> {
        let found = self.reads.found(target);
        let _alone = found.asking.lock().await;
        match found.known() {
            Some(known) => Ok(known),
            None => Ok(found.settle(self.source.resolve(target).await?)),
        }
    }

    /// As [`Self::resolve`]. The digest of a tag is the one that was found first.
    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        let tag = match target {
            Target::Digest(digest) => return self.by_digest(*digest).await,
            tag => tag,
        };
        let found = self.reads.found(tag);
        let _alone = found.reads.lock().await;
        if let Some(read) = self.manifest_as_resolved(&found).await {
            return read;
        }
        let manifest = self.source.manifest(tag).await?;
        // Jobs that ask by digest get it too.
        if self.reads.cell(manifest.digest()).set(manifest.clone()).is_ok() {
            self.reads.keep(&manifest);
        }
        let settled = found.settle(Some(manifest.descriptor().clone()));
        if settled.is_none_or(|settled| settled.digest == manifest.digest()) {
            return Ok(manifest);
        }
        // The tag moved between another job's request and this one.
        self.manifest_as_resolved(&found).await.unwrap_or(Ok(manifest))
    }

    async fn blob(&self, blob: &Descriptor, from: u64) -> Result<Body> {
        self.source.blob(blob, from).await
    }

    async fn blob_range(&self, blob: &Descriptor, part: Range<u64>) -> Result<Body> {
        self.source.blob_range(blob, part).await
    }

    fn origin(&self) -> Option<&Repository> {
        self.source.origin()
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        self.source.referrers(subject).await
    }

    fn tags(&self) -> TagPages {
        self.source.tags()
    }
}

/// The most bytes of kept manifests: of one image, and of all.
const MAX_SHARED_BYTES_PER_IMAGE: u64 = 4 << 20;
const MAX_SHARED_BYTES: u64 = 64 << 20;
/// The size of a cell without its manifest, in bytes.
const CELL_OVERHEAD: u64 = 512;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::error::Error;

    #[test]
    fn images_that_are_worked_on_share_what_they_read() {
        let manifests = Arc::<ManifestCache>::default();
        let of = |name: &str| ImageReads::new(&manifests, &name.parse().expect("a repository"));
        let (one, two, other) = (of("r.io/app"), of("r.io/app"), of("r.io/other"));
        let child = Digest::of(b"child");
        let cell = one.cell(child);
        assert!(Arc::ptr_eq(&cell, &two.cell(child)), "the same manifest for another tag");
        assert!(!Arc::ptr_eq(&cell, &other.cell(child)), "it may not be there");
        let tag = Target::Tag("v1".into());
        assert!(!Arc::ptr_eq(&one.found(&tag), &two.found(&tag)), "each is asked what its tag is");
        drop((cell, one));
        let kept = two.cell(child);
        assert!(Arc::ptr_eq(&kept, &of("r.io/app").cell(child)), "as long as one of them needs it");
        drop((kept, two, other));
        assert!(manifests.cells.lock().expect("no panic").is_empty(), "a long list leaves nothing");
    }

    /// Many images with large manifests: manifests beyond the limits are read again.
    #[test]
    fn manifests_are_kept_within_limits() {
        let manifests = Arc::<ManifestCache>::default();
        let manifest = |nth: usize, mib: usize| {
            let text = format!(r#"{{"schemaVersion":2,"manifests":[],"annotations":{{"nth":"{nth}"}}}}"#);
            let text = text + &" ".repeat(mib << 20);
            Manifest::read(Bytes::from(text), Some("application/vnd.oci.image.index.v1+json"), None).expect("an index")
        };
        let read = |reads: &ImageReads, manifest: &Manifest| {
            reads.cell(manifest.digest()).set(manifest.clone()).expect("empty");
            reads.keep(manifest);
            reads.cell(manifest.digest()).initialized()
        };
        let all_reads: Vec<_> = (0..100)
            .map(|nth| ImageReads::new(&manifests, &format!("r.io/app{nth}").parse().expect("a repository")))
            .collect();
        let (one, two, small) = (manifest(1, 3), manifest(2, 3), manifest(3, 0));
        assert!(read(&all_reads[0], &one) && !read(&all_reads[0], &two) && read(&all_reads[0], &small));
        let kept = all_reads[1..].iter().filter(|reads| read(reads, &one)).count();
        assert_eq!(kept, 20, "64 MiB of all images, 3 MiB each");
        drop(all_reads);
        assert_eq!(manifests.kept.load(Ordering::Relaxed), 0);
        assert!(manifests.cells.lock().expect("no panic").is_empty());
    }

    /// A repository whose tag moves with each request. Older manifests stay until they are removed.
    #[derive(Clone, Default)]
    struct Moving(Arc<Mutex<Seen>>);

    #[derive(Default)]
    struct Seen {
        heads: u32,
        gets: u32,
        gone: bool,
        held_back: bool,
    }

    fn image(nth: u32) -> Manifest {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[],"annotations":{{"nth":"{nth}"}}}}"#);
        Manifest::read(Bytes::from(text), Some("application/vnd.oci.image.index.v1+json"), None).expect("an index")
    }

    impl Moving {
        fn seen(&self) -> (u32, u32) {
            let seen = self.0.lock().expect("no panic");
            (seen.heads, seen.gets)
        }
    }

    impl Source for Moving {
        async fn resolve(&self, _target: &Target) -> Result<Option<Descriptor>> {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut seen = self.0.lock().expect("no panic");
            seen.heads += 1;
            Ok(Some(image(seen.heads + seen.gets).descriptor().clone()))
        }

        async fn manifest(&self, target: &Target) -> Result<Manifest> {
            let held_back = self.0.lock().expect("no panic").held_back;
            tokio::time::sleep(if held_back { Duration::from_secs(3600) } else { Duration::from_millis(2) }).await;
            let mut seen = self.0.lock().expect("no panic");
            seen.gets += 1;
            match target.digest() {
                Some(_) if seen.gone => Err(Error::new(Kind::NotFound, "gone")),
                Some(digest) => Ok((0..9).map(image).find(|image| image.digest() == digest).expect("it was there")),
                None => Ok(image(seen.heads + seen.gets)),
            }
        }

        async fn blob(&self, _blob: &Descriptor, _from: u64) -> Result<Body> {
            Err(Error::new(Kind::NotFound, "there are none"))
        }

        async fn referrers(&self, _subject: &Digest) -> Result<Vec<Descriptor>> {
            Ok(Vec::new())
        }

        fn tags(&self) -> TagPages {
            Box::pin(futures_util::stream::empty())
        }
    }

    /// In either order: destinations that have the tag and send HEAD, and a new one that sends GET.
    #[tokio::test(start_paused = true)]
    async fn all_destinations_get_one_image_of_a_tag_that_moves() {
        let tag = Target::Tag("v1".into());
        let from: Repository = "r.io/app".parse().expect("a repository");
        for (order, asked) in [("head, then get", (1, 1)), ("get, then head", (0, 1)), ("both at once", (1, 2))] {
            let source = Moving::default();
            let reads = Arc::new(ImageReads::new(&Arc::default(), &from));
            let shared = || SharedSource::new(source.clone(), reads.clone());
            let (one, two, new) = (shared(), shared(), shared());
            let head = async |shared: &SharedSource<Moving>| {
                shared.resolve(&tag).await.expect("it's there").expect("it's there").digest
            };
            let heads = async || tokio::join!(head(&one), head(&two));
            let get = async || new.manifest(&tag).await.expect("it's there").digest();
            let (first, second, read) = match order {
                "head, then get" => {
                    let (first, second) = heads().await;
                    (first, second, get().await)
                }
                "get, then head" => {
                    let read = get().await;
                    let (first, second) = heads().await;
                    (first, second, read)
                }
                _ => {
                    let ((first, second), read) = tokio::join!(heads(), get());
                    (first, second, read)
                }
            };
            assert_eq!((first, second), (read, read), "{order}");
            assert_eq!(source.seen(), asked, "{order}");
            assert_eq!(one.manifest(&Target::Digest(first)).await.expect("read").digest(), read);
            assert_eq!((source.seen().1, one.given(), new.given()), (asked.1, 1, 0), "{order}");
        }
    }

    /// As Docker Hub without pulls for hours: the digest of a tag is known all the same.
    #[tokio::test(start_paused = true)]
    async fn who_asks_waits_for_none_who_reads() {
        let source = Moving::default();
        let from = "r.io/app".parse().expect("a repository");
        let reads = Arc::new(ImageReads::new(&Arc::default(), &from));
        let (one, new) = (SharedSource::new(source.clone(), reads.clone()), SharedSource::new(source.clone(), reads));
        source.0.lock().expect("no panic").held_back = true;
        let tag = Target::Tag("v1".into());
        let mut get = std::pin::pin!(new.manifest(&tag));
        assert!(futures_util::poll!(&mut get).is_pending());
        let head = tokio::time::timeout(Duration::from_secs(60), one.resolve(&tag)).await;
        assert!(head.expect("it waits for a pull").expect("it's there").is_some());
        assert!(futures_util::poll!(&mut get).is_pending());
    }

    /// The manifest that a tag had may be gone before it is read.
    #[tokio::test(start_paused = true)]
    async fn an_image_that_is_gone_is_what_its_tag_is_now() {
        let (source, tag) = (Moving::default(), Target::Tag("v1".into()));
        let from = "r.io/app".parse().expect("a repository");
        let shared = SharedSource::new(source.clone(), Arc::new(ImageReads::new(&Arc::default(), &from)));
        let before = shared.resolve(&tag).await.expect("it's there").expect("it's there");
        source.0.lock().expect("no panic").gone = true;
        let read = shared.manifest(&tag).await.expect("another one");
        assert_ne!(read.digest(), before.digest);
        assert_eq!(shared.resolve(&tag).await.expect("known").expect("known").digest, read.digest());
    }
}
