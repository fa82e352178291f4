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
pub(super) struct Lanes<T> {
    lanes: Mutex<BTreeMap<String, Lane<T>>>,
    changed: Notify,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    /// Those who may still fill it.
    fillers: usize,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), fillers: 0 }
    }
}

impl<T> Lanes<T> {
    /// The lanes that the fillers go to, each of which has named its registries.
    pub(super) fn new<'a>(fillers: impl IntoIterator<Item = &'a [String]>) -> Self {
        let mut lanes = BTreeMap::<String, Lane<T>>::new();
        for registry in fillers.into_iter().flatten() {
            lanes.entry(registry.clone()).or_default().fillers += 1;
        }
        Self { lanes: Mutex::new(lanes), changed: Notify::new() }
    }

    /// The registries.
    pub(super) fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// How many wait in the lane.
    pub(super) fn length(&self, registry: &str) -> usize {
        self.lock().get(registry).map_or(0, |lane| lane.waiting.len())
    }

    /// Puts something at the lane's end.
    pub(super) fn push(&self, registry: &str, item: T) {
        if let Some(lane) = self.lock().get_mut(registry) {
            lane.waiting.push_back(item);
        }
        self.changed.notify_waiters();
    }

    /// Waits until a lane that may still be filled is short, whichever that is: who knows what comes next? Nobody
    /// waits for long, though, in front of a lane that is longer than any should be.
    pub(super) async fn wanted(&self) {
        self.until(|lanes| {
            let short = lanes.values().any(|lane| lane.fillers > 0 && lane.waiting.len() < SHORT);
            (short && lanes.values().all(|lane| lane.waiting.len() < LONGEST)).then_some(())
        })
        .await;
    }

    /// One who named these registries has nothing more for them.
    pub(super) fn filled(&self, registries: &[String]) {
        let mut lanes = self.lock();
        for registry in registries {
            if let Some(lane) = lanes.get_mut(registry) {
                lane.fillers -= 1;
            }
        }
        drop(lanes);
        self.changed.notify_waiters();
    }

    /// The first one in the lane; waits for it. `None` when nothing comes any more.
    pub(super) async fn next(&self, registry: &str) -> Option<T> {
        let next = self
            .until(|lanes| {
                let Some(lane) = lanes.get_mut(registry) else { return Some(None) };
                match lane.waiting.pop_front() {
                    None if lane.fillers > 0 => None,
                    next => Some(next),
                }
            })
            .await;
        self.changed.notify_waiters();
        next
    }

    async fn until<R>(&self, mut ready: impl FnMut(&mut BTreeMap<String, Lane<T>>) -> Option<R>) -> R {
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Lane<T>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lane that wants more.
pub(super) const SHORT: usize = 16;
/// Of so many names, some megabytes, a lane that lags behind makes the others wait for it.
const LONGEST: usize = 20_000;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn lanes(fillers: &[&[&str]]) -> (Lanes<usize>, Vec<Vec<String>>) {
        let named: Vec<Vec<String>> =
            fillers.iter().map(|names| names.iter().map(|name| (*name).to_owned()).collect()).collect();
        (Lanes::new(named.iter().map(Vec::as_slice)), named)
    }

    #[test]
    fn a_lane_that_stands_stops_no_other() {
        let (lanes, named) = lanes(&[&["good", "dead"], &["dead"]]);
        let mut came = 0;
        while came < 10 * SHORT {
            assert!(lanes.wanted().now_or_never().is_some(), "{came}");
            lanes.push("dead", came);
            lanes.push("good", came);
            assert_eq!(lanes.next("good").now_or_never(), Some(Some(came)));
            came += 1;
        }
        assert_eq!((lanes.length("dead"), lanes.length("good")), (10 * SHORT, 0));
        // Nothing comes for the good one any more: the other alone is waited for.
        lanes.filled(&named[0]);
        assert_eq!(lanes.next("good").now_or_never(), Some(None));
        assert!(lanes.wanted().now_or_never().is_none());
        (0..=9 * SHORT).for_each(|nth| assert_eq!(lanes.next("dead").now_or_never(), Some(Some(nth))));
        assert!(lanes.wanted().now_or_never().is_some());
        lanes.filled(&named[1]);
        (0..SHORT - 1).for_each(|_| assert!(lanes.next("dead").now_or_never().flatten().is_some()));
        assert_eq!(lanes.next("dead").now_or_never(), Some(None));
    }

    #[test]
    fn no_lane_is_longer_than_some_names() {
        let (lanes, _) = lanes(&[&["good", "dead"]]);
        (0..LONGEST).for_each(|nth| lanes.push("dead", nth));
        assert!(lanes.wanted().now_or_never().is_none());
        assert!(lanes.next("dead").now_or_never().is_some() && lanes.wanted().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_waits_hears_of_it() {
        let (lanes, named) = lanes(&[&["r"]]);
        let (first, ()) = tokio::join!(lanes.next("r"), async { lanes.push("r", 7) });
        assert_eq!(first, Some(7));
        (0..SHORT).for_each(|nth| lanes.push("r", nth));
        let ((), next) = tokio::join!(lanes.wanted(), lanes.next("r"));
        assert_eq!(next, Some(0));
        (1..SHORT).for_each(|_| assert!(lanes.next("r").now_or_never().is_some()));
        let (last, ()) = tokio::join!(lanes.next("r"), async { lanes.filled(&named[0]) });
        assert_eq!(last, None);
    }
}
