//! A running proxy's cache, looked at and mended: what [`cache::offline`](super::cache::offline) does to a
//! directory that nobody uses. What is being read isn't removed, save what is corrupt.

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

/// What can be done to a running proxy's cache. Clones do it to the same one.
#[derive(Clone)]
pub struct CacheAdmin {
    online: OnlineCache,
    observer: Arc<dyn Observer>,
    /// One at a time reads or collects all of it.
    turn: Arc<Semaphore>,
}

/// A part of the cache's tags: [`PARTS`] make all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct TagsPart {
    /// The tags.
    pub tags: Vec<ListedTag>,
}

/// What a part of the cache's content was found to be: [`PARTS`] make all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct VerifiedPart {
    /// What was read.
    pub read: FileTotals,
    /// What was corrupt, and is gone.
    pub dropped: Vec<Digest>,
}

/// In so many steps the whole is gone through, so that no step's answer is large.
pub const PARTS: u16 = 256;

impl CacheAdmin {
    pub(super) fn new(cache: &Cache, observer: Arc<dyn Observer>) -> Self {
        Self { online: cache.online(), observer, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Some of the tags.
    ///
    /// # Errors
    /// [`Kind::Local`] if the directory can't be read.
    pub async fn tags(&self, part: u16) -> Result<TagsPart> {
        let cache = self.online.clone();
        run_blocking(move || Ok(TagsPart { tags: super::cache::offline::tags(cache.dir(), part)? })).await
    }

    /// The manifests, then the blobs.
    pub fn counts(&self) -> [FileTotals; 2] {
        [self.online.manifest_store.content_store().count(), self.online.blobs.count()]
            .map(|(count, bytes)| FileTotals { count, bytes })
    }

    /// Removes a tag, or content.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails.
    pub async fn remove(&self, item: Item) -> Result<Removal> {
        let cache = self.online.clone();
        run_blocking(move || cache.remove(&item)).await
    }

    /// The turn for what goes through all of the cache, held until it's dropped.
    ///
    /// # Errors
    /// [`Kind::Limited`] if somebody has it.
    pub fn acquire_permit(&self) -> Result<OwnedSemaphorePermit> {
        let taken = self.turn.clone().try_acquire_owned();
        taken.map_err(|_| Error::new(Kind::Limited, "another gc or verify of this cache is under way"))
    }

    /// Removes what is too old, too much, or left over; the bounds are the proxy's own, where none are given.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails.
    pub async fn gc(&self, wanted: GcOptions) -> Result<GcResult> {
        let cache = self.online.clone();
        run_blocking(move || cache.gc(wanted)).await
    }

    /// Reads some of the content, as fast as it goes, and drops what is corrupt.
    pub async fn verify(&self, part: u16) -> VerifiedPart {
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
