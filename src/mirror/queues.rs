//! Queues of images, from one source to each of its destinations.
//!
//! ```text
//!                           ┌─ queue of one registry ──▶ window of images
//!  entries of a source ─────┤
//!                           └─ queue of another ───────▶ window of images
//! ```
//! Each destination's registry has a queue, so that a slow or dead one does not delay the others. Producers wait
//! until a queue runs low. So memory does not depend on the length of the list: each queue holds a few images. A
//! queue that is far behind may grow, since the others go on; its images are only names.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The queues of one source, by the destination's registry.
#[derive(Debug)]
pub(super) struct RegistryQueues<T> {
    queues: Mutex<BTreeMap<String, RegistryQueue<T>>>,
    changed: Notify,
}

#[derive(Debug)]
struct RegistryQueue<T> {
    waiting: VecDeque<T>,
    /// How many producers may still add to it.
    fillers: usize,
}

impl<T> Default for RegistryQueue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), fillers: 0 }
    }
}

impl<T> RegistryQueues<T> {
    /// Queues for these producers, each of which names its registries.
    pub(super) fn new<'a>(fillers: impl IntoIterator<Item = &'a [String]>) -> Self {
        let mut queues = BTreeMap::<String, RegistryQueue<T>>::new();
        for registry in fillers.into_iter().flatten() {
            queues.entry(registry.clone()).or_default().fillers += 1;
        }
        Self { queues: Mutex::new(queues), changed: Notify::new() }
    }

    /// The registries.
    pub(super) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// The length of a queue.
    pub(super) fn len_of(&self, registry: &str) -> usize {
        self.lock().get(registry).map_or(0, |queue| queue.waiting.len())
    }

    /// Appends an item to a queue.
    pub(super) fn push(&self, registry: &str, item: T) {
        if let Some(queue) = self.lock().get_mut(registry) {
            queue.waiting.push_back(item);
        }
        self.changed.notify_waiters();
    }

    /// Waits until a queue with producers is low, and none has [`MAX_QUEUED`] items.
    pub(super) async fn until_low(&self) {
        self.wait_until(|queues| {
            let short = queues.values().any(|queue| queue.fillers > 0 && queue.waiting.len() < LOW_WATERMARK);
            (short && queues.values().all(|queue| queue.waiting.len() < MAX_QUEUED)).then_some(())
        })
        .await;
    }

    /// A producer with these registries has no more items.
    pub(super) fn source_finished(&self, registries: &[String]) {
        let mut queues = self.lock();
        for registry in registries {
            if let Some(queue) = queues.get_mut(registry) {
                queue.fillers -= 1;
            }
        }
        drop(queues);
        self.changed.notify_waiters();
    }

    /// Waits for the first item of a queue. `None` if it is empty and has no producers.
    pub(super) async fn next(&self, registry: &str) -> Option<T> {
        let next = self
            .wait_until(|queues| {
                let Some(queue) = queues.get_mut(registry) else { return Some(None) };
                match queue.waiting.pop_front() {
                    None if queue.fillers > 0 => None,
                    next => Some(next),
                }
            })
            .await;
        self.changed.notify_waiters();
        next
    }

    async fn wait_until<R>(&self, mut ready: impl FnMut(&mut BTreeMap<String, RegistryQueue<T>>) -> Option<R>) -> R {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Subscribe before looking, so that no change is missed.
            changed.as_mut().enable();
            if let Some(result) = ready(&mut self.lock()) {
                return result;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, RegistryQueue<T>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shorter queue is low.
pub(super) const LOW_WATERMARK: usize = 16;
/// Producers wait for a queue with this many items, which take some megabytes.
const MAX_QUEUED: usize = 20_000;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn queues(fillers: &[&[&str]]) -> (RegistryQueues<usize>, Vec<Vec<String>>) {
        let named: Vec<Vec<String>> =
            fillers.iter().map(|names| names.iter().map(|name| (*name).to_owned()).collect()).collect();
        (RegistryQueues::new(named.iter().map(Vec::as_slice)), named)
    }

    #[test]
    fn a_blocked_queue_delays_no_other() {
        let (queues, named) = queues(&[&["good", "dead"], &["dead"]]);
        let mut came = 0;
        while came < 10 * LOW_WATERMARK {
            assert!(queues.until_low().now_or_never().is_some(), "{came}");
            queues.push("dead", came);
            queues.push("good", came);
            assert_eq!(queues.next("good").now_or_never(), Some(Some(came)));
            came += 1;
        }
        assert_eq!((queues.len_of("dead"), queues.len_of("good")), (10 * LOW_WATERMARK, 0));
        // The good queue has no producers left: only the other one counts.
        queues.source_finished(&named[0]);
        assert_eq!(queues.next("good").now_or_never(), Some(None));
        assert!(queues.until_low().now_or_never().is_none());
        (0..=9 * LOW_WATERMARK).for_each(|nth| assert_eq!(queues.next("dead").now_or_never(), Some(Some(nth))));
        assert!(queues.until_low().now_or_never().is_some());
        queues.source_finished(&named[1]);
        (0..LOW_WATERMARK - 1).for_each(|_| assert!(queues.next("dead").now_or_never().flatten().is_some()));
        assert_eq!(queues.next("dead").now_or_never(), Some(None));
    }

    #[test]
    fn queues_have_a_limit() {
        let (queues, _) = queues(&[&["good", "dead"]]);
        (0..MAX_QUEUED).for_each(|nth| queues.push("dead", nth));
        assert!(queues.until_low().now_or_never().is_none());
        assert!(queues.next("dead").now_or_never().is_some() && queues.until_low().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_waits_hears_of_it() {
        let (queues, named) = queues(&[&["r"]]);
        let (first, ()) = tokio::join!(queues.next("r"), async { queues.push("r", 7) });
        assert_eq!(first, Some(7));
        (0..LOW_WATERMARK).for_each(|nth| queues.push("r", nth));
        let ((), next) = tokio::join!(queues.until_low(), queues.next("r"));
        assert_eq!(next, Some(0));
        (1..LOW_WATERMARK).for_each(|_| assert!(queues.next("r").now_or_never().is_some()));
        let (last, ()) = tokio::join!(queues.next("r"), async { queues.source_finished(&named[0]) });
        assert_eq!(last, None);
    }
}
