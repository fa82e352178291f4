//! Tasks of the proxy. They continue when the client that caused them leaves.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::error::{Error, Kind, Result};
use crate::panics;

/// The proxy's tasks. Each holds a reference to the proxy, so they are ended by [`abort`](Self::abort), not by dropping
/// this.
#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<Option<JoinSet<()>>>);

impl Tasks {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Some(JoinSet::new())))
    }

    /// Runs `work` as a task. Drops it if the proxy is ending, or [`MAX_TASKS`] are running.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.0);
        let Some(tasks) = tasks.as_mut() else { return };
        // Finished tasks are removed, so that the set does not grow.
        while tasks.try_join_next().is_some() {}
        // Bounded: clients may send requests and leave.
        if tasks.len() < MAX_TASKS {
            tasks.spawn(work);
        }
    }

    /// Ends all tasks, and starts no more.
    pub(super) fn abort(&self) {
        // Dropped outside the lock: a task that is dropped may spawn.
        let tasks = lock(&self.0).take();
        drop(tasks);
    }
}

/// Running work by its key. Callers with the same key share one result.
#[derive(Debug)]
pub(super) struct SingleFlight<K, V>(Arc<Mutex<Running<K, V>>>);

type Running<K, V> = HashMap<K, watch::Receiver<Option<Landed<V>>>>;
type Landed<V> = Result<V, Arc<Error>>;

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone + Send + 'static, V: Clone + Send + Sync + 'static> SingleFlight<K, V> {
    /// The result of the running work of this key, or else of `work`. The flag is true if the work was running already.
    pub(super) async fn join<F>(&self, tasks: &Tasks, key: K, work: impl FnOnce() -> F) -> (Result<V>, bool)
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        let (mut landed, joined) = self.join_or_start(tasks, key, work);
        let result = match landed.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(value))) => Ok(value.clone()),
            Ok(Some(Err(error))) => Err(error.duplicate()),
            // The task was dropped before it had a result.
            _ => Err(Error::new(Kind::Interrupted, "the proxy is ending, or runs too many tasks")),
        };
        (result, joined)
    }

    fn join_or_start<F>(
        &self,
        tasks: &Tasks,
        key: K,
        work: impl FnOnce() -> F,
    ) -> (watch::Receiver<Option<Landed<V>>>, bool)
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        let mut running = lock(&self.0);
        if let Some(landed) = running.get(&key) {
            return (landed.clone(), true);
        }
        let (land, landed) = watch::channel(None);
        running.insert(key.clone(), landed.clone());
        // Before anything that can panic: `FlightGuard` takes the lock.
        drop(running);
        let over = FlightGuard { flights: self.0.clone(), key };
        let (work, quiet) = (work(), is_write_back());
        let work = async move { if quiet { as_write_back(work).await } else { work.await } };
        tasks.spawn(async move {
            let over = over;
            let result = panics::catch_panic(work).await.map_err(Arc::new);
            // Removed before the result is sent: a later caller starts new work.
            drop(over);
            land.send_replace(Some(result));
        });
        (landed, false)
    }
}

/// Removes the work from the running ones, also when its task is dropped.
struct FlightGuard<K: Eq + Hash, V> {
    flights: Arc<Mutex<Running<K, V>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for FlightGuard<K, V> {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.key);
    }
}

tokio::task_local! {
    // Task-local, because it would be a parameter of nearly all functions that ask an upstream.
    static WRITE_BACK: ();
}

/// Runs `work`, and the shared work that it starts, on behalf of write-back.
pub(super) async fn as_write_back<T>(work: impl Future<Output = T>) -> T {
    WRITE_BACK.scope((), work).await
}

/// Whether the current task reads for write-back and not for a client. Such reads cause no further write-back.
pub(super) fn is_write_back() -> bool {
    WRITE_BACK.try_with(|()| ()).is_ok()
}

const MAX_TASKS: usize = 10_000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn one_works_and_all_get_it() {
        let (tasks, flights) = (Tasks::new(), SingleFlight::<u8, u8>::default());
        let (ran, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let work = || {
            let (ran, gate) = (ran.clone(), gate.clone());
            async move {
                ran.fetch_add(1, Ordering::Relaxed);
                let _open = gate.acquire().await;
                Ok(7)
            }
        };
        {
            // Its client leaves.
            let first = flights.join(&tasks, 1, work);
            assert!(futures_util::FutureExt::now_or_never(first).is_none());
        }
        let all = futures_util::future::join_all((0..5).map(|_| flights.join(&tasks, 1, work)));
        let (all, ()) = tokio::join!(all, async { gate.add_permits(1) });
        assert!(all.into_iter().all(|(result, joined)| joined && matches!(result, Ok(7))));
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        assert!(lock(&flights.0).is_empty());
        let (again, joined) = flights.join(&tasks, 1, work).await;
        assert!(again.is_ok() && !joined);
    }

    /// All who wait get an error, and whoever asks next begins anew.
    #[tokio::test]
    async fn a_panic_is_an_answer_too() {
        let (tasks, flights) = (Tasks::new(), SingleFlight::<u8, u8>::default());
        let panics = || async {
            tokio::task::yield_now().await;
            panic!("by a test")
        };
        let all = futures_util::future::join_all((0..3).map(|_| flights.join(&tasks, 1, panics))).await;
        for (result, _) in all {
            let error = result.expect_err("it panicked");
            assert_eq!((error.kind(), error.to_string().contains("by a test")), (Kind::Internal, true), "{error}");
        }
        assert!(lock(&flights.0).is_empty());
        let (again, joined) = flights.join(&tasks, 1, || async { Ok(7) }).await;
        assert!(matches!(again, Ok(7)) && !joined);
    }

    #[tokio::test]
    async fn an_end_is_told() {
        let (tasks, flights) = (Tasks::new(), SingleFlight::<u8, u8>::default());
        let waits = flights.join(&tasks, 1, std::future::pending);
        let ends = async {
            tokio::task::yield_now().await;
            tasks.abort();
        };
        let ((result, _), ()) = tokio::join!(waits, ends);
        assert_eq!(result.expect_err("it ended").kind(), Kind::Interrupted);
        let (result, _) = flights.join(&tasks, 1, std::future::pending).await;
        assert_eq!(result.expect_err("it takes no more").kind(), Kind::Interrupted);
    }
}
