//! Finding a blob for a request: in the cache, among the running fills, or by a new fill. What is there already is only
//! for a repository that holds it: see [`membership`](crate::proxy::membership).

use std::sync::Arc;

use tokio::time::Instant;

use super::{Begun, Fill, Found};
use crate::descriptor::Digest;
use crate::error::{Kind, Result};
use crate::pool::blocking;
use crate::proxy::cache::Stored;
use crate::proxy::events::{How, What};
use crate::proxy::manifests::upstreams_fault;
use crate::proxy::world::Spot;
use crate::proxy::{Inner, Origins, patiently_since};

/// Where a request for a blob got to.
enum Boarding<S> {
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
        spot: &Spot,
        digest: &Digest,
    ) -> Result<Option<Found<O::Source>>> {
        let (found, how) = self.blob_quietly(spot, digest).await;
        let how = match &found {
            Ok(Some(Found::Passed(..))) => How::Passed,
            Ok(Some(_)) => how,
            Ok(None) => How::Absent,
            Err(_) => How::Failed,
        };
        self.served(spot, What::Blob, how);
        found
    }

    /// The same, told to nobody.
    pub(in crate::proxy) async fn blob_quietly(
        self: &Arc<Self>,
        spot: &Spot,
        digest: &Digest,
    ) -> (Result<Option<Found<O::Source>>>, How) {
        let (mut how, begun) = (How::Hit, Instant::now());
        let finding = self.find(spot, digest, begun, &mut how);
        let found = patiently_since(begun, self.timeouts.request, finding).await;
        (found, how)
    }

    async fn find(
        self: &Arc<Self>,
        spot: &Spot,
        digest: &Digest,
        begun: Instant,
        how: &mut How,
    ) -> Result<Option<Found<O::Source>>> {
        // A record of the repository may know it, and its size: the same is done whether or not it's cached.
        let mut is_member = self.is_recorded_member(spot, digest).await;
        let mut joined = false;
        loop {
            if is_member && let Some(stored) = self.stored(digest).await? {
                return Ok(Some(Found::Hot(stored)));
            }
            if self.is_absent(spot, digest) {
                return Ok(None);
            }
            let (fill, begins) = match self.board(spot, digest, is_member) {
                Boarding::On(fill, begins) => (fill, begins),
                Boarding::Cached if is_member => continue,
                Boarding::Cached | Boarding::Foreign => {
                    is_member = self.confirm_blob(spot, digest).await?.is_some();
                    continue;
                }
            };
            *how = if begins { How::Miss } else { How::Coalesced };
            match fill.opened().await {
                Ok(Begun { blob, to: None }) => return Ok(Some(Found::Passed(blob.clone().into(), begun))),
                Ok(_) => return Ok(Some(Found::Filling(fill.clone()))),
                // Another's repository hasn't it, or may not be read: ours is asked too.
                Err(_) if fill.spot != *spot => tokio::task::yield_now().await,
                Err(error) if error.kind() == Kind::NotFound => {
                    self.note_absent(spot, digest);
                    return Ok(None);
                }
                // It was asked for by someone whose patience was over before ours.
                Err(error) if !begins && error.is_transient() && !std::mem::replace(&mut joined, true) => {}
                Err(error) => return Err(upstreams_fault(error)),
            }
        }
    }

    async fn stored(&self, digest: &Digest) -> Result<Option<Stored>> {
        let Some(pin) = self.cache.blobs.pin(digest) else { return Ok(None) };
        let (blobs, digest) = (self.cache.blobs.clone(), *digest);
        blocking(move || blobs.open_pinned(&digest, pin)).await
    }

    /// Joins the fill of the blob, or begins one. What is cached, or being fetched for another repository, is only for
    /// a repository that holds it.
    fn board(self: &Arc<Self>, spot: &Spot, digest: &Digest, is_member: bool) -> Boarding<O::Source> {
        let mut running = self.fills.lock();
        // Under the lock: a fill leaves the list only after its blob is in the cache.
        if self.cache.blobs.size_of(digest).is_some() {
            return Boarding::Cached;
        }
        match running.get(digest) {
            Some(fill) if is_member || fill.spot == *spot => return Boarding::On(fill.clone(), false),
            Some(_) => return Boarding::Foreign,
            None => {}
        }
        let fill = Arc::new(Fill::new(*digest, spot.clone()));
        running.insert(*digest, fill.clone());
        drop(running);
        self.begin(fill.clone());
        Boarding::On(fill, true)
    }

    /// How large a blob is, without fetching it.
    pub(in crate::proxy) async fn blob_size(
        self: &Arc<Self>,
        spot: &Spot,
        digest: &Digest,
    ) -> (Result<Option<u64>>, How) {
        let is_member = self.is_recorded_member(spot, digest).await;
        if is_member && let Some(size) = self.cache.blobs.size_of(digest) {
            return (Ok(Some(size)), How::Hit);
        }
        let filling = self.fills.lock().get(digest).filter(|fill| is_member || fill.spot == *spot).cloned();
        if let Some(size) = filling.and_then(|fill| Some(fill.begun.get()?.blob.size)) {
            return (Ok(Some(size)), How::Passed);
        }
        (self.patiently(self.timeouts.request, self.confirm_blob(spot, digest)).await, How::Passed)
    }

    pub(in crate::proxy) async fn ask_size(&self, spot: &Spot, digest: &Digest) -> Result<Option<u64>> {
        let origins = &self.upstreams.origins;
        let question = |source: O::Source| async move { origins.size_of(&source, digest).await };
        Ok(self.upstreams.ask(spot, self.timeouts.request, question).await?.map(|found| found.value))
    }
}
