//! What a backend says of an answer besides the answer: how it came about. Clients hear that it may be old,
//! the access log hears all of it.

use std::cell::Cell;
use std::future::Future;

/// How an answer came about. In the extensions of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// In one word, such as `hit`.
    pub how: &'static str,
    /// It may be old: what it comes from can't be asked.
    pub stale: bool,
}

tokio::task_local! {
    // By the task, as it's of no use to most backends: each of their methods would hand it on.
    static SAID: Cell<Option<Served>>;
}

/// A backend says it while it answers; what is said last holds. Nobody hears it outside of a request.
pub fn record(served: Served) {
    let _ = SAID.try_with(|said| said.set(Some(served)));
}

/// Runs `work`, and hears what is said meanwhile.
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
