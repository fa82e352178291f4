//! Limits the memory for manifests: of each image, and of all images of an engine.
//!
//! Manifests come from outside. Without these limits an image could have ten thousand manifests of 4 MiB. An image holds
//! its manifests until it is copied, which may take hours.
//!
//! ```text
//!  ordinary images (up to 2 MiB each) ── share the pool; if it is exhausted, they wait for it or for the lane
//!  larger ones (up to 64 MiB)         ── one at a time: the lane
//! ```
//! Images of ordinary size do not wait for a large one. There is no deadlock: an image with the lane needs nothing more
//! from the pool, so it ends. And the lock to read a manifest ([`super::locks`]) is always taken before memory.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::Manifest;

/// The memory for the manifests of all images that are copied at once. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    /// Permits are KiB.
    pool: Arc<Semaphore>,
    /// One permit, for one image that is larger than an ordinary one.
    lane: Arc<Semaphore>,
}

/// The memory that the manifests of one image take. Dropping it gives the memory back.
#[derive(Debug)]
pub(crate) struct Account {
    memory: Option<Memory>,
    held: Mutex<AccountedManifests>,
}

#[derive(Debug, Default)]
struct AccountedManifests {
    bytes: u64,
    pool: Option<OwnedSemaphorePermit>,
    lane: Option<OwnedSemaphorePermit>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { pool: Arc::new(Semaphore::new(POOL_KIB)), lane: Arc::new(Semaphore::new(1)) }
    }
}

impl Memory {
    /// An account for an image to be copied.
    pub(super) fn account(&self) -> Account {
        Account { memory: Some(self.clone()), held: Mutex::default() }
    }
}

impl Account {
    /// An account for the only image of a process.
    pub(crate) fn alone() -> Self {
        Self { memory: None, held: Mutex::default() }
    }

    /// Waits until there is memory for the manifest with this digest and size, then reads it by `read`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if the manifests of the image take more than [`MAX_IMAGE`]; [`Kind::Mismatch`] if the size of the
    /// manifest is not that of its descriptor; the errors of `read`.
    pub(crate) async fn child(
        &self,
        (digest, size): (&Digest, u64),
        read: impl Future<Output = Result<Manifest>>,
    ) -> Result<Manifest> {
        self.add(size).await?;
        let manifest = read.await?;
        let read = manifest.descriptor().size;
        if read != size {
            let what = format!("manifest {digest} has {read} bytes, but its descriptor says {size}");
            return Err(Error::new(Kind::Mismatch, what).on(Side::Source));
        }
        self.add(weight(&manifest).saturating_sub(size)).await?;
        Ok(manifest)
    }

    /// Adds the root manifest, which was read before its size was known.
    ///
    /// # Errors
    /// As [`Self::child`].
    pub(crate) async fn root(&self, manifest: &Manifest) -> Result<()> {
        self.add(weight(manifest)).await
    }

    /// Waits for the memory of an image that is larger than ordinary ones.
    pub(super) async fn wait_for_lane(&self) {
        let mut held = self.held.lock().await;
        if let Some(memory) = &self.memory
            && held.lane.is_none()
        {
            held.lane = memory.lane.clone().acquire_owned().await.ok();
        }
    }

    /// Adds `bytes`. Waits until there is memory for them.
    async fn add(&self, bytes: u64) -> Result<()> {
        // Held while waiting: one image waits once, also if it reads several manifests at once.
        let mut held = self.held.lock().await;
        held.bytes += bytes;
        if held.bytes > MAX_IMAGE {
            let what = format!("the manifests of the image take more than {} MiB of memory in all", MAX_IMAGE >> 20);
            return Err(Error::new(Kind::Invalid, what).on(Side::Source).hint(
                "most images have some hundred KiB of manifests: check this image, or copy single platforms by --platform",
            ));
        }
        let Some(memory) = &self.memory else { return Ok(()) };
        if held.lane.is_some() {
            return Ok(());
        }
        // Neither semaphore is ever closed.
        let lane = memory.lane.clone().acquire_owned();
        if held.bytes > MAX_ORDINARY {
            held.lane = lane.await.ok();
            held.pool = None;
            return Ok(());
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        tokio::select! {
            biased;
            Ok(more) = memory.pool.clone().acquire_many_owned(kib) => match &mut held.pool {
                Some(pool) => pool.merge(more),
                None => held.pool = Some(more),
            },
            Ok(lane) = lane => {
                held.lane = Some(lane);
                held.pool = None;
            }
        }
        Ok(())
    }
}

/// Whether the root manifest may stay in memory while the image waits for its lock and for memory.
pub(super) fn is_small(root: &Manifest) -> bool {
    weight(root) <= MAX_WAITING
}

/// The memory of a manifest in bytes, including the copies of its descriptors in a plan.
fn weight(manifest: &Manifest) -> u64 {
    2 * manifest.weight() - manifest.descriptor().size
}

/// The most memory that the manifests of one image may take, in bytes.
pub(crate) const MAX_IMAGE: u64 = 64 << 20;
/// The most memory of an ordinary image, in bytes. An index of forty manifests with a dozen layers each takes about half
/// a MiB.
const MAX_ORDINARY: u64 = 2 << 20;
/// The largest root manifest that is kept while its image waits, in bytes.
const MAX_WAITING: u64 = 512 << 10;
/// The memory for the manifests of all ordinary images together, in KiB.
const POOL_KIB: usize = 96 << 10;

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, poll};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test]
    async fn large_images_wait_for_each_other_and_ordinary_ones_do_not_wait() {
        let memory = Memory::default();
        let (large, next, ordinary) = (memory.account(), memory.account(), memory.account());
        large.add(3 * MIB).await.expect("the first one");
        let mut waits = std::pin::pin!(next.add(3 * MIB));
        assert!(poll!(&mut waits).is_pending());
        ordinary.add(MIB).now_or_never().expect("no wait").expect("ordinary");
        large.add(61 * MIB).now_or_never().expect("no wait").expect("up to the limit");
        let error = large.add(1).await.expect_err("beyond it");
        assert_eq!(error.to_string(), "source: the manifests of the image take more than 64 MiB of memory in all");
        drop(large);
        waits.await.expect("its turn");
    }

    /// All of the pool is held by images that need more. One after the other gets the lane.
    #[tokio::test]
    async fn an_exhausted_pool_stops_no_image_for_ever() {
        let memory = Memory::default();
        let accounts: Vec<_> = (0..POOL_KIB / 1024).map(|_| memory.account()).collect();
        for account in &accounts {
            account.add(MIB).await.expect("room");
        }
        let more = accounts.into_iter().map(|account| async move {
            account.add(MIB / 2).await.expect("its turn");
            tokio::task::yield_now().await;
        });
        futures_util::future::join_all(more).await;
        assert_eq!((memory.pool.available_permits(), memory.lane.available_permits()), (POOL_KIB, 1));
    }
}
