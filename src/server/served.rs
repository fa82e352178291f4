//! How a backend has produced an answer. The access log has the outcome, and clients get a header if the answer may be
//! outdated.

use std::cell::Cell;
use std::future::Future;

/// How an answer was produced. It is in the extensions of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The outcome in one word, such as `hit`.
    pub how: &'static str,
    /// The answer may be outdated, because the upstream cannot be asked.
    pub stale: bool,
}

tokio::task_local! {
    // Task-local: most backends do not use it, and each of their methods would need a parameter.
    static SAID: Cell<Option<Served>>;
}

/// Records how the current request is answered. A later call replaces an earlier one. Outside of a request it does nothing.
pub fn record(served: Served) {
    let _ = SAID.try_with(|said| said.set(Some(served)));
}

/// Runs `work`, and returns what it has [recorded](record).
pub(super) async fn capture<T>(work: impl Future<Output = T>) -> (T, Option<Served>) {
    let heard = async {
        let done = work.await;
        (done, SAID.with(Cell::get))
    };
    SAID.scope(Cell::new(None), heard).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_last_is_heard() {
        let served = |how| Served { how, stale: false };
        record(served("nobody"));
        let work = async {
            record(served("one"));
            tokio::task::yield_now().await;
            record(served("other"));
            7
        };
        let (both, none) = tokio::join!(capture(work), capture(async {}));
        assert_eq!((both, none.1), ((7, Some(served("other"))), None));
    }
}
