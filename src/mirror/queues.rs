//! What waits for its turn on the way from one source to each of its destinations.
//!
//! ```text
//!                           ┌─ lane of one registry ──▶ window of images
//!  entries of a source ─────┤
//!                           └─ lane of another ───────▶ window of images
//! ```
//! Each destination's registry has a lane, so that one that is slow or dead keeps nothing from the others. Whoever fills
//! the lanes waits while none of them wants more. So a list costs no more memory than its lanes are long: a few images
//! each, but where a lane lags behind the others, since they go on; of an image that waits there, names alone are kept.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The lanes of one source, by the destination's registry.
#[derive(Debug)]
pub(super) struct RegistryQueues<T> {
    queues: Mutex<BTreeMap<String, RegistryQueue<T>>>,
    changed: Notify,
}

#[derive(Debug)]
struct RegistryQueue<T> {
    waiting: VecDeque<T>,
    /// Those who may still fill it.
    fillers: usize,
}

impl<T> Default for RegistryQueue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), fillers: 0 }
    }
}

impl<T> RegistryQueues<T> {
    /// The lanes that the fillers go to, each of which has named its registries.
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

    /// How many wait in the lane.
    pub(super) fn len_of(&self, registry: &str) -> usize {
        self.lock().get(registry).map_or(0, |queue| queue.waiting.len())
    }

    /// Puts something at the lane's end.
    pub(super) fn push(&self, registry: &str, item: T) {
        if let Some(queue) = self.lock().get_mut(registry) {
            queue.waiting.push_back(item);
        }
        self.changed.notify_waiters();
    }

    /// Waits until a lane that may still be filled is short, whichever that is: who knows what comes next? Nobody
    /// waits for long, though, in front of a lane that is longer than any should be.
    pub(super) async fn until_low(&self) {
        self.wait_until(|queues| {
            let short = queues.values().any(|queue| queue.fillers > 0 && queue.waiting.len() < LOW_WATERMARK);
            (short && queues.values().all(|queue| queue.waiting.len() < MAX_QUEUED)).then_some(())
        })
        .await;
    }

    /// One who named these registries has nothing more for them.
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

    /// The first one in the lane; waits for it. `None` when nothing comes any more.
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
            // Before looking, so that what changes in between isn't missed.
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

/// A lane that wants more.
pub(super) const LOW_WATERMARK: usize = 16;
/// Of so many names, some megabytes, a lane that lags behind makes the others wait for it.
const MAX_QUEUED: usize = 20_000;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn lanes(fillers: &[&[&str]]) -> (RegistryQueues<usize>, Vec<Vec<String>>) {
        let named: Vec<Vec<String>> =
            fillers.iter().map(|names| names.iter().map(|name| (*name).to_owned()).collect()).collect();
        (RegistryQueues::new(named.iter().map(Vec::as_slice)), named)
    }

    #[test]
    fn a_lane_that_stands_stops_no_other() {
        let (queues, named) = lanes(&[&["good", "dead"], &["dead"]]);
        let mut came = 0;
        while came < 10 * LOW_WATERMARK {
            assert!(queues.until_low().now_or_never().is_some(), "{came}");
            queues.push("dead", came);
            queues.push("good", came);
            assert_eq!(queues.next("good").now_or_never(), Some(Some(came)));
            came += 1;
        }
        assert_eq!((queues.len_of("dead"), queues.len_of("good")), (10 * LOW_WATERMARK, 0));
        // Nothing comes for the good one any more: the other alone is waited for.
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
    fn no_lane_is_longer_than_some_names() {
        let (queues, _) = lanes(&[&["good", "dead"]]);
        (0..MAX_QUEUED).for_each(|nth| queues.push("dead", nth));
        assert!(queues.until_low().now_or_never().is_none());
        assert!(queues.next("dead").now_or_never().is_some() && queues.until_low().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_waits_hears_of_it() {
        let (queues, named) = lanes(&[&["r"]]);
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
