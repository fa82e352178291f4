//! The commands of operators on the cache of a running proxy. [`cache::offline`](super::cache::offline) has them for a
//! directory without a proxy. Content that is being read is removed only if it is corrupt.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::offline::{Item, ListedTag};
use super::cache::{Cache, FileTotals, GcOptions, GcResult, OnlineCache, Removal};
use super::events::{Event, Observer};
use super::scrub;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::pool::run_blocking;

/// The commands on the cache of a running proxy. Clones share the cache.
#[derive(Clone)]
pub(crate) struct CacheAdmin {
    online: OnlineCache,
    observer: Arc<dyn Observer>,
    /// Held by the one command that goes through the whole cache.
    exclusive: Arc<Semaphore>,
}

/// A part of the cache's tags: [`PARTS`] make all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TagsPart {
    pub(crate) tags: Vec<ListedTag>,
}

/// The result of verifying a part of the cache: [`PARTS`] make all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct VerifiedPart {
    pub(crate) read: FileTotals,
    /// The corrupt content, which was removed.
    pub(crate) dropped: Vec<Digest>,
}

/// The number of parts that commands divide the cache into, so that no part of an answer is large.
pub(crate) const PARTS: u16 = 256;

impl CacheAdmin {
    pub(super) fn new(cache: &Cache, observer: Arc<dyn Observer>) -> Self {
        Self { online: cache.online(), observer, exclusive: Arc::new(Semaphore::new(1)) }
    }

    /// The tags of a part.
    ///
    /// # Errors
    /// [`Kind::Local`] if the directory cannot be read.
    pub(crate) async fn tags(&self, part: u16) -> Result<TagsPart> {
        let cache = self.online.clone();
        run_blocking(move || Ok(TagsPart { tags: super::cache::offline::tags(cache.dir(), part)? })).await
    }

    /// The totals of the manifests, then of the blobs.
    pub(crate) fn counts(&self) -> [FileTotals; 2] {
        [self.online.manifest_store.content_store().count(), self.online.blobs.count()]
            .map(|(count, bytes)| FileTotals { count, bytes })
    }

    /// Removes a tag, or content.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails.
    pub(crate) async fn remove(&self, item: Item) -> Result<Removal> {
        let cache = self.online.clone();
        run_blocking(move || cache.remove(&item)).await
    }

    /// The permit for a command that goes through the whole cache.
    ///
    /// # Errors
    /// [`Kind::Limited`] if another command has it.
    pub(crate) fn acquire_permit(&self) -> Result<OwnedSemaphorePermit> {
        let taken = self.exclusive.clone().try_acquire_owned();
        taken.map_err(|_| Error::new(Kind::Limited, "another gc or verify of this cache is running"))
    }

    /// Removes content that is too old or exceeds the limits, and leftovers. Limits that `wanted` leaves out are the proxy's own.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails.
    pub(crate) async fn gc(&self, wanted: GcOptions) -> Result<GcResult> {
        let cache = self.online.clone();
        run_blocking(move || cache.gc(wanted)).await
    }

    /// Reads the content of a part without a rate limit, and removes corrupt content.
    pub(crate) async fn verify(&self, part: u16) -> VerifiedPart {
        let mut found = VerifiedPart::default();
        let stores = self.online.stores();
        let dropped = |digest: &Digest| {
            self.observer.event(&Event::Corrupt { digest });
            found.dropped.push(*digest);
        };
        let read = scrub::scrub_part(&stores, part as u8, None, &|_| {}, dropped).await;
        found.read = FileTotals { count: read.files, bytes: read.bytes };
        found
    }
}

impl std::fmt::Debug for CacheAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheAdmin").field("dir", &self.online.dir()).finish_non_exhaustive()
    }
}
