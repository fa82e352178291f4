//! Limits how many blobs are transferred at once, by slots at each source and at each destination.
//!
//! A blob takes a slot at both ends at once, or waits for both. So a slow source does not use up the slots of a
//! destination, and the other way round. Huge blobs never take all slots of a registry, so smaller blobs pass them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The slots of a run.
#[derive(Debug)]
pub(super) struct TransferSlots {
    /// Slots for large blobs, for each registry and direction.
    large: usize,
    taken: Mutex<HashMap<SlotKey, usize>>,
    freed: Notify,
}

/// The slots that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SlotKey {
    registry: String,
    source: bool,
    class: SizeClass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SizeClass {
    Small,
    /// Larger than [`SMALL_BLOB`]. Takes time and memory.
    Large,
    /// At least [`HUGE_BLOB`]. Also counted as large.
    Huge,
}

/// The slots of one blob. Dropping it frees them.
#[derive(Debug)]
pub(super) struct TransferSlot<'a> {
    slots: &'a TransferSlots,
    keys: Vec<SlotKey>,
}

impl TransferSlots {
    /// Slots for up to `large` large blobs at once from and to each registry.
    pub(super) fn new(large: usize) -> Self {
        Self { large, taken: Mutex::default(), freed: Notify::new() }
    }

    /// Waits for a slot at both ends for a blob of `size` bytes.
    pub(super) async fn acquire(&self, source: &str, destination: &str, size: u64) -> TransferSlot<'_> {
        let keys = keys(source, destination, size);
        loop {
            let freed = self.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // Registers before the check, so that a slot freed in between is not missed.
            freed.as_mut().enable();
            if self.try_acquire(&keys) {
                return TransferSlot { slots: self, keys };
            }
            freed.await;
        }
    }

    fn try_acquire(&self, keys: &[SlotKey]) -> bool {
        let mut taken = self.lock();
        let free = keys.iter().all(|key| taken.get(key).copied().unwrap_or_default() < self.capacity(key.class));
        if free {
            for key in keys {
                *taken.entry(key.clone()).or_default() += 1;
            }
        }
        free
    }

    fn capacity(&self, class: SizeClass) -> usize {
        match class {
            SizeClass::Small => self.large * SMALL_SLOTS_PER_LARGE,
            SizeClass::Large => self.large,
            SizeClass::Huge => (self.large - self.large.div_ceil(4)).max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SlotKey, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TransferSlot<'_> {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        for key in &self.keys {
            if let Some(count) = taken.get_mut(key) {
                *count -= 1;
            }
        }
        drop(taken);
        self.slots.freed.notify_waiters();
    }
}

fn keys(source: &str, destination: &str, size: u64) -> Vec<SlotKey> {
    let classes: &[SizeClass] = if size <= SMALL_BLOB {
        &[SizeClass::Small]
    } else if size < HUGE_BLOB {
        &[SizeClass::Large]
    } else {
        &[SizeClass::Large, SizeClass::Huge]
    };
    let ends = [(source, true), (destination, false)];
    let key =
        |(registry, source): (&str, bool), class: SizeClass| SlotKey { registry: registry.to_owned(), source, class };
    ends.iter().flat_map(|end| classes.iter().map(|class| key(*end, *class))).collect()
}

/// Blobs up to this many bytes cost round trips rather than bandwidth or memory.
pub(super) const SMALL_BLOB: u64 = 512 << 10;
/// Slots for small blobs, for each slot for a large blob.
pub(super) const SMALL_SLOTS_PER_LARGE: usize = 8;
/// Blobs of at least this many bytes hold a slot for so long that they must leave one for other blobs.
const HUGE_BLOB: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    const MIB: u64 = 1 << 20;

    #[test]
    fn huge_blobs_leave_a_slot_and_each_registry_has_its_own() {
        let slots = TransferSlots::new(4);
        let take = |from: &'static str, to: &'static str, size| slots.acquire(from, to, size).now_or_never();
        let huge: Vec<_> = (0..3).filter_map(|_| take("hub", "acr", 1024 * MIB)).collect();
        assert_eq!(huge.len(), 3);
        assert!(take("hub", "acr", 1024 * MIB).is_none(), "the last slot is not for huge blobs");
        let large = take("hub", "acr", 50 * MIB);
        assert!(large.is_some());
        assert!(take("hub", "acr", 50 * MIB).is_none(), "four in all");
        assert!(take("quay", "acr", 50 * MIB).is_none(), "the destination is full");
        assert!(take("hub", "other", 50 * MIB).is_none(), "the source is full");
        assert!(take("quay", "other", 50 * MIB).is_some());
        assert!(take("hub", "acr", 10).is_some(), "small blobs have slots of their own");
        drop(huge);
        assert!(take("quay", "acr", 50 * MIB).is_some());
    }

    #[test]
    fn one_job_moves_huge_blobs_too() {
        let slots = TransferSlots::new(1);
        let held = slots.acquire("a", "b", 1024 * MIB).now_or_never();
        assert!(held.is_some());
        assert!(slots.acquire("a", "b", MIB).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_waiting_blob_is_woken() {
        let slots = TransferSlots::new(1);
        let held = slots.acquire("a", "b", MIB).await;
        let (second, ()) = tokio::join!(slots.acquire("a", "b", MIB), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        drop(second);
    }
}
