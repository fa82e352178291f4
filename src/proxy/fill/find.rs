//! Finding a blob for a request: in the cache, among the running fills, or by a new fill. What is there already is only
//! for a repository that holds it: see [`membership`](crate::proxy::membership).

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

/// Where a request for a blob got to.
enum FillLookup<S> {
    /// Along with a fill, and whether it begins with this request.
    On(Arc<Fill<S>>, bool),
    /// The blob is cached.
    Cached,
    /// It's being fetched for another repository, and may not be for this one.
    Foreign,
}

impl<O: Origins> Inner<O> {
    /// The blob: from the disk, along with who is fetching it, or fetched from now on.
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

    /// The same, told to nobody.
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
        // A record of the repository may know it, and its size: the same is done whether or not it's cached.
        let mut is_member = self.is_recorded_member(repo, digest).await;
        let mut joined = false;
        loop {
            if is_member && let Some(stored) = self.stored(digest).await? {
                return Ok(Some(ReadableBlob::Hot(stored)));
            }
            if self.is_absent(repo, digest) {
                return Ok(None);
            }
            let (fill, begins) = match self.join_or_start(repo, digest, is_member) {
                FillLookup::On(fill, begins) => (fill, begins),
                FillLookup::Cached if is_member => continue,
                FillLookup::Cached | FillLookup::Foreign => {
                    is_member = self.confirm_blob(repo, digest).await?.is_some();
                    continue;
                }
            };
            *how = if begins { CacheOutcome::Miss } else { CacheOutcome::Coalesced };
            match fill.opened().await {
                Ok(FillStart { blob, to: None }) => return Ok(Some(ReadableBlob::Passed(blob.clone().into(), begun))),
                Ok(_) => return Ok(Some(ReadableBlob::Filling(fill.clone()))),
                // Another's repository hasn't it, or may not be read: ours is asked too.
                Err(_) if fill.repo != *repo => tokio::task::yield_now().await,
                Err(error) if error.kind() == Kind::NotFound => {
                    self.note_absent(repo, digest);
                    return Ok(None);
                }
                // It was asked for by someone whose patience was over before ours.
                Err(error) if !begins && error.is_transient() && !std::mem::replace(&mut joined, true) => {}
                Err(error) => return Err(blame_upstream(error)),
            }
        }
    }

    async fn stored(&self, digest: &Digest) -> Result<Option<StoredContent>> {
        let Some(pin) = self.cache.blobs.pin(digest) else { return Ok(None) };
        let (blobs, digest) = (self.cache.blobs.clone(), *digest);
        run_blocking(move || blobs.open_pinned(&digest, pin)).await
    }

    /// Joins the fill of the blob, or begins one. What is cached, or being fetched for another repository, is only for
    /// a repository that holds it.
    fn join_or_start(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        digest: &Digest,
        is_member: bool,
    ) -> FillLookup<O::Source> {
        let mut running = self.fills.lock();
        // Under the lock: a fill leaves the list only after its blob is in the cache.
        if self.cache.blobs.size_of(digest).is_some() {
            return FillLookup::Cached;
        }
        match running.get(digest) {
            Some(fill) if is_member || fill.repo == *repo => return FillLookup::On(fill.clone(), false),
            Some(_) => return FillLookup::Foreign,
            None => {}
        }
        let fill = Arc::new(Fill::new(*digest, repo.clone()));
        running.insert(*digest, fill.clone());
        drop(running);
        self.spawn_fill(fill.clone());
        FillLookup::On(fill, true)
    }

    /// How large a blob is, without fetching it.
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
        let origins = &self.upstreams.origins;
        let question = |source: O::Source| async move { origins.size_of(&source, digest).await };
        Ok(self.upstreams.ask(repo, self.timeouts.request, question).await?.map(|found| found.value))
    }
}
