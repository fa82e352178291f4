//! A running proxy's cache, looked at and mended: what [`cache::admin`](super::cache::admin) does to a
//! directory that nobody uses. What is being read isn't removed, save what is corrupt.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::cache::admin::{Item, Listed};
use super::cache::{Cache, Freed, Live, Removal, Sum, Wanted};
use super::events::{Event, Observer};
use super::scrub;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::pool::blocking;

/// What can be done to a running proxy's cache. Clones do it to the same one.
#[derive(Clone)]
pub struct Admin {
    live: Live,
    observer: Arc<dyn Observer>,
    /// One at a time reads or collects all of it.
    turn: Arc<Semaphore>,
}

/// A part of the cache's tags: [`PARTS`] make all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tags {
    /// The tags.
    pub tags: Vec<Listed>,
}

/// What a part of the cache's content was found to be: [`PARTS`] make all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Verified {
    /// What was read.
    pub read: Sum,
    /// What was corrupt, and is gone.
    pub dropped: Vec<Digest>,
}

/// In so many steps the whole is gone through, so that no step's answer is large.
pub const PARTS: u16 = 256;

impl Admin {
    pub(super) fn new(cache: &Cache, observer: Arc<dyn Observer>) -> Self {
        Self { live: cache.live(), observer, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Some of the tags.
    ///
    /// # Errors
    /// [`Kind::Local`] if the directory can't be read.
    pub async fn tags(&self, part: u16) -> Result<Tags> {
        let live = self.live.clone();
        blocking(move || Ok(Tags { tags: super::cache::admin::tags(live.dir(), part)? })).await
    }

    /// The manifests, then the blobs.
    pub fn counts(&self) -> [Sum; 2] {
        [&self.live.documents.shelf().count(), &self.live.blobs.count()].map(|&(count, bytes)| Sum { count, bytes })
    }

    /// Removes a tag, or content.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails.
    pub async fn remove(&self, item: Item) -> Result<Removal> {
        let live = self.live.clone();
        blocking(move || live.remove(&item)).await
    }

    /// The turn for what goes through all of the cache, held until it's dropped.
    ///
    /// # Errors
    /// [`Kind::Limited`] if somebody has it.
    pub fn turn(&self) -> Result<OwnedSemaphorePermit> {
        let taken = self.turn.clone().try_acquire_owned();
        taken.map_err(|_| Error::new(Kind::Limited, "another gc or verify of this cache is under way"))
    }

    /// Removes what is too old, too much, or left over; the bounds are the proxy's own, where none are given.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails.
    pub async fn gc(&self, wanted: Wanted) -> Result<Freed> {
        let live = self.live.clone();
        blocking(move || live.gc(wanted)).await
    }

    /// Reads some of the content, as fast as it goes, and drops what is corrupt.
    pub async fn verify(&self, part: u16) -> Verified {
        let mut found = Verified::default();
        let shelves = [self.live.blobs.clone(), self.live.documents.shelf().clone()];
        let dropped = |digest: &Digest| {
            self.observer.event(&Event::Corrupt { digest });
            found.dropped.push(*digest);
        };
        let read = scrub::part(&shelves, part as u8, None, &|_| {}, dropped).await;
        found.read = Sum { count: read.files, bytes: read.bytes };
        found
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("dir", &self.live.dir()).finish_non_exhaustive()
    }
}
