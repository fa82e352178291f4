//! Blocking work on the runtime's thread pool.

use crate::error::{Error, Kind, Result};

/// Runs blocking work on a thread of the pool. Dropping the future does not stop the work.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::new(Kind::Interrupted, "the program is ending")),
        },
    }
}
