//! Finding a blob for a request: in the cache, among the running fills, or by a new fill. Content of the cache and of fills is
//! served only to a repository that it belongs to: see [`membership`](crate::proxy::membership).

use std::sync::Arc;

use tokio::time::Instant;

use super::{Fill, FillStart, ReadableBlob};
use crate::descriptor::Digest;
use crate::error::{Kind, Result};
use crate::pool::run_blocking;
use crate::proxy::cache::StoredContent;
use crate::proxy::events::{CacheOutcome, RequestKind};
use crate::proxy::tiers::blame_upstream;
use crate::proxy::upstreams::UpstreamRepository;
use crate::proxy::{Inner, Origins, with_patience_since};
use crate::server::Reply;

/// Where the blob of a request is.
enum FillLookup<S> {
    /// In a fill, and whether this request has started it.
    Filling(Arc<Fill<S>>, bool),
    /// In the cache.
    Cached,
    /// In a fill for another repository. The blob is not known to belong to this one.
    Foreign,
}

impl<O: Origins> Inner<O> {
    /// The blob: cached, in a running fill, or in a new fill. `None` if the repository does not have it.
    pub(in crate::proxy) async fn blob(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        digest: &Digest,
    ) -> Reply<Option<ReadableBlob<O::Source>>> {
        let (found, how) = self.blob_silently(repo, digest).await;
        let how = match &found {
            Ok(Some(ReadableBlob::Passed(..))) => CacheOutcome::Passed,
            _ => how,
        };
        self.report_served(repo, RequestKind::Blob, found, how)
    }

    /// Like [`blob`](Self::blob), but reports no outcome to the observer.
    pub(in crate::proxy) async fn blob_silently(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        digest: &Digest,
    ) -> (Result<Option<ReadableBlob<O::Source>>>, CacheOutcome) {
        let (mut how, begun) = (CacheOutcome::Hit, Instant::now());
        let finding = self.find_blob(repo, digest, begun, &mut how);
        let found = with_patience_since(begun, self.timeouts.request, finding).await;
        (found, how)
    }

    async fn find_blob(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        digest: &Digest,
        begun: Instant,
        how: &mut CacheOutcome,
    ) -> Result<Option<ReadableBlob<O::Source>>> {
        // Read for uncached blobs too: the repository's record may know the size.
        let mut is_member = self.is_recorded_member(repo, digest).await;
        let mut joined = false;
        loop {
            if is_member && let Some(stored) = self.stored(digest).await? {
                return Ok(Some(ReadableBlob::Hot(stored)));
            }
            if self.is_absent(repo, digest) {
                return Ok(None);
            }
            let (fill, starts) = match self.join_or_start(repo, digest, is_member) {
                FillLookup::Filling(fill, starts) => (fill, starts),
                FillLookup::Cached if is_member => continue,
                FillLookup::Cached | FillLookup::Foreign => {
                    if self.confirm_blob(repo, digest).await?.is_none() {
                        return Ok(None);
                    }
                    is_member = true;
                    continue;
                }
            };
            *how = if starts { CacheOutcome::Miss } else { CacheOutcome::Coalesced };
            match fill.opened().await {
                Ok(FillStart { blob, to: None }) => return Ok(Some(ReadableBlob::Passed(blob.clone().into(), begun))),
                Ok(_) => return Ok(Some(ReadableBlob::Filling(fill.clone()))),
                // The fill was for another repository, which lacks the blob or cannot be read. This one is asked too.
                Err(_) if fill.repo != *repo => tokio::task::yield_now().await,
                Err(error) if error.kind() == Kind::NotFound => {
                    self.note_absent(repo, digest);
                    return Ok(None);
                }
                // The request that started the fill had less time left than this one.
                Err(error) if !starts && error.is_transient() && !std::mem::replace(&mut joined, true) => {}
                Err(error) => return Err(blame_upstream(error)),
            }
        }
    }

    async fn stored(&self, digest: &Digest) -> Result<Option<StoredContent>> {
        let Some(pin) = self.cache.blobs.pin(digest) else { return Ok(None) };
        let (blobs, digest) = (self.cache.blobs.clone(), *digest);
        run_blocking(move || blobs.open_pinned(&digest, pin)).await
    }

    /// Joins the running fill of the blob, or starts one. A fill for another repository is joined only if the blob belongs to
    /// this repository.
    fn join_or_start(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        digest: &Digest,
        is_member: bool,
    ) -> FillLookup<O::Source> {
        let mut running = self.fills.lock();
        // Looked up under the lock: a fill leaves the list only after its blob is in the cache.
        if self.cache.blobs.size_of(digest).is_some() {
            return FillLookup::Cached;
        }
        match running.get(digest) {
            Some(fill) if is_member || fill.repo == *repo => return FillLookup::Filling(fill.clone(), false),
            Some(_) => return FillLookup::Foreign,
            None => {}
        }
        let fill = Arc::new(Fill::new(*digest, repo.clone()));
        running.insert(*digest, fill.clone());
        drop(running);
        self.spawn_fill(fill.clone());
        FillLookup::Filling(fill, true)
    }

    /// The size of a blob in bytes, without fetching the blob.
    pub(in crate::proxy) async fn blob_size(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        digest: &Digest,
    ) -> (Result<Option<u64>>, CacheOutcome) {
        let is_member = self.is_recorded_member(repo, digest).await;
        if is_member && let Some(size) = self.cache.blobs.size_of(digest) {
            return (Ok(Some(size)), CacheOutcome::Hit);
        }
        let filling = self.fills.lock().get(digest).filter(|fill| is_member || fill.repo == *repo).cloned();
        if let Some(size) = filling.and_then(|fill| Some(fill.begun.get()?.blob.size)) {
            return (Ok(Some(size)), CacheOutcome::Passed);
        }
        (self.with_patience(self.timeouts.request, self.confirm_blob(repo, digest)).await, CacheOutcome::Passed)
    }

    pub(in crate::proxy) async fn ask_size(&self, repo: &UpstreamRepository, digest: &Digest) -> Result<Option<u64>> {
        let origins = &self.tiers.origins;
        let question = |source: O::Source| async move { origins.size_of(&source, digest).await };
        Ok(self.tiers.ask(repo, self.timeouts.request, question).await?.map(|found| found.value))
    }
}
