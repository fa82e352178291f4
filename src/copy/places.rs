//! Who may move bytes now: places at each source and at each destination.
//!
//! A blob takes a place at both ends at once, or waits for both: so a slow source leaves the others
//! their destinations, and the other way round. Of a registry's places the huge blobs never take all:
//! what is smaller passes them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The places of a run.
#[derive(Debug)]
pub(super) struct Places {
    /// Of each registry and direction, for blobs that take time and memory.
    large: usize,
    taken: Mutex<HashMap<Key, usize>>,
    freed: Notify,
}

/// Which places are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    registry: String,
    source: bool,
    class: Class,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    Small,
    /// Everything that isn't small.
    Large,
    /// Counted among the large ones too.
    Huge,
}

/// A blob's places, given back on drop.
#[derive(Debug)]
pub(super) struct Place<'a> {
    places: &'a Places,
    keys: Vec<Key>,
}

impl Places {
    /// Up to `large` large blobs at once from and to each registry.
    pub(super) fn new(large: usize) -> Self {
        Self { large, taken: Mutex::default(), freed: Notify::new() }
    }

    /// Waits for a place at both ends for a blob of `size` bytes.
    pub(super) async fn take(&self, source: &str, destination: &str, size: u64) -> Place<'_> {
        let keys = keys(source, destination, size);
        loop {
            let freed = self.freed.notified();
            let mut freed = std::pin::pin!(freed);
            // Before looking, so that what is freed in between isn't missed.
            freed.as_mut().enable();
            if self.try_take(&keys) {
                return Place { places: self, keys };
            }
            freed.await;
        }
    }

    fn try_take(&self, keys: &[Key]) -> bool {
        let mut taken = self.lock();
        let free = keys.iter().all(|key| taken.get(key).copied().unwrap_or_default() < self.most(key.class));
        if free {
            for key in keys {
                *taken.entry(key.clone()).or_default() += 1;
            }
        }
        free
    }

    fn most(&self, class: Class) -> usize {
        match class {
            Class::Small => self.large * SMALL_FOR_LARGE,
            Class::Large => self.large,
            Class::Huge => (self.large - self.large.div_ceil(4)).max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        for key in &self.keys {
            if let Some(count) = taken.get_mut(key) {
                *count -= 1;
            }
        }
        drop(taken);
        self.places.freed.notify_waiters();
    }
}

fn keys(source: &str, destination: &str, size: u64) -> Vec<Key> {
    let classes: &[Class] = if size <= SMALL {
        &[Class::Small]
    } else if size < HUGE {
        &[Class::Large]
    } else {
        &[Class::Large, Class::Huge]
    };
    let ends = [(source, true), (destination, false)];
    let key = |(registry, source): (&str, bool), class: Class| Key { registry: registry.to_owned(), source, class };
    ends.iter().flat_map(|end| classes.iter().map(|class| key(*end, *class))).collect()
}

/// Blobs up to this many bytes cost round trips rather than bandwidth or memory.
pub(super) const SMALL: u64 = 512 << 10;
/// So many of them run beside each large one's place.
pub(super) const SMALL_FOR_LARGE: usize = 8;
/// From here on, in bytes, a blob holds its place for so long that others must have one left.
const HUGE: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    const MIB: u64 = 1 << 20;

    #[test]
    fn huge_blobs_leave_a_place_and_each_registry_has_its_own() {
        let places = Places::new(4);
        let take = |from: &'static str, to: &'static str, size| places.take(from, to, size).now_or_never();
        let huge: Vec<_> = (0..3).filter_map(|_| take("hub", "acr", 1024 * MIB)).collect();
        assert_eq!(huge.len(), 3);
        assert!(take("hub", "acr", 1024 * MIB).is_none(), "the last place is not for huge ones");
        let large = take("hub", "acr", 50 * MIB);
        assert!(large.is_some());
        assert!(take("hub", "acr", 50 * MIB).is_none(), "four in all");
        assert!(take("quay", "acr", 50 * MIB).is_none(), "the destination is full");
        assert!(take("hub", "other", 50 * MIB).is_none(), "the source is full");
        assert!(take("quay", "other", 50 * MIB).is_some());
        assert!(take("hub", "acr", 10).is_some(), "small ones have places of their own");
        drop(huge);
        assert!(take("quay", "acr", 50 * MIB).is_some());
    }

    #[test]
    fn one_job_moves_huge_blobs_too() {
        let places = Places::new(1);
        let held = places.take("a", "b", 1024 * MIB).now_or_never();
        assert!(held.is_some());
        assert!(places.take("a", "b", MIB).now_or_never().is_none());
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let places = Places::new(1);
        let held = places.take("a", "b", MIB).await;
        let (second, ()) = tokio::join!(places.take("a", "b", MIB), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        drop(second);
    }
}
